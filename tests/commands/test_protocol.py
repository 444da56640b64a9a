"""The commands of docs/protocol_nuscenes.md and docs/loop.md: every flag exists, and they work on a street in turn."""

import re
import shlex
from pathlib import Path

import pytest
from warm_start import run_program

from syntheocc.commands import evaluate, generate, infos, loop, main, occupancy
from syntheocc.engine.files import read_json
from syntheocc.occupancy.data.split_infos import info_file

ROOT = Path(__file__).resolve().parents[2]


def commands(name):
    """The indented command lines of a page, without comments and launchers."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    found = []
    for line in re.findall(r"^    (.*)$", text, flags=re.MULTILINE):
        line = line.split(" #")[0].replace("<token>", "token").strip()
        line = re.sub(r"^torchrun --nproc_per_node \d+ -m syntheocc.commands", "syntheocc", line)
        if line.startswith("syntheocc ") and not line.endswith("..."):
            found.append(shlex.split(line)[1:])
    return found


@pytest.mark.parametrize("page", ["protocol_nuscenes.md", "loop.md"])
def test_every_command_is_understood(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = []
    for module in (generate, loop, evaluate, infos):
        monkeypatch.setattr(module, "run", lambda config: ran.append(config) or 0)
    for job in ("_train", "_predict", "_evaluate"):
        monkeypatch.setattr(occupancy, job, lambda config: ran.append(config) or 0)
    lines = commands(page)
    assert len(lines) >= 5
    for argv in lines:
        assert main(argv) == 0, argv
    assert len(ran) == len(lines)


@pytest.mark.slow
def test_the_protocol_on_a_street(street_root, tiny_model, tmp_path, capsys):
    """Generate, train on what was generated, evaluate on it and on the original, score the folder."""
    out = tmp_path / "generated"
    small = f"--model-path-infer {tiny_model} --height 56 --width 96 --num-inference-steps 1 --cfg-scale 1"
    given = (
        f"generate --split train --as-dataset {out} --dataroot-path {street_root} --occ-kind occ3d --seed 0 {small}"
    )
    assert main(given.split()) == 0
    train = f"occupancy train sparseocc --preset tiny --dataroot {out} --max-train-steps 1 --seed 0"
    assert main([*train.split(), "--output-dir", str(tmp_path / "model"), "--global-batch-size", "1"]) == 0
    both = (
        f"occupancy train sparseocc --preset tiny --dataroot {street_root} --max-train-steps 1 --global-batch-size 2"
    )
    assert main([*both.split(), "--extra-dataroot", str(out), "--output-dir", str(tmp_path / "both")]) == 0
    for name, root in (("real", street_root), ("read", out)):
        info = root / info_file("sweep", "train")
        job = f"occupancy eval --weights {tmp_path / 'model'} --dataroot {root} --info-path {info}"
        assert main([*job.split(), "--output-dir", str(tmp_path / name)]) == 0
        assert "RayIoU" in capsys.readouterr().out
    score = f"evaluate --pred {tmp_path / 'read'} --gt {street_root} --split train --metrics miou,rayiou --workers 1"
    assert main(score.split()) == 0
    assert "mIoU" in capsys.readouterr().out
    assert read_json(out / "generated" / "failed.json") == {}


@pytest.mark.slow
def test_two_processes_write_what_one_does(street_root, tiny_model, tmp_path):
    # The manifest names the commit, which may change while a test runs.
    environ = {"GIT_DIR": str(tmp_path / "none"), "SYNTHEOCC_COMMIT": "here"}
    trees = []
    for ranks in (0, 2):
        out = tmp_path / str(ranks)
        flags = f"--split train --as-dataset {out} --dataroot-path {street_root} --model-path-infer {tiny_model}"
        more = "--occ-kind occ3d --height 56 --width 96 --num-inference-steps 1 --cfg-scale 1"
        command = ["generate", *flags.split(), *more.split()]
        done = run_program("-m", "syntheocc.commands", *command, ranks=ranks, **environ)
        assert done.returncode == 0, done.stderr
        trees.append({p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()})
    assert trees[0] == trees[1] and len(trees[0]) > 50
