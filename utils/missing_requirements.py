"""Print what the running Python lacks to run the package, one line each; pyproject.toml is the list.

    python utils/missing_requirements.py [extra ...]

Reads only metadata: no import of torch, no network. Exit status 1 when something is missing (utils/setup_env.sh asks).
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """The project's requirements with `extras`; an extra may name other extras of the project itself."""
    wanted = list(project["dependencies"])
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            raise SystemExit(
                f"unknown extra {extra!r}; there are {', '.join(sorted(project['optional-dependencies']))}"
            )
        for line in project["optional-dependencies"][extra]:
            nested = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", line)
            wanted += requirements(project, nested[1].split(",")) if nested else [line]
    return list(dict.fromkeys(wanted))


def missing(lines: list[str]) -> list[str]:
    """Those of `lines` that are not installed in the version asked for."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # comes with accelerate and transformers: without it, they are missing too
        return lines
    lacking = []
    for line in lines:
        requirement = Requirement(line)
        try:
            if requirement.specifier.contains(version(requirement.name), prereleases=True):
                continue
        except PackageNotFoundError:
            pass
        lacking.append(line)
    return lacking


if __name__ == "__main__":
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    lacking = missing(requirements(tomllib.loads(pyproject.read_text())["project"], sys.argv[1:]))
    print("\n".join(lacking), end="\n" if lacking else "")
    sys.exit(bool(lacking))
