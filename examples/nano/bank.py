"""What the diffusion training reads: latents, conditions and words of many frames, on the device.

Small enough to be kept between jobs: of an MPI only the occupied cells are written, about 2 % of them.

Legend: N frames, V views, C latent channels, D planes, h w latent pixels.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from syntheocc.worlds.cache import FrameCache

_DENSE = ("latents", "nearest", "nearest_plane", "neighbors")
# Frames unpacked or searched at a time.
_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Bank:
    """N frames to train on.

    Args:
        latents: float16 [N, V, C, h, w].
        mpi_labels: uint8 [N, V, D, h, w].
        nearest, nearest_plane: uint8 [N, V, h, w].
        neighbors: int64 [V, K], on the CPU.
        frames: (caption, weather, light) of each.
    """

    latents: Tensor
    mpi_labels: Tensor
    nearest: Tensor
    nearest_plane: Tensor
    neighbors: Tensor
    frames: list[tuple[str, str, str]]

    @classmethod
    def of(cls, cache: FrameCache, latents: Tensor) -> "Bank":
        """The bank of a cache's frames with their latents."""
        frames = list(zip(cache.captions, cache.weathers, cache.lights, strict=True))
        return cls(latents, cache.mpi_labels, cache.nearest, cache.nearest_plane, cache.neighbors, frames)

    def __len__(self) -> int:
        return len(self.frames)

    def save(self, path: Path) -> None:
        """Write <path>.safetensors and <path>.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        positions, values, counts = [], [], []
        for part in self.mpi_labels.split(_CHUNK):
            flat = part.flatten(1)
            frame, place = flat.nonzero().unbind(1)
            positions.append(place.int().cpu())
            values.append(flat[frame, place].cpu())
            counts.append(frame.bincount(minlength=len(flat)).cpu())
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _DENSE}
        tensors |= {"positions": torch.cat(positions), "values": torch.cat(values), "counts": torch.cat(counts)}
        tensors["size"] = torch.tensor(self.mpi_labels.shape[1:])
        save_file(tensors, path.with_suffix(".safetensors"))
        path.with_suffix(".json").write_text(json.dumps(self.frames))

    @classmethod
    def load(cls, path: Path, device: torch.device | str) -> "Bank":
        """Read what `save` wrote."""
        tensors = load_file(path.with_suffix(".safetensors"))
        frames = [tuple(frame) for frame in json.loads(path.with_suffix(".json").read_text())]
        size, counts = tuple(tensors["size"].tolist()), tensors["counts"]
        labels = torch.zeros((len(frames), *size), dtype=torch.uint8, device=device)
        ends = counts.cumsum(0)
        for start in range(0, len(frames), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(frames)))
            cells = slice(int(ends[part.start] - counts[part.start]), int(ends[part.stop - 1]))
            frame = torch.arange(part.start, part.stop).repeat_interleave(counts[part]).to(device)
            place = tensors["positions"][cells].to(device).long()
            labels.flatten(1)[frame, place] = tensors["values"][cells].to(device)
        dense = {name: tensors[name] if name == "neighbors" else tensors[name].to(device) for name in _DENSE}
        return cls(mpi_labels=labels, frames=frames, **dense)
