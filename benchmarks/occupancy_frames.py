"""Held-out key frames with their history, as a perception model reads them: photographs, conditions, occupancy, rays.

Scenes come from `held_out.ahead(iterate_scenes(...))`; label and mask are made beside them, on the CPU. All views of
a frame have the generator's size; `Reader` brings them to the network's, whoever drew them.

Legend: T frames (the current one first), V views, H W pixels of the views, h w network input, X Y Z voxels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import held_out
import torch
from torch import Tensor
from torch.nn import functional as F

from syntheocc.occupancy.accumulation.visibility import camera_mask
from syntheocc.occupancy.grids import SYNTHEOCC, OccupancyGrid, Preset
from syntheocc.occupancy.metrics import ray_origins
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.inference import predict_grids
from syntheocc.occupancy.perception.transforms import ImageAugmentation, ImageTransform
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI, render_mpi
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.labels import exact_grid, exact_grids
from syntheocc.worlds.timeline import key_frame


@dataclass(frozen=True, eq=False)
class Asked:
    """What is true of a scene's frame, made without a GPU.

    index: of the key frame; times: its own and those of the T - 1 key frames before, seconds; label: in ego; observed:
    bool [X, Y, Z], what the cameras see; origins: float64 [O, 3] metres, where rays start.
    """

    scene: Any
    number: int
    index: int
    times: list[float]
    label: OccupancyGrid
    observed: Tensor
    origins: Tensor


def asked(scenes: Iterable[tuple[int, Any]], preset: Preset, frames: int) -> Iterator[Asked]:
    """One key frame of every scene, drawn from its number among those with a whole history."""
    for number, scene in scenes:
        keys = len(scene.key_times)
        first = min(frames, keys) - 1
        share = float(torch.rand((), generator=torch.Generator().manual_seed(1000 + number)))
        index = first + int(share * (keys - first))
        times = [scene.key_times[max(0, index - i)] for i in range(frames)]
        label = exact_grid(scene, times[0], preset)
        drive = [key_frame(scene, i) for i in range(keys)]
        rig = drive[index].cameras.select(SPARSEOCC_CAMERAS)
        observed = camera_mask(label.occupied(), preset.spec, rig)
        yield Asked(scene, number, index, times, label, observed, ray_origins(drive, reference=index))


@dataclass(frozen=True, eq=False)
class Moment:
    """A frame and its history on the device: `photographs` and `grids` of the T times."""

    asked: Asked
    photographs: list[held_out.Photographs]
    grids: list[OccupancyGrid]

    @property
    def captions(self) -> list[str]:
        """The scene's sentence, for each time."""
        return [self.asked.scene.caption] * len(self.photographs)

    @property
    def seeds(self) -> list[int]:
        """One noise for all frames of a scene: what looks alike in it changes with the condition alone."""
        return [self.asked.number] * len(self.photographs)

    @property
    def rigs(self) -> list[Any]:
        """The cameras in ego at each time."""
        return [seen.rig for seen in self.photographs]

    def mpis(self, cells: tuple[int, int]) -> list[SemanticMPI]:
        """The conditions of the T times, each [V, D, h, w]."""
        pairs = zip(self.grids, self.rigs, strict=True)
        return [render_mpi(grid, rig, *cells, planes=PlaneSpec()) for grid, rig in pairs]

    @cached_property
    def ego2global(self) -> list[Tensor]:
        """The car's poses at the T times."""
        return [self.asked.scene.ego.pose_at(t) for t in self.asked.times]


def moments(frames: Iterable[Asked], device: torch.device) -> Iterator[Moment]:
    """The same frames, photographed and with the grids of all their times."""
    for one in frames:
        grids = exact_grids(one.scene, one.times, SYNTHEOCC, device)
        yield Moment(one, held_out.photograph(one.scene, one.times, device), grids)


def windowed(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, ImageTransform]:
    """Images as a network's tests see them, scaled and cropped to the window at the bottom, and how that was done.

    Args:
        images: uint8 [N, 3, H, W].
        size: h and w.

    Returns:
        uint8 [N, 3, h, w], and the transform.
    """
    window = ImageAugmentation(height=size[0], width=size[1]).for_test(*images.shape[-2:])
    scaled = window.scaled_size(*images.shape[-2:])
    flat = F.interpolate(images.float(), size=scaled, mode="bicubic", antialias=True).clamp(0, 255)
    rows, columns = slice(window.top, window.top + size[0]), slice(window.left, window.left + size[1])
    return flat[..., rows, columns].round().to(torch.uint8), window


class Reader:
    """A SparseOcc that reads views of any size.

    Args:
        model: in evaluation mode, on its device.
        names: of the cameras, in the order of the views.
    """

    def __init__(self, model: SparseOcc, names: Sequence[str]):
        self.model, self.order = model, [list(names).index(name) for name in SPARSEOCC_CAMERAS]
        self.threshold = model.config.voxel_threshold

    @property
    def preset(self) -> Preset:
        """Grid and classes of the answers."""
        return Preset(self.model.config.grid, self.model.config.taxonomy)

    @property
    def frames(self) -> int:
        """T."""
        return self.model.config.num_frames

    def inputs(self, images: Tensor, moment: Moment, still: bool) -> tuple[Tensor, Tensor]:
        """What the network reads.

        Args:
            images: uint8 [T, V, 3, H, W].
            moment: whose they are.
            still: the current images stand in for the older ones, as at the start of a drive.

        Returns:
            uint8 [1, T, V, 3, h, w] and ego2img float32 [1, T, V, 4, 4].
        """
        flat, window = windowed(images.flatten(0, 1), self.model.config.image_size)
        shots = flat.unflatten(0, images.shape[:2])[:, self.order]
        projections = []
        for t in range(len(images)):
            rig, pose = moment.rigs[t], moment.ego2global[t]
            rows = []
            for camera in (rig[name] for name in SPARSEOCC_CAMERAS):
                lens = torch.eye(4, dtype=torch.float64)
                lens[:3, :3] = camera.intrinsics
                global2img = window.matrix() @ lens @ invert_rigid(pose @ camera.cam2ego)
                rows.append(global2img @ moment.ego2global[0])
            projections.append(torch.stack(rows))
        ego2img = torch.stack(projections).float().to(images.device)
        if still:
            shots, ego2img = shots[:1].expand_as(shots), ego2img[:1].expand_as(ego2img)
        return shots[None], ego2img[None]

    @torch.no_grad()
    def read(
        self, images: Tensor, moment: Moment, still: bool = False, thresholds: Sequence[float] | None = None
    ) -> list[Tensor]:
        """The classes that the network reads, uint8 [X, Y, Z] on its device, one for each threshold."""
        # As it was trained and examined: half precision on a GPU.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            output = self.model(*self.inputs(images, moment, still))
        last, corners = output.predictions[-1], output.stages[-1].corners
        found = []
        for value in thresholds or (self.threshold,):
            config = replace(self.model.config, instance_classes=(), voxel_threshold=value)
            found.append(predict_grids(last.class_logits, last.mask_logits, corners, config).semantics[0])
        return found


def load_reader(folder: Any, device: torch.device, names: Sequence[str]) -> Reader:
    """A trained SparseOcc; "tiny" has random weights, for smoke runs."""
    if str(folder) == "tiny":
        torch.manual_seed(0)
        model = SparseOcc.from_preset("tiny", score_threshold=0.0).eval()
    else:
        model = SparseOcc.from_pretrained(folder)
    return Reader(model.float().to(device).eval(), names)
