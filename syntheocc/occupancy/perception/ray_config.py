"""How lidar points become rays with labels: the settings, the corrected ones by default, the published ones by name.

Specification: specs/occflownet_splattingocc.md 1.2, 1.4, 1.6, 3.2, 3.6, 4.0. Classes are Occ3D's 0..16.
"""

from dataclasses import dataclass
from typing import Literal

from syntheocc.occupancy.losses.class_weights import (
    OCC3D_COUNTS,
    OCC3D_RAY_COUNTS,
    log_frequency_weights,
    sampling_balance,
)
from syntheocc.occupancy.losses.voxels import frequency_weights

__all__ = [
    "FILTER_CLASSES",
    "FLAT_CLASSES",
    "FLOW_CLASSES",
    "RayConfig",
    "published_occflownet_rays",
    "published_renderocc_rays",
    "published_splattingocc_rays",
]

# Two sets that are not the same (1.2). What may move, of the neighbours' rays that are left out: it lacks bicycles
# and motorcycles and has others and barriers.
FILTER_CLASSES = (0, 1, 3, 4, 5, 7, 9, 10)
# What boxes move.
FLOW_CLASSES = (2, 3, 4, 5, 6, 7, 9, 10)
# Level ground.
FLAT_CLASSES = (11, 12, 13, 14)


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which rays a sample has.

    Args:
        frame_offsets: key frames that rays come from, 0 (the key frame itself) among them.
        missing: an offset beyond the scene's ends is simply "absent", or "repeat"s the key frame under its index.
        num_rays: draw so many a sample; None keeps all.
        depth_range: metres of camera z, first included, last not.
        max_distance: metres along the ray, not included; None: any. Renderers stop at a far plane (40 m), and a ray
            that ends behind it has no depth to learn. The published systems limit z alone.
        border: pixels next to the image's edge in which points are left out.
        crop_to_grid: points must lie in the key frame's grid.
        crop_to_input: points must be visible in what image augmentation leaves of the picture.
        occlusion: leave out points that another point hides in the camera: one in the same 8 x 8 pixels (of 1600 x
            900) that is nearer by more than 1 m and 5 % of the depth. The lidar stands on the roof and looks over
            things that the cameras do not look over.
        ray_origin: rays start in the "camera" that saw the point, or in the "lidar" of that frame, from which nothing
            hides it (a point that two cameras see gives one ray then).
        pixels: where rays go: to the "exact" point; through the pixel "half_pixel" further right and down
            (OccFlowNet); or through the middle of the pixel that the coordinates were cut to, all points there
            sharing the class of the last ("whole_pixel", RenderOcc).
        dynamics: what becomes of moving things in neighbouring frames. "motion": boxes move them; rays of
            `flow_classes` that end in no matched box are left out with `drop_unmatched`: they show what the key frame
            does not have. "filter": rays of `filter_classes` are left out. "none": nothing.
        flow_classes, filter_classes, drop_unmatched: see `dynamics`.
        drop_through_vanished: with "motion", also leave out rays that pass through, or end in, a box of the key frame
            that their own frame does not have: they would empty a place where the key frame has something. (Ours; the
            specification lets such boxes stand as if they had not moved.)
        loss_weights: one a class, the rays' `weights`; None: 1.
        draw_weights: one a class, how likely its rays are drawn; None: 1.
        neighbour_weight: of the other frames' rays in the draws.

    Raises:
        ValueError: no key frame, a frame twice, or a value out of its range.
    """

    frame_offsets: tuple[int, ...] = (-3, -2, -1, 0, 1, 2, 3)
    missing: Literal["absent", "repeat"] = "absent"
    num_rays: int | None = None
    depth_range: tuple[float, float] = (0.05, 39.0)
    max_distance: float | None = 39.0
    border: float = 1.0
    crop_to_grid: bool = True
    crop_to_input: bool = True
    occlusion: bool = True
    ray_origin: Literal["camera", "lidar"] = "camera"
    pixels: Literal["exact", "half_pixel", "whole_pixel"] = "exact"
    dynamics: Literal["motion", "filter", "none"] = "motion"
    flow_classes: tuple[int, ...] = FLOW_CLASSES
    filter_classes: tuple[int, ...] = FILTER_CLASSES
    drop_unmatched: bool = True
    drop_through_vanished: bool = True
    loss_weights: tuple[float, ...] | None = None
    draw_weights: tuple[float, ...] | None = None
    neighbour_weight: float = 0.3

    def __post_init__(self):
        offsets = tuple(self.frame_offsets)
        if offsets.count(0) != 1 or len(set(offsets)) != len(offsets):
            raise ValueError(f"frame_offsets are different numbers, 0 among them; got {offsets}")
        if self.num_rays is not None and self.num_rays < 1:
            raise ValueError(f"num_rays is {self.num_rays}; a sample has at least one ray, or all (None)")
        near, far = self.depth_range
        if not 0 <= near < far or not (self.max_distance is None or self.max_distance > near):
            raise ValueError(f"depths of {self.depth_range} up to {self.max_distance} m hold nothing")
        if self.border < 0 or self.neighbour_weight < 0:
            raise ValueError(f"border {self.border} and neighbour_weight {self.neighbour_weight} are not negative")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.ray_origin == "lidar" and self.pixels != "exact":
            raise ValueError(f"rays from the lidar go to the points themselves, not to pixels ({self.pixels!r})")
        for name in ("loss_weights", "draw_weights"):
            weights = getattr(self, name)
            if weights is not None and not (len(weights) and all(weight >= 0 for weight in weights)):
                raise ValueError(f"{name} are one number a class, not negative; got {weights}")

    @property
    def key(self) -> int:
        """Index of the key frame in `frame_offsets`."""
        return self.frame_offsets.index(0)


_CHOICES = {
    "missing": ("absent", "repeat"),
    "ray_origin": ("camera", "lidar"),
    "pixels": ("exact", "half_pixel", "whole_pixel"),
    "dynamics": ("motion", "filter", "none"),
}


def published_occflownet_rays(flow: bool = True) -> RayConfig:
    """What OccFlowNet trains on (3.2): with box motion, or without the classes that may move.

    A training step draws 32,768 of its batch's rays, all alike.
    """
    return RayConfig(
        missing="repeat",
        max_distance=None,
        occlusion=False,
        pixels="half_pixel",
        dynamics="motion" if flow else "filter",
        drop_unmatched=False,
        drop_through_vanished=False,
        loss_weights=tuple(log_frequency_weights(OCC3D_COUNTS).tolist()),
    )


def published_renderocc_rays() -> RayConfig:
    """What RenderOcc trains on (1.4, 4.0): 38,400 rays a sample, rare classes first.

    One thing differs: rays start in the key frame's lidar-time ego, where the published ones ignore what the car
    moves between the firing of a camera and of the lidar.
    """
    return RayConfig(
        missing="repeat",
        num_rays=38400,
        depth_range=(0.0, 52.0),
        max_distance=None,
        crop_to_grid=False,
        crop_to_input=False,
        occlusion=False,
        pixels="whole_pixel",
        dynamics="filter",
        loss_weights=tuple(frequency_weights(OCC3D_COUNTS).tolist()),
        draw_weights=tuple(sampling_balance(OCC3D_RAY_COUNTS).tolist()),
    )


def published_splattingocc_rays() -> RayConfig:
    """What SplattingOcc trains on (4.1): all labelled pixels of three frames, nothing left out."""
    return RayConfig(
        frame_offsets=(-1, 0, 1),
        missing="repeat",
        depth_range=(0.0, float("inf")),
        max_distance=None,
        crop_to_grid=False,
        crop_to_input=False,
        occlusion=False,
        pixels="whole_pixel",
        dynamics="none",
        loss_weights=tuple(frequency_weights(OCC3D_COUNTS).tolist()),
    )
