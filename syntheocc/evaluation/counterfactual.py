"""One change to the occupancy at one seed: is the object there, is it gone, did the rest stay?

The changes are made by `syntheocc.occupancy.editing`. What an edit did to a view is judged where the condition
changed; what it did elsewhere is held against the difference that another seed makes.
Legend: V views, H W pixels, h w cells.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["Effect", "changed_pixels", "effect_of"]


def changed_pixels(before: Tensor, after: Tensor, size: tuple[int, int], label: int) -> tuple[Tensor, Tensor]:
    """Where an edit shows, from the nearest classes of the two conditions.

    Args:
        before: uint8 [V, h, w] nearest class without the edit.
        after: uint8 [V, h, w] with it.
        size: H, W of the images.
        label: the class that comes or goes.

    Returns:
        target bool [V, H, W]: pixels of cells that are `label` in one condition and something else in the other; and
        rest bool [V, H, W]: pixels further than two cells from every cell that differs at all.
    """
    differs = before != after
    target = differs & ((before == label) | (after == label))
    spread = F.max_pool2d(differs.float()[:, None], 5, stride=1, padding=2)

    def enlarge(cells: Tensor) -> Tensor:
        return F.interpolate(cells.float(), size=size, mode="nearest")[:, 0] > 0.5

    return enlarge(target[:, None]), ~enlarge(spread)


class Effect(NamedTuple):
    """What an edit did.

    label_before, label_after: share of the target's pixels in which the judge sees the class, without and with the
    edit; other_after: share in which it sees the other class of a repaint (NaN without one).
    rest_changed: mean absolute difference (0..1) of the images outside; seed_changed: the same between two seeds.
    rest_labels: share of the pixels outside in which the judge sees the same class as before.
    pixels: size of the target.
    """

    label_before: float
    label_after: float
    other_after: float
    rest_changed: float
    seed_changed: float
    rest_labels: float
    pixels: int


def effect_of(
    images: tuple[Tensor, Tensor, Tensor],
    seen: tuple[Tensor, Tensor],
    target: Tensor,
    rest: Tensor,
    label: int,
    other: int | None = None,
) -> Effect:
    """Measure an edit at one seed.

    Args:
        images: three float [V, 3, H, W] in [0, 1]: without the edit, with it, and without it at another seed.
        seen: uint8 [V, H, W] what the judge sees without and with the edit.
        target: bool [V, H, W], see `changed_pixels`.
        rest: bool [V, H, W].
        label: the class that comes or goes.
        other: the class that a repaint puts in its place.

    Raises:
        ValueError: an empty target or nothing outside it; labels of 255.
    """
    if UNKNOWN in (label, other):
        raise ValueError(f"{UNKNOWN} means unknown and is no class to look for")
    if not bool(target.any()) or not bool(rest.any()):
        raise ValueError("the edit changes nothing, or everything, that the cameras see; choose another box")
    before, after, elsewhere = images

    def share(prediction: Tensor, which: int) -> float:
        return float((prediction[target] == which).float().mean())

    def difference(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs().mean(1)[rest]).mean())

    return Effect(
        label_before=share(seen[0], label),
        label_after=share(seen[1], label),
        other_after=float("nan") if other is None else share(seen[1], other),
        rest_changed=difference(before, after),
        seed_changed=difference(before, elsewhere),
        rest_labels=float((seen[0] == seen[1])[rest].float().mean()),
        pixels=int(target.sum()),
    )
