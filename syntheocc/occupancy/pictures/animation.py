"""Pictures as an animation: a scene frame by frame. Legend: F frames, H W pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from syntheocc.occupancy.pictures.basics import as_picture

__all__ = ["ANIMATED", "save_animation"]

# Suffix -> what Pillow is told. WebP is the smallest; PNG keeps every pixel; GIF has 256 colours a frame.
ANIMATED: dict[str, dict[str, Any]] = {
    ".webp": {"quality": 85, "method": 2},
    ".png": {},
    ".gif": {"disposal": 1},
}


def save_animation(pictures: Iterable[Any], path: str | Path, seconds: float = 0.5, **options: Any) -> Path:
    """Write an animation by rename: it appears with all its frames or not at all.

    Args:
        pictures: frames of one size, anything `as_picture` takes.
        path: ends in .webp, .png or .gif.
        seconds: how long a frame stays (nuScenes' key frames are 0.5 s apart).
        options: for Pillow, e.g. `quality=95` or `lossless=True` (WebP), `loop=1`; by default it plays for ever.

    Returns:
        The path.

    Raises:
        ValueError: no frames, frames of several sizes, another suffix, or a time that is not positive.
    """
    from PIL import Image

    from syntheocc.engine.files import atomic_path

    path = Path(path)
    if path.suffix.lower() not in ANIMATED:
        raise ValueError(f"{path}: animations are written as {', '.join(ANIMATED)}, not as {path.suffix!r}")
    if not 0.01 <= seconds < 65:
        raise ValueError(f"{path}: a frame stays 0.01 to 65 seconds, got {seconds}")
    frames = [as_picture(picture) for picture in pictures]
    if not frames:
        raise ValueError(f"{path}: an animation needs at least one frame")
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise ValueError(f"{path}: the frames of an animation have one size, got {sorted(sizes)}; use resized() first")
    first, *others = (Image.fromarray(frame) for frame in frames)
    with atomic_path(path) as temporary:
        settings = {"duration": round(1000 * seconds), "loop": 0, **ANIMATED[path.suffix.lower()], **options}
        first.save(temporary, save_all=True, append_images=others, **settings)
    return path
