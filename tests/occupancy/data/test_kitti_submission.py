"""Submissions to SemanticKITTI: what is written is what the server wants, and the checks find what is wrong."""

import zipfile

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import kitti_submission as sub
from syntheocc.occupancy.data.semantic_kitti import RAW_OF_CLASS
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SEMANTIC_KITTI, OccupancyGrid

SHAPE = SEMANTIC_KITTI.spec.shape
SEQUENCES = ("11", "12")


@pytest.fixture
def dataset(tmp_path):
    """A data set that asks for two frames of sequence 11 and one of 12."""
    for sequence, frame in (("11", "000000"), ("11", "000005"), ("12", "000000")):
        file = tmp_path / "kitti" / "dataset" / "sequences" / sequence / "voxels" / f"{frame}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(262144))
    return tmp_path / "kitti"


def labels(sequence, frame):
    grid = torch.zeros(SHAPE, dtype=torch.uint8)
    grid[1, 2, 3], grid[255, 255, 31], grid[:, :, 0] = 1, 19, int(sequence) - 2
    return grid


@pytest.fixture
def archive(dataset, tmp_path):
    return sub.write_submission(
        tmp_path / "submission.zip", sub.submission_frames(dataset, SEQUENCES), labels, "a test"
    )


def test_the_archive_is_laid_out_as_the_server_wants_it(archive, dataset):
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == [
            "description.txt",
            "sequences/",
            "sequences/11/",
            "sequences/11/predictions/",
            "sequences/11/predictions/000000.label",
            "sequences/11/predictions/000005.label",
            "sequences/12/",
            "sequences/12/predictions/",
            "sequences/12/predictions/000000.label",
        ]
        raw = np.frombuffer(file.read("sequences/11/predictions/000005.label"), "<u2")
    # x slowest, z fastest; car is raw 10, traffic sign 81, road (9) 40.
    assert raw.nbytes == 4194304 and raw[(1 * 256 + 2) * 32 + 3] == 10 and raw[-1] == 81 and raw[32] == 40
    assert sub.check_submission(archive, dataset, SEQUENCES) == 3
    again = sub.write_submission(
        archive.with_name("again.zip"), sub.submission_frames(dataset, SEQUENCES), labels, "a test"
    )
    assert again.read_bytes() == archive.read_bytes()


def test_every_class_goes_there_and_back(tmp_path):
    grid = (torch.arange(SHAPE[0] * SHAPE[1] * SHAPE[2]) % 20).to(torch.uint8).reshape(SHAPE)
    path = sub.prediction_path(tmp_path, "08", "000000")
    sub.write_prediction(OccupancyGrid(grid, *SEMANTIC_KITTI, torch.eye(4)), path)
    assert path == tmp_path / "sequences" / "08" / "predictions" / "000000.label"
    assert np.fromfile(path, "<u2")[:20].tolist() == list(RAW_OF_CLASS)
    assert torch.equal(sub.read_prediction(path), grid)
    path.write_bytes(bytes(10))
    with pytest.raises(ValueError, match=r"000000.label: 10 bytes, a prediction of 256x256x32 voxels has 4194304"):
        sub.read_prediction(path)


def test_what_is_no_prediction_is_refused(tmp_path):
    path = tmp_path / "000000.label"
    for values, message in (
        (
            torch.full(SHAPE, 255, dtype=torch.uint8),
            "000000.label: a prediction's classes are 0..19, got 255 .unknown",
        ),
        (torch.full(SHAPE, 40), "got 40"),
        (torch.zeros(4, 4, 4), r"integer classes \[256, 256, 32\], got float32 \[4, 4, 4\]"),
        (OccupancyGrid(torch.zeros(200, 200, 16, dtype=torch.uint8), *OCC3D_NUSCENES), "the grid's are 'occ3d'"),
    ):
        with pytest.raises(ValueError, match=message):
            sub.write_prediction(values, path)
    assert not path.exists()


def test_an_archive_appears_whole_or_not_at_all(tmp_path):
    def gives_up(sequence, frame):
        if frame == "000005":
            raise ValueError("no prediction")
        return labels(sequence, frame)

    wanted = {"11": ["000000", "000005"]}
    with pytest.raises(ValueError, match="sequence 11, frame 000005: no prediction"):
        sub.write_submission(tmp_path / "submission.zip", wanted, gives_up)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="a submission is a .zip"):
        sub.write_submission(tmp_path / "submission.tar", wanted, labels)


def rewritten(archive, change):
    """The archive with its entries changed: change(name, data) gives what to write instead, None to leave it out."""
    with zipfile.ZipFile(archive) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    bad = archive.with_name("bad.zip")
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            for entry in change(name, data) or ():
                file.writestr(*entry)
    return bad


FIRST = "sequences/11/predictions/000000.label"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d: [(n, d)] if n != FIRST else None, f"lacks {FIRST}"),
        (lambda n, d: [(n, d)] if n != "sequences/12/" else None, "lacks the entry sequences/12/"),
        (lambda n, d: [(n, d[:-2] if n == FIRST else d)], f"{FIRST} has 4194302 bytes, want 4194304"),
        (lambda n, d: [(n, d), ("notes.md", b"")] if n == FIRST else [(n, d)], "does not belong there: notes.md"),
        (lambda n, d: [(n, d), ("x/", b"")] if n == FIRST else [(n, d)], "a folder that does not belong there: x/"),
        (
            lambda n, d: [(n, np.full(2097152, 7, "<u2").tobytes() if n == FIRST else d)],
            f"{FIRST} holds ids 7, which are no raw ids of a class; these are train ids, map them",
        ),
        (
            lambda n, d: [(n, np.full(2097152, 255 << 8, "<u2").tobytes() if n == FIRST else d)],
            "holds ids 65280, which are no raw ids of a class$",
        ),
    ],
)
def test_what_is_wrong_is_named(archive, dataset, change, message):
    with pytest.raises(ValueError, match=message):
        sub.check_submission(rewritten(archive, change), dataset, SEQUENCES)


def test_raw_ids_of_moving_things_are_allowed(archive, dataset):
    moving = rewritten(archive, lambda n, d: [(n, np.full(2097152, 252, "<u2").tobytes() if n == FIRST else d)])
    assert sub.check_submission(moving, dataset, SEQUENCES) == 3


def test_archives_that_are_none(archive, dataset, tmp_path):
    with pytest.raises(ValueError, match="name ends in .zip"):
        sub.check_submission(archive.rename(tmp_path / "submission.7z"), dataset, SEQUENCES)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "submission.7z").read_bytes()[:-40])
    with pytest.raises(ValueError, match="cut.zip: no zip archive"):
        sub.check_submission(tmp_path / "cut.zip", dataset, SEQUENCES)
    with pytest.raises(ValueError, match="missing.zip: no such file"):
        sub.check_submission(tmp_path / "missing.zip", dataset, SEQUENCES)


def test_a_flipped_bit_is_found(archive, dataset):
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(FIRST)
    data[info.header_offset + 30 + len(FIRST) + info.compress_size // 2] ^= 0x10
    archive.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{FIRST} is damaged"):
        sub.check_submission(archive, dataset, SEQUENCES)


def test_a_folder_is_checked_too(archive, dataset, tmp_path):
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "folder")
    assert sub.check_submission(tmp_path / "folder", dataset, SEQUENCES) == 3
    sub.prediction_path(tmp_path / "folder", "12", "000000").unlink()
    with pytest.raises(ValueError, match="folder: lacks sequences/12/predictions/000000.label"):
        sub.check_submission(tmp_path / "folder", dataset, SEQUENCES)


def test_the_data_set_says_what_is_wanted(dataset, tmp_path):
    assert sub.submission_frames(dataset, SEQUENCES) == {"11": ["000000", "000005"], "12": ["000000"]}
    with pytest.raises(ValueError, match=r"13/voxels: no NNNNNN.bin"):
        sub.submission_frames(dataset)
    with pytest.raises(ValueError, match="neither sequences/ nor dataset/sequences/"):
        sub.submission_frames(tmp_path)
    (dataset / "dataset/sequences/12/voxels/000000.bin").write_bytes(bytes(9))
    with pytest.raises(ValueError, match=r"12/voxels/000000.bin: 9 bytes, want 262144"):
        sub.submission_frames(dataset, SEQUENCES)
