"""infer.sh and the set-up that it shares with test.sh; the installing itself needs a network and is not tried here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def requirements():
    spec = importlib.util.spec_from_file_location("missing_requirements", ROOT / "utils" / "missing_requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bash(script, **environ):
    """Run a piece of bash in the repository with this test's Python as the active environment."""
    environ = {**os.environ, "VIRTUAL_ENV": str(Path(sys.executable).parents[1]), **environ}
    environ = {name: value for name, value in environ.items() if value is not None}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environ, timeout=300)


def test_extras_are_followed_into_each_other(requirements):
    project = {
        "name": "p",
        "dependencies": ["a>=1"],
        "optional-dependencies": {"x": ["b"], "y": ["p[x]", "c"], "all": ["p[x,y]"]},
    }
    assert requirements.requirements(project, []) == ["a>=1"]
    assert requirements.requirements(project, ["all"]) == ["a>=1", "b", "c"]
    with pytest.raises(SystemExit, match="unknown extra 'z'"):
        requirements.requirements(project, ["z"])


def test_what_is_missing_or_too_old_is_found(requirements):
    lines = ["pytest>=1", "pytest>=10000", "surely-not-installed-here"]
    assert requirements.missing(lines) == lines[1:]


def test_an_environment_that_has_everything_is_used_as_it_is():
    done = bash('set -euo pipefail; source utils/setup_env.sh; ensure_env; echo "$PYTHON"')
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == Path(sys.executable).parent


def test_without_any_python_the_remedy_is_named(tmp_path):
    for name in ("dirname", "bash"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = bash(
        f'source utils/setup_env.sh; PATH="{tmp_path}"; SYNTHEOCC_ROOT="{tmp_path}"; ensure_env',
        VIRTUAL_ENV=None,
        CONDA_PREFIX=None,
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr


def test_infer_sh_hands_flags_and_environment_to_infer_py():
    # a set variable means the user's data, and at this place there is none
    done = bash("bash infer.sh --dataroot_path=no/such/place", NGPU="1", DATA_USED="mine")
    assert done.returncode == 2 and "no/such/place" in done.stderr
    unknown = bash("bash infer.sh --no_such_flag", NGPU="1")
    assert unknown.returncode == 2 and "unrecognized arguments: --no_such_flag" in unknown.stderr
