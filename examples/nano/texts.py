"""What a frame may be called: the prompts that the small model learns.

A prompt says weather and light in one of several ways, so that all of them steer; the rest of the caption (layout,
traffic) is there or not. The prompt of the published checkpoints, which names neither, stands for a clear day.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PUBLISHED = "show a photorealistic street view image"
_WEATHER = {
    "clear": ("sunny", "clear"),
    "overcast": ("overcast", "cloudy"),
    "rain": ("rainy", "rain"),
    "fog": ("foggy", "fog"),
}
_SKIES = {"clear": "under a clear sky", "overcast": "under clouds", "rain": "in the rain", "fog": "in fog"}


def prompts_of(caption: str, weather: str, light: str) -> list[tuple[str, float]]:
    """(prompt, weight) of a frame; the weights sum to one.

    Example:
        >>> prompts_of("a foggy night street, driving along a curve, with cars", "fog", "night")[1]
        ('a foggy night street', 0.15)
    """
    adjective, noun = _WEATHER[weather]
    if weather == "clear" and light != "day":
        adjective = "clear"
    sky = caption.split(",")[0]
    found = [
        (caption, 0.35),
        (sky, 0.15),
        (f"{adjective} {light}", 0.1),
        (f"{light}, {noun}", 0.05),
        (f"{PUBLISHED}, {adjective} {light}", 0.1),
        (f"{PUBLISHED} of {sky}", 0.1),
        (f"a street {'by day' if light == 'day' else 'at ' + light} {_SKIES[weather]}", 0.05),
        (light if weather in ("clear", "overcast") else noun, 0.1),
    ]
    if (weather, light) == ("clear", "day"):
        found = [(text, weight * 0.6) for text, weight in found] + [(PUBLISHED, 0.4)]
    return found


def token_table(tokenizer, frames: Sequence[tuple[str, str, str]], variants: int = 16, seed: int = 0) -> Tensor:
    """Token ids int64 [N, variants, L]: prompts drawn for each of N frames (caption, weather, light) by weight."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, int] = {}
    chosen = torch.empty(len(frames), variants, dtype=torch.long)
    for n, frame in enumerate(frames):
        prompts = prompts_of(*frame)
        weights = torch.tensor([weight for _, weight in prompts])
        draws = torch.multinomial(weights, variants, replacement=True, generator=generator)
        chosen[n] = torch.tensor([texts.setdefault(prompts[i][0], len(texts)) for i in draws.tolist()])
    return tokenize(tokenizer, list(texts))[chosen]


def tokenize(tokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids int64 [len(texts), L], padded as the pipeline pads them."""
    settings = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer(list(texts), return_tensors="pt", **settings).input_ids
