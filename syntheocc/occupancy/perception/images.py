"""Camera pictures decoded straight to the size that a network wants.

A JPEG is stored in blocks of 8 x 8 pixels; a decoder asked for half the size ("draft mode") computes 4 x 4 of each and
skips the rest of the work. The rest of the way is one bicubic resampling of the window alone. Half of a nuScenes
picture is 800 x 450, and the published network's window needs 608 to 880 columns of the scaled image.
"""

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from syntheocc.occupancy.perception.transforms import ImageTransform

__all__ = ["Decoder", "load_image"]

Decoder = Literal["pillow", "turbojpeg"]
# How much a half-size picture may be enlarged again, instead of decoding the whole one: up to scale 0.55, the largest
# of the published augmentation (880 of 800 columns).
MAX_ENLARGEMENT = 1.1


def load_image(
    path: str | os.PathLike,
    size: tuple[int, int],
    transform: ImageTransform,
    draft: bool = True,
    decoder: Decoder = "pillow",
) -> np.ndarray:
    """Read a picture through an image transform.

    Args:
        path: JPEG, PNG or anything that Pillow reads.
        size: height and width that the calibration is for.
        transform: scale, window and mirroring.
        draft: let the JPEG decoder scale by 1/2, 1/4 or 1/8 first. Off, pixels are those of a full decoding.
        decoder: "turbojpeg" decodes JPEGs through the package simplejpeg, which scales by eighths where Pillow halves.
            Pillow's wheels use the same library, so it is hardly faster; it helps where Pillow was built with another.

    Returns:
        RGB uint8 [transform.height, transform.width, 3], C-contiguous.

    Raises:
        ValueError: the file is missing or damaged, the picture has another size, or simplejpeg is not installed.
    """
    from PIL import Image

    scaled_height, scaled_width = transform.scaled_size(*size)
    if not 0 < scaled_height or not 0 < scaled_width:
        raise ValueError(f"{path}: at scale {transform.scale} nothing is left of {size[0]} x {size[1]} pixels")
    needed = (scaled_height, scaled_width)
    if draft:
        needed = (int(scaled_height / MAX_ENLARGEMENT), int(scaled_width / MAX_ENLARGEMENT))
    try:
        if decoder == "turbojpeg" and Path(path).suffix.lower() in (".jpg", ".jpeg"):
            picture = _decode_turbo(path, size, needed if draft else size)
        elif decoder in ("pillow", "turbojpeg"):
            picture = Image.open(path)
            _check_size(path, (picture.height, picture.width), size)
            if draft:
                picture.draft("RGB", (needed[1], needed[0]))
            picture = picture.convert("RGB")  # decodes; black and white pictures get three channels
        else:
            raise ValueError(f"decoder must be 'pillow' or 'turbojpeg', got {decoder!r}")
    except (OSError, SyntaxError) as error:  # Pillow says of a broken PNG that it is a SyntaxError
        raise ValueError(f"{path}: cannot be read ({error}); copy the picture again") from error
    return _window(picture, transform, scaled_height, scaled_width)


def _window(picture: Any, transform: ImageTransform, scaled_height: int, scaled_width: int) -> np.ndarray:
    """The transform's window of a decoded picture, whatever part of the scale the decoder has done."""
    from PIL import Image

    left, top = max(0, transform.left), max(0, transform.top)
    right = min(transform.left + transform.width, scaled_width)
    bottom = min(transform.top + transform.height, scaled_height)
    out = np.zeros((transform.height, transform.width, 3), np.uint8)
    if left < right and top < bottom:
        x, y = picture.width / scaled_width, picture.height / scaled_height
        if x == y == 1:
            part = np.asarray(picture.crop((left, top, right, bottom)))
        else:
            # A resampled box has the pixels of the cropped resampled whole: the filter reads across its border.
            box = (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height))
            part = np.asarray(picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=box))
        rows = slice(top - transform.top, bottom - transform.top)
        out[rows, left - transform.left : right - transform.left] = part
    out = np.ascontiguousarray(out[:, ::-1]) if transform.flip else out
    if transform.rotation:
        turned = Image.fromarray(out).rotate(math.degrees(transform.rotation), Image.Resampling.BILINEAR)
        out = np.array(turned)
    return out


def _decode_turbo(path: str | os.PathLike, size: tuple[int, int], needed: tuple[int, int]) -> Any:
    from PIL import Image

    try:
        import simplejpeg
    except ImportError as error:
        raise ValueError("decoder 'turbojpeg' needs the package simplejpeg: pip install simplejpeg") from error
    data = Path(path).read_bytes()
    try:
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        _check_size(path, (height, width), size)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=needed[0], min_width=needed[1])
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return Image.fromarray(pixels)


def _check_size(path: str | os.PathLike, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    if found != wanted:
        raise ValueError(
            f"{path}: the picture has {found[0]} x {found[1]} pixels (height x width), its calibration is for "
            f"{wanted[0]} x {wanted[1]}; give the pictures that belong to the infos"
        )
