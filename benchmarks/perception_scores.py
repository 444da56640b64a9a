"""Scores of perception.py: counts of every scene, and figures with intervals over the scenes from them.

The counts are those of `syntheocc.occupancy.metrics`; a resample of scenes is a weighted sum of them, and all
resamples become figures at once.

Legend: S scenes, B resamples, C classes, K thresholds of the ray metrics.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from perception_data import ACCUMULATED, EXACT, Exam
from torch import Tensor

from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.occupancy.grids import Preset
from syntheocc.occupancy.metrics import THING_CLASSES, OccupancyIoU, RayIoU, RayPQ
from syntheocc.occupancy.taxonomy import Taxonomy

# Scored frames that are predicted at once.
AT_ONCE = 8
# A prediction of some rows: semantics uint8 [B, X, Y, Z], and panoptic semantics and instances or None.
Predictor = Callable[[Tensor], tuple[list[Tensor], tuple[Tensor, Tensor] | None]]


def count(predict: Predictor, exam: Exam, preset: Preset, variants: int = 1, quick: bool = False) -> list[dict]:
    """Counts of every scene, for each variant of a prediction.

    Args:
        predict: indices among the exam's scored frames -> predictions, one for each variant.
        exam: what is asked, and the answers.
        preset: grid and class table.
        variants: how many predictions there are of a frame.
        quick: voxels that the cameras see, and nothing else.

    Returns:
        for each variant name -> int64 [S, ...]: "camera", "lidar", "all" (voxels by true and predicted class, by
        mask), "rays", "pq_tp" ... (the first variant's panoptic prediction), and those against accumulated labels.
    """
    spec, taxonomy = preset
    kinds = [kind for kind in (EXACT, ACCUMULATED) if kind in exam.drives.labels]
    kinds = kinds[:1] if quick else kinds
    voxels = {mask: OccupancyIoU(taxonomy, mask) for mask in ("camera", "lidar", None)}
    rays, quality = RayIoU(taxonomy, spec), RayPQ(taxonomy, spec)
    rows: list[list[dict[str, Tensor]]] = [[] for _ in range(variants)]

    def taken(metric: Any) -> dict[str, Tensor]:
        state = {name: value.clone() for name, value in metric.state.items()}
        metric.reset()
        return state

    for first in range(0, len(exam.rows), AT_ONCE // exam.per_scene * exam.per_scene):
        chosen = torch.arange(first, min(first + AT_ONCE // exam.per_scene * exam.per_scene, len(exam.rows)))
        guesses, panoptic = predict(chosen)
        for start in range(0, len(chosen), exam.per_scene):
            part = slice(start, start + exam.per_scene)
            index = chosen[part].to(guesses[0].device)
            places = [exam.origins[i] for i in chosen[part].tolist()]
            for variant, guess in enumerate(guesses):
                counts: dict[str, Tensor] = {}
                for kind in kinds:
                    truth, objects = (values[index] for values in exam.drives.labels[kind])
                    tail = "" if kind == EXACT else "_accumulated"
                    for name, mask in exam.masks.items():
                        if name == "camera" or not quick:
                            voxels[name].update(guess[part], truth, mask[index])
                            counts[name + tail] = taken(voxels[name])["voxels"]
                    if quick:
                        continue
                    voxels[None].update(guess[part], truth)
                    counts["all" + tail] = taken(voxels[None])["voxels"]
                    rays.update(guess[part], truth, places)
                    counts["rays" + tail] = taken(rays)["rays"]
                    if variant == 0 and kind == EXACT:
                        labels, instances = (guess, None) if panoptic is None else panoptic
                        ours = None if instances is None else instances[part]
                        quality.update(labels[part], truth, ours, objects.int(), places)
                        counts |= {f"pq_{name}": value for name, value in taken(quality).items()}
                rows[variant].append(counts)
    return [{name: torch.stack([one[name] for one in of]).cpu() for name in of[0]} for of in rows]


def voxel_iou(counts: Tensor, taxonomy: Taxonomy) -> Tensor:
    """IoU of every class, float64 [..., C], of counts [..., C, C + 1]; NaN for absent ones and for free."""
    counts, classes = counts.double(), taxonomy.num_classes
    hits = counts[..., :classes].diagonal(dim1=-2, dim2=-1)
    truth, guess = counts.sum(-1), counts.sum(-2)[..., :classes]
    iou = torch.where(truth > 0, hits / (truth + guess - hits), torch.nan)
    return _without_free(iou, taxonomy)


def geometry_iou(counts: Tensor, taxonomy: Taxonomy) -> Tensor:
    """IoU of occupied against free, float64 [...], of counts [..., C, C + 1]."""
    counts, classes = counts.double(), taxonomy.num_classes
    occupied = torch.arange(classes) != taxonomy.free
    both = counts[..., occupied, :][..., :classes][..., occupied].sum((-2, -1))
    truth = counts[..., occupied, :].sum((-2, -1))
    guess = counts[..., :classes][..., occupied].sum((-2, -1))
    return both / (truth + guess - both)


def free_recall(counts: Tensor, taxonomy: Taxonomy) -> Tensor:
    """The share of free voxels that are called free, float64 [...], of counts [..., C, C + 1]."""
    free = counts[..., taxonomy.free, :].double()
    return free[..., taxonomy.free] / free.sum(-1)


def ray_iou(counts: Tensor, taxonomy: Taxonomy) -> Tensor:
    """IoU by threshold and class, float64 [..., K, C], of counts [..., C + 1, C + 1, K + 1]; NaN where undefined."""
    counts, classes = counts.double(), taxonomy.num_classes
    truth, guess = counts.sum((-2, -1))[..., :classes], counts.sum((-3, -1))[..., :classes]
    hits = counts.diagonal(dim1=-3, dim2=-2)[..., :classes].cumsum(-2)[..., :-1, :]  # [..., K, C]
    iou = hits / (truth + guess)[..., None, :].sub(hits)
    return _without_free(iou, taxonomy)


def panoptic_quality(state: dict[str, Tensor], taxonomy: Taxonomy) -> Tensor:
    """PQ by threshold and class, float64 [..., K, C], of four counts [..., K, C]; NaN where nothing was counted."""
    tp, fp, fn, units = (state[f"pq_{name}"].double() for name in ("tp", "fp", "fn", "iou_units"))
    quality = units * 2.0**-40 / tp.clamp_min(1e-5)
    recognition = tp / (tp + 0.5 * fp + 0.5 * fn).clamp_min(1e-5)
    return _without_free(torch.where(tp + fp + fn > 0, quality * recognition, torch.nan), taxonomy)


def _without_free(values: Tensor, taxonomy: Taxonomy) -> Tensor:
    values = values.clone()
    values[..., taxonomy.free] = torch.nan
    return values


def dynamic_classes(taxonomy: Taxonomy) -> list[int]:
    """Labels of what may move: vehicles, cycles, pedestrians."""
    return [taxonomy.id_of(name) for name in THING_CLASSES if name in taxonomy.classes]


def figures(counts: dict[str, Tensor], draws: Resamples, taxonomy: Taxonomy) -> dict[str, Tensor]:
    """Every figure on the sample and on each resample of the scenes, float64 [1 + B]."""
    moving = dynamic_classes(taxonomy)
    still = [c for c in range(taxonomy.num_classes) if c not in moving]
    sums = {name: draws.sums(value) for name, value in counts.items()}
    found: dict[str, Tensor] = {}
    for name in ("camera", "all", "lidar", "camera_accumulated", "all_accumulated"):
        if name in sums:
            iou = voxel_iou(sums[name], taxonomy)
            found[f"mIoU {name}"] = iou.nanmean(-1)
            found[f"mIoU {name}, dynamic"] = iou[..., moving].nanmean(-1)
            found[f"mIoU {name}, static"] = iou[..., still].nanmean(-1)
            found[f"IoU {name}"] = geometry_iou(sums[name], taxonomy)
            found[f"free {name}"] = free_recall(sums[name], taxonomy)
    for name, title in (("rays", "RayIoU"), ("rays_accumulated", "RayIoU accumulated")):
        if name in sums:
            iou = ray_iou(sums[name], taxonomy)
            found[title] = iou.flatten(-2).nanmean(-1)
            found[f"{title}, dynamic"] = iou[..., moving].flatten(-2).nanmean(-1)
            for k, limit in enumerate((1, 2, 4)):
                found[f"{title}@{limit}"] = iou[..., k, :].nanmean(-1)
    if "pq_tp" in sums:
        quality = panoptic_quality(sums, taxonomy)
        found["RayPQ"] = quality.flatten(-2).nanmean(-1)
        found["RayPQ, dynamic"] = quality[..., moving].flatten(-2).nanmean(-1)
    return found


def by_class(counts: dict[str, Tensor], taxonomy: Taxonomy) -> dict[str, dict[str, float]]:
    """IoU of every class on all scenes: voxels that the cameras see, and rays (mean of the thresholds)."""
    voxels = voxel_iou(counts["camera"].sum(0), taxonomy).tolist()
    rays = ray_iou(counts["rays"].sum(0), taxonomy).nanmean(0).tolist()
    quality = panoptic_quality({k: v.sum(0) for k, v in counts.items() if k[:3] == "pq_"}, taxonomy).nanmean(0)
    return {
        name: {"IoU": voxels[c], "RayIoU": rays[c], "RayPQ": float(quality[c])}
        for c, name in enumerate(taxonomy.classes)
        if c != taxonomy.free
    }


def commonest(labels: Tensor, classes: int) -> Tensor:
    """The commonest class of each voxel over frames uint8 [N, X, Y, Z], the lower label of equals: [X, Y, Z]."""
    counts = torch.zeros(classes, *labels.shape[1:], dtype=torch.int32, device=labels.device)
    for part in labels.split(64):
        for c in range(classes):
            counts[c] += (part == c).sum(0, dtype=torch.int32)
    return counts.argmax(0).to(torch.uint8)


def constant(grid: Tensor) -> Predictor:
    """The same answer to every question."""
    return lambda rows: ([grid.expand(len(rows), *grid.shape)], None)


def best_setting(counts: Sequence[dict[str, Tensor]], taxonomy: Taxonomy) -> tuple[int, list[float]]:
    """The variant with the highest mIoU on what the cameras see, and all of them."""
    scores = [float(voxel_iou(one["camera"].sum(0), taxonomy).nanmean()) for one in counts]
    return max(range(len(scores)), key=scores.__getitem__), scores
