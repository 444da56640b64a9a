"""The `syntheocc` command: one file a subcommand, each a dataclass of settings and a job that takes it.

The root scripts (`infer.py`, `utils/gen_mtp.py`) run the same jobs with the published flags. Nothing heavy is
imported before a job starts, so ``syntheocc --help`` answers at once.
"""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `syntheocc` command; returns the exit status."""
    import tyro

    from syntheocc.commands import demo, edit, evaluate, generate, infos, loop, mpi, occupancy, world

    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["occupancy"]:
        return occupancy.main(argv[1:])
    jobs: dict[str, tuple[type, Callable[[Any], int]]] = {
        "demo": (demo.DemoConfig, demo.run),
        "mpi": (mpi.MPIConfig, mpi.run),
        "generate": (generate.GenerateConfig, generate.run),
        "loop": (loop.LoopConfig, loop.run),
        "edit": (edit.EditConfig, edit.run),
        "world": (world.WorldConfig, world.run),
        "infos": (infos.InfosConfig, infos.run),
        "evaluate": (evaluate.EvaluateConfig, evaluate.run),
        "occupancy": (occupancy.OccupancyCommands, lambda _: occupancy.main([])),
    }
    try:
        choices = [
            Annotated[with_help(kind), tyro.conf.subcommand(name, description=kind.__doc__)]  # type: ignore
            for name, (kind, _) in jobs.items()
        ]
        config = tyro.cli(typing.Union[tuple(choices)], prog="syntheocc", args=argv)  # type: ignore # noqa: UP007
    except ValueError as error:
        return _refuse(error)
    job = next(job for kind, job in jobs.values() if isinstance(config, kind))
    return exit_status(job, config)


def exit_status(job: Callable[[Any], int], config: Any) -> int:
    """Run a job; bad settings, bad input and files that cannot be written become one line on stderr and status 2.

    Status 130 says that the job was interrupted: what is written stays, and the same command goes on from there.
    """
    # diffusers and transformers report what they lack (torchvision, xformers) on import; no job here needs either
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # on a shared CPU, threads that spin while they wait keep the others from working: four times the demo's time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # tqdm's own settings, for every bar of the job: one process of several draws, and a log file is no screen
    if os.environ.get("RANK", "0") != "0":
        os.environ.setdefault("TQDM_DISABLE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    try:
        return job(config)
    except (ValueError, OSError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def quiet_loading() -> None:
    """Leave out the bars that diffusers and transformers draw while they load: a job has a bar of its own."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def with_help(config_class: type, **fixed: Any) -> type:
    """A dataclass as tyro wants it: help texts and other names as annotations, and the environment's defaults.

    Args:
        config_class: the settings of a job.
        fixed: fields that are no flags, with their values.
    """
    import tyro

    from syntheocc.engine.flags import environment_defaults

    hints = typing.get_type_hints(config_class)
    defaults = environment_defaults(config_class, os.environ) | fixed
    fields = []
    for f in dataclasses.fields(config_class):
        default = defaults.get(f.name, f.default)
        # Settings that are filled in later are None until then.
        hint = hints[f.name] | None if default is None else hints[f.name]
        aliases = [f"--{name}" for name in f.metadata.get("aliases", ()) if "_" not in name]
        marks = [tyro.conf.arg(help=f.metadata.get("help"), aliases=aliases or None)]
        if f.metadata.get("positional"):
            marks = [tyro.conf.arg(help=f.metadata.get("help")), tyro.conf.Positional]
        if f.name in fixed:
            marks.append(tyro.conf.Suppress)
        fields.append((f.name, Annotated[hint, *marks], dataclasses.field(default=default)))
    return dataclasses.make_dataclass(config_class.__name__, fields, bases=(config_class,), kw_only=True)  # type: ignore
