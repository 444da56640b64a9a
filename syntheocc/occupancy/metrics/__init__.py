"""Metrics of semantic occupancy: exact, streaming, on any device. Needs only torch and numpy.

Every metric is an accumulator: ``update`` takes predictions and ground truth (grids, numpy or torch, single or in
batches), ``compute`` gives the figures as fractions and a table per class, ``merge_state`` adds what other processes
have counted, ``reset`` starts anew. States are a few kilobytes of integers, so neither the order of the frames nor the
number of processes changes a digit. A metric carries its definition (classes, mask, thresholds, ...) into its results,
and states of different definitions do not merge.
"""

from typing import TYPE_CHECKING

from syntheocc._lazy import lazy_attributes

_EXPORTS = {
    "Accumulator": "accumulator",
    "MetricResult": "accumulator",
    "OccupancyIoU": "miou",
    "OccupancyFlow": "flow",
    "RayIoU": "rayiou",
    "RayPQ": "raypq",
    "SSCIoU": "ssc",
    "lidar_rays": "rays",
    "ray_origins": "rays",
    "scene_origins": "rays",
    "panoptic_instances": "panoptic",
    "THING_CLASSES": "panoptic",
}
__all__ = [
    "Accumulator",
    "MetricResult",
    "OccupancyIoU",
    "OccupancyFlow",
    "RayIoU",
    "RayPQ",
    "SSCIoU",
    "lidar_rays",
    "ray_origins",
    "scene_origins",
    "panoptic_instances",
    "THING_CLASSES",
]
__getattr__, __dir__ = lazy_attributes(__name__, _EXPORTS)

if TYPE_CHECKING:
    from syntheocc.occupancy.metrics.accumulator import Accumulator, MetricResult
    from syntheocc.occupancy.metrics.flow import OccupancyFlow
    from syntheocc.occupancy.metrics.miou import OccupancyIoU
    from syntheocc.occupancy.metrics.panoptic import THING_CLASSES, panoptic_instances
    from syntheocc.occupancy.metrics.rayiou import RayIoU
    from syntheocc.occupancy.metrics.raypq import RayPQ
    from syntheocc.occupancy.metrics.rays import lidar_rays, ray_origins, scene_origins
    from syntheocc.occupancy.metrics.ssc import SSCIoU
