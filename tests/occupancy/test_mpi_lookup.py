"""The implementations of the MPI lookup against the slow reference, and the reference against first principles."""

import multiprocessing

import pytest
import torch

from syntheocc.occupancy.cameras import Camera, CameraRig
from syntheocc.occupancy.grids import SYNTHEOCC, GridSpec, OccupancyGrid
from syntheocc.occupancy.ops.mpi_lookup import LookupPlanes, choose_backend, has_module, mpi_lookup
from syntheocc.occupancy.ops.mpi_lookup.vectorised import mpi_lookup_torch
from syntheocc.occupancy.rendering.mpi import PlaneSpec, render_mpi
from syntheocc.occupancy.transforms import invert_rigid, pose_from_quaternion

SYN = SYNTHEOCC.taxonomy
PATHS = [
    pytest.param("torch", "cpu", id="torch"),
    pytest.param("numba", "cpu", id="numba", marks=pytest.mark.skipif(not has_module("numba"), reason="needs numba")),
    pytest.param("torch", "cuda", id="torch-gpu", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", id="triton-gpu", marks=pytest.mark.gpu),
]


def random_problem(batch=2, views=2, samples=1, h=9, w=7, shape=(12, 11, 9), seed=0):
    """Labels with a third filled and some unknown, cameras in and around the grid, some broken rays."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 6, (batch, *shape), generator=g, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=g) < 0.6] = 0
    labels[torch.rand(labels.shape, generator=g) < 0.05] = 255
    extent = torch.tensor(shape, dtype=torch.float64)
    origins = extent * (1.6 * torch.rand(batch, views, 3, generator=g, dtype=torch.float64) - 0.3)
    # Mostly towards the grid, so that there is something to see.
    towards = (extent / 2 - origins)[:, :, None, None, None] / 8
    directions = towards + 0.8 * torch.randn(batch, views, samples, h, w, 3, generator=g, dtype=torch.float64)
    directions[0, 0, 0, 0, 0] = float("nan")
    directions[0, 0, :, 1, 1, 0] = 0.0
    directions[0, 0, :, 2, 2] = 0.0
    return labels, origins, directions


FOREGROUND = torch.zeros(256, dtype=torch.bool)
FOREGROUND[[1, 2]] = True
# Rotates ids 0..5 by 3, drops the rest: a taxonomy whose free id is 3; id 2 becomes unknown.
TABLE = torch.full((256,), 255, dtype=torch.uint8)
TABLE[:6] = torch.tensor([3, 4, 255, 0, 1, 2], dtype=torch.uint8)


def assert_paths_agree(problem, planes, free, table, foreground, backend, device):
    expected = mpi_lookup(*problem, planes, free, table, foreground, backend="reference")
    assert 0.02 < float((expected[0] != free).float().mean()) < 0.8
    moved = [None if t is None else t.to(device) for t in (*problem, table, foreground)]
    got = mpi_lookup(*moved[:3], planes, free, *moved[3:], backend=backend)
    for one, other, dtype in zip(expected, got, (torch.uint8, torch.uint8, torch.int16), strict=True):
        assert other.device.type == device and other.dtype == dtype and torch.equal(one, other.cpu())


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize(("batch", "views"), [(1, 1), (2, 3)])
@pytest.mark.parametrize(("planes", "layers"), [(24, 24), (24, 9), (17, 1)])
def test_batches_and_groups(backend, device, batch, views, planes, layers):
    problem = random_problem(batch, views, seed=planes + layers)
    assert_paths_agree(problem, LookupPlanes(0.3, 0.7, planes, layers), 0, None, None, backend, device)


@pytest.mark.parametrize(("backend", "device"), PATHS)
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("table", [None, TABLE], ids=["same", "mapped"])
def test_samples_and_tables(backend, device, samples, table):
    problem = random_problem(samples=samples, h=5, w=6, seed=samples)
    free = 0 if table is None else 3
    assert_paths_agree(problem, LookupPlanes(0.3, 0.7, 20, 8), free, table, FOREGROUND, backend, device)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_other_strides_and_one_plane(backend, device):
    labels, origins, directions = random_problem(h=3, w=33)
    problem = (labels.permute(0, 3, 1, 2), origins[..., [2, 0, 1]], directions[..., [2, 0, 1]])
    assert not problem[0].is_contiguous()
    assert_paths_agree(problem, LookupPlanes(4.0, 1.0, 1, 1), 0, None, None, backend, device)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_a_view_that_sees_nothing_is_written_too(backend, device):
    labels = torch.ones(1, 4, 4, 4, dtype=torch.uint8, device=device)
    origins = torch.tensor([[[-5.0, 2, 2], [2, 2, 2]]], dtype=torch.float64, device=device)
    directions = torch.zeros(1, 2, 1, 4, 5, 3, dtype=torch.float64, device=device)
    directions[..., 0] = -1.0
    layers, nearest, plane = mpi_lookup(
        labels, origins, directions, LookupPlanes(0.5, 1.0, 40, 40), 7, backend=backend
    )
    assert layers[0, 0].unique().tolist() == [7] and nearest[0, 0].unique().tolist() == [7]
    # From x = 2 looking back: planes 0 and 1 (0.5 and 1.5) are inside.
    assert layers[0, 1, :2].unique().tolist() == [1] and layers[0, 1, 2:].unique().tolist() == [7]
    assert not plane.any()


@pytest.mark.parametrize(
    ("backend", "device", "dtype"),
    [
        pytest.param("torch", "cpu", torch.float32, id="torch-float32"),
        *[pytest.param(*path.values, None, id=path.id, marks=path.marks) for path in PATHS],
    ],
)
def test_differences_lie_at_faces_and_are_few(backend, device, dtype):
    """DESIGN's bound: labels may differ only within 1e-3 voxel of a face, in fewer than 1e-4 of the cells."""
    labels, origins, directions = random_problem(1, 3, h=28, w=50, shape=(120, 100, 40), seed=3)
    planes = LookupPlanes(0.2, 0.25, 96, 96)
    exact = mpi_lookup_torch(labels, origins, directions, planes, 0)[0]
    moved = [t.to(device) for t in (labels, origins, directions)]
    if dtype is None:
        got = mpi_lookup(*moved, planes, 0, backend=backend)[0].cpu()
    else:
        got = mpi_lookup_torch(*moved, planes, 0, dtype=dtype)[0]
    depths = planes.near + planes.step * torch.arange(96, dtype=torch.float64)
    positions = origins[:, :, None, None, None] + directions[:, :, 0, None] * depths[:, None, None, None]
    to_face = (positions - positions.round()).abs().amin(-1)
    differs = got != exact
    assert not (differs & (to_face > 1e-3)).any()
    assert float(differs.float().mean()) < 1e-4


def test_reference_against_points_and_boxes():
    """The whole road from cameras to labels, by projecting points one at a time."""
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 17, (14, 10, 6), generator=g, dtype=torch.uint8)
    spec = GridSpec((-3.0, -2.5, -1.0), (0.4, 0.5, 0.35), (14, 10, 6), "lidar")
    grid2ego = pose_from_quaternion((0.2, -0.1, 0.3), (0.8, 0.0, 0.0, 0.6))
    pose = pose_from_quaternion((0.1, 0.2, 0.1), (0.5, -0.5, 0.5, -0.5))
    matrix = [[30.0, 0.4, 15.2], [0, 28.0, 11.1], [0, 0, 1]]
    rig = CameraRig(
        {
            "plain": Camera(matrix, pose, 24, 32),
            "bent": Camera(matrix, pose, 24, 32, distortion=[-0.1, 0.02, 0.001, -0.001]),
            "fisheye": Camera([[9.0, 0, 20.0], [0, 9.0, 9.0], [0, 0, 1]], pose, 20, 40, model="fisheye"),
            "unified": Camera([[22.0, 0, 15.0], [0, 22.0, 12.0], [0, 0, 1]], pose, 24, 32, model="unified", xi=0.9),
        }
    )
    planes, h, w = PlaneSpec(8, 0.3, 0.45), 5, 6
    grid = OccupancyGrid(labels, spec, SYN, grid2ego)
    for origin, shift in (("center", 0.5), ("corner", 0.0)):
        mpi = render_mpi(grid, rig, h, w, planes, pixel_origin=origin)
        alone = render_mpi(grid, rig.select(["plain"]), h, w, planes, pixel_origin=origin)
        # A rig of plain pinholes takes a shorter road than a mixed one.
        assert torch.equal(alone.labels[0], mpi.labels[0])
        for v, camera in enumerate(rig.values()):
            cam2grid = invert_rigid(grid2ego) @ camera.cam2ego
            for y in range(h):
                for x in range(w):
                    pixel = torch.tensor(
                        [(x + shift) * camera.width / w - shift, (y + shift) * camera.height / h - shift]
                    )
                    ray = camera.pixel_rays(pixel.double())
                    found = []
                    for depth in planes.depths():
                        index, inside = spec.index_of(cam2grid[:3, :3] @ (depth * ray) + cam2grid[:3, 3])
                        found.append(int(labels[tuple(index.tolist())]) if inside else 0)
                    assert mpi.labels[v, :, y, x].tolist() == found
                    hits = [i for i, label in enumerate(found) if label]
                    assert mpi.nearest_plane[v, y, x] == (hits[0] if hits else 0)
                    assert mpi.nearest[v, y, x] == (found[hits[0]] if hits else 0)


@pytest.mark.parametrize(("backend", "device"), PATHS)
def test_full_size_street(six_cameras, backend, device):
    """Published size: every path equals plain torch in float64 cell by cell."""
    labels = torch.zeros(SYNTHEOCC.spec.shape, dtype=torch.uint8)
    labels[:, :, 16] = 11
    labels[150:160, 100:400:9, 17:26] = 15
    labels[230:300:20, 260:400:31, 17:25] = 1
    lidar2ego = torch.tensor([[0.0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]])
    grid = OccupancyGrid(labels, *SYNTHEOCC, grid2ego=lidar2ego).to(device)
    expected = render_mpi(grid.to("cpu"), six_cameras, 56, 100, backend="torch")
    got = render_mpi(grid, six_cameras, 56, 100, backend=backend)
    assert 0.005 < float((expected.labels > 0).float().mean()) < 0.1
    for field in ("labels", "nearest", "nearest_plane"):
        differs = getattr(got, field).cpu() != getattr(expected, field)
        # A GPU contracts products and sums, which may move a sample that lies on a face.
        assert float(differs.float().mean()) < (0 if device == "cpu" else 1e-5) + 1e-12


def _render_in_child(problem, planes):
    torch.set_num_threads(1)
    mpi_lookup(*problem, planes, 0, backend="numba")


@pytest.mark.skipif(not has_module("numba"), reason="needs numba")
def test_numba_survives_a_fork():
    """A DataLoader forks after its parent has rendered; numba's own OpenMP threads would kill the child."""
    problem, planes = random_problem(), LookupPlanes(0.3, 0.7, 24, 24)
    mpi_lookup(*problem, planes, 0, backend="numba")
    child = multiprocessing.get_context("fork").Process(target=_render_in_child, args=(problem, planes))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_threads_do_not_matter():
    problem, planes = random_problem(), LookupPlanes(0.3, 0.7, 24, 24)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(mpi_lookup(*problem, planes, 0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_backend_choice():
    assert choose_backend(torch.device("cuda")) == ("triton" if has_module("triton") else "torch")
    assert choose_backend(torch.device("cpu")) == ("numba" if has_module("numba") else "torch")
    assert choose_backend(torch.device("meta")) == "torch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 3, 3, 3)}, "labels must be uint8"),
        ({"labels": torch.zeros(1, 3, 3, 3, dtype=torch.uint8)}, "1 grids but directions hold 2"),
        ({"origins": torch.zeros(2, 2, 3)}, "origins must be float64"),
        ({"origins": torch.zeros(2, 1, 3, dtype=torch.float64)}, "origins must be float64"),
        ({"directions": torch.zeros(2, 2, 1, 9, 7, 3)}, "directions must be float64"),
        ({"planes": LookupPlanes(0.0, 0.2, 4, 4)}, "near > 0"),
        ({"planes": LookupPlanes(0.2, 0.2, 4, 5)}, "num_layers <= num_planes"),
        ({"free": 255}, "free label must lie in 0..254"),
        ({"table": torch.zeros(17, dtype=torch.uint8)}, "table must be torch.uint8 \\[256\\]"),
        ({"foreground": torch.zeros(256)}, "foreground must be torch.bool"),
        ({"table": torch.zeros(256, dtype=torch.uint8, device="meta")}, "share one device"),
        ({"backend": "cuda"}, "backend 'cuda' cannot run on cpu"),
        ({"backend": "triton"}, "backend 'triton' cannot run on cpu"),
    ],
)
def test_bad_arguments(change, message):
    labels, origins, directions = random_problem()
    arguments = {"labels": labels, "origins": origins, "directions": directions, "planes": LookupPlanes(1, 1, 4, 4)}
    with pytest.raises(ValueError, match=message):
        mpi_lookup(**{"free": 0} | arguments | change)


def test_several_samples_need_a_foreground_table():
    with pytest.raises(ValueError, match="5 samples a cell need a table"):
        mpi_lookup(*random_problem(samples=5), LookupPlanes(1, 1, 4, 4), 0)
