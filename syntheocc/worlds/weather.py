"""Weather, light and the sentence that says what a scene shows."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from syntheocc.worlds.layout import stratified

__all__ = ["LIGHTS", "WEATHERS", "caption_of", "sky_of", "sun_of"]

# Shares over many scenes.
WEATHERS = {"clear": 0.45, "overcast": 0.2, "rain": 0.22, "fog": 0.13}
LIGHTS = {"day": 0.62, "dusk": 0.15, "night": 0.23}


def _spread(value: float, shares: dict[str, float]) -> str:
    for name, share in shares.items():
        value -= share
        if value < 0:
            return name
    return next(iter(shares))


def sky_of(seed: int) -> tuple[str, str]:
    """Weather and light of a scene, spread evenly over consecutive seeds by their shares."""
    return _spread(stratified(seed, "weather"), WEATHERS), _spread((seed * 0.7548776662 + 0.1) % 1.0, LIGHTS)


def sun_of(light: str, random: np.random.Generator) -> Tensor:
    """Unit vector float64 [3] towards the sun (at night the moon), world axes."""
    low, high = {"day": (25, 65), "dusk": (4, 11), "night": (30, 60)}[light]
    elevation, azimuth = np.radians(random.uniform(low, high)), random.uniform(0, 2 * np.pi)
    flat = np.cos(elevation)
    return torch.tensor([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], dtype=torch.float64)


_SKY_WORDS = {
    ("clear", "day"): "a sunny street",
    ("clear", "dusk"): "a street at dusk under a clear sky",
    ("clear", "night"): "a street on a clear night",
    ("overcast", "day"): "a street on an overcast day",
    ("overcast", "dusk"): "a street at dusk under clouds",
    ("overcast", "night"): "a street on a cloudy night",
    ("rain", "day"): "a rainy street by day",
    ("rain", "dusk"): "a rainy street at dusk",
    ("rain", "night"): "a rainy night street",
    ("fog", "day"): "a foggy street by day",
    ("fog", "dusk"): "a foggy street at dusk",
    ("fog", "night"): "a foggy night street",
}
_WAYS = {
    "straight": "driving straight on over a crossing",
    "curve": "driving along a curve",
    "bend": "driving through a double bend",
    "turn_left": "turning left at a crossing",
    "turn_right": "turning right at a crossing",
    "stop": "waiting at the traffic lights",
}
_THINGS = (
    ("vehicle.bus", "a bus", "buses"),
    ("vehicle.trailer", "a trailer", "trailers"),
    ("vehicle.construction", "an excavator at road works", "construction machines"),
    ("vehicle.truck", "a truck", "trucks"),
    ("vehicle.bicycle", "a bicycle", "bicycles"),
    ("vehicle.motorcycle", "a motorcycle", "motorcycles"),
    ("human.pedestrian", "a pedestrian", "pedestrians"),
)


def caption_of(weather: str, light: str, kind: str, categories: Sequence[str]) -> str:
    """A sentence such as "a rainy night street, turning left at a crossing, with a bus and pedestrians".

    Args:
        weather: one of `WEATHERS`.
        light: one of `LIGHTS`.
        kind: the layout's kind.
        categories: nuScenes categories of the actors.
    """
    counts = Counter(start for c in categories for start, _, _ in _THINGS if c.startswith(start))
    seen = [one if counts[start] == 1 else many for start, one, many in _THINGS if counts[start]]
    words = ", ".join(seen[:-1]) + (" and " if len(seen) > 1 else "") + seen[-1] if seen else "no traffic"
    return f"{_SKY_WORDS[weather, light]}, {_WAYS[kind]}, with {words}"
