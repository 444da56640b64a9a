"""Vertices in every form that they come in, and forms that are none."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy.accumulation.vertices import read_vertices
from syntheocc.occupancy.taxonomy import SURROUNDOCC_TAXONOMY, SYNTHEOCC_TAXONOMY

ROWS = np.array([[0.5, -1.25, 2.0, 1], [3.0, 4.0, 5.0, 11]])


def header(form, more="", count=2):
    return (
        f"ply\nformat {form} 1.0\ncomment by hand\nelement vertex {count}\nproperty float x\nproperty float y\n"
        f"property float z\n{more}element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    )


def test_rows_with_and_without_class(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    points, labels = read_vertices(tmp_path / "a.npy", SYNTHEOCC_TAXONOMY)
    assert points.tolist() == ROWS[:, :3].tolist() and labels.tolist() == [1, 11] and labels.dtype == torch.uint8
    np.save(tmp_path / "b.npy", ROWS[:, :3].astype(np.float32))
    points, labels = read_vertices(tmp_path / "b.npy", SYNTHEOCC_TAXONOMY)
    assert points.tolist() == ROWS[:, :3].tolist() and labels.tolist() == [255, 255]


def test_free_in_a_list_of_surfaces_is_no_class(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0.0, 0, 0, 0]]))
    assert read_vertices(tmp_path / "a.npy", SURROUNDOCC_TAXONOMY)[1].tolist() == [255]


def test_ply_as_text_and_binary(tmp_path):
    text = header("ascii", "property uchar red\n") + "0.5 -1.25 2 9\n3 4 5 9\n3 0 1 0\n"
    (tmp_path / "a.ply").write_text(text)
    points, labels = read_vertices(tmp_path / "a.ply", SYNTHEOCC_TAXONOMY)
    assert points.tolist() == ROWS[:, :3].tolist() and labels.tolist() == [255, 255]
    for form, order in (("binary_little_endian", "<"), ("binary_big_endian", ">")):
        record = np.dtype([("x", order + "f4"), ("y", order + "f4"), ("z", order + "f4"), ("label", order + "i4")])
        rows = np.array([tuple(row) for row in ROWS], dtype=record)
        data = header(form, "property int label\n").encode() + rows.tobytes() + b"\x03faces"
        (tmp_path / "b.ply").write_bytes(data)
        points, labels = read_vertices(tmp_path / "b.ply", SYNTHEOCC_TAXONOMY)
        assert points.tolist() == ROWS[:, :3].tolist() and labels.tolist() == [1, 11]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npy", np.zeros((2, 5)), "vertices are rows x, y, z"),
        ("a.npy", np.array([[0.0, np.nan, 0]]), "not finite"),
        ("a.npy", np.array([[0.0, 0, 0, 40]]), "class 40 is not in table 'syntheocc'"),
        ("a.ply", b"solid stl", "no PLY file"),
        ("a.ply", header("ascii").encode() + b"0 0 0\n", "damaged|file ends before"),
        ("a.ply", header("binary_little_endian", count=9).encode() + b"1234", "9 vertices are announced"),
        ("a.ply", header("binary_middle_endian").encode(), "PLY of format"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data) if isinstance(data, bytes) else np.save(path, data)
    with pytest.raises(ValueError, match=message) as caught:
        read_vertices(path, SYNTHEOCC_TAXONOMY)
    assert name in str(caught.value)
