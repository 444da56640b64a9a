"""What the data set's collate makes and the training step eats.

Legend: S rows (samples x frames), F frames of a sample, V views, D planes, L tokens, K neighbours, H W pixels, h w
latent pixels, C latent channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from syntheocc.occupancy.cameras import CameraRig
from syntheocc.occupancy.grids import OccupancyGrid


@dataclass
class TrainingBatch:
    """Pictures, texts and conditions of a micro batch. Rows are (sample frame), frames fastest.

    Args:
        input_ids: int64 [S, V, L], or [S, 1, L] where all views share a text. Stays where it is when the batch moves:
            on the CPU, a frozen text encoder's output is looked up by it without waiting for the device.
        neighbors: int64 [V, K] or [S, V, K], -1 padding; stays on the CPU, where it is checked at no cost.
        images: float [S, V, 3, H, W] in [-1, 1], or uint8 (0..255, a quarter of the bytes to copy); or
        latents: float [S, V, C, h, w], already scaled, or [S, V, 2C, h, w], the VAE's moments, not scaled
            (`vae.encode(x).latent_dist.parameters`), of which every step draws a sample.
        mpi_labels: uint8 [S, V, D, h, w] class ids of the ControlNet's taxonomy, beside `nearest` and
            `nearest_plane`; or grids.
        nearest: uint8 [S, V, h, w] class of the nearest non-free plane.
        nearest_plane: integer [S, V, h, w], its index.
        grids: S grids, of which the step renders MPIs on its own device through
        rigs: S rigs.
        tokens: names of the S rows, for messages.
        frames: F; 1 for pictures.

    Raises:
        ValueError: neither or both of two alternatives, or sizes that do not fit together.
    """

    input_ids: Tensor
    neighbors: Tensor
    images: Tensor | None = None
    latents: Tensor | None = None
    mpi_labels: Tensor | None = None
    nearest: Tensor | None = None
    nearest_plane: Tensor | None = None
    grids: Sequence[OccupancyGrid] | None = None
    rigs: Sequence[CameraRig] | None = None
    tokens: Sequence[str] = ()
    frames: int = 1

    def __post_init__(self):
        if (self.images is None) == (self.latents is None):
            raise ValueError("a training batch has either images [S, V, 3, H, W] or latents [S, V, C, h, w]")
        if (self.mpi_labels is None) == (self.grids is None):
            raise ValueError("a training batch has either mpi_labels [S, V, D, h, w] or grids with rigs")
        rows, views = self.pixels.shape[:2]
        if rows == 0 or rows % self.frames:
            raise ValueError(f"{rows} rows cannot be samples of {self.frames} frames")
        if self.pixels.ndim != 5:
            raise ValueError(f"images and latents are [S, V, channels, height, width], got {tuple(self.pixels.shape)}")
        if self.input_ids.ndim != 3 or self.input_ids.shape[0] != rows or self.input_ids.shape[1] not in (1, views):
            raise ValueError(
                f"input_ids must be [S, V, L] or [S, 1, L] with S={rows}, V={views}, got {tuple(self.input_ids.shape)}"
            )
        if self.grids is not None:
            if self.rigs is None or len(self.grids) != rows or len(self.rigs) != rows:
                counts = (len(self.grids), 0 if self.rigs is None else len(self.rigs))
                raise ValueError(f"{rows} rows need as many grids and rigs, got {counts}")
            return
        assert self.mpi_labels is not None
        if self.nearest is None or self.nearest_plane is None:
            raise ValueError("mpi_labels come with nearest and nearest_plane, which weight the loss")
        cells = (rows, views, *self.mpi_labels.shape[-2:])
        for name, value in (("nearest", self.nearest), ("nearest_plane", self.nearest_plane)):
            if tuple(value.shape) != cells or self.mpi_labels.ndim != 5:
                raise ValueError(
                    f"{name} must be {cells} beside mpi_labels {tuple(self.mpi_labels.shape)} of {rows} rows and "
                    f"{views} views, got {tuple(value.shape)}"
                )

    @property
    def pixels(self) -> Tensor:
        """The images or the latents, whichever there are."""
        return self.images if self.images is not None else self.latents  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """S: samples x frames."""
        return self.pixels.shape[0]

    @property
    def samples(self) -> int:
        """Number of samples, S / F."""
        return self.rows // self.frames

    @property
    def views(self) -> int:
        """V."""
        return self.pixels.shape[1]

    def __len__(self) -> int:
        return self.samples

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "TrainingBatch":
        """The batch on a device; copies from pinned memory do not wait for it."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking), _MOVED)

    def pin_memory(self) -> "TrainingBatch":
        """The batch in page-locked memory; the DataLoader calls this with `pin_memory=True`."""
        return self._map(lambda tensor: tensor.pin_memory(), _MOVED)

    def _map(self, function: Callable[[Tensor], Tensor], names: frozenset[str]) -> "TrainingBatch":
        changed: dict = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in names and value is not None:
                changed[field.name] = function(value)
        if self.grids is not None:
            changed["grids"] = [grid._replace(function(grid.labels), grid.taxonomy) for grid in self.grids]
        return replace(self, **changed)


# Not the texts and neighbours: small tables that the CPU reads.
_MOVED = frozenset({"images", "latents", "mpi_labels", "nearest", "nearest_plane"})
