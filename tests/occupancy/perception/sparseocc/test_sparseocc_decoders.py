"""Voxel and mask decoder: sizes, what is kept, who learns from what."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.sparseocc import SparseOcc, presets
from syntheocc.occupancy.perception.sparseocc.blocks import AdaptiveMixing, SelfAttention
from syntheocc.occupancy.perception.sparseocc.sampling import ImageFeatures
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import SparseVoxelDecoder


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        model = SparseOcc.from_preset("r50_704x256_8f")
        model.image_encoder.freeze(1)
    assert count(model.head.voxel_decoder) == 36_009_482
    assert count(model.head.mask_decoder) == 17_488_001
    assert count(model.head) == 53_497_483
    assert count(model.image_encoder.neck) == 3_344_384
    assert count(model.image_encoder.backbone) == 23_508_032
    assert round(count(model) / 1e6, 2) == 80.35
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 225_344


def test_the_small_preset_has_under_thirty_million_parameters():
    with torch.device("meta"):
        assert count(SparseOcc.from_preset("small")) < 30_000_000


@pytest.fixture(scope="module")
def narrow():
    """The published grid and numbers of voxels with few channels, one frame and one view."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = presets.preset(
            "r50_704x256_8f", num_frames=1, embed_dims=16, num_groups=2, num_heads=2, feedforward_dims=16
        ).model
        stages = tuple(replace(stage, self_attention=False, out_points=2) for stage in config.stages)
        config = replace(config, stages=stages, num_levels=1)
        return SparseVoxelDecoder(config), ImageFeatures(
            [torch.randn(1, 1, 1, 8, 22, 16)], looking_ahead(), (256, 704)
        )


def looking_ahead() -> torch.Tensor:
    matrix = torch.tensor([[352.0, -300, 0, 0], [128, 0, -300, 400], [1, 0, 0, 0], [0, 0, 0, 1]])
    return matrix.expand(1, 1, 1, 4, 4)


@pytest.mark.parametrize(
    ("training", "kept"), [(False, (2000, 8000, 32000)), (True, (4000, 16000, 64000))], ids=["test", "train"]
)
def test_each_stage_keeps_the_published_number_of_different_voxels(narrow, training, kept):
    decoder, images = narrow
    with torch.no_grad():
        outputs = decoder.train(training)(images)
    for output, number, cell in zip(outputs, kept, (4, 2, 1), strict=True):
        assert output.cell == cell
        assert output.corners.shape == (1, number, 3)
        index = output.corners[0] / cell
        assert torch.equal(index, index.floor()) and (index >= 0).all()
        assert (index.amax(0) <= torch.tensor([200, 200, 16]) / cell - 1).all()
        assert len(output.corners[0].unique(dim=0)) == number
        assert output.class_logits.shape == (1, number, 18) and output.features.shape == (1, number, 16)


def test_the_voxels_kept_are_those_least_likely_free(narrow):
    decoder, _ = narrow
    logits = torch.zeros(1, 10000, 18)
    logits[0, :2000, 17] = -5  # likely occupied
    kept = decoder.eval()._keep(0, torch.zeros(1, 10000, 3, dtype=torch.long), logits, None)
    assert kept[0].sort().values.tolist() == list(range(2000))


@pytest.mark.parametrize("shape", [(40, 40, 8), (37, 20, 5)])
def test_grids_that_no_cell_divides_are_predicted_too(shape, tiny_inputs):
    spec = GridSpec((-16.0, -16.0, -1.0), (0.8, 0.7, 0.6), shape)
    model = SparseOcc.from_preset("tiny", grid=spec)
    output = model(*tiny_inputs)
    labels = torch.randint(0, 18, (2, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    losses = model.losses(output, labels)
    assert torch.isfinite(losses["loss"])
    inside = (output.stages[-1].corners < torch.tensor(shape)).all(-1)
    assert inside.float().mean() > 0.99 or shape[0] == 37
    assert model.eval().predict(*tiny_inputs).semantics.shape == (2, *shape)


def test_stages_learn_from_their_own_losses_and_masks_reach_the_last(tiny, tiny_inputs, scene):
    tiny.train()
    output = tiny(*tiny_inputs)
    losses = tiny.losses(output, torch.stack([scene, scene]))
    stages = tiny.head.voxel_decoder.stages

    def reached(names):
        tiny.zero_grad()
        torch.stack([losses[name] for name in names]).sum().backward(retain_graph=True)
        touched = [any(p.grad is not None and p.grad.any() for p in stage.parameters()) for stage in stages]
        return touched, any(p.grad is not None and p.grad.any() for p in tiny.image_encoder.parameters())

    assert reached(["lovasz_4", "voxel_class_4"]) == ([True, False, False], True)
    assert reached(["sem_scal_2", "geo_scal_2"]) == ([False, True, False], True)
    assert reached(["lovasz_1"]) == ([False, False, True], True)
    assert reached(["mask_0", "dice_1", "class_2"]) == ([False, False, True], True)


def test_one_step_of_all_losses_reaches_every_parameter(tiny, tiny_inputs, scene):
    """What gets no gradient stalls distributed training."""
    for version in ("1.1", "1.0"):
        model = SparseOcc.from_preset("tiny", version=version).train()
        losses = model.losses(model(*tiny_inputs), torch.stack([scene, torch.full_like(scene, 255)]))
        losses["loss"].backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not without


def test_self_attention_is_torchs_own_with_the_distance_taken_off():
    torch.manual_seed(0)
    ours = SelfAttention(16, 4, scale_adaptive=True).eval()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    torch.nn.init.normal_(ours.tau.weight)
    queries, centers = torch.randn(2, 5, 16), torch.randn(2, 5, 2) * 10
    distance = (centers[:, :, None] - centers[:, None]).norm(dim=-1)
    bias = -ours.tau(queries).permute(0, 2, 1)[..., None] * distance[:, None]
    expected = queries + theirs(queries, queries, queries, attn_mask=bias.flatten(0, 1))[0]
    torch.testing.assert_close(ours(queries, centers_xy=centers), expected)
    # With positions: queries and keys carry them, values do not.
    ours.tau, placed = None, torch.randn(2, 5, 16)
    expected = queries + theirs(queries + placed, queries + placed, queries)[0]
    torch.testing.assert_close(ours(queries, placed), expected)


def test_adaptive_mixing_by_a_loop_over_queries_and_groups():
    torch.manual_seed(0)
    mixing = AdaptiveMixing(8, in_points=3, out_points=5, num_groups=2)
    torch.nn.init.normal_(mixing.parameter_generator.weight)
    sampled, queries = torch.randn(1, 4, 2, 3, 4), torch.randn(1, 4, 8)
    rows = []
    for q in range(4):
        made = mixing.parameter_generator(queries[0, q]).view(2, -1)
        groups = []
        for g in range(2):
            channels, points = made[g, :16].view(4, 4), made[g, 16:].view(5, 3)
            x = functional.layer_norm(sampled[0, q, g] @ channels, (3, 4)).relu()
            groups.append(functional.layer_norm(points @ x, (5, 4)).relu().flatten())
        rows.append(queries[0, q] + mixing.out_proj(torch.cat(groups)))
    torch.testing.assert_close(mixing(sampled, queries)[0], torch.stack(rows))


@pytest.mark.parametrize("training", [False, True])
def test_checkpointing_changes_no_gradient(tiny, tiny_inputs, scene, training):
    """While training, what is computed again drops the same units."""
    labels = torch.stack([scene, scene])
    gradients = []
    tiny.train(training)
    for enable in (False, True):
        tiny.zero_grad()
        tiny.head.voxel_decoder.gradient_checkpointing = enable
        generators = [torch.Generator().manual_seed(row) for row in range(2)] if training else None
        tiny.losses(tiny(*tiny_inputs, generators), labels)["loss"].backward()
        gradients.append({n: p.grad.clone() for n, p in tiny.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_new_classifier_expects_few_positives(tiny, tiny_inputs, scene):
    """Without its bias the class loss of 100 queries would start at several hundreds."""
    losses = tiny.losses(tiny(*tiny_inputs), torch.stack([scene, scene]))
    assert losses["class_2"] < 20
