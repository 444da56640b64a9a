"""Exact labels: voxels that a person can count, then the fast path against the plain one, then real scenes."""

import dataclasses
import math
import time

import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES, OPENOCCUPANCY, SURROUNDOCC, SYNTHEOCC, SYNTHEOCC_COARSE
from syntheocc.occupancy.grids import GridSpec, Preset
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.labels import exact_grid, exact_labels, grid_to_world
from syntheocc.worlds.primitives import BOX, CONE, ELLIPSOID, Primitives
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY
from syntheocc.worlds.voxelize import paint, samples_for

CAR, ROAD, MANMADE = (WORLD_TAXONOMY.id_of(name) for name in ("car", "driveable_surface", "manmade"))
UNIT = GridSpec((0.0, 0.0, 0.0), 1.0, (6, 6, 4))


def solid(kind, center, half, label=MANMADE, taper=0.0, instance=0):
    """One solid with half axes along the frame's."""
    pose = torch.diag(torch.tensor([*half, 1.0], dtype=torch.float64))
    pose[:3, 3] = torch.tensor(center, dtype=torch.float64)
    return Primitives(
        torch.tensor([kind]),
        pose[None],
        torch.tensor([taper], dtype=torch.float64),
        torch.tensor([label], dtype=torch.uint8),
        torch.tensor([28], dtype=torch.uint8),
        torch.tensor([instance]),
        torch.tensor([0]),
    )


@pytest.fixture(scope="module")
def scene():
    return make_scene(3, key_frames=2)


@dataclasses.dataclass
class Flat:
    """Just enough of a scene: flat road at z = 0.3 and some solids; the car stands at the origin."""

    solids: Primitives
    lidar2ego = torch.eye(4, dtype=torch.float64)

    def primitives_at(self, t):
        return self.solids

    @property
    def ego(self):
        return self

    def pose_at(self, t):
        return torch.eye(4, dtype=torch.float64)

    @property
    def ground(self):
        return self

    def height(self, xy):
        return torch.full(xy.shape[:-1], 0.3, dtype=torch.float64)

    def label_at(self, xy):
        return torch.full(xy.shape[:-1], ROAD, dtype=torch.uint8)


@pytest.mark.parametrize("backend", ["torch", "numba"])
class TestPaint:
    def test_a_box_holds_the_voxels_whose_centres_it_holds(self, backend):
        # 1.4..4.6 in x holds the centres 1.5 2.5 3.5 4.5; 2.4..3.6 in y 2.5 3.5; 0.4..1.6 in z 0.5 1.5
        owner = paint(solid(BOX, (3.0, 3.0, 1.0), (1.6, 0.6, 0.6)), UNIT, backend)
        assert owner.eq(0).sum() == 4 * 2 * 2
        assert owner[1:5, 2:4, 0:2].eq(0).all()

    def test_a_ball_and_a_cone_are_round(self, backend):
        ball = paint(solid(ELLIPSOID, (3.0, 3.0, 2.0), (2.0, 2.0, 2.0)), UNIT, backend)
        # centres at +-0.5 and +-1.5 about the middle: only those with two or three coordinates of 1.5 are outside
        # (0.25 + 2.25 + 2.25 = 4.75 > 4 > 2.75), and 4 * 4 * 4 - 4 * (3 * 2) - 8 = 32 are left
        assert ball.eq(0).sum() == 32
        cone = paint(solid(CONE, (3.0, 3.0, 2.0), (2.0, 2.0, 2.0), taper=1.0), UNIT, backend)
        # radius 1.75, 1.25, 0.75, 0.25 at the layers' heights: 1.58 fits into the first only, 0.71 into three
        assert [int(layer.eq(0).sum()) for layer in cone.unbind(2)] == [12, 4, 4, 0]

    def test_a_thin_pole_survives(self, backend):
        pole = solid(CONE, (2.2, 2.2, 2.0), (0.1, 0.1, 2.0))
        assert samples_for(pole, UNIT).item() == 5
        # samples at 0.1 0.3 ... in the voxel; the one at (2.1 or 2.3) is 0.14 away, too far; with radius 0.15 it is in
        owner = paint(solid(CONE, (2.2, 2.2, 2.0), (0.15, 0.15, 2.0)), UNIT, backend)
        assert owner[2, 2].eq(0).all() and owner.eq(0).sum() == 4

    def test_the_last_solid_counts_and_what_is_outside_does_not(self, backend):
        both = Primitives.cat(
            [solid(BOX, (3.0, 3.0, 2.0), (9.0, 9.0, 9.0)), solid(BOX, (0.5, 0.5, 0.5), (0.6, 0.6, 0.6)),
             solid(BOX, (50.0, 0.0, 0.0), (1.0, 1.0, 1.0))]
        )  # fmt: skip
        owner = paint(both, UNIT, backend)
        assert owner[0, 0, 0] == 1 and owner.eq(1).sum() == 1 and owner.eq(0).sum() == 6 * 6 * 4 - 1


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="cuda-magic"):
        paint(solid(BOX, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), UNIT, "cuda-magic")


def test_thickness_decides_the_samples():
    spec = dataclasses.replace(UNIT, voxel_size=0.4)
    wanted = {0.2: 1, 0.19: 2, 0.1: 2, 0.05: 4, 0.001: 6}  # half thickness -> samples along an edge
    for half, samples in wanted.items():
        assert samples_for(solid(BOX, (0.0, 0.0, 0.0), (1.0, half, 1.0)), spec).item() == samples


class TestRule:
    preset = Preset(dataclasses.replace(UNIT, frame="ego"), WORLD_TAXONOMY)

    def test_objects_win_over_buildings_and_both_over_the_ground(self):
        car = solid(BOX, (1.0, 3.0, 1.0), (1.0, 3.0, 1.0), CAR, instance=1)
        house = solid(BOX, (2.0, 3.0, 1.0), (2.0, 3.0, 1.0))
        grid, instances = exact_labels(Flat(Primitives.cat([car, house])), 0.0, self.preset)
        assert (grid.labels[0:2, :, 0:2] == CAR).all() and (instances[0:2, :, 0:2] == 1).all()
        assert (grid.labels[2:4, :, 0:2] == MANMADE).all() and instances.sum() == 2 * 6 * 2
        assert (grid.labels[4:, :, 0] == ROAD).all() and (grid.labels[4:, :, 1:] == 0).all()

    def test_nothing_is_labelled_below_the_ground(self):
        class High(Flat):
            def height(self, xy):
                return torch.full(xy.shape[:-1], 2.5, dtype=torch.float64)

        grid = exact_grid(High(solid(BOX, (3.0, 3.0, 1.0), (1.0, 1.0, 3.0))), 0.0, self.preset)
        assert (grid.labels[:, :, :2] == 0).all()
        assert (grid.labels[2:4, 2:4, 2:] == MANMADE).all() and (grid.labels[0, :, 2] == ROAD).all()

    def test_houses_are_hollow_and_have_no_floor(self):
        spec = GridSpec((0.0, 0.0, 0.0), 1.0, (12, 12, 9), "ego")
        house = Flat(solid(BOX, (6.0, 6.0, 0.0), (5.0, 5.0, 8.0)))
        grid = exact_grid(house, 0.0, Preset(spec, WORLD_TAXONOMY)).labels
        filled = exact_labels(house, 0.0, Preset(spec, WORLD_TAXONOMY), shell=None)[0].labels
        assert (filled[1:11, 1:11, :8] == MANMADE).all()
        # walls and roof two voxels thick, and nothing else
        assert (grid[3:9, 3:9, :6] == 0).all()
        assert (grid != 0).sum() == (filled != 0).sum() - 6 * 6 * 6

    def test_a_class_that_the_table_lacks_is_unknown(self):
        preset = Preset(self.preset.spec, SYNTHEOCC.taxonomy)
        others = solid(BOX, (1.0, 1.0, 2.0), (1.0, 1.0, 2.0), WORLD_TAXONOMY.id_of("others"))
        assert (exact_grid(Flat(others), 0.0, preset).labels[0:2, 0:2] == 255).all()
        occ3d = exact_grid(Flat(others), 0.0, Preset(self.preset.spec, OCC3D_NUSCENES.taxonomy))
        assert (occ3d.labels[0:2, 0:2] == 0).all() and occ3d.labels[5, 5, 3] == 17

    def test_a_world_grid_is_refused(self):
        with pytest.raises(ValueError, match="'world'"):
            exact_grid(Flat(Primitives.empty()), 0.0, Preset(dataclasses.replace(UNIT, frame="world"), WORLD_TAXONOMY))


class TestScenes:
    def test_both_backends_agree(self, scene):
        solids = scene.primitives_at(0.5).transformed(invert_rigid(grid_to_world(scene, 0.5, SURROUNDOCC.spec)[1]))
        plain, fast = (paint(solids, SURROUNDOCC.spec, backend) for backend in ("torch", "numba"))
        assert (plain != fast).float().mean() < 1e-6

    def test_voxels_are_what_the_solids_contain(self, scene):
        """Centres of thick objects' voxels, one by one, against `Primitives.contains`."""
        grid, instances = exact_labels(scene, 0.5, OCC3D_NUSCENES)
        index = (instances > 0).nonzero()
        _, grid2world = grid_to_world(scene, 0.5, OCC3D_NUSCENES.spec)
        solids = scene.primitives_at(0.5).transformed(invert_rigid(grid2world))
        thick = samples_for(solids, OCC3D_NUSCENES.spec) == 1
        centers = grid.spec.centers()[tuple(index.T)]
        held = solids.select(thick).contains(centers)
        own = solids.instance[thick][None] == instances[tuple(index.T)][:, None]
        missed = ~(held & own).any(1)
        # the rest owe their label to a thin part somewhere in the voxel
        lower, upper = solids.bounds()
        for center, instance in zip(centers[missed][:50], instances[tuple(index[missed].T)][:50], strict=True):
            mine = solids.instance == instance
            assert ((lower[mine] <= center + 0.2) & (upper[mine] >= center - 0.2)).all(1).any()

    def test_ground_lies_where_the_surface_is(self, scene):
        for preset in (SYNTHEOCC_COARSE, OCC3D_NUSCENES):
            grid = exact_grid(scene, 0.5, preset)
            _, grid2world = grid_to_world(scene, 0.5, preset.spec)
            road = (grid.labels == preset.taxonomy.id_of("driveable_surface")).nonzero()
            assert len(road) > 500
            points = grid.spec.centers()[tuple(road.T)] @ grid2world[:3, :3].T + grid2world[:3, 3]
            off = (points[:, 2] - scene.ground.height(points[:, :2])).abs()
            # half a voxel, and what the slope adds between the column and the vertical
            assert off.max() <= 0.5 * preset.spec.voxel_size[2] + 0.02

    def test_presets_agree_where_they_overlap(self, scene):
        """OpenOccupancy's grid is SyntheOcc's, six voxels wider: the same labels by name."""
        fine, wide = exact_grid(scene, 0.5, SYNTHEOCC), exact_grid(scene, 0.5, OPENOCCUPANCY)
        inner = wide.map_to(SYNTHEOCC.taxonomy).labels[6:-6, 6:-6]
        assert (fine.labels != inner).float().mean() < 1e-4

    def test_the_same_bytes_again(self, scene):
        first = exact_grid(scene, 0.5, OCC3D_NUSCENES).labels
        assert torch.equal(first, exact_grid(make_scene(3, key_frames=2), 0.5, OCC3D_NUSCENES).labels)
        assert not torch.equal(first, exact_grid(make_scene(4, key_frames=2), 0.5, OCC3D_NUSCENES).labels)

    @pytest.mark.slow
    def test_a_fine_grid_takes_a_second_of_one_processor(self, scene):
        exact_grid(scene, 0.5, SYNTHEOCC)
        took = math.inf
        for _ in range(3):
            start = time.process_time()
            exact_grid(scene, 0.5, SYNTHEOCC)
            took = min(took, time.process_time() - start)
        assert took < 1.0
