"""The settings that say which samples a job takes; training shares them, so they live below the commands."""

from syntheocc.occupancy.data.samples import OccupancyKind, SampleConfig

__all__ = ["OccupancyKind", "SampleConfig"]
