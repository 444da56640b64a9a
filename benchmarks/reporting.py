"""What every benchmark writes beside its figures: the chip's name, the commit, the command."""

import platform
import subprocess
from pathlib import Path


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
    """The checkout's commit, None where there is no git."""
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
