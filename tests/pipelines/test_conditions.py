"""How grids, rigs and MPIs are sorted into frames, and what is refused."""

import pytest
import torch

from syntheocc.models import MPIControlNetModel
from syntheocc.models.presets import tiny_components
from syntheocc.occupancy import OCC3D_NUSCENES, GridSpec, OccupancyGrid, PlaneSpec, SemanticMPI, Taxonomy, render_mpi
from syntheocc.pipelines.conditions import gather_conditions
from syntheocc.pipelines.sources import GridSource, condition_spec, ring_neighbors

PLANES = PlaneSpec(num_planes=8, near=3.0, step=3.0)


def test_ring_by_hand():
    assert ring_neighbors(6).tolist() == [[5, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 0]]
    assert ring_neighbors(2).tolist() == [[1, -1], [0, -1]]
    assert ring_neighbors(1).tolist() == [[-1, -1]]


def test_ring_is_the_geometry_of_six_cameras(six_cameras, grid):
    conditions = gather_conditions(grid, six_cameras, None, None)
    assert conditions.neighbors().tolist() == ring_neighbors(6).tolist()


def test_shared_grids_are_rendered_once(grid, other_grid, rig):
    conditions = gather_conditions([grid, other_grid, grid], rig, None, None)
    assert len(conditions.sources) == 2
    assert conditions.index == ((0,), (1,), (0,))
    assert conditions.flat_index(copies=2) == [0, 0, 1, 1, 0, 0]
    assert (conditions.num_samples, conditions.num_frames, conditions.num_views) == (3, 1, 3)
    assert not conditions.video


def test_one_grid_for_several_prompts(grid, rig):
    conditions = gather_conditions(grid, rig, None, 4)
    assert conditions.num_samples == 4
    assert len(conditions.sources) == 1


def test_video_forms(grid, other_grid, rig):
    conditions = gather_conditions([[grid, other_grid], [other_grid, other_grid]], rig, None, None)
    assert conditions.video
    assert conditions.index == ((0, 1), (1, 1))
    assert conditions.flat_index() == [0, 1, 1, 1]
    per_sample = gather_conditions([[grid, other_grid], [other_grid, other_grid]], [rig, rig], None, None)
    assert per_sample.index == conditions.index


def test_rigs_with_other_neighbours_get_tables_of_their_own(grid, six_cameras):
    front = six_cameras.select(["CAM_FRONT_LEFT", "CAM_FRONT"])
    # The same names, but the second camera looks backwards: nothing is next to anything.
    from syntheocc.occupancy import CameraRig

    apart = CameraRig({"CAM_FRONT_LEFT": six_cameras["CAM_FRONT_LEFT"], "CAM_FRONT": six_cameras["CAM_BACK_RIGHT"]})
    conditions = gather_conditions(grid, [front, apart], None, None)
    assert conditions.neighbors(copies=2).tolist() == [[[1], [0]], [[1], [0]], [[-1], [-1]], [[-1], [-1]]]


def test_single_camera_has_no_neighbours(grid, six_cameras):
    conditions = gather_conditions(grid, six_cameras.select(["CAM_BACK"]), None, None)
    assert conditions.neighbors().shape == (1, 0)


def test_batched_mpi_is_a_list_of_samples(grid, other_grid, rig):
    mpis = [render_mpi(g, rig, 4, 6, planes=PLANES) for g in (grid, other_grid)]
    conditions = gather_conditions(None, None, SemanticMPI.stack(mpis), None)
    assert conditions.num_samples == 2
    assert torch.equal(conditions.sources[1].mpi.labels, mpis[1].labels)
    assert conditions.neighbors().tolist() == ring_neighbors(3).tolist()


def test_gathered_mpi(grid, other_grid, rig):
    conditions = gather_conditions([grid, other_grid, grid], rig, None, None)
    rendered = render_mpi([grid, other_grid], rig, 4, 6, planes=PLANES)
    gathered = conditions.gather(rendered)
    assert gathered.labels.shape == (3, 3, 8, 4, 6)
    assert torch.equal(gathered.labels[2], rendered.labels[0])
    video = gather_conditions([[grid, other_grid, grid]], rig, None, None).gather(rendered)
    assert [mpi.labels.shape for mpi in video] == [(3, 3, 8, 4, 6)]


def test_what_is_refused(grid, other_grid, rig, six_cameras):
    mpi = render_mpi(grid, rig, 4, 6, planes=PLANES)
    two_views = six_cameras.select(["CAM_FRONT", "CAM_BACK"])
    for arguments, message in [
        ((None, None, None, None), "neither"),
        ((grid, rig, mpi, None), "both"),
        ((grid, None, None, None), "needs `cameras=`"),
        (([], rig, None, None), "empty list"),
        ((grid.labels, rig, None, None), "Tensor"),
        (([grid, mpi], rig, None, None), "mixes"),
        ((["a", "b"], rig, None, None), "mixes"),
        (([[grid, mpi]], rig, None, None), "SemanticMPI"),
        (([grid, grid], rig, None, 3), "number of samples disagrees"),
        (([grid, grid], [rig] * 3, None, None), "number of samples disagrees"),
        (([[grid], [grid, grid]], rig, None, None), "frames"),
        (([[grid, grid]], [[rig] * 3], None, None), "frames a sample"),
        (([grid, other_grid], [rig, two_views], None, None), "same cameras"),
    ]:
        with pytest.raises(ValueError, match=message):
            gather_conditions(*arguments)


def test_spec_is_the_controlnets_config():
    controlnet = tiny_components(num_planes=12, near=1.0, step=0.5, groups=6, pixel_origin="corner")["controlnet"]
    spec = condition_spec(controlnet)
    assert spec.planes == PlaneSpec(num_planes=12, near=1.0, step=0.5, groups=6)
    assert (spec.pixel_origin, spec.samples_per_cell, spec.taxonomy.name) == ("corner", 1, "syntheocc")
    assert isinstance(controlnet, MPIControlNetModel)


def test_grid_of_another_taxonomy_is_mapped(pipe, call, rig):
    spec, taxonomy = OCC3D_NUSCENES
    labels = torch.full(spec.shape, taxonomy.free, dtype=torch.uint8)
    labels[:, :, 0] = taxonomy.id_of("driveable_surface")
    labels[120:140, 90:110, :4] = taxonomy.id_of("car")
    grid = OccupancyGrid(labels, spec, taxonomy, grid2ego=torch.eye(4))
    mpi = call(pipe, occupancy=grid, cameras=rig).mpi
    assert mpi.taxonomy.name == "syntheocc"
    names = {mpi.taxonomy.classes[i] for i in mpi.labels.unique().tolist()} - {mpi.taxonomy.classes[0]}
    assert names == {"driveable_surface", "car"}


def test_a_table_of_the_same_name_with_another_free_id_is_refused(rig):
    # Unknown to the package, so that nothing can be mapped: every empty cell would be read as a class.
    controlnet = tiny_components(taxonomy="mine", num_classes=3, free_class=2)["controlnet"]
    spec, colors = condition_spec(controlnet), ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    for free in (0, 2):
        table = Taxonomy("mine", ("a", "b", "c"), colors, free, (1,))
        labels = torch.full((2, 2, 2), free, dtype=torch.uint8)
        source = GridSource(OccupancyGrid(labels, GridSpec((0, 0, 0), 1.0, (2, 2, 2)), table), rig)
        if free == 2:
            source.check(spec, 1, 1)
        else:
            with pytest.raises(ValueError, match="3 ids and 2 free, not 'mine' of 3 ids with 0 free"):
                source.check(spec, 1, 1)
