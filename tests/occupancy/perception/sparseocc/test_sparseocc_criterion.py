"""Matching and mask losses against the specification's vectors; samples that teach nothing do no harm."""

import pytest
import torch
from warm_start import start_ranks

from syntheocc.occupancy.losses import frequency_weights
from syntheocc.occupancy.perception.sparseocc.criterion import SparseOccCriterion
from syntheocc.occupancy.perception.sparseocc.mask_decoder import MaskPrediction
from syntheocc.occupancy.perception.sparseocc.matcher import MatchWeights, hungarian, matching_cost
from syntheocc.occupancy.perception.sparseocc.presets import PRESETS, class_frequencies, preset
from syntheocc.occupancy.perception.sparseocc.targets import SegmentTargets
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import StageOutput
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, OPENOCC_V2_TAXONOMY, SYNTHEOCC_TAXONOMY


@pytest.fixture
def match(vectors):
    """The specification's three queries, four voxels and two segments."""
    vector = vectors["G_match"]
    logits = torch.zeros(3, 17)
    logits[0, 4], logits[1, 11], logits[2] = 2, 1, -2
    segments = torch.tensor(vector["gt_voxel_instance"])
    segments[segments == 255] = -1  # free
    return torch.tensor(vector["mask_logits"]), logits, segments, torch.tensor(vector["gt_class"])


def test_matching_cost_and_assignment_of_the_specification(vectors, match):
    masks, logits, segments, classes = match
    wanted = (segments == torch.arange(2)[:, None]).float()
    cost = matching_cost(logits, masks, classes, wanted, MatchWeights())
    torch.testing.assert_close(cost, torch.tensor(vectors["G_match"]["cost_total"]), rtol=0, atol=1e-5)
    assert [list(pair) for pair in zip(*(x.tolist() for x in hungarian(cost)), strict=True)] == [[0, 0], [1, 1]]


def test_a_diverged_network_is_matched_so_that_its_loss_can_say_so():
    rows, columns = hungarian(torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0], [0.0, 3.0]]))
    assert len(rows) == len(columns) == 2


def mask_losses_of(match, segments):
    masks, logits, _, classes = match
    criterion = SparseOccCriterion(preset("r50_704x256_8f").model)
    corners = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    grid = torch.full((4, 1, 1), -1, dtype=torch.int32)
    grid[:, 0, 0] = segments
    kept = criterion.kept_segments([SegmentTargets(grid, classes)], corners)
    return criterion.mask_losses(MaskPrediction(logits[None], masks[None]), kept)


def test_mask_losses_of_the_specification(vectors, match):
    losses = mask_losses_of(match, match[2])
    for name in ("mask", "dice", "class"):
        assert losses[name].item() == pytest.approx(vectors["G_match"][f"loss_{name}"], abs=1e-5)


def test_unseen_voxels_count_in_no_mask(match):
    """The fourth voxel is not known: the losses are those of the three others."""
    unseen = match[2].clone()
    unseen[3] = -2
    masks, logits, segments, classes = match
    without = (masks[:, :3], logits, segments[:3], classes)
    criterion = SparseOccCriterion(preset("r50_704x256_8f").model)
    three = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, 0, 0]]])
    kept = criterion.kept_segments([SegmentTargets(segments[:3, None, None].int(), classes)], three)
    expected = criterion.mask_losses(MaskPrediction(logits[None], without[0][None]), kept)
    found = mask_losses_of(match, unseen)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_a_segment_that_lost_all_its_voxels_is_not_matched(match):
    masks, logits, segments, _ = match
    criterion = SparseOccCriterion(preset("r50_704x256_8f").model)
    grid = torch.full((9, 1, 1), -1, dtype=torch.int32)
    grid[:4, 0, 0] = torch.where(segments == 1, 2, segments.int())
    grid[8] = 1  # a segment outside the kept voxels
    corners = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]])
    kept = criterion.kept_segments([SegmentTargets(grid, torch.tensor([4, 7, 11]))], corners)
    losses = criterion.mask_losses(MaskPrediction(logits[None], masks[None]), kept)
    expected = mask_losses_of(match, segments)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_class_weights_of_the_specification(vectors):
    weights = frequency_weights(class_frequencies(OCC3D_TAXONOMY))
    torch.testing.assert_close(weights, torch.tensor(vectors["W_class_weights"]), rtol=0, atol=1e-7)
    openocc = frequency_weights(class_frequencies(OPENOCC_V2_TAXONOMY))
    assert len(openocc) == 17 and openocc[0] == weights[4] and openocc[16] == weights[17]
    assert class_frequencies(SYNTHEOCC_TAXONOMY)[0] == class_frequencies(OCC3D_TAXONOMY)[17]


def test_voxel_losses_of_version_1_0_are_the_specifications(vectors):
    vector = vectors["U_v10_occ_bce"]
    criterion = SparseOccCriterion(preset("r50_704x256_8f_v1_0").model)
    labels = torch.tensor(vector["labels"], dtype=torch.uint8).view(1, 6, 1, 1)
    stage = StageOutput(
        corners=torch.arange(6)[None, :, None] * torch.tensor([1, 0, 0]),
        cell=1,
        features=torch.zeros(1, 6, 4),
        class_logits=torch.zeros(1, 6, 17),
        occupancy_logits=torch.tensor([vector["logits"]]),
    )
    losses = criterion.voxel_losses(stage, labels)
    assert losses["occupancy"].item() == pytest.approx(vector["loss"], abs=1e-6)
    # Three occupied voxels, seventeen equal logits.
    assert losses["voxel_class"].item() == pytest.approx(torch.tensor(17.0).log().item(), abs=1e-6)


def painted(logits, corners, cell):
    return StageOutput(corners[None], cell, torch.zeros(1, len(corners), 4), logits[None], None)


def test_a_coarse_voxel_answers_for_every_voxel_below_it():
    """Two cells of edge 2; painting by hand gives the same losses at full resolution."""
    criterion = SparseOccCriterion(preset("r50_704x256_8f").model)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 18, (1, 4, 2, 2), generator=generator).to(torch.uint8)
    logits = torch.randn(2, 18, generator=generator)
    coarse = criterion.voxel_losses(painted(logits, torch.tensor([[0, 0, 0], [2, 0, 0]]), 2), labels)
    every = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(2), torch.arange(2), indexing="ij"), -1)
    fine = criterion.voxel_losses(painted(logits.repeat_interleave(8, 0), every.flatten(0, 2), 1), labels)
    for name, value in fine.items():
        torch.testing.assert_close(coarse[name], value)


@pytest.mark.parametrize("name", ["tiny", "r50_704x256_8f_openocc", "r50_704x256_8f_v1_0", "r50_704x256_8f_pano"])
@pytest.mark.parametrize("legacy", [False, True])
def test_samples_that_teach_nothing_leave_finite_losses(name, legacy):
    """No object, all free, all unknown, unknown objects only: alone and beside a sample that teaches something."""
    config = preset(name, legacy=legacy).model
    criterion = SparseOccCriterion(config)
    classes, free = config.taxonomy.num_classes, config.taxonomy.free
    generator = torch.Generator().manual_seed(0)
    kinds = {
        "free": torch.full((8, 8, 4), free),
        "unknown": torch.full((8, 8, 4), 255),
        "one class": torch.full((8, 8, 4), 11),
        "usual": torch.randint(0, classes, (8, 8, 4), generator=generator),
    }
    corners = torch.stack(torch.meshgrid(*[torch.arange(n) for n in (8, 8, 4)], indexing="ij"), -1).flatten(0, 2)
    version_1_0 = config.version == "1.0"
    for chosen in (["free"], ["unknown"], ["one class"], ["usual"], ["unknown", "usual"], ["free", "unknown"]):
        semantics = torch.stack([kinds[kind] for kind in chosen]).to(torch.uint8)
        batch = len(chosen)
        class_logits = torch.randn(batch, 256, classes - version_1_0, generator=generator, requires_grad=True)
        occupancy = torch.randn(batch, 256, generator=generator, requires_grad=True)
        queries = torch.randn(batch, 5, classes - 1, generator=generator, requires_grad=True)
        masks = torch.randn(batch, 5, 256, generator=generator, requires_grad=True)
        stage = StageOutput(
            corners.expand(batch, -1, -1), 1, torch.zeros(1), class_logits, occupancy if version_1_0 else None
        )
        instances = torch.zeros_like(semantics) if config.panoptic else None
        losses = criterion([stage], [MaskPrediction(queries, masks)], semantics, instances)
        losses["loss"].backward()
        for value in losses.values():
            assert torch.isfinite(value)
        for tensor in (class_logits, queries, masks):
            assert tensor.grad is not None and torch.isfinite(tensor.grad).all()
        if chosen == ["unknown"]:
            assert not class_logits.grad.any() and not masks.grad.any()


def losses_of_samples(rows: list[int]) -> dict[str, torch.Tensor]:
    """All terms of some of three samples, the last of which has no segment."""
    config = preset("tiny").model
    generator = torch.Generator().manual_seed(0)
    semantics = torch.randint(0, 18, (3, 4, 4, 4), generator=generator).to(torch.uint8)
    semantics[1, 2:], semantics[2] = 17, 17
    corners = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).flatten(0, 2)
    logits, queries, masks = (torch.randn(3, *size, generator=generator) for size in ((64, 18), (20, 17), (20, 64)))
    stage = StageOutput(corners.expand(len(rows), -1, -1), 1, torch.zeros(1), logits[rows], None)
    return SparseOccCriterion(config)([stage], [MaskPrediction(queries[rows], masks[rows])], semantics[rows])


def _rank(rank: int, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.save(losses_of_samples([2 * rank]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_loss_of_a_batch_does_not_depend_on_how_many_processes_share_it(tmp_path):
    """Two processes with one sample each, one without a segment: their mean is the loss of both in one process."""
    start_ranks(_rank, (str(tmp_path / "store"), str(tmp_path)), 2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in losses_of_samples([0, 2]).items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)


def test_every_preset_sums_the_terms_that_the_specification_counts(tiny, tiny_inputs, scene):
    output = tiny(*tiny_inputs)
    losses = tiny.losses(output, torch.stack([scene, scene]))
    terms = [value for name, value in losses.items() if name != "loss"]
    assert len(terms) == 21  # 3 stages x 4 + 3 predictions x 3
    torch.testing.assert_close(losses["loss"], torch.stack(terms).sum())
    assert len(PRESETS) == 11


def test_samples_whose_voxels_all_count_are_taken_at_once_with_the_same_losses_and_gradients(scene, monkeypatch):
    config = preset("tiny", class_frequencies=class_frequencies(OCC3D_TAXONOMY)).model
    criterion = SparseOccCriterion(config)
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack([scene, scene.flip(1)])
    labels[labels == 255] = 17
    corners = torch.stack([torch.randperm(10 * 10 * 2, generator=generator)[:60] for _ in range(2)])
    corners = torch.stack([corners // 20, corners // 2 % 10, corners % 2], -1) * 4
    logits = torch.randn(2, 60, 18, generator=generator)
    taken = []
    known = SparseOccCriterion._known_losses
    monkeypatch.setattr(
        SparseOccCriterion, "_known_losses", lambda self, *a: taken.append(a[0].ndim) or known(self, *a)
    )

    def losses_of(samples):
        values = logits[samples].clone().requires_grad_()
        found = criterion.voxel_losses(StageOutput(corners[samples], 4, None, values, None), labels[samples])
        (gradient,) = torch.autograd.grad(sum(found.values()), values)
        return found, gradient

    together, gradient = losses_of([0, 1])
    assert taken == [3]
    apart = [criterion._dense_losses(
        logits[i].repeat_interleave(64, 0), labels_of_cells(labels[i], corners[i])
    ) for i in (0, 1)]  # fmt: skip
    assert taken == [3, 2, 2]
    for name, value in together.items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)
    for i in (0, 1):
        torch.testing.assert_close(gradient[i], losses_of([i])[1][0] / 2)


def labels_of_cells(labels, corners):
    """The labels of the 64 voxels of each cell, cell after cell."""
    steps = torch.stack(torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"), -1).reshape(1, 64, 3)
    x, y, z = (corners[:, None] + steps).unbind(-1)
    return labels[x, y, z].flatten()


def test_mask_losses_of_samples_that_count_whole_are_taken_at_once_with_the_same_values_and_gradients():
    criterion = SparseOccCriterion(preset("tiny").model)
    generator = torch.Generator().manual_seed(0)
    kept = []
    for number in (3, 0, 5):
        owner = torch.randint(-1, max(1, number), (40,), generator=generator)
        masks = (owner == torch.arange(number)[:, None]).float()
        kept.append((torch.randint(17, (number,), generator=generator), masks, torch.arange(40)))
    logits = [torch.randn(3, 4, 17, generator=generator).requires_grad_() for _ in range(2)]
    masks = [torch.randn(3, 4, 40, generator=generator).requires_grad_() for _ in range(2)]
    predictions = [MaskPrediction(*pair) for pair in zip(logits, masks, strict=True)]
    together = criterion.whole_mask_losses(predictions, kept)
    one_by_one = [criterion.mask_losses(prediction, kept) for prediction in predictions]
    for found, expected in zip(together, one_by_one, strict=True):
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name])
    gradients = [
        torch.autograd.grad(sum(sum(of.values()) for of in losses), [*logits, *masks])
        for losses in (together, one_by_one)
    ]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
