"""A random volume of Gaussians, cameras that look into it, boxes that move in it, and labelled rays through it."""

import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.losses.rendering import conditional_semantic_loss, free_space_loss, hit_loss, silog_loss
from syntheocc.occupancy.rendering.gaussian import splat
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.splat_views import SplatRays, SplatViews
from syntheocc.occupancy.transforms import rotation_z

SPEC = GridSpec((-4.8, -4.0, -1.0), 0.4, (24, 20, 8))
DOUBLE = torch.float64
CAM2EGO = torch.tensor([[0, 0, 1, 1.7], [-1, 0, 0, 0.02], [0, -1, 0, 1.51], [0, 0, 0, 1]], dtype=DOUBLE)  # of V13


def numbers(*values):
    return torch.tensor(values, dtype=DOUBLE)


def close(found, *expected, tolerance=1e-6):
    torch.testing.assert_close(found, numbers(*expected).view(found.shape), rtol=0, atol=tolerance)


def scene(batch=2, classes=5, learned=False, seed=0):
    """Raw heads of a random volume, float64."""
    g = torch.Generator().manual_seed(seed)
    raw = 2 * torch.randn(batch, *SPEC.shape, generator=g, dtype=DOUBLE) - 3.5
    logits = torch.randn(batch, *SPEC.shape, classes, generator=g, dtype=DOUBLE)
    if not learned:
        return raw, logits, None, None
    return (
        raw,
        logits,
        torch.randn(raw.shape, generator=g, dtype=DOUBLE),
        torch.randn(*raw.shape, 3, generator=g, dtype=DOUBLE),
    )


def views_of(batch=2, frames=2, size=(36, 64)):
    """Cameras in the volume's corner and outside of it that look inwards, their principal points off the middle."""
    poses, samples, times = [], [], []
    for b in range(batch):
        for t in range(frames):
            for yaw, x in ((0.3, -5.5), (2.8, 3.9)):
                pose = rotation_z(yaw + 0.1 * t) @ CAM2EGO
                pose[:3, 3] = numbers(x, 0.5 * t - 0.3, 0.4)
                poses.append(pose)
                samples.append(b)
                times.append(t)
    matrix = numbers(50, 0, size[1] / 2 + 3, 0, 52, size[0] / 2 - 4, 0, 0, 1).view(1, 3, 3)
    return SplatViews.from_matrices(
        torch.stack(poses), matrix.expand(len(poses), 3, 3), size, 1.0, torch.tensor(samples), torch.tensor(times)
    )


def boxes(batch=2):
    """Two boxes that move and turn between frame 0 (the key frame) and frame 1, overlapping at key time."""
    rows = []
    for b in range(batch):
        for k, (x, y, label) in enumerate(((-1.0, 0.5, 1), (0.2, 0.4, 2))):
            source, target = rotation_z(0.2 * k), rotation_z(0.9 - k)
            source[:3, 3], target[:3, 3] = numbers(x, y, 0.2), numbers(x + 1.3, y - 1.1 * k - 0.4, 0.3)
            rows.append((source, target, numbers(2.0, 1.2, 1.0), label, 1, b))
    source, target, sizes, labels, frames, samples = zip(*rows, strict=True)
    return BoxMotion(
        *(torch.stack(part) for part in (source, target, sizes)),
        *(torch.tensor(part) for part in (labels, frames, samples)),
    )


def some_pixels(views, number=40, seed=5):
    """The same random pixels' centres in all views."""
    g = torch.Generator().manual_seed(seed)
    view = torch.arange(len(views)).repeat_interleave(number)
    extent = torch.tensor([views.width, views.height], dtype=DOUBLE)
    return views.rays(view, (torch.rand(len(view), 2, generator=g, dtype=DOUBLE) * extent).floor() + 0.5)


def label_rays(number=60, seed=1):
    """Labels whose rays start in the volume, one sample."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(number, 3, generator=g, dtype=DOUBLE) * numbers(1, 1, 0.3)
    directions = directions / directions.norm(dim=1, keepdim=True)
    zeros = torch.zeros(number, dtype=torch.int64)
    distance = 1 + 4 * torch.rand(number, generator=g, dtype=DOUBLE)
    return RayLabels(
        origins=numbers(0.3, -0.2, 0.1).expand(number, 3), directions=directions, distance=distance, depth=distance,
        labels=torch.randint(5, (number,), generator=g), weights=torch.ones(number, dtype=DOUBLE), frames=zeros,
        cameras=zeros, pixels=torch.zeros(number, 2, dtype=DOUBLE), samples=zeros, frame_offsets=(0,),
    )  # fmt: skip


def splatting_loss(gaussians, labels):
    """The losses of 4.2."""
    out = splat(gaussians, SplatRays.from_labels(labels), front_limits=labels.distance - 0.8)
    seen = (out.weight_sum > 0.05) & (labels.distance <= 52)
    return (
        conditional_semantic_loss(out.semantics, out.weight_sum, labels.labels, labels.weights)
        + silog_loss(out.depth, labels.distance, labels.weights, seen)
        + hit_loss(out.weight_sum, labels.weights)
        + 0.5 * free_space_loss(out.front)
    )
