"""The README's promises: its example runs as printed, its files exist, its figures are in the benchmark results."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_example_runs_as_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    code = re.search(r"## In a notebook\n\n```python\n(.*?)```", README, re.S).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["result"].images[0][1].size == (400, 224)
    assert tuple(names["result"].mpi.palette_image().shape) == (1, 6, 28, 50, 3)


def test_every_file_it_names_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    tree = re.search(r"## Files\n\n```\n(.*?)```", README, re.S).group(1)
    listed = [line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")]
    assert len(links) > 3 and len(listed) > 10
    for name in [*links, *listed]:
        assert (ROOT / name).exists(), name


def test_published_flags_in_the_table_are_flags_of_the_scripts():
    from syntheocc.commands.generate import InferConfig

    table = README[README.index("### Published flags") :].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `") or line.startswith("| training")]
    flags = {name for row in rows for name in re.findall(r"`--(\w+)`", row)}
    assert len(flags) > 12
    assert flags <= set(InferConfig.__dataclass_fields__), flags - set(InferConfig.__dataclass_fields__)
