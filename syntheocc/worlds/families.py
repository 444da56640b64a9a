"""Random streams and families: what a split may be made of.

"Held out" has levels: a new seed draws other members of known families; a new split draws from families (assets,
layouts, textures) that no other split has.
"""

import zlib

import numpy as np

from syntheocc.worlds.materials import VARIANTS

__all__ = ["ASSET_FAMILIES", "LAYOUT_FAMILIES", "SPLITS", "TEXTURE_LOOKS", "family", "random_for"]

SPLITS = ("train", "val", "test")

# An asset family is a number from which the proportions and the style of a model follow (`assets.py`).
ASSET_FAMILIES: dict[str, tuple[int, ...]] = {
    "train": tuple(range(0, 16)),
    "val": tuple(range(16, 22)),
    "test": tuple(range(22, 28)),
}
# A layout family is a number from which street widths, setbacks and curve radii follow (`layout.py`).
LAYOUT_FAMILIES: dict[str, tuple[int, ...]] = {
    "train": tuple(range(0, 12)),
    "val": tuple(range(12, 16)),
    "test": tuple(range(16, 20)),
}
# Looks of every texture pattern (`materials.VARIANTS` of them): `Material.seed % VARIANTS` is the look.
TEXTURE_LOOKS: dict[str, tuple[int, ...]] = {
    "train": tuple(range(0, VARIANTS - 2)),
    "val": (VARIANTS - 2,),
    "test": (VARIANTS - 1,),
}


def random_for(seed: int, *purpose: str | int) -> np.random.Generator:
    """An independent stream of random numbers for one purpose; the same arguments give the same numbers.

    Example:
        >>> random_for(0, "cars").integers(1000) == random_for(0, "cars").integers(1000)
        True
    """
    words = [zlib.crc32(str(part).encode()) for part in purpose]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def family(random: np.random.Generator, split: str, table: dict[str, tuple[int, ...]]) -> int:
    """One of the split's families; ValueError for an unknown split."""
    if split not in table:
        raise ValueError(f"split must be one of {', '.join(table)}; got {split!r}")
    return int(random.choice(table[split]))
