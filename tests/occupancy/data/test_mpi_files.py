import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.mpi_files import mpi_file_names, mpi_stem, read_mpi_files, write_mpi_files
from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC, OccupancyGrid
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi

NAMES = ("CAM_FRONT", "CAM_BACK")
H, W = 3, 5


def hand_mpi(groups=None):
    """Two views; a car at plane 6 before a wall at plane 7 in one cell, everything else empty."""
    planes = PlaneSpec(num_planes=8, groups=groups)
    labels = torch.zeros(2, planes.num_layers, H, W, dtype=torch.uint8)
    labels[0, 6 if groups is None else 3, 1, 2] = 1
    if groups is None:
        labels[0, 7, 1, 2] = 15
    nearest = torch.zeros(2, H, W, dtype=torch.uint8)
    plane = torch.zeros(2, H, W, dtype=torch.int16)
    nearest[0, 1, 2], plane[0, 1, 2] = 1, 6
    return SemanticMPI(labels, nearest, plane, SYNTHEOCC.taxonomy, planes, "corner", NAMES)


def stems_in(folder):
    return {name: folder / "samples_syntheocc_surocc" / name / f"{name}__1.5" for name in NAMES}


def assert_same(a, b):
    for field in ("labels", "nearest", "nearest_plane"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
        assert getattr(a, field).dtype == getattr(b, field).dtype
    assert (a.taxonomy, a.planes, a.pixel_origin, a.names) == (b.taxonomy, b.planes, b.pixel_origin, b.names)


def test_the_stored_form(tmp_path):
    """specs/syntheocc.md 1.2: planes stacked near to far, grouped ones far to near, readable by scipy."""
    from PIL import Image
    from scipy import sparse

    stems = stems_in(tmp_path)
    written = write_mpi_files(hand_mpi(), stems)
    write_mpi_files(hand_mpi(groups=4), stems)
    folder = tmp_path / "samples_syntheocc_surocc" / "CAM_FRONT"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"CAM_FRONT__1.5_{ending}"
        for ending in ("depthmap.png", "fuseweight.png", "mtp4.npz", "mtp8.npz", "occrgb.png")
    ]
    assert set(written) == {p for s in stems.values() for p in mpi_file_names(s, [8])}
    stored = sparse.load_npz(folder / "CAM_FRONT__1.5_mtp8.npz")
    assert stored.format == "csr" and stored.dtype == np.uint8 and stored.shape == (8 * H, W)
    assert stored[6 * H + 1, 2] == 1 and stored[7 * H + 1, 2] == 15 and stored.nnz == 2
    grouped = sparse.load_npz(folder / "CAM_FRONT__1.5_mtp4.npz")
    assert grouped[0 * H + 1, 2] == 1 and grouped.nnz == 1  # the farthest group comes first
    with Image.open(folder / "CAM_FRONT__1.5_depthmap.png") as image:
        assert image.mode == "L" and np.asarray(image)[1, 2] == 6
    with Image.open(folder / "CAM_FRONT__1.5_fuseweight.png") as image:
        assert np.asarray(image)[1, 2] == 1 and np.asarray(image).sum() == 1
    with Image.open(folder / "CAM_FRONT__1.5_occrgb.png") as image:
        assert np.asarray(image)[1, 2].tolist() == [255, 158, 0]


@pytest.mark.parametrize("groups", [None, 4])
def test_mpis_survive_their_files(tmp_path, groups):
    mpi = hand_mpi(groups)
    write_mpi_files(mpi, stems_in(tmp_path))
    assert_same(read_mpi_files(stems_in(tmp_path), mpi.planes), mpi)


@pytest.mark.parametrize("planes", [PlaneSpec(), PlaneSpec(groups=96)])
def test_a_rendered_mpi_survives_its_files(tmp_path, planes, six_cameras):
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
    labels[:, :, 15] = 11
    index = [torch.randint(n, (4000,), generator=generator) for n in SYNTHEOCC.spec.shape]
    labels[tuple(index)] = torch.randint(1, 17, (4000,), generator=generator).to(torch.uint8)
    rig = six_cameras.select(NAMES)
    mpi = render_mpi(OccupancyGrid(labels, *SYNTHEOCC, torch.eye(4)), rig, 7, 12, planes, "corner")
    assert 0.1 < float((mpi.nearest > 0).float().mean())
    write_mpi_files(mpi, stems_in(tmp_path))
    assert_same(read_mpi_files(stems_in(tmp_path), planes), mpi)


def test_stems():
    path = "data/nuscenes/samples/CAM_FRONT/n015__1532402927612460.jpg"
    name = "CAM_FRONT/n015__1532402927612460"
    assert mpi_stem(path).as_posix() == f"data/nuscenes/samples_syntheocc_surocc/{name}"
    assert mpi_stem(path, root="out", folder="mine").as_posix() == f"out/mine/{name}"
    with pytest.raises(ValueError, match="below a samples/ folder"):
        mpi_stem("sweeps/CAM_FRONT/x.jpg")
    with pytest.raises(ValueError, match="leads out of its samples/ folder"):
        mpi_stem("data/samples/../../x.jpg", root="out")


def test_what_the_files_cannot_hold_is_refused(tmp_path):
    mpi, stems = hand_mpi(), stems_in(tmp_path)
    with pytest.raises(ValueError, match=r"mpi\[i\]"):
        write_mpi_files(SemanticMPI.stack([mpi]), stems)
    with pytest.raises(ValueError, match="0 is 'others' in 'occ3d'"):
        fields = (mpi.labels, mpi.nearest, mpi.nearest_plane)
        write_mpi_files(SemanticMPI(*fields, OCC3D_NUSCENES.taxonomy, mpi.planes, "corner", NAMES), stems)
    with pytest.raises(ValueError, match="0 is 'others' in 'occ3d'"):
        read_mpi_files(stems, mpi.planes, taxonomy=OCC3D_NUSCENES.taxonomy)
    with pytest.raises(ValueError, match="no place is given .* CAM_BACK"):
        write_mpi_files(mpi, {"CAM_FRONT": tmp_path / "x"})
    far = PlaneSpec(num_planes=300)
    empty = torch.zeros(2, 300, H, W, dtype=torch.uint8)
    with pytest.raises(ValueError, match="300 planes do not fit"):
        write_mpi_files(
            SemanticMPI(empty, empty[:, 0], empty[:, 0].short(), mpi.taxonomy, far, "corner", NAMES), stems
        )
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path):
    from scipy import sparse

    stems, planes = stems_in(tmp_path), PlaneSpec(num_planes=8)
    with pytest.raises(ValueError, match="_mtp8.npz: no such file"):
        read_mpi_files(stems, planes)
    write_mpi_files(hand_mpi(), stems)
    write_mpi_files(hand_mpi(groups=4), stems)
    path = mpi_file_names(stems["CAM_BACK"], [8])[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="CAM_BACK__1.5_mtp8.npz: cannot be read as numpy data"):
        read_mpi_files(stems, planes)
    for array, words in (
        (np.zeros((8 * H + 1, W), np.uint8), "a multiple of that many rows"),
        (np.zeros((8 * H, W), np.int64), "int64"),
        (np.full((8 * H, W), 40, np.uint8), "class id 40"),
        (np.zeros((8 * H, W + 1), np.uint8), "the other views"),
    ):
        sparse.save_npz(path, sparse.csr_matrix(array))
        with pytest.raises(ValueError, match=f"mtp8.npz: .*{words}"):
            read_mpi_files(stems, planes)
    # A column index beyond the row must not be followed.
    np.savez(
        path, data=[np.uint8(1)], indices=[10**6], indptr=[0, 1] + [1] * (8 * H - 1), shape=[8 * H, W], format=b"csr"
    )
    with pytest.raises(ValueError, match="mtp8.npz: is no scipy sparse matrix"):
        read_mpi_files(stems, planes)
    depth = mpi_file_names(stems["CAM_FRONT"])[2]
    depth.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="depthmap.png: cannot be read as a picture"):
        read_mpi_files(stems, PlaneSpec(num_planes=8, groups=4))
