"""Programs in processes forked from one that has imported the libraries: 0.2 s of processor time a start, not six.

What runs is the program itself: its file or module as `__main__`, with its own command line, environment, folder,
streams and exit status, on the CPU. Ranks are started by torchrun's own agent. With COLD_START=1 in the environment of
the tests everything starts anew, as people start it; so do always the launchers in tests/training/test_launch.py and
tests/engine/test_loop_processes.py and the scripts in tests/commands/test_setup_scripts.py.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# One thread; where a program asks for more, they sleep until there is work instead of turning in a loop, which took
# three quarters of the processor time of two ranks on two cores.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# What takes long to import, and the rooms of the package that import it.
LIBRARIES = [
    "pytest", "torch.distributed.run", "torch._dynamo", "accelerate", "safetensors.torch", "tqdm", "scipy.stats",
    "numba", "PIL.Image", "tyro", "syntheocc.pipelines", "syntheocc.training.train", "syntheocc.models.presets",
    "syntheocc.commands.generate", "syntheocc.commands.evaluate", "syntheocc.worlds.tree", "syntheocc.worlds.scene",
    "syntheocc.occupancy.perception.train", "syntheocc.occupancy.perception.evaluate",
]  # fmt: skip


@cache
def warm_context() -> ForkServerContext:
    """The context of `multiprocessing` whose processes are forked from one that has imported `LIBRARIES`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    # One thread, or a forked process waits for threads that it does not have. No GPU survives a fork.
    alone = THREADS | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with mock.patch.dict(os.environ, alone | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}):
        forkserver.ensure_running()
    return context


def run_program(
    *arguments: object, ranks: int = 0, cwd: Path | None = None, timeout: float = 300, **environ: str
) -> subprocess.CompletedProcess:
    """What `subprocess.run([python, *arguments], capture_output=True, text=True)` returns.

    Args:
        arguments: a file, or "-m" and a module, and the program's own.
        ranks: processes that torchrun starts; 0 is the program alone, without torchrun.
        cwd: where it runs (default: the tests' own folder).
        timeout: seconds until it is killed, with all that it has started.
        environ: what differs from the tests' environment.
    """
    command = [str(argument) for argument in arguments]
    variables = {**os.environ, **THREADS, "CUDA_VISIBLE_DEVICES": "", **environ}
    if os.environ.get("COLD_START"):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        whole = [sys.executable, *launch, *command]
        return subprocess.run(whole, capture_output=True, text=True, env=variables, cwd=cwd, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        job = warm_context().Process(target=_serve, args=(command, ranks, variables, cwd or Path.cwd(), streams))
        job.start()
        job.join(timeout)
        if job.is_alive():
            os.killpg(job.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_bytes() for path in streams))
        out, err = (path.read_text() for path in streams)
    return subprocess.CompletedProcess(command, job.exitcode, out, err)


def _serve(command: list[str], ranks: int, environ: dict[str, str], cwd: Path, streams: list[Path]) -> None:
    """In the forked process: become the program."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    if not ranks:
        _as_main(command)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # As torchrun --standalone, but for the ranks' start.
    config = LaunchConfig(
        1, 1, ranks, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, _as_main)(command)
    except ChildFailedError as error:
        sys.exit(str(error))


def _as_main(command: list[str]) -> None:
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        runpy.run_path(command[0], run_name="__main__")


def start_ranks(function: Callable[..., None], arguments: tuple, ranks: int) -> None:
    """What `torch.multiprocessing.spawn` does: the function of rank and arguments, in so many processes."""
    import torch.multiprocessing

    method = "spawn" if os.environ.get("COLD_START") else warm_context().get_start_method()
    torch.multiprocessing.start_processes(function, arguments, ranks, start_method=method)
