"""Which scenes a world of a given size has: names, splits and seeds.

The names are those of nuScenes' own splits, so that programs which carry the official lists sort our scenes as we do.
"""

from typing import NamedTuple

from syntheocc.occupancy.data.nuscenes_splits import official_scenes
from syntheocc.worlds.timeline import token_of

__all__ = ["ScenePlan", "plan_scenes", "scene_seed"]

# Scenes beyond the official lists are numbered from here, a block for each split.
_BEYOND = {"train": 2000, "val": 8000, "test": 9000}


class ScenePlan(NamedTuple):
    """One scene to make."""

    name: str
    split: str
    seed: int


def plan_scenes(train: int, val: int = 0, test: int = 0, seed: int = 0) -> list[ScenePlan]:
    """The scenes of a world; a larger world holds the scenes of a smaller one.

    Raises:
        ValueError: a negative number, or more scenes than there are names (6700 train, 1150 val, 1150 test).
    """
    out = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        if count < 0:
            raise ValueError(f"a number of {split} scenes cannot be negative, got {count}")
        names = list(official_scenes(split))
        room = {"train": 6000, "val": 1000, "test": 1000}[split]
        names += [f"scene-{number:04d}" for number in range(_BEYOND[split], _BEYOND[split] + room)]
        if count > len(names):
            raise ValueError(f"{count} {split} scenes were asked for; there are names for {len(names)}")
        out += [ScenePlan(names[i], split, scene_seed(seed, split, i)) for i in range(count)]
    return out


def scene_seed(seed: int, split: str, index: int) -> int:
    """The seed of a split's scene `index`, 0 .. 2^31 - 1."""
    return int(token_of("world", seed, split, index)[:8], 16) >> 1
