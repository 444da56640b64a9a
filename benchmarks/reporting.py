"""What every benchmark writes beside its figures: the chip's name, the commit, the command."""

import json
import os
import platform
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch


def cpu_name() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def without(arguments: list[str], options: tuple[str, ...]) -> list[str]:
    """The command line without options that do not change what is measured (and may hold a private path)."""
    kept = [a for i, a in enumerate(arguments) if a not in options and (i == 0 or arguments[i - 1] not in options)]
    return [a for a in kept if not a.startswith(tuple(f"{option}=" for option in options))]


def commit() -> str | None:
    """The checkout's commit; where there is no git, what SYNTHEOCC_COMMIT says, or None."""
    told = os.environ.get("SYNTHEOCC_COMMIT")
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return told
    return run.stdout.strip() if run.returncode == 0 else told


def provenance(args: Namespace) -> dict[str, str | None]:
    """Chip, torch, commit, command (without the paths of this machine) and split of a controllability run."""
    private = ("--output", "--commit", "--judge", "--cache")
    return {
        "chip": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "torch": torch.__version__,
        "commit": args.commit or commit(),
        "command": shlex.join(["python", *without(sys.argv, private)]),
        "split": args.split,
    }


def run_summary(device: torch.device, private: tuple[str, ...] = ("--output",)) -> dict[str, str | None]:
    """Chip, torch, Python, commit and command of any benchmark."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "command": shlex.join(["python", *without(sys.argv, private)]),
    }


def keep_rows(folder: Path | None, name: str, rows: list[dict[str, Any]]) -> None:
    """Write what a benchmark of the CPU found into a folder, unless there is none."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    summary = run_summary(torch.device("cpu")) | {"rows": rows}
    (folder / name).write_text(json.dumps(summary, indent=1) + "\n")


def line_of(row: dict[str, Any]) -> str:
    """A row to print."""
    return "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
