"""Tensors with one row for each of something: what ray labels and boxes have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = ["Rows", "similarity"]


@dataclass(eq=False)
class Rows:
    """Tensors with one row for each of something, on one device; shapes are checked, values by `check`."""

    # Field -> shape of one row. Those in _INTEGERS are int64, all others of one floating type.
    _SHAPES: ClassVar[dict[str, tuple[int, ...]]] = {}
    _INTEGERS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        name = type(self).__name__
        first = getattr(self, next(iter(self._SHAPES)))
        number, device, dtype = first.shape[:1], first.device, first.dtype
        if not dtype.is_floating_point:
            raise ValueError(f"{name}: coordinates must be of a floating type, got {dtype}")
        for field_name, shape in self._SHAPES.items():
            value = getattr(self, field_name)
            wanted = torch.int64 if field_name in self._INTEGERS else dtype
            if tuple(value.shape) != (*number, *shape) or value.dtype != wanted or value.device != device:
                raise ValueError(
                    f"{name}: {field_name} must be {wanted} {[*number, *shape]} on {device}, got {value.dtype} "
                    f"{list(value.shape)} on {value.device}"
                )

    def __len__(self) -> int:
        return len(getattr(self, next(iter(self._SHAPES))))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return getattr(self, next(iter(self._SHAPES))).device

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """On another device, and with coordinates of another floating type; integers stay int64."""

        def move(tensor: Tensor) -> Tensor:
            kind = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
            return tensor.to(device=device or tensor.device, dtype=kind, non_blocking=True)

        return self.map(move)

    def pin_memory(self) -> Self:
        """In page-locked memory."""
        return self.map(lambda tensor: tensor.pin_memory())

    def select(self, index: Tensor) -> Self:
        """The rows of a bool mask or of int64 indices, on the same device."""
        if index.ndim != 1 or index.dtype not in (torch.bool, torch.int64):
            raise ValueError(f"rows are chosen by a bool mask or int64 indices, got {index.dtype} {list(index.shape)}")
        if index.dtype == torch.bool:
            if len(index) != len(self):
                raise ValueError(f"a mask of {len(index)} for {len(self)} rows")
            index = index.nonzero()[:, 0]
        return self.map(lambda tensor: tensor.index_select(0, index))

    def of_sample(self, sample: int) -> Self:
        """The rows of one sample of the batch."""
        return self.select(self._samples() == sample)

    @classmethod
    def _none(cls, device: torch.device | str, dtype: torch.dtype, **settings: Any) -> Self:
        """No rows."""
        values: dict[str, Any] = {
            name: torch.zeros(0, *shape, dtype=torch.int64 if name in cls._INTEGERS else dtype, device=device)
            for name, shape in cls._SHAPES.items()
        }
        return cls(**values, **settings)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of several, as they are.

        Raises:
            ValueError: no parts, parts on several devices, or with different settings (`frame_offsets`).
        """
        if not parts:
            raise ValueError(f"no {cls.__name__} to put together")
        values: dict[str, Any] = {}
        for f in fields(cls):
            column = [getattr(part, f.name) for part in parts]
            if f.name not in cls._SHAPES:
                if any(value != column[0] for value in column):
                    raise ValueError(f"{cls.__name__} with different {f.name} do not go together: {column}")
                values[f.name] = column[0]
                continue
            if any(value.device != column[0].device for value in column):
                raise ValueError(f"{cls.__name__} on several devices: {sorted({str(v.device) for v in column})}")
            values[f.name] = torch.cat(column)
        return cls(**values)

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """A batch: part b holds one sample and gets b as sample index."""
        return cls.cat([part._numbered(index) for index, part in enumerate(parts)])

    def _numbered(self, sample: int) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**(values | {"samples": torch.full_like(self._samples(), sample)}))

    def _samples(self) -> Tensor:
        return self.samples  # type: ignore[attr-defined]


def similarity(matrix: Tensor, like: Tensor) -> tuple[Tensor, float]:
    """The linear part [3, 3] of a similarity and its scale."""
    if tuple(matrix.shape) != (4, 4):
        raise ValueError(f"an augmentation is a 4x4 matrix, got {list(matrix.shape)}")
    linear = matrix[:3, :3].double().cpu()
    scale = float(linear.norm(dim=0)[0])
    if not scale > 0 or float((linear.T @ linear / scale**2 - torch.eye(3, dtype=torch.float64)).abs().max()) > 1e-6:
        raise ValueError(f"an augmentation turns, mirrors and scales all axes alike, got {matrix.tolist()}")
    return linear.to(like), scale
