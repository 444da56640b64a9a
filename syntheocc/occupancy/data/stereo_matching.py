"""Depth from a rectified stereo pair by semi-global matching (Hirschmueller 2008), OpenCV's implementation.

A point at depth z appears in the right picture f b / z pixels further left than in the left one. Where the best match
is not clearly the best, where the two pictures do not agree, and in small specks there is no depth. OpenCV is the
extra ``stereo``. Legend: H W pictures.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Rectified", "depth_of_disparity", "match_pair", "rectified_pair", "stereo_depth"]

# Disparities below this are mostly noise: a tenth of a pixel is a fifth of the depth.
_LEAST = 0.5
_MAX_SPECK, _SPECK_RANGE = 100, 2


@dataclass(frozen=True)
class Rectified:
    """What takes disparity to depth.

    Args:
        focal: of both cameras, pixels.
        baseline: from the left to the right camera, metres.
        offset: left principal column minus the right one, pixels.

    Raises:
        ValueError: a focal length or a baseline that is not positive.
    """

    focal: float
    baseline: float
    offset: float = 0.0

    def __post_init__(self):
        if not self.focal > 0 or not self.baseline > 0:
            raise ValueError(
                f"a stereo pair has a positive focal length and baseline, got {self.focal:g} px and {self.baseline:g} "
                "m; are left and right exchanged?"
            )


def rectified_pair(left: Tensor, right: Tensor) -> Rectified:
    """The pair of two projections of one rectified frame, e.g. KITTI's P2 and P3.

    Args:
        left: [3, 4] from the rectified frame (metres) to pixels, [K | K t].
        right: the same of the right camera.

    Raises:
        ValueError: focal lengths or rotations differ: the pair is not rectified.
    """
    if (
        float((left[:, :2] - right[:, :2]).abs().max()) > 1e-3
        or float((left[1:, 2] - right[1:, 2]).abs().max()) > 1e-3
    ):
        raise ValueError(
            f"no rectified pair: its cameras differ in more than place and principal column ({left[:, :3].tolist()} "
            f"and {right[:, :3].tolist()}); rectify the pictures first"
        )
    # Camera 0 stands at -t of each. KITTI's t differ by a millimetre in z too, a tenth of a pixel at 4 m: left out.
    places = [torch.linalg.solve(matrix[:, :3].double(), matrix[:, 3].double()) for matrix in (left, right)]
    baseline = float((places[0] - places[1])[0])
    return Rectified(float(left[0, 0]), baseline, float(left[0, 2] - right[0, 2]))


def match_pair(
    left: np.ndarray,  # uint8 [H, W, 3]
    right: np.ndarray,  # uint8 [H, W, 3]
    max_disparity: int = 192,
    block: int = 5,
    uniqueness: int = 10,
) -> np.ndarray:
    """Disparities of the left picture.

    Args:
        left: RGB, rectified: a point is in the same row of both.
        right: the other one.
        max_disparity: largest one looked for, pixels; a multiple of 16. 192 reaches 2 m with KITTI's cameras.
        block: edge of the blocks that are compared, odd.
        uniqueness: percent by which the best match must be better than the second.

    Returns:
        float32 [H, W] pixels, in sixteenths; 0 where there is no match.

    Raises:
        ValueError: pictures of different sizes, settings out of range, or OpenCV is not installed.
    """
    if left.shape != right.shape or left.dtype != np.uint8 or left.ndim != 3:
        raise ValueError(f"a pair is two pictures uint8 [H, W, 3] of one size, got {left.shape} and {right.shape}")
    if max_disparity < 16 or max_disparity % 16 or block < 1 or not block % 2 or not 0 <= uniqueness <= 100:
        raise ValueError(
            f"max_disparity {max_disparity} is a positive multiple of 16, block {block} odd, uniqueness {uniqueness} "
            "0 to 100 percent"
        )
    cv2 = _opencv()
    matcher = cv2.StereoSGBM_create(
        minDisparity=0,
        numDisparities=max_disparity,
        blockSize=block,
        P1=8 * 3 * block**2,
        P2=32 * 3 * block**2,
        disp12MaxDiff=1,
        preFilterCap=63,
        uniquenessRatio=uniqueness,
        speckleWindowSize=_MAX_SPECK,
        speckleRange=_SPECK_RANGE,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    # The matcher leaves out the columns whose largest disparity would fall outside: they get room on the left.
    wide = [cv2.copyMakeBorder(image, 0, 0, max_disparity, 0, cv2.BORDER_REPLICATE) for image in (left, right)]
    disparity = matcher.compute(*wide)[:, max_disparity:].astype(np.float32) / 16
    # A match left of the right picture's edge is one with the border.
    columns = np.arange(left.shape[1], dtype=np.float32)
    return np.where((disparity > 0) & (disparity <= columns), disparity, 0.0).astype(np.float32)


def depth_of_disparity(disparity: np.ndarray, pair: Rectified) -> np.ndarray:
    """Metres along the optical axis, float32 [H, W]; 0 where there is no disparity, or one below half a pixel."""
    shifted = disparity.astype(np.float64) - pair.offset
    known = (disparity > 0) & (shifted >= _LEAST)
    return np.where(known, pair.focal * pair.baseline / np.where(known, shifted, 1.0), 0.0).astype(np.float32)


def stereo_depth(left: np.ndarray, right: np.ndarray, pair: Rectified, **settings: Any) -> np.ndarray:
    """`depth_of_disparity` of `match_pair`."""
    return depth_of_disparity(match_pair(left, right, **settings), pair)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError("stereo matching needs OpenCV: pip install 'syntheocc[stereo]'") from error
    return cv2
