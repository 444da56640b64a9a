"""The judge: a small network that says which class every pixel of a street view shows.

Trained on real renders only (`judge_training`), it reads generated views with the same eyes, so that what it finds can
be held against the labels that the condition stands for. 0.9 M parameters, 1.9 MB in float16.

Legend: N images, H W pixels, C classes, F features.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY, Taxonomy, taxonomy_named

__all__ = ["Judge"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class Judge(nn.Module):
    """A U-Net from RGB to class logits at full resolution.

    Args:
        taxonomy: name of the class table; the free class is the sky.
        channels: width of each level, from the full resolution down by halves.

    Example:
        >>> judge = Judge(channels=(4, 8))
        >>> judge.predict(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)).shape
        torch.Size([2, 32, 48])
    """

    def __init__(self, taxonomy: str = SYNTHEOCC_TAXONOMY.name, channels: tuple[int, ...] = (16, 32, 64, 96, 128)):
        super().__init__()
        self.taxonomy: Taxonomy = taxonomy_named(taxonomy)
        self.channels = tuple(channels)
        widths = (3, *self.channels)
        self.down = nn.ModuleList(
            nn.Sequential(_convolution(a, b), _convolution(b, b)) for a, b in zip(widths, self.channels, strict=False)
        )
        self.bottom = _convolution(self.channels[-1], self.channels[-1], dilation=2)
        self.up = nn.ModuleList(
            _convolution(below + across, across)
            for below, across in zip(self.channels[:0:-1], self.channels[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(self.channels[0], self.taxonomy.num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C, H, W] of images [N, 3, H, W]: uint8, or floats in [0, 1]."""
        levels = self._encode(images)
        x = levels[-1] + self.bottom(levels[-1])
        for block, across in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=across.shape[-2:], mode="nearest"), across], 1))
        return self.head(x)

    @torch.no_grad()
    def predict(self, images: Tensor, batch_size: int = 48) -> Tensor:
        """Class ids uint8 [N, H, W] of images [N, 3, H, W], some at a time."""
        return torch.cat([self(part).argmax(1).to(torch.uint8) for part in images.split(batch_size)])

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 48) -> Tensor:
        """Mean activation of every channel of the encoder, float32 [N, F]: fine texture first, context last."""
        return torch.cat(
            [
                torch.cat([level.float().mean((2, 3)) for level in self._encode(part)], 1)
                for part in images.split(batch_size)
            ]
        )

    def _encode(self, images: Tensor) -> list[Tensor]:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        x = (images.to(self.head.weight.dtype) / scale - 0.45) / 0.25
        levels = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            levels.append(x)
        return levels

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into a folder."""
        from safetensors.torch import save_file

        from syntheocc.engine.files import atomic_path, atomic_write_json

        folder = Path(folder)
        # Counters of batches are integers that only a momentum of None reads.
        tensors = {
            name: value.detach().half().contiguous().cpu()
            for name, value in self.state_dict().items()
            if value.is_floating_point()
        }
        with atomic_path(folder / _WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        atomic_write_json(
            folder / _CONFIG,
            {"_class_name": "Judge", "taxonomy": self.taxonomy.name, "channels": list(self.channels)},
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Judge":
        """Load what `save_pretrained` wrote, in float32 and eval mode.

        Raises:
            ValueError: a file is missing, damaged, or of another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            config = json.loads((folder / _CONFIG).read_text())
            tensors = load_file(folder / _WEIGHTS)
            judge = cls(config["taxonomy"], tuple(config["channels"]))
        except (OSError, SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: no judge could be read ({error}); give a folder with {_CONFIG} and {_WEIGHTS} that "
                "Judge.save_pretrained wrote"
            ) from error
        missing, unexpected = judge.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"{folder / _WEIGHTS} does not fit its {_CONFIG}: lacks {missing}, has {unexpected}")
        return judge.eval()


def _convolution(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
