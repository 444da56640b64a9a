"""Visibility: a wall that a person can look behind, rays whose voxels a person can count, and both back ends."""

import pytest
import torch

from syntheocc.occupancy import Camera, CameraRig
from syntheocc.occupancy.accumulation.visibility import RayPasses, camera_mask, lidar_mask, passed_voxels
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.ops.ray_passes import count_passes

ROW = GridSpec((0.0, 0.0, 0.0), 1.0, (8, 3, 3))
# x right, y down, z forward in the camera; it looks along the grid's x.
FORWARD = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)


def camera_at(x, y, z):
    pose = FORWARD.clone()
    pose[:3, 3] = torch.tensor([x, y, z])
    return Camera([[50.0, 0, 49.5], [0, 50, 49.5], [0, 0, 1]], pose, 100, 100)


def test_a_wall_hides_what_is_behind_it():
    occupied = torch.zeros(ROW.shape, dtype=torch.bool)
    occupied[4, 1, 1] = occupied[6, 1, 1] = True
    mask = camera_mask(occupied, ROW, CameraRig({"front": camera_at(0.5, 1.5, 1.5)}))
    assert mask[1:5, 1, 1].all()  # free voxels before it, and itself
    assert not mask[5:, 1, 1].any()  # behind it, the other wall included
    # beside the wall one looks past it
    assert mask[6, 2, 1] and mask[7, 0, 0]
    # the picture is 90 degrees wide: one voxel ahead it shows one to each side, and nothing of the camera's own column
    assert not mask[0, 0, 0]


def test_a_second_camera_sees_round_the_corner():
    occupied = torch.zeros(ROW.shape, dtype=torch.bool)
    occupied[4] = True
    front = camera_at(0.5, 1.5, 1.5)
    behind = front.moved(torch.diag(torch.tensor([-1.0, -1, 1, 1])).double() @ front.cam2ego)
    pose = behind.cam2ego.clone()
    pose[:3, 3] = torch.tensor([7.9, 1.5, 1.5])
    alone = camera_mask(occupied, ROW, CameraRig({"front": front}))
    both = camera_mask(occupied, ROW, CameraRig({"front": front, "back": behind.moved(pose)}))
    assert not alone[5:].any() and both[5, 1, 1] and (both | ~alone).all()


def test_a_lidar_ray_observes_its_way_and_its_end():
    mask = lidar_mask([(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([[5.5, 0.5, 0.5]]))], ROW)
    assert mask.sum() == 6 and mask[:6, 0, 0].all()
    # a diagonal in a plane: from (0.5, 0.25) to (2.5, 2.25) crosses x = 1 at y 0.75 and y = 1 at x 1.25 and so on
    mask = lidar_mask([(torch.tensor([0.5, 0.25, 0.5]), torch.tensor([[2.5, 2.25, 0.5]]))], ROW)
    assert mask[..., 0].nonzero().tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2]]


def test_rays_from_and_to_the_outside():
    mask = lidar_mask([(torch.tensor([-3.0, 1.5, 1.5]), torch.tensor([[20.0, 1.5, 1.5], [-1.0, 1.5, 1.5]]))], ROW)
    assert mask.sum() == 8 and mask[:, 1, 1].all()
    assert not lidar_mask([(torch.tensor([-3.0, 9.0, 1.5]), torch.tensor([[20.0, 9.0, 1.5]]))], ROW).any()


def test_both_backends_agree():
    generator = torch.Generator().manual_seed(0)
    origin = torch.tensor([3.9, 1.1, 1.7])
    points = torch.rand(100, 3, generator=generator, dtype=torch.float64) * 14 - 3
    masks = [torch.zeros(ROW.shape, dtype=torch.bool) for _ in range(2)]
    for mask, backend in zip(masks, ("reference", "numba"), strict=True):
        for point in points:
            passed_voxels(mask, origin, point[None], ROW, backend)
    assert torch.equal(*masks)


def test_only_what_is_asked_for_is_looked_at():
    occupied = torch.zeros(ROW.shape, dtype=torch.bool)
    occupied[4, 1, 1] = True
    rig = CameraRig({"front": camera_at(0.5, 1.5, 1.5)})
    among = torch.zeros(ROW.shape, dtype=torch.bool)
    among[2, 1, 1] = among[4, 1, 1] = among[6, 1, 1] = True
    assert torch.equal(camera_mask(occupied, ROW, rig, among=among), camera_mask(occupied, ROW, rig) & among)
    assert camera_mask(occupied, ROW, rig, among=among).nonzero()[:, 0].tolist() == [2, 4]


class TestPasses:
    """A ray from (0.5, 1.5, 2.5) down to (4.5, 1.5, 0.5): half a voxel lower for every voxel further."""

    origin, end = torch.tensor([0.5, 1.5, 2.5]), torch.tensor([[4.5, 1.5, 0.5]])

    @pytest.mark.parametrize("backend", ["reference", "numba"])
    def test_a_return_ends_the_way_in_its_own_voxel(self, backend):
        passes = RayPasses.none(ROW)
        passes.add(self.origin, self.end, backend=backend)
        assert passes.through.sum() == passes.through[:, 1].sum() and not passes.through[4, 1, 0]
        assert passes.through[0, 1, 2] == 1 and passes.through[3, 1, 0] == 1
        assert passes.lowest[:5, 1].tolist() == pytest.approx([2.25, 1.75, 1.25, 0.75, 0.5])
        assert torch.isinf(passes.lowest[5:, 1]).all() and torch.isinf(passes.lowest[:, 0]).all()
        passes.add(self.origin, self.end, backend=backend)
        assert passes.through.max() == 2

    def test_without_a_return_the_last_voxel_is_passed_too(self):
        passes = RayPasses.none(ROW)
        passes.add(self.origin, self.end, returns=False)
        assert passes.through[4, 1, 0] == 1

    def test_a_return_beyond_the_grid_passes_all_of_its_way(self):
        passes = RayPasses.none(ROW)
        passes.add(torch.tensor([-4.0, 0.5, 0.5]), torch.tensor([[20.0, 0.5, 0.5], [-1.0, 0.5, 0.5]]))
        assert passes.through[:, 0, 0].tolist() == [1] * 8

    def test_floor_is_in_metres(self):
        spec = GridSpec((0.0, 0.0, -2.0), 0.5, (8, 3, 8))
        passes = RayPasses.none(spec)
        passes.add(torch.tensor([0.1, 0.1, 1.0]), torch.tensor([[0.1, 0.1, -1.0]]))
        assert float(passes.floor[0, 0]) == pytest.approx(-1.0)

    def test_both_backends_count_alike(self):
        generator = torch.Generator().manual_seed(1)
        spec = GridSpec((0.0, 0.0, 0.0), 0.3, (20, 17, 9))
        points = torch.rand(500, 3, generator=generator, dtype=torch.float64) * 9 - 2
        results = []
        for backend in ("reference", "numba"):
            passes = RayPasses.none(spec)
            passes.add(torch.tensor([2.03, 1.91, 1.17]), points, backend=backend)
            results.append(passes)
        assert torch.equal(results[0].through, results[1].through)
        assert torch.allclose(results[0].lowest, results[1].lowest, atol=1e-9)

    def test_wrong_shapes_are_named(self):
        ways = torch.zeros(2, 3, dtype=torch.float64)
        through, lowest = torch.zeros(2, 2, 2, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.float64)
        with pytest.raises(ValueError, match="stops must be bool"):
            count_passes(ways, ways, torch.zeros(3, dtype=torch.bool), through, lowest)
        with pytest.raises(ValueError, match="through must be int32"):
            count_passes(ways, ways, torch.zeros(2, dtype=torch.bool), through.long(), lowest)
        with pytest.raises(ValueError, match="backend 'cuda' is unknown"):
            count_passes(ways, ways, torch.zeros(2, dtype=torch.bool), through, lowest, "cuda")
