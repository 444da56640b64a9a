"""Ray labels of a real key frame: projection against the matrices of its infos, and rays through its own sweep."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.lidarseg import LidarReader
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling
from syntheocc.occupancy.perception.ray_config import RayConfig
from syntheocc.occupancy.perception.ray_store import RayReader
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.occupancy.transforms import transform_points

SPEC = OCC3D_NUSCENES.spec
pytestmark = pytest.mark.real_data


@pytest.fixture
def rays_of(real_data, tmp_path):
    """Rays of the real sweep; it comes without classes: what is low is road here, all else manmade."""
    root = real_data / "nuscenes_scene0061"
    frame = read_nuscenes(root, "tables_reduced")[0]
    points = read_lidar(frame.lidar_path)
    height = transform_points(frame.lidar2ego, torch.from_numpy(points[:, :3]).double())[:, 2]
    (tmp_path / "lidarseg/v1.0-mini").mkdir(parents=True)
    raw = np.where(height.numpy() < 0.3, 24, 28).astype(np.uint8)
    raw.tofile(tmp_path / f"lidarseg/v1.0-mini/{frame.extras['lidar_token']}_lidarseg.bin")

    def rays(**options):
        config = RayConfig(frame_offsets=(0,), dynamics="none", **options)
        sampling = Sampling(num_frames=1, image=ImageAugmentation(height=900, width=1600))
        reader = RayReader(config, LidarReader(tmp_path))
        return OccupancyFrames([frame], sampling, SPEC, rays=reader).sample(frame).rays

    return rays, frame, points


def test_pixels_are_those_of_the_infos_matrices(rays_of, real_data):
    """mmdetection3d's lidar2cam was made by others, from the same poses."""
    rays, frame, points = rays_of
    found = rays(occlusion=False, crop_to_grid=False, max_distance=None, depth_range=(1.0, 60.0))
    info = read_infos(real_data / "nuscenes_scene0061/info_mmdet3d_v1.1.pkl", real_data / "nuscenes_scene0061")[0]
    names = OccupancyFrames([frame], Sampling(num_frames=1, image=ImageAugmentation(height=9, width=16)), SPEC).cameras
    assert len(found) > 15_000 and found.cameras.unique().tolist() == list(range(6))
    for v, name in enumerate(names):
        camera = info.cameras[name]
        in_camera = transform_points(
            torch.linalg.inv(camera.cam2ego) @ info.lidar2ego, torch.from_numpy(points[:, :3]).double()
        )
        pixels, depth = camera.project(in_camera)
        seen = (depth >= 1) & (depth < 60) & (pixels > 1).all(-1) & (pixels < torch.tensor([1599.0, 899.0])).all(-1)
        own = found.select(found.cameras == v)
        assert abs(int(seen.sum()) - len(own)) <= 3
        nearest = torch.cdist(own.pixels[:500].double(), pixels[seen]).min(1)
        assert float(nearest.values.median()) < 0.05 and float(nearest.values.quantile(0.99)) < 1.0


def test_rays_end_in_the_sweeps_own_voxels(rays_of):
    rays, frame, points = rays_of
    ego = transform_points(frame.lidar2ego, torch.from_numpy(points[:, :3]).double())
    ego = ego[ego.norm(dim=-1) > 3]  # not the car itself
    index, inside = SPEC.index_of(ego)
    occupied = torch.zeros(SPEC.shape, dtype=torch.bool)
    occupied[index[inside].unbind(-1)] = True
    for origin in ("camera", "lidar"):
        found = rays(ray_origin=origin)
        found = found.select((found.points.norm(dim=-1) > 3) & (found.labels == 15))
        _, voxel, hit = cast_rays(occupied, found.origins, found.directions, SPEC, distance="entry")
        lower = torch.tensor(SPEC.lower) + 0.4 * voxel
        off = torch.maximum(lower - found.points, found.points - lower - 0.4).clamp_min(0).norm(dim=-1)
        assert len(found) > 3000 and float(hit.float().mean()) > 0.99 and float(off.median()) < 0.3
