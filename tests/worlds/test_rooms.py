import numpy as np
import pytest
import torch

from syntheocc.occupancy.data import nyuv2
from syntheocc.occupancy.grids import NYUV2
from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.rooms import IDS, make_room, room_depth, room_voxels, write_rooms


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_rooms(tmp_path_factory.mktemp("nyu"), train=1, test=0, seed=7)[0]


def test_the_reader_of_the_real_files_reads_a_room(written):
    assert (written.parent.name, written.name) == ("NYUtrain", "NYU0001_0000.bin")
    frame, grid = nyuv2.read_nyuv2_frame(written), nyuv2.read_nyuv2(written)
    frame.check_files(lidar=False)
    names = {NYUV2.taxonomy.classes[i] for i in grid.labels.unique().tolist() if i < 255}
    assert {"free", "floor", "wall", "window", "chair", "table", "furn"} <= names
    assert 0.3 < float((grid.labels == 255).double().mean()) < 0.9
    # The floor lies at z = 0: in the voxels from -5 cm.
    floor = (grid.labels == NYUV2.taxonomy.id_of("floor")).nonzero()
    assert set(floor[:, 2].tolist()) <= {0, 1}


def test_depth_lies_on_the_voxels(written):
    frame, stored = nyuv2.read_nyuv2_frame(written), nyuv2.read_nyuv2_voxels(written)
    depth = torch.from_numpy(nyuv2.read_depth(frame.extras["depth"]))[::8, ::8].double()
    assert depth.shape == (60, 80) and 0.3 < float(depth.min()) and float(depth.max()) < 6
    camera = frame.cameras["camera"]
    v, u = torch.meshgrid(torch.arange(0, 480, 8), torch.arange(0, 640, 8), indexing="ij")
    rays = camera.pixel_rays(torch.stack([u, v], -1).reshape(-1, 2))
    occupied = []
    # Behind the surface: near enough for a chair's back, far enough for rays that graze a floor of 2 cm voxels.
    for behind in (0.01, 0.05):
        points = transform_points(camera.cam2ego, rays * (depth.reshape(-1, 1) + behind))
        cell = ((points - stored.origin) / 0.02).floor().long()[:, [0, 2, 1]]
        assert bool(((cell >= 0) & (cell < torch.tensor(nyuv2.FILE_SHAPE))).all())
        ids = stored.ids[tuple(cell.numpy().T)]
        occupied.append((ids > 0) & (ids < 255))
    # What is left lies on the picture's border, where the grid is unknown.
    assert (occupied[0] | occupied[1]).mean() > 0.97


def test_rooms_come_from_their_seed():
    one, two, other = make_room(3), make_room(3), make_room(4)
    assert torch.equal(one.solids.shape2frame, two.solids.shape2frame) and torch.equal(one.cam2world, two.cam2world)
    assert not torch.equal(one.cam2world, other.cam2world)
    assert set(one.solids.label.tolist()) <= set(IDS.values())
    depth, image = room_depth(one, stride=16)
    assert depth.shape == (30, 40) and image.shape == (30, 40, 3) and np.isfinite(depth).all()
    again, same = room_depth(two, stride=16)
    assert np.array_equal(depth, again) and np.array_equal(image, same)


def test_what_the_camera_does_not_see_is_unknown():
    room = make_room(5)
    voxels = room_voxels(room)
    camera = nyuv2.nyuv2_camera(room.cam2world)
    known = np.argwhere(voxels.ids != 255)[::997]
    points = voxels.origin + (torch.from_numpy(known[:, [0, 2, 1]].copy()) + 0.5) * 0.02
    pixels, depth = camera.project(transform_points(camera.ego2cam, points))
    assert bool((depth > 0).all()) and bool(((pixels >= 0) & (pixels <= torch.tensor([640, 480]))).all())
