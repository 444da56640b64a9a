"""Perception models: occupancy from images."""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

_EXPORTS = {"SparseOcc": "sparseocc"}
__all__ = ["SparseOcc"]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.occupancy.perception.sparseocc import SparseOcc
