import hashlib
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from syntheocc.engine.checkpoints import CheckpointFolder

# Saves checkpoint after checkpoint, every third one over the one before, and says when each is done.
WRITER = """
import hashlib, sys
from pathlib import Path
from syntheocc.engine.checkpoints import CheckpointFolder
checkpoints = CheckpointFolder(Path(sys.argv[1]), limit=2)
def write(folder):
    (folder / "part").mkdir()
    sums = []
    for number in range(40):
        data = (f"{step} {number} " * 3000).encode()
        (folder / "part" / f"{number}.bin").write_bytes(data)
        sums.append(hashlib.sha256(data).hexdigest())
    (folder / "sums.txt").write_text("\\n".join(sums))
step = int(sys.argv[2])
for count in range(10_000):
    step += count % 3 != 2
    checkpoints.save(step, write)
    print(step, flush=True)
"""


def is_whole(folder):
    sums = (folder / "sums.txt").read_text().split()
    parts = [(folder / "part" / f"{number}.bin").read_bytes() for number in range(40)]
    return [hashlib.sha256(part).hexdigest() for part in parts] == sums and len(sums) == 40


def fill(text):
    return lambda folder: (folder / "text").write_text(text)


def names(root):
    return sorted(entry.name for entry in root.iterdir())


def test_whoever_is_killed_leaves_only_whole_checkpoints(tmp_path):
    draw = random.Random(4)
    interrupted_saves = done = 0
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(done)], stdout=subprocess.PIPE, text=True
        ) as writer:
            lines = [writer.stdout.readline()]
            time.sleep(draw.uniform(0.0, 0.06))
            writer.kill()
            lines += writer.stdout.read().splitlines()
        done = max(done, *(int(line) for line in lines if line.strip().isdigit()))
        checkpoints = CheckpointFolder(tmp_path, limit=2)
        interrupted_saves += any(name.startswith(".") for name in names(tmp_path))
        assert all(is_whole(checkpoints.path(step)) for step in checkpoints.steps())
        checkpoints.recover()
        assert all(name.startswith("checkpoint-") for name in names(tmp_path))
        assert all(is_whole(checkpoints.path(step)) for step in checkpoints.steps())
        assert checkpoints.steps()[-1] >= done  # what was reported saved is there
        done = checkpoints.steps()[-1]
    assert interrupted_saves >= 5  # the kills really came in the middle


def test_a_checkpoint_appears_with_its_content_or_not_at_all(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "out")
    assert checkpoints.steps() == [] and checkpoints.latest() is None

    def half(folder):
        assert checkpoints.steps() == [] and not list(folder.iterdir())
        (folder / "text").write_text("half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        checkpoints.save(5, half)
    assert names(tmp_path / "out") == []
    assert checkpoints.save(5, fill("first")) == tmp_path / "out" / "checkpoint-5"
    with pytest.raises(RuntimeError):
        CheckpointFolder(tmp_path / "out").save(5, lambda folder: (_ for _ in ()).throw(RuntimeError()))
    assert (checkpoints.path(5) / "text").read_text() == "first"
    checkpoints.save(5, fill("second"))
    assert (checkpoints.path(5) / "text").read_text() == "second" and names(tmp_path / "out") == ["checkpoint-5"]


def test_the_limit_keeps_the_newest_and_what_was_just_saved(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, limit=2)
    for step in (9, 10, 11):
        checkpoints.save(step, fill(str(step)))
    assert checkpoints.steps() == [10, 11]  # by number, not by name
    checkpoints.save(3, fill("3"))
    assert checkpoints.steps() == [3, 11]
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-07").mkdir()
    assert checkpoints.steps() == [3, 11]


def test_what_a_user_calls_a_checkpoint(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "out")
    assert checkpoints.resolve(None) is None and checkpoints.resolve("latest") is None
    checkpoints.save(2, fill("2"))
    checkpoints.save(10, fill("10"))
    assert checkpoints.resolve("latest").name == "checkpoint-10"
    assert checkpoints.resolve("checkpoint-2") == checkpoints.path(2)
    assert checkpoints.resolve(str(tmp_path / "out" / "checkpoint-2")) == checkpoints.path(2)
    for wrong in ("checkpoint-3", "out", str(tmp_path), "newest"):
        with pytest.raises(ValueError, match=f"{Path(wrong).name}: no such checkpoint; .* has checkpoint-2, check"):
            checkpoints.resolve(wrong)
    for limit in (0, -1):
        with pytest.raises(ValueError, match=f"limit of {limit}"):
            CheckpointFolder(tmp_path, limit)
    with pytest.raises(ValueError, match="not negative"):
        checkpoints.save(-1, fill(""))


def test_a_replaced_checkpoint_returns_when_its_successor_never_came(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save(5, fill("old"))
    # where a kill between the two renames leaves the folder
    checkpoints.path(5).rename(tmp_path / ".checkpoint-5.01234567.old")
    (tmp_path / ".checkpoint-5.89abcdef.tmp").mkdir()
    checkpoints.recover()
    assert names(tmp_path) == ["checkpoint-5"] and (checkpoints.path(5) / "text").read_text() == "old"


def test_the_final_model_takes_the_place_of_an_older_one(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "out")

    def write(text):
        def inner(folder):
            (folder / "unet").mkdir()
            (folder / "unet" / f"{text}.txt").write_text(text)
            (folder / "index.json").write_text(text)

        return inner

    checkpoints.publish(write("first"))
    checkpoints.save(1, fill("1"))
    checkpoints.publish(write("second"))
    assert names(tmp_path / "out") == ["checkpoint-1", "index.json", "unet"]
    assert names(tmp_path / "out" / "unet") == ["second.txt"]
    assert (tmp_path / "out" / "index.json").read_text() == "second"


def test_a_disk_that_takes_no_more_is_an_error_that_names_the_checkpoint(tmp_path):
    def write(folder):
        save_file({"a": torch.zeros(10_000)}, folder / "weights.safetensors")

    checkpoints = CheckpointFolder(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for save in (lambda: checkpoints.save(3, write), lambda: checkpoints.publish(write)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(OSError, match=f"{tmp_path}.* cannot be written: .*too large"):
                save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
