"""Occupancy in, street views out, and back again.

>>> from syntheocc import SyntheOccPipeline
>>> pipe = SyntheOccPipeline.from_pretrained("ckp/syntheocc-nano")  # doctest: +SKIP
>>> images = pipe("a street at dusk", occupancy=grid, cameras=rig).images[0]  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

__version__ = "0.1.0"

_EXPORTS = {
    "SyntheOccPipeline": "pipelines",
    "SyntheOccPipelineOutput": "pipelines",
    "MPIControlNetModel": "models",
    "MultiviewUNet2DConditionModel": "models",
    "MPIEncoder": "models",
}
__all__ = [
    "SyntheOccPipeline",
    "SyntheOccPipelineOutput",
    "MPIControlNetModel",
    "MultiviewUNet2DConditionModel",
    "MPIEncoder",
    "__version__",
]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.models import MPIControlNetModel, MPIEncoder, MultiviewUNet2DConditionModel
    from syntheocc.pipelines import SyntheOccPipeline, SyntheOccPipelineOutput
