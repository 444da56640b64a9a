"""OccFlowNet as the programs see it."""

from syntheocc.occupancy.perception.occflownet.model import OccFlowNet
from syntheocc.occupancy.perception.occflownet.presets import PRESETS
from syntheocc.occupancy.perception.occflownet.step import OccFlowNetStep
from syntheocc.occupancy.perception.volume_entry import VolumeEntry


class OccFlowNetEntry(VolumeEntry):
    """Taught by rendering volumes."""

    name = "occflownet"
    model_class = OccFlowNet
    presets = PRESETS
    default_preset = "occflownet_2d_flow_small"
    step_class = OccFlowNetStep
    # The published files are named by their backbone.
    published = {f"stbase_{kind}": f"occflownet_{kind}" for kind in ("2d", "2d_flow", "2d_flow_3d")}


ENTRY = OccFlowNetEntry()
