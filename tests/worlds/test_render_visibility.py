import math

import pytest
import torch

from syntheocc.occupancy.cameras import Camera
from syntheocc.worlds.ground import Ground
from syntheocc.worlds.intersect import GROUND, NOTHING, first_hit
from syntheocc.worlds.ops import visibility
from syntheocc.worlds.ops.visibility.tables import ground_table, solid_table
from syntheocc.worlds.primitives import BOX, CONE, ELLIPSOID, Primitives
from syntheocc.worlds.views import camera_rays, map_tiles, world_tiles


def solids(*entries):
    """(kind, half extents, centre, taper) a solid."""
    matrices = []
    for _, half, center, _ in entries:
        matrix = torch.diag(torch.tensor([*half, 1.0], dtype=torch.float64))
        matrix[:3, 3] = torch.tensor(center, dtype=torch.float64)
        matrices.append(matrix)
    count = len(entries)
    ids = torch.zeros(count, dtype=torch.int64)
    return Primitives(
        torch.tensor([entry[0] for entry in entries]),
        torch.stack(matrices),
        torch.tensor([entry[3] for entry in entries], dtype=torch.float64),
        ids.to(torch.uint8),
        ids.to(torch.uint8),
        ids,
        ids,
    )


def flat_ground(height=0.0, waves=()):
    raster = torch.zeros(4, 4, dtype=torch.uint8)
    waves = torch.tensor(waves, dtype=torch.float64).reshape(-1, 4)
    return Ground(raster, raster, (0.0, 0.0), height, torch.zeros(2, dtype=torch.float64), waves)


def random_solids(count, generator):
    matrix = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]
    size = 0.2 + 2 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    matrix[:, :3, :3] = turn * size[:, None]
    place = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    matrix[:, :3, 3] = place * torch.tensor([30.0, 24.0, 8.0]) + torch.tensor([4.0, -12.0, -3.0])
    ids = torch.arange(count)
    small = torch.zeros(count, dtype=torch.uint8)
    taper = torch.rand(count, generator=generator, dtype=torch.float64)
    return Primitives(ids % 3, matrix, taper, small, small, ids, ids)


def test_distances_a_person_can_check():
    things = solids(
        (BOX, (1, 1, 1), (10, 0, 0), 0.0),
        (ELLIPSOID, (2, 1, 1), (0, 10, 0), 0.0),
        (CONE, (1, 1, 2), (-10, 0, 0), 1.0),
    )
    directions = torch.tensor([[2.0, 0, 0], [0, 3, 0], [-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    distance, index, normal = first_hit(things, None, torch.zeros(5, 3), directions)
    # The cone's radius is 1 at its foot (z = -2) and 0 at its top: 0.5 at half its height.
    assert distance.tolist() == pytest.approx([9.0, 9.0, 9.5, math.inf, math.inf])
    assert index.tolist() == [0, 1, 2, NOTHING, NOTHING]
    assert normal[0].tolist() == [-1, 0, 0] and normal[1].tolist() == [0, -1, 0] and normal[3].tolist() == [0, 0, 0]
    # The side of that cone rises by 4 m over 1 m.
    assert normal[2].tolist() == pytest.approx([4 / math.sqrt(17), 0, 1 / math.sqrt(17)])


def test_caps_of_a_cylinder_and_of_a_frustum():
    things = solids((CONE, (1, 1, 1), (0, 0, 0), 0.5))
    down = torch.tensor([[0.0, 0, -1]] * 3)
    origins = torch.tensor([[0.4, 0, 5.0], [0.75, 0, 5.0], [1.1, 0, 5.0]])
    distance, _, normal = first_hit(things, None, origins, down)
    # 0.4 m out is the upper cap (radius 0.5), 0.75 the side at half height, 1.1 nothing.
    assert distance.tolist() == pytest.approx([4.0, 5.0, math.inf])
    assert normal[0].tolist() == [0, 0, 1]
    from_below, _, normal = first_hit(things, None, torch.tensor([[0.9, 0, -5.0]]), torch.tensor([[0.0, 0, 1]]))
    assert from_below.tolist() == pytest.approx([4.0]) and normal[0].tolist() == [0, 0, -1]


def test_a_solid_is_not_seen_from_within():
    things = solids(
        (BOX, (1, 1, 1), (0, 0, 0), 0.0), (ELLIPSOID, (1, 1, 1), (0, 0, 0), 0.0), (BOX, (1, 1, 1), (5, 0, 0), 0)
    )
    distance, index, _ = first_hit(things, None, torch.zeros(1, 3), torch.tensor([[1.0, 0, 0]]))
    assert distance.item() == 4.0 and index.item() == 2


def test_the_ground_is_met_where_its_height_says():
    ground = flat_ground(0.5, [(0.3, 0.05, 0.02, 1.0)])
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    origins = torch.tensor([[3.0, -2.0, 2.5]], dtype=torch.float64).expand(400, 3)
    distance, index, _ = first_hit(Primitives.empty(), ground, origins, directions, 300.0)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    hit = index == GROUND
    points = origins[hit] + distance[hit, None] * directions[hit]
    assert (points[:, 2] - ground.height(points[:, :2])).abs().max() < 1e-6
    assert hit[directions[:, 2] < -0.05].all() and not hit[directions[:, 2] > 0.05].any()
    # and nowhere before: the ray is above the surface all the way
    before = (
        origins[hit]
        + (distance[hit, None] * torch.linspace(0, 0.999, 50, dtype=torch.float64)[:, None, None]) * directions[hit]
    )
    assert (before[..., 2] > ground.height(before[..., :2])).all()


CAMERAS = {
    "pinhole": Camera([[40, 0, 31], [0, 40, 20], [0, 0, 1]], torch.eye(4), 41, 63),
    "distorted": Camera([[40, 0, 31], [0, 40, 20], [0, 0, 1]], torch.eye(4), 41, 63, "pinhole", [-0.2, 0.05, 0, 0]),
    "fisheye": Camera([[22, 0, 31], [0, 22, 20], [0, 0, 1]], torch.eye(4), 41, 63, "fisheye"),
    "unified": Camera([[60, 0, 31], [0, 60, 20], [0, 0, 1]], torch.eye(4), 41, 63, "unified", xi=1.2),
}


def scene_inputs(camera):
    things = random_solids(40, torch.Generator().manual_seed(3))
    ground = flat_ground(-2.0, [(0.2, 0.1, 0.05, 0.3)])
    cam2world = torch.eye(4, dtype=torch.float64)
    cam2world[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cam2world[:3, 3] = torch.tensor([0.5, 0.2, 1.0])
    rays = world_tiles([camera_rays(camera)], cam2world[None])
    world2shape = torch.linalg.inv(things.shape2frame)
    table = solid_table(things.kind, things.taper, things.shape2frame[None], world2shape[None], cam2world[None, :3, 3])
    return things, ground, cam2world, rays, table


def assert_same(result, exact, order):
    (distance, row), (t, index) = result, exact
    solid = torch.where(row >= 0, order[row.clamp_min(0).long()], row.long())
    wrong = solid.flatten() != index
    # Only pixels on an edge may fall to the other side.
    assert wrong.float().mean() < 0.003
    same = ~wrong & torch.isfinite(t)
    error = (distance.flatten()[same] - t[same]).abs() / t[same]
    assert error.max() < 2e-3 and error.median() < 1e-6
    assert same.float().mean() > 0.3


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("name", CAMERAS)
def test_backends_agree_with_the_exact_reference(name, backend):
    if backend == "numba":
        pytest.importorskip("numba")
    things, ground, cam2world, rays, table = scene_inputs(CAMERAS[name])
    directions = rays.field[0].reshape(-1, 3).double()
    t, index, _ = first_hit(things, ground, cam2world[:3, 3].expand_as(directions), directions, 2000.0)
    result = visibility.visible(rays, table, ground_table(ground, cam2world[None, :3, 3]), backend=backend)
    assert_same((result[0][0], result[1][0]), (t, index), table.order[0])


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_parallel_rays_agree_with_the_exact_reference(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    things, ground, _, _, _ = scene_inputs(CAMERAS["pinhole"])
    direction = torch.nn.functional.normalize(torch.tensor([0.5, 0.2, -1.0], dtype=torch.float64), dim=0)
    eye = torch.tensor([[15.0, 0.0, 30.0]], dtype=torch.float64)
    _, rays = map_tiles(1, 50, 0.7, direction, torch.device("cpu"))
    world2shape = torch.linalg.inv(things.shape2frame)
    table = solid_table(things.kind, things.taper, things.shape2frame[None], world2shape[None], eye, direction)
    origins = eye + rays.field[0].reshape(-1, 3).double()
    t, index, _ = first_hit(things, ground, origins, direction.expand_as(origins), 500.0)
    result = visibility.visible(rays, table, ground_table(ground, eye), 500.0, backend=backend)
    assert_same((result[0][0], result[1][0]), (t, index), table.order[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CAMERAS)
def test_triton_agrees_with_the_exact_reference(name):
    things, ground, cam2world, rays, table = scene_inputs(CAMERAS[name])
    directions = rays.field[0].reshape(-1, 3).double()
    t, index, _ = first_hit(things, ground, cam2world[:3, 3].expand_as(directions), directions, 2000.0)
    moved = [type(x)(*(v.cuda() if torch.is_tensor(v) else v for v in vars(x).values())) for x in (rays, table)]
    result = visibility.visible(*moved, ground_table(ground, cam2world[None, :3, 3]).cuda(), backend="triton")
    assert_same((result[0][0].cpu(), result[1][0].cpu()), (t, index), table.order[0])


def test_an_unknown_backend_is_refused():
    _, ground, cam2world, rays, table = scene_inputs(CAMERAS["pinhole"])
    with pytest.raises(ValueError, match="choose from torch, numba, triton"):
        visibility.visible(rays, table, None, backend="opengl")
