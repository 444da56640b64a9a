"""What every perception model answers with."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from syntheocc.occupancy.grids import GridSpec, OccupancyGrid
from syntheocc.occupancy.taxonomy import Taxonomy

__all__ = ["OccupancyPrediction"]


@dataclass
class OccupancyPrediction:
    """Labelled grids."""

    spec: GridSpec
    taxonomy: Taxonomy
    semantics: Tensor
    """uint8 [B, X, Y, Z], labels of the taxonomy."""
    instances: Tensor | None = None
    """int32 [B, X, Y, Z] of a panoptic model: 0 none, then one id an object and one a stuff class."""

    occupancy: Tensor | None = None
    """uint8 [B, X, Y, Z] of a sweep: the class of each voxel if it is occupied."""
    free_space: Tensor | None = None
    """bool [B, N, X, Y, Z] of a sweep: which voxels are free at each of N thresholds."""

    def grid(self, index: int, grid2ego: Any = None) -> OccupancyGrid:
        """One sample's semantics; `grid2ego` [4, 4] is needed where the grid does not lie in the ego frame."""
        return OccupancyGrid(self.semantics[index], self.spec, self.taxonomy, grid2ego)
