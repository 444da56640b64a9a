"""Models taught by 2D labels for perception.py: OccFlowNet, SplattingOcc, RenderOcc, and their trunk with 3D labels.

Lidar points of seven key frames become rays once, when a drive is made; a batch takes them as they are. The networks
get the calibration back from the projections of `Drives`.

Legend: B samples, T frames, V views, R rays of a key frame.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.batch import OccupancyBatch
from syntheocc.occupancy.perception.cached import CachedFrames, FrameStore
from syntheocc.occupancy.perception.dataset import Sampling
from syntheocc.occupancy.perception.ray_config import FILTER_CLASSES, RayConfig
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.perception.view_transform import LiftCameras
from syntheocc.occupancy.perception.volume_model import VolumeModel
from syntheocc.occupancy.perception.volume_recorded import RecordedVolumeModel
from syntheocc.occupancy.perception.volume_step import VolumeStep
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels

# Of a key frame's seven frames of rays so many are kept, those of the key frame itself three times as likely.
RAYS = RayConfig(num_rays=8192)
_BYTES = ("labels", "frames", "cameras")


def rays_of(store: FrameStore, window: tuple[int, int], spec: GridSpec) -> dict[str, Any]:
    """Rays of all key frames of a drive, as `Drives` keeps them: columns [F, R, ...], their numbers, box motions."""
    image = ImageAugmentation(height=window[0], width=window[1])
    dataset = CachedFrames(store, Sampling(num_frames=1, image=image), spec, rays=RAYS)
    found = [dataset.sample(row) for row in range(len(store))]
    columns: dict[str, Any] = {"ray_number": torch.tensor([len(batch.rays or ()) for batch in found])}
    for f in fields(RayLabels):
        if f.name in ("samples", "frame_offsets", "weights"):
            continue
        rows = [getattr(batch.rays, f.name).cpu() for batch in found]
        kept = [row.to(torch.uint8) if f.name in _BYTES else row.float() for row in rows]
        columns[f"ray_{f.name}"] = torch.stack(
            [torch.cat([row, row.new_zeros(RAYS.num_rays - len(row), *row.shape[1:])]) for row in kept]
        )
    return columns | {"motion": [batch.motion.to("cpu") for batch in found if batch.motion is not None]}


def rays_at(columns: dict[str, Tensor], motion: Sequence[BoxMotion], rows: Tensor) -> tuple[RayLabels, BoxMotion]:
    """Rays and box motions of key frames int64 [B] (on the CPU), in the key ego frame, on the columns' device."""
    device = columns["ray_number"].device
    index = rows.to(device)
    there = torch.arange(RAYS.num_rays, device=device) < columns["ray_number"][index][:, None]  # [B, R]
    sample, slot = there.nonzero().unbind(1)
    picked = {k.removeprefix("ray_"): v[index[sample], slot] for k, v in columns.items() if k != "ray_number"}
    picked |= {name: picked[name].long() for name in _BYTES}
    weights = torch.ones_like(picked["depth"])
    rays = RayLabels(**picked, samples=sample, weights=weights, frame_offsets=RAYS.frame_offsets)
    return rays, BoxMotion.collate([motion[row] for row in rows.tolist()]).to(device)


def intrinsics_of(projection: Tensor) -> Tensor:
    """K [..., 3, 3] of ``K @ rotation`` [..., 3, 3]: the Cholesky factor of K K^T from the last row on."""
    product = projection.double() @ projection.double().transpose(-1, -2)
    factor = torch.linalg.cholesky(product.flip((-1, -2))).flip((-1, -2))
    return (factor / factor[..., 2:, 2:]).float()


def cameras_of(ego2img: Tensor, top: int, width: int, flips: Tensor | None = None) -> LiftCameras:
    """The calibration behind projections of `Drives`: a window `top` rows below the picture's, mirrored or not.

    Args:
        ego2img: [B, T, V, 4, 4].
        top: rows cut off above the window.
        width: of the window.
        flips: bool [B, 3] on the CPU: images, the grid's x, its y.
    """
    batch, device = len(ego2img), ego2img.device
    flips = torch.zeros(batch, 3, dtype=torch.bool) if flips is None else flips
    image, grid = (torch.eye(4).repeat(batch, 1, 1) for _ in range(2))
    image[:, 1, 2] = -float(top)
    image[flips[:, 0], 0, 0], image[flips[:, 0], 0, 2] = -1.0, float(width)
    grid[flips[:, 1], 0, 0], grid[flips[:, 2], 1, 1] = -1.0, -1.0
    image, grid = image.to(device), grid.to(device)
    plain = torch.linalg.inv(image)[:, None, None] @ ego2img @ grid[:, None, None]
    transforms = image[:, None, None].expand(*ego2img.shape[:3], 4, 4)
    return LiftCameras(ego2img, intrinsics_of(plain[..., :3, :3]), transforms, grid)


def contender(size: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """The fields of a `Contender` for all of these models in one size, "small" or "tiny"."""
    first, _ = model_entry("occflownet").preset(f"occflownet_2d_{size}")
    top = image_size[1] - first.image_size[0]
    classes: dict[type, str] = {}

    def make(arm: Any) -> VolumeModel:
        name, _, preset = arm.model.partition("/")
        entry: Any = model_entry(name)
        config, recipe = entry.preset(f"{preset}_{size}")
        # All rays that were kept: they cost a tenth of what the trunk does.
        model = entry.model_class(replace(config, rays_per_sample=RAYS.num_rays))
        classes[type(model)] = name
        # Not among the model's state: what the arm's rays weigh, and which it learns from.
        model.recipe_rays = recipe.rays
        return model

    def losses(model: VolumeModel, batch: OccupancyBatch, dtype: torch.dtype | None) -> dict[str, Tensor]:
        batch = replace(batch, rays=_for_recipe(batch.rays, model.recipe_rays))
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
            return step_of(model)(batch, 0, list(range(len(batch.tokens))))

    def step_of(model: VolumeModel) -> VolumeStep:
        if "step" not in vars(model):
            # Not as a submodule: the step has the model in it.
            entry: Any = model_entry(classes[type(model)])
            vars(model)["step"] = entry.step_class(model).to(next(model.parameters()).device)
        return vars(model)["step"]

    def record(model: VolumeModel, dtype: torch.dtype | None) -> None:
        step_of(model).recorded = RecordedVolumeModel(model, dtype)

    def predict(model: VolumeModel, images: Tensor, ego2img: Tensor, settings: tuple[float, ...]) -> Any:
        output = model(images, cameras_of(ego2img, top, images.shape[-1]))
        opacity, best = model.voxel_logits(output.raw).sigmoid(), output.logits.argmax(-1)
        free = model.config.taxonomy.free
        return [torch.where(opacity > value, best, free).to(torch.uint8) for value in settings], None

    return {
        "grid": first.grid,
        "taxonomy": first.taxonomy,
        "window": first.image_size,
        "image_size": image_size,
        "make": make,
        "losses": losses,
        "groups": lambda model, rate: [{"params": list(model.parameters()), "lr": rate}],
        "predict": predict,
        "settings": (0.5, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.7),
        "setting": "opacity",
        "save": lambda model, folder: model.save_pretrained(folder),
        "record": record,
    }


def _for_recipe(rays: RayLabels | None, recipe: RayConfig) -> RayLabels | None:
    """The rays that an arm learns from, with its weights of the classes."""
    if rays is None:
        return None
    offsets = torch.tensor(recipe.frame_offsets, device=rays.device)
    keep = torch.isin(rays.offsets, offsets)
    if recipe.dynamics == "filter":
        hidden = torch.tensor(FILTER_CLASSES, device=rays.device)
        keep = keep & (rays.is_key | ~torch.isin(rays.labels, hidden))
    rays = rays.select(keep)
    weights = torch.tensor(recipe.loss_weights or (1.0,) * 18, device=rays.device)
    return replace(rays, weights=weights[rays.labels])
