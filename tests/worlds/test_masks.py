"""Visibility masks: a wall that a person can look behind, then the exact geometry of a scene."""

import torch

from syntheocc.occupancy import OCC3D_NUSCENES, Camera, CameraRig
from syntheocc.occupancy.accumulation.visibility import camera_mask, lidar_mask, passed_voxels
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.transforms import transform_points
from syntheocc.worlds.intersect import first_hit
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.timeline import key_frame

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
    points = torch.rand(400, 3, generator=generator, dtype=torch.float64) * 14 - 3
    masks = [torch.zeros(ROW.shape, dtype=torch.bool) for _ in range(2)]
    for mask, backend in zip(masks, ("reference", "numba"), strict=True):
        for point in points:
            passed_voxels(mask, origin, point[None], ROW, backend)
    assert torch.equal(*masks)


def reached(scene, frame, t, index, spec):
    """What the exact world says of each voxel in a camera's picture; two bool [N], for index [N, 3].

    Whether an unobstructed straight line runs from the camera to its centre, and whether one runs into it at all: nine
    are tried, to the centre and to points near the corners.
    """
    lower, size = torch.tensor(spec.lower).double(), torch.tensor(spec.voxel_size).double()
    aims = torch.cat([torch.zeros(1, 3), torch.cartesian_prod(*[torch.tensor([-0.45, 0.45])] * 3)]).double()
    to_center, into = torch.zeros(2, len(index), dtype=torch.bool)
    ego2world = scene.ego.pose_at(t)
    for name, camera in frame.cameras.items():
        own_time = (frame.extras["camera_timestamps_us"][name] - frame.timestamp_us) * 1e-6 + t
        pixels, depth = camera.project(transform_points(camera.ego2cam, lower + (index + 0.5) * size))
        edge = torch.tensor([camera.width - 0.5, camera.height - 0.5])
        shown = ((pixels > -0.5) & (pixels < edge)).all(1) & (depth > 0)
        own = shown.nonzero()[:, 0]
        if not len(own):
            continue
        eye = camera.cam2ego[:3, 3]
        way = (lower + (index[own][:, None] + 0.5 + aims) * size - eye).reshape(-1, 3)
        length = way.norm(dim=1)
        way = way / length[:, None]
        corner = (lower + index[own] * size)[:, None].expand(-1, 9, -1).reshape(-1, 3)
        entry = torch.minimum((corner - eye) / way, (corner + size - eye) / way).amax(1)
        start = transform_points(ego2world, eye[None]).expand_as(way)
        stop, _, _ = first_hit(scene.primitives_at(own_time), scene.ground, start, way @ ego2world[:3, :3].T, 150.0)
        to_center[own] |= (stop >= length).reshape(-1, 9)[:, 0]
        into[own] |= (stop >= entry - 1e-6).reshape(-1, 9).any(1)
    return to_center, into


def test_the_camera_mask_agrees_with_the_exact_visibility():
    """Tolerance: free voxels agree on 92 %; of the occupied, < 5 % are called seen that no line reaches.

    A free voxel is exactly visible when a clear line runs to its centre, an occupied one when a clear line runs into
    it. The mask asks the voxels, which are thicker than what they hold: it misses some of the occupied voxels that a
    line along a surface still reaches (up to 20 % of them, most of them road seen at a grazing angle).
    """
    scene, t, spec = make_scene(5, key_frames=2), 0.5, OCC3D_NUSCENES.spec
    frame = key_frame(scene, 1)
    occupied = exact_grid(scene, t, OCC3D_NUSCENES).occupied()
    mask = camera_mask(occupied, spec, frame.cameras)
    generator = torch.Generator().manual_seed(0)
    figures = {}
    for name, kind in (("occupied", occupied), ("free", ~occupied)):
        index = kind.nonzero()
        index = index[torch.randperm(len(index), generator=generator)[:150]]
        to_center, into = reached(scene, frame, t, index, spec)
        exact, ours = into if name == "occupied" else to_center, mask[tuple(index.T)]
        figures[name] = [float(v.float().mean()) for v in (exact == ours, ours & ~exact, exact & ~ours, exact)]
        print(name, "agree, seen in vain, missed, exactly visible:", figures[name])
    assert figures["free"][0] > 0.92 and figures["free"][1] < 0.02
    assert figures["occupied"][1] < 0.05 and figures["occupied"][2] < 0.20
    assert 0.1 < figures["occupied"][3] < 0.9  # neither all nor nothing is in view
