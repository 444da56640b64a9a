"""Do labels, cameras and pictures belong together? Asked before anything is generated or judged from them.

A label file of another frame, a rig of another car or pictures of another size fit every shape check; what they make
looks like a bad model. Each check here is cheap beside reading the files.
"""

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.transforms import invert_rigid, transform_points

__all__ = ["check_belongs", "check_pictures", "check_sees", "lidar_agreement"]

# Own labels hold 0.85 and more of a sweep's raised points (0.4 m tolerance), the next key frame's 0.61 at most:
# measured on the street world, in its 0.2, 0.4 and 0.5 m grids. Labels that lie 0.8 m too low still hold 0.68.
LEAST_AGREEMENT = 0.6
# Fewer points say nothing.
LEAST_POINTS = 200
TOLERANCE = 0.4  # metres


def lidar_agreement(grid: OccupancyGrid, frame: Frame, most: int = 2000) -> float | None:
    """Share of a sweep's points that lie in or beside an occupied voxel.

    The ground fits every frame of a drive and is left out, and so is the car itself.

    Args:
        grid: the labels.
        frame: whose sweep.
        most: points that are looked at, evenly spread.

    Returns:
        0..1, or None where there is no sweep, a damaged one (nothing else here needs it), or too little in the grid.
    """
    if frame.lidar_path is None or frame.lidar2ego is None or not frame.lidar_path.is_file():
        return None
    try:
        points = torch.from_numpy(read_lidar(frame.lidar_path)[:, :3].copy()).double()
    except ValueError:
        return None
    ego = transform_points(frame.lidar2ego, points)
    # The road lies near ego's z = 0.
    raised = ego[(ego[:, 2] > 0.4) & (ego[:, :2].norm(dim=1) > 3.0)]
    index, inside = grid.spec.index_of(transform_points(invert_rigid(grid.grid2ego), raised))
    index = index[inside]
    if len(index) < LEAST_POINTS:
        return None
    index = index[:: max(1, len(index) // most)].to(grid.device)
    reach = [max(1, round(TOLERANCE / size)) for size in grid.spec.voxel_size]
    steps = torch.cartesian_prod(*[torch.arange(-n, n + 1, device=grid.device) for n in reach])
    around = index[:, None] + steps  # [P, N, 3]
    last = torch.tensor(grid.spec.shape, device=grid.device) - 1
    x, y, z = around.clamp(torch.zeros_like(last), last).unbind(-1)
    return float(_occupied(grid, x, y, z).any(1).double().mean())


def _occupied(grid: OccupancyGrid, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    labels = grid.labels[x, y, z]
    return (labels != grid.taxonomy.free) & (labels != grid.taxonomy.UNKNOWN)


def check_belongs(grid: OccupancyGrid, frame: Frame) -> None:
    """Make sure that labels are of this frame, as far as its lidar sweep can tell.

    Raises:
        ValueError: most of what the lidar hit is free in the labels.
    """
    share = lidar_agreement(grid, frame)
    if share is not None and share < LEAST_AGREEMENT:
        raise ValueError(
            f"the labels do not belong to sample {frame.token}: {100 * share:.0f} % of what its lidar hit above the "
            f"road is occupied in them (its own labels: {100 * LEAST_AGREEMENT:.0f} % and more). Give the label file "
            "of this sample, and the lidar2ego that the labels were made with"
        )


def check_sees(grid: OccupancyGrid, rig: CameraRig, token: str = "", most: int = 4000) -> None:
    """Make sure that the cameras look at the grid at all.

    Raises:
        ValueError: the grid is empty, or no camera has an occupied voxel in its picture.
    """
    flat = grid.labels.flatten()
    # Ten million voxels: some of them tell, all of them only where those are empty. Odd, to hit every layer.
    some = torch.arange(0, len(flat), (len(flat) // 200_000) | 1, device=flat.device)
    for index in (some, torch.arange(len(flat), device=flat.device)):
        labels = flat[index]
        index = index[(labels != grid.taxonomy.free) & (labels != grid.taxonomy.UNKNOWN)]
        if len(index):
            break
    about = f"sample {token}: " if token else ""
    if not len(index):
        raise ValueError(f"{about}every voxel of the grid is free or unknown; there is nothing to draw")
    index = index[:: max(1, len(index) // most)].cpu()
    y, z = grid.spec.shape[1:]
    places = torch.stack([index // (y * z), index // z % y, index % z], 1).double()
    size, lower = torch.tensor(grid.spec.voxel_size).double(), torch.tensor(grid.spec.lower).double()
    ego = transform_points(grid.grid2ego.cpu(), lower + (places + 0.5) * size)
    for camera in rig.values():
        pixels, depth = camera.project(transform_points(camera.ego2cam, ego))
        u, v = pixels.nan_to_num(-1).unbind(-1)
        if bool(((depth > 0) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)).any()):
            return
    raise ValueError(
        f"{about}none of {', '.join(rig.names)} sees an occupied voxel; the rig is another car's or in other units. "
        "cam2ego takes metres from the camera (x right, y down, z forward) to ego at the key frame's lidar time"
    )


def check_pictures(frame: Frame) -> None:
    """Make sure that every camera's picture has the size that its calibration is for.

    Raises:
        ValueError: names the cameras whose pictures have another size, or cannot be read.
    """
    from PIL import Image

    wrong = []
    for name, path in frame.image_paths.items():
        camera = frame.cameras[name]
        if not path.is_file():
            continue
        try:
            with Image.open(path) as picture:  # the header alone
                size = picture.width, picture.height
        except OSError as error:
            raise ValueError(f"sample {frame.token}: {path} cannot be read ({error}); copy it again") from error
        if size != (camera.width, camera.height):
            wrong.append(f"{name} {size[0]}x{size[1]}, calibrated for {camera.width}x{camera.height}")
    if wrong:
        raise ValueError(
            f"sample {frame.token}: the pictures are not this rig's ({'; '.join(wrong)}); give the infos that belong "
            "to the pictures, or scale the intrinsics with them"
        )
