"""Flow modes: scattered voxels (vector V9, holes), hidden classes, published files; all of them through a batch."""

import math

import numpy as np
import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES
from syntheocc.occupancy.data.flow_files import FLOW_OFFSETS, flow_path, read_flow, write_flow
from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.rendering.flow import frame_fields, render_labels
from syntheocc.occupancy.rendering.rays import BoxMotion, RayLabels
from syntheocc.occupancy.rendering.scatter import FlowRows, flow_rows, scatter_voxels
from syntheocc.occupancy.rendering.volume import RenderSettings, fields_of, render_rays
from syntheocc.occupancy.transforms import rotation_z

CAR = 4
SPEC = OCC3D_NUSCENES.spec
OFFSETS = (-3, -2, -1, 0, 1, 2, 3)


def pose(x, y, z, yaw_deg=0.0):
    matrix = rotation_z(math.radians(yaw_deg))
    matrix[:3, 3] = torch.tensor([x, y, z])
    return matrix


def car(target, source=None, label=CAR, frame=5, sample=0, size=(4.6, 1.9, 1.7)):
    source = pose(10, 0, 0.6) if source is None else source
    return BoxMotion(
        source[None], target[None], torch.tensor([size], dtype=torch.float64), torch.tensor([label]),
        torch.tensor([frame]), torch.tensor([sample]),
    )  # fmt: skip


def test_v9_rows_of_a_car():
    rows = flow_rows(car(pose(15, 1, 0.6, 10)), SPEC)
    assert len(rows) == 504 and rows.labels.unique().tolist() == [CAR] and rows.frames.unique().tolist() == [5]
    low, high = rows.source.amin(0).tolist(), rows.source.amax(0).tolist()
    assert (low, high) == ([118, 97, 1], [131, 102, 6])
    found = {tuple(s): (t, c) for s, t, c in zip(rows.source.tolist(), rows.target.tolist(), rows.corner.tolist(),
                                                 strict=True)}  # fmt: skip
    assert found[125, 100, 4] == ([137, 103, 4], [137, 102, 4])
    assert found[128, 102, 4] == ([140, 105, 4], [140, 105, 4])
    assert found[120, 98, 3] == ([133, 100, 3], [132, 99, 3])
    # 192 voxels of the box as annotated: the same rule on a box that its padding makes that size.
    bare = [(edge - 0.4) / 1.15 for edge in (4.6, 1.9, 1.7)]
    assert len(flow_rows(car(pose(15, 1, 0.6), size=bare), SPEC)) == 192


@pytest.mark.parametrize(
    ("target", "unique", "holes", "inside"),
    [((15, 0, 0.6, 0), 504, 36, 540), ((15, 1, 0.6, 10), 504, 54, 558), ((14, 4, 0.6, 45), 426, 138, 564)],
)
def test_v9_scattering_leaves_holes(target, unique, holes, inside):
    motion = car(pose(*target))
    rows = flow_rows(motion, SPEC)
    targets = {tuple(cell) for cell in rows.target.tolist()}
    local = SPEC.centers().reshape(-1, 3) @ motion.target2ego[0, :3, :3]
    local = local - motion.target2ego[0, :3, 3] @ motion.target2ego[0, :3, :3]
    destination = (local.abs() <= motion.padded_sizes[0] / 2).all(1).view(SPEC.shape)
    covered = sum(bool(destination[cell]) for cell in targets)
    assert len(targets) == unique
    assert int(destination.sum()) == inside and inside - covered == holes


def test_rows_are_clamped_to_the_grid_and_boxes_outside_have_none():
    rows = flow_rows(car(pose(41, 0, 0.6)), SPEC)
    assert int(rows.target[:, 0].max()) == 199 and len(rows) == 504
    assert len(flow_rows(car(pose(0, 0, 0.6), source=pose(40.5, 0, 0.6)), SPEC)) == 0
    assert len(flow_rows(BoxMotion.empty(), SPEC)) == 0
    two = BoxMotion.collate([car(pose(15, 0, 0.6)), car(pose(15, 0, 0.6))])
    with pytest.raises(ValueError, match="of_sample"):
        flow_rows(two, SPEC)


def rows_of(*cells, label=1):
    """(source x, target x) a row, on a grid of one row of voxels."""
    source, target = ([[x, 0, 0] for x in column] for column in zip(*cells, strict=True))
    zero = torch.zeros(len(cells), dtype=torch.int64)
    return FlowRows(
        torch.tensor(source), torch.tensor(target), torch.tensor(target), zero + label, zero, zero, torch.eye(4)[None]
    )


def test_scattered_voxels_by_hand():
    """0 and 1 land together on 4, which is overwritten by their mean; 5 is of another class and stays."""
    density = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.4]).view(7, 1, 1).requires_grad_()
    logits = torch.tensor([[0.0, 1], [0, 3], [0, 1], [0, 1], [9, 0], [1, 0], [0, 1]]).view(7, 1, 1, 2)
    moved, classes = scatter_voxels(density, logits, rows_of((0, 4), (1, 4), (5, 6)))
    assert moved.flatten().tolist() == pytest.approx([0, 0, 0.5, 0.7, 0.2, 0.2, 0.4])
    assert classes[4, 0, 0].tolist() == [0, 2] and classes[:2].abs().sum() == 0
    (gradient,) = torch.autograd.grad(moved[4].sum(), density)
    assert gradient.flatten().tolist() == [0.5, 0.5, 0, 0, 0, 0, 0]
    # A voxel that another lands on is not emptied, also where it moves on itself.
    moved, _ = scatter_voxels(density, logits, rows_of((0, 1), (1, 2)))
    assert moved.flatten().tolist()[:4] == pytest.approx([0, 0.1, 0.3, 0.7])


def test_flow_files_round_trip(tmp_path):
    first = car(pose(15, 1, 0.6, 10), frame=OFFSETS.index(1))
    second = car(pose(5, 0, 0.6), source=pose(8, -4, 0.6), label=7, frame=OFFSETS.index(-3))
    motion = BoxMotion.cat([first, second])
    rows = flow_rows(motion, SPEC)
    path = flow_path(tmp_path, "scene-0001", "abc")
    write_flow(rows, OFFSETS, path)
    with np.load(path) as file:
        assert file["flow"].dtype == np.uint8 and file["flow"].shape == (len(rows), 11)
        assert file["T"].shape == (2, 4, 4) and file["indices"].dtype == np.uint16
        assert file["flow"][0].tolist()[:3] == rows.source[0].flip(0).tolist()
        assert set(file["flow"][:, 10].tolist()) == {FLOW_OFFSETS.index(1), FLOW_OFFSETS.index(-3)}
    again = read_flow(path, OFFSETS)
    for name, value in vars(rows).items():
        assert torch.equal(getattr(again, name), value), name
    # Only some frames, in another numbering, and only some classes.
    assert read_flow(path, (0, 1)).frames.unique().tolist() == [1] and len(read_flow(path, (0, 1))) == 504
    assert read_flow(path, OFFSETS, classes=[7]).labels.unique().tolist() == [7]
    write_flow(flow_rows(BoxMotion.empty(), SPEC), OFFSETS, path)
    assert len(read_flow(path, OFFSETS)) == 0
    np.savez(path, flow=np.zeros((0,)), T=np.zeros((0,)), indices=np.zeros((0,)))
    assert len(read_flow(path, OFFSETS)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": np.zeros((3, 10), np.uint8)}, r"integer \[N, 11\]"),
        ({"indices": np.zeros(2, np.uint16)}, "as many indices"),
        ({"flow": np.full((3, 11), 6, np.uint8)}, "time index beyond 5"),
        ({"flow": np.full((3, 11), 250, np.uint8)}, "outside the grid"),
        ({"indices": np.full(3, 9, np.uint16)}, "motion beyond 0"),
    ],
)
def test_damaged_flow_files_are_refused(tmp_path, change, message):
    arrays = {"flow": np.ones((3, 11), np.uint8), "T": np.eye(4)[None], "indices": np.zeros(3, np.uint16)} | change
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as found:
        read_flow(tmp_path / "x.npz", OFFSETS)
    assert "x.npz" in str(found.value)


def test_rows_without_a_time_index_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="key frames"):
        write_flow(flow_rows(car(pose(15, 0, 0.6), frame=0), SPEC), (4, 0), tmp_path / "x.npz")


@pytest.mark.parametrize(("x", "y"), [(True, False), (False, True), (True, True)])
def test_mirrored_rows_are_those_of_mirrored_boxes(x, y):
    motion = car(pose(15, 1, 0.6, 10))
    matrix = torch.diag(torch.tensor([-1.0 if x else 1, -1 if y else 1, 1, 1])).double()
    expected, found = flow_rows(motion.transformed(matrix), SPEC), flow_rows(motion, SPEC).flipped(SPEC, x, y)
    order = [cells.source.mul(torch.tensor([4000, 20, 1])).sum(1).argsort() for cells in (expected, found)]
    for name in ("source", "target"):
        assert torch.equal(getattr(expected, name)[order[0]], getattr(found, name)[order[1]])
    torch.testing.assert_close(found.source2target, expected.source2target)
    shifted = GridSpec((0.0, -40.0, -1.0), 0.4, (200, 200, 16))
    with pytest.raises(ValueError, match="around the origin"):
        flow_rows(motion, SPEC).flipped(shifted, True, False)


# A small grid with the origin in its middle, two samples, three frames.
SMALL = GridSpec(lower=(-8.0, -4.0, -1.0), voxel_size=0.4, shape=(40, 20, 10))


def batch(number=60, seed=0):
    g = torch.Generator().manual_seed(seed)
    density = torch.rand(2, *SMALL.shape, generator=g, dtype=torch.float64)
    semantics = torch.randn(2, *SMALL.shape, 6, generator=g, dtype=torch.float64)
    origins = (torch.rand(number, 3, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([14.0, 6, 3])
    directions = torch.randn(number, 3, generator=g, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    flat, integers = torch.rand(number, generator=g, dtype=torch.float64) + 1, torch.zeros(number, dtype=torch.int64)
    rays = RayLabels(
        origins, directions, flat, flat, torch.randint(6, (number,), generator=g), flat,
        torch.randint(3, (number,), generator=g), integers, origins[:, :2],
        torch.randint(2, (number,), generator=g), (-1, 0, 1),
    )  # fmt: skip
    motion = BoxMotion.cat(
        [
            car(pose(2, 1, 0.4, 20), source=pose(-2, 0, 0.4), label=b + 2, frame=2 * f, sample=b)
            for b in (0, 1)
            for f in (0, 1)
        ]
    )
    return density, semantics, rays, motion


SETTINGS = RenderSettings(far=8.0, proposals=16, samples=24)


def test_modes_change_only_what_they_should():
    density, semantics, rays, motion = batch()
    seen = {
        mode: render_labels(density, semantics, rays, SMALL, SETTINGS, mode, motion, hidden=(2, 3))
        for mode in ("none", "warp", "scatter", "filter")
    }
    plain = render_rays(
        fields_of(density, semantics), rays.samples, rays.origins, rays.directions, SMALL, SETTINGS
    )  # fmt: skip
    torch.testing.assert_close(seen["none"].depth, plain.depth)
    for mode in ("warp", "scatter", "filter"):
        torch.testing.assert_close(seen[mode].depth[rays.is_key], plain.depth[rays.is_key])
        torch.testing.assert_close(seen[mode].semantics[rays.is_key], plain.semantics[rays.is_key])
        assert float((seen[mode].depth - plain.depth).abs().max()) > 1e-3
        alone = render_labels(density, semantics, rays, SMALL, SETTINGS, mode, None, hidden=(2, 3))
        same = mode != "filter"
        assert torch.equal(alone.depth, plain.depth) == same
    still = density * (semantics.argmax(-1) != 2) * (semantics.argmax(-1) != 3)
    filtered = render_rays(fields_of(still, semantics), rays.samples, rays.origins, rays.directions, SMALL, SETTINGS)
    torch.testing.assert_close(seen["filter"].depth[~rays.is_key], filtered.depth[~rays.is_key])


def test_a_sample_is_rendered_alike_in_any_batch():
    """The boxes of sample 1 are of another class: which voxels of sample 0 move is none of their business."""
    density, semantics, rays, motion = batch()
    for mode in ("warp", "scatter", "filter", "none"):
        together = render_labels(density, semantics, rays, SMALL, SETTINGS, mode, motion, hidden=(2, 3))
        alone = render_labels(
            density[:1], semantics[:1], rays.of_sample(0), SMALL, SETTINGS, mode, motion.of_sample(0), hidden=(2, 3)
        )
        torch.testing.assert_close(alone.depth, together.depth[rays.samples == 0])
        torch.testing.assert_close(alone.semantics, together.semantics[rays.samples == 0])


@pytest.mark.parametrize("mode", ["warp", "scatter", "filter", "none"])
def test_autocast_changes_nothing(mode):
    """Poses of boxes are metres: bfloat16 would move what moves by a quarter of a metre at 40 m."""
    density, semantics, rays, motion = batch()
    density, semantics = density.float(), semantics.float()
    rays, motion = rays.to(dtype=torch.float32), motion.to(dtype=torch.float32)
    plain = render_labels(density, semantics, rays, SMALL, SETTINGS, mode, motion, hidden=(2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = render_labels(density, semantics, rays, SMALL, SETTINGS, mode, motion, hidden=(2, 3))
        there = motion.source2target
    assert torch.equal(cast.depth, plain.depth) and torch.equal(cast.semantics, plain.semantics)
    assert torch.equal(there, motion.source2target)


def test_scattered_volumes_are_those_of_each_sample_and_frame():
    density, semantics, rays, motion = batch()
    seen = frame_fields(density, semantics, rays, SMALL, "scatter", motion)
    assert len(seen.fields) == 6 and torch.equal(seen.which, rays.samples * 3 + rays.frames)
    assert seen.fields[1].density is not None and torch.equal(seen.fields[1].density, density[0])
    rows = flow_rows(motion.of_sample(1), SMALL)
    moved, _ = scatter_voxels(density[1], semantics[1], rows.select(rows.frames == 2))
    assert torch.equal(seen.fields[5].density, moved)


def test_rows_read_from_files_scatter_as_those_of_the_boxes(tmp_path):
    density, semantics, rays, motion = batch()
    rows = []
    for sample in (0, 1):
        path = flow_path(tmp_path, "scene-0001", str(sample))
        write_flow(flow_rows(motion.of_sample(sample), SMALL), rays.frame_offsets, path, SMALL)
        rows.append(read_flow(path, rays.frame_offsets, SMALL))
    expected = render_labels(density, semantics, rays, SMALL, SETTINGS, "scatter", motion)
    found = render_labels(density, semantics, rays, SMALL, SETTINGS, "scatter", rows=rows)
    assert torch.equal(found.depth, expected.depth) and torch.equal(found.semantics, expected.semantics)
    with pytest.raises(ValueError, match="rows of 1 samples"):
        frame_fields(density, semantics, rays, SMALL, "scatter", rows=rows[:1])


@pytest.mark.parametrize("mode", ["warp", "scatter", "filter"])
def test_chunks_and_gradients_in_every_mode(mode):
    density, semantics, rays, motion = batch()
    results = []
    for chunk in (1000, 11):
        leaves = [t.clone().requires_grad_() for t in (density, semantics)]
        settings = RenderSettings(far=8.0, proposals=16, samples=24, chunk=chunk)
        seen = render_labels(
            *leaves, rays, SMALL, settings, mode, motion, hidden=(1,), free_margin=0.8,
            generators=[torch.Generator().manual_seed(b) for b in (0, 1)],
        )  # fmt: skip
        loss = seen.depth.sum() + seen.semantics.square().sum() + seen.front.sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_mirroring_volume_rays_and_boxes_together_changes_nothing():
    """What image and grid augmentation rely on: rays and boxes are taken into the mirrored grid."""
    density, semantics, rays, motion = batch()
    for mode in ("warp", "scatter"):
        expected = render_labels(density, semantics, rays, SMALL, SETTINGS, mode, motion)
        matrix = torch.diag(torch.tensor([-1.0, -1, 1, 1])).double()
        flipped = [t.flip(1, 2) for t in (density, semantics)]
        found = render_labels(*flipped, rays.transformed(matrix), SMALL, SETTINGS, mode, motion.transformed(matrix))
        torch.testing.assert_close(found.depth, expected.depth)
        torch.testing.assert_close(found.semantics, expected.semantics)


def test_unknown_modes_and_filters_without_classes_are_refused():
    density, semantics, rays, motion = batch()
    with pytest.raises(ValueError, match="flow mode must be"):
        frame_fields(density, semantics, rays, SMALL, "predict", motion)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give hidden"):
        frame_fields(density, semantics, rays, SMALL, "filter", motion)
    with pytest.raises(ValueError, match="of 2 samples, semantics of 1"):
        frame_fields(density, semantics[:1], rays, SMALL)
