"""OccDepth: semantic scene completion from a stereo pair, with depth that knows occupancy (specs/occdepth.md)."""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

_EXPORTS = {"OccDepth": "model", "OccDepthConfig": "config", "PRESETS": "presets"}
__all__ = ["PRESETS", "OccDepth", "OccDepthConfig"]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
    from syntheocc.occupancy.perception.occdepth.model import OccDepth
    from syntheocc.occupancy.perception.occdepth.presets import PRESETS
