"""OccDepth as a whole: its variants, its losses, its memory savers, its files, and that it learns."""

import pytest
import torch
from stereo_scene import CONFIG, SPEC, config, scene
from torch import nn

from syntheocc.occupancy.grids import SEMANTIC_KITTI, GridSpec
from syntheocc.occupancy.metrics import SSCIoU
from syntheocc.occupancy.perception.occdepth.config import LEGACY, OccDepthConfig, as_published
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset
from syntheocc.occupancy.perception.occdepth.volume_blocks import Bottleneck3D
from syntheocc.occupancy.perception.occdepth.volume_net import VolumeLogits

EVERYTHING = {"ssc", "occupancy", "sem_scal", "geo_scal", "frustum", "relation", "depth", "occluded", "loss"}


def made(**changes) -> OccDepth:
    torch.manual_seed(0)
    return OccDepth(config(**changes))


def run(model, batch):
    output = model(batch.images, StereoCameras.of_batch(batch), batch.depth)
    return output, model.losses(output, batch)


@pytest.mark.parametrize("name, total, dead", [
    # specs/occdepth.md 2.7; what the published networks carry without using it: bn2, resize_output_1_16, poolings.
    ("kitti_b7_legacy", 150.6e6, 2 * 2560 + 64 * 1281 + 25_056),
    ("kitti_b3_legacy", 40.9e6, 2 * 1536 + 32 * 769 + 6_768),
    ("nyu_b7_legacy", 298e6, 2 * 2560 + 200 * 1281 + 237_000),
    ("nyu_b4_legacy", 56.4e6, 2 * 1792 + 100 * 897 + 30_000),
])  # fmt: skip
def test_models_have_the_published_number_of_parameters(name, total, dead):
    with torch.device("meta"):
        model = OccDepth.from_preset(name)
    poolings = 0
    for block in model.modules():
        if isinstance(block, Bottleneck3D) and isinstance(block.down2, nn.Identity):
            planes = block.conv2.in_channels
            poolings += 3 * (planes**2 + 2 * planes)
    parameters = sum(p.numel() for p in model.parameters())
    top, channels = model.image_network.encoder.channels[-1], model.config.channels
    carried = parameters + 2 * top + channels * (top // 2 + 1) + poolings
    assert dead == pytest.approx(2 * top + channels * (top // 2 + 1) + poolings, rel=0.02)
    assert round(carried / 1e6, 1) == pytest.approx(total / 1e6, abs=0.5 if total == 298e6 else 0.051)


@pytest.mark.parametrize("changes", [
    {"occluded_head": True},
    {**LEGACY, "detach_second_view": True},
    {"num_views": 1, "num_relations": 2, "cascade": False},
    {"lift": "flosp", "virtual_view": True, "axes": (0, 2, 1), "scales": (1, 4)},
    {"depth_spacing": "linear", "relation_prior": False, "scales": (8,), "pattern": 1},
    {"depth_fusion": "multiply", "sampling": "nearest", "project_scale": 2},
], ids=["all", "legacy", "mono", "virtual", "linear", "multiply"])  # fmt: skip
def test_every_variant_learns_with_every_parameter(changes):
    if changes.get("project_scale") == 2:
        changes = {**changes, "grid": GridSpec(SPEC.lower, (0.2, 0.2, 0.2), (32, 32, 16))}
    model = made(**changes)
    cfg = model.config
    batch = scene(cfg)
    output, losses = run(model, batch)
    assert tuple(output.logits.shape) == (2, 3, *cfg.grid.shape)
    missing = {name for name, there in {
        "occupancy": cfg.cascade, "relation": cfg.relation_prior, "depth": cfg.lift == "flosp_depth",
        "occluded": cfg.occluded_head,
    }.items() if not there}  # fmt: skip
    assert set(losses) == EVERYTHING - missing
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
    assert float(losses["loss"].detach()) == pytest.approx(
        sum(float(v.detach()) for k, v in losses.items() if k != "loss"), rel=1e-5
    )
    losses["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    # A parameter without a gradient would hang or fail distributed training.
    assert not idle
    prediction = model.eval().predict(batch.images, StereoCameras.of_batch(batch), batch.depth)
    assert prediction.semantics.dtype == torch.uint8 and tuple(prediction.semantics.shape[1:]) == cfg.grid.shape


def test_checkpointing_changes_memory_and_nothing_else():
    gradients, statistics = [], []
    for enable in (False, True):
        model = made()
        model.gradient_checkpointing_enable(enable)
        run(model, scene(model.config))[1]["loss"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
        statistics.append({n: b.clone() for n, b in model.named_buffers()})
    for first, second in (gradients, statistics):
        for name, value in first.items():
            torch.testing.assert_close(
                value, second[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n} {text}"
            )


def test_autocast_answers_the_same_within_half_precision():
    model = made().eval()
    batch = scene(model.config)
    with torch.no_grad():
        exact, losses = run(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, rough = run(model, batch)
    assert half.logits.dtype == torch.bfloat16 and rough["loss"].dtype == torch.float32
    assert float((half.logits.float() - exact.logits).abs().max()) < 0.05 * float(exact.logits.abs().max())
    for name, value in losses.items():
        assert float(rough[name]) == pytest.approx(float(value), rel=0.03, abs=0.01)
    # Weights in half precision, as for inference.
    model.bfloat16()
    with torch.no_grad():
        stored = model(batch.images, StereoCameras.of_batch(batch))
    assert float((stored.logits.float() - exact.logits).abs().max()) < 0.08 * float(exact.logits.abs().max())


def test_a_fixed_rig_is_looked_up_once():
    model = made().eval()
    batch = scene(model.config)
    cameras = StereoCameras.of_batch(batch)
    with torch.no_grad():
        assert torch.equal(model(batch.images, cameras).logits, model(batch.images, model.lookup(cameras)).logits)


def test_bytes_are_normalised():
    model = made().eval()
    batch = scene(model.config)
    pictures = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8)
    cameras = StereoCameras.of_batch(batch)
    with torch.no_grad():
        found = model(pictures, cameras).logits
        assert torch.equal(found, model(model.normalise(pictures), cameras).logits)


def test_answers_are_in_the_grids_own_axes():
    """NYUv2's published network has [x, up, y] inside; what goes in and comes out is [x, y, up]."""

    class Echo(nn.Module):
        def forward(self, volume):
            self.shape = tuple(volume.shape[2:])
            return VolumeLogits(volume, None, None, None)

    cfg = config(axes=(2, 0, 1), lift="flosp", grid=GridSpec(SPEC.lower, (0.4, 0.4, 0.4), (16, 12, 8)))
    batch = scene(cfg, 1)
    models = [OccDepth(cfg), OccDepth(config(lift="flosp", grid=cfg.grid))]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    answers = []
    for model in models:
        model.volume_net = Echo()
        with torch.no_grad():
            answers.append(model.eval()(batch.images, StereoCameras.of_batch(batch)).logits)
    assert models[0].volume_net.shape == (8, 16, 12) and models[1].volume_net.shape == (16, 12, 8)
    assert torch.equal(*answers)


def test_a_missing_second_camera_leaves_the_first():
    """A pair whose second camera is not there is the first picture alone, whatever the second one holds."""
    model = made().eval()
    batch = scene(model.config)
    batch.velo2img[:, 1] = 0
    batch.intrinsics[:, 1] = 0
    cameras = StereoCameras.of_batch(batch)
    with torch.no_grad():
        alone = model(batch.images, cameras).logits
        batch.images[:, 1] = 5.0
        other = model(batch.images, cameras).logits
    assert bool(torch.isfinite(alone).all())
    torch.testing.assert_close(alone, other, atol=1e-5, rtol=1e-5)


def test_samples_do_not_look_at_one_another():
    """Grids that begin elsewhere, and depths of their own: published, the first sample's were everybody's."""
    for changes in ({}, {"lift": "flosp", "virtual_view": True}):
        model = made(**changes).eval()
        batch = scene(model.config)
        batch.origin[1] += torch.tensor([0.7, -0.3, 0.2], dtype=torch.float64)
        batch.depth[1] *= 2
        with torch.no_grad():
            both = model(batch.images, StereoCameras.of_batch(batch), batch.depth).logits
            for i in range(2):
                cameras = StereoCameras(batch.velo2img[i : i + 1], batch.intrinsics[:1], batch.origin[i : i + 1])
                alone = model(batch.images[i : i + 1], cameras, batch.depth[i : i + 1]).logits
                torch.testing.assert_close(both[i], alone[0], atol=1e-4, rtol=1e-4)
        assert float((both[0] - both[1]).abs().max()) > 1e-3


def test_a_virtual_view_by_the_models_own_depth_needs_no_sensor():
    model = made(virtual_view=True, virtual_depth="predicted").eval()
    batch = scene(model.config, 1)
    with torch.no_grad():
        cameras = StereoCameras.of_batch(batch)
        free = model(batch.images, cameras).logits
        assert torch.equal(free, model(batch.images, cameras, batch.depth).logits)
    with pytest.raises(ValueError, match="needs the depth network"):
        config(virtual_view=True, virtual_depth="predicted", lift="flosp")


def test_asking_twice_gives_mirrored_pictures_the_same_answer():
    model = made(lift="flosp", virtual_view=True).eval()
    batch = scene(model.config, 1)
    cameras = StereoCameras.of_batch(batch)
    turned, images, depth = cameras.mirrored(96), batch.images.flip(-1), batch.depth.flip(-1)
    assert float(turned.ray_shift()) == pytest.approx(-float(cameras.ray_shift()))
    with torch.no_grad():  # so that every class is somewhere the likeliest
        model.volume_net.head.classes.bias -= model(batch.images, cameras, batch.depth).logits.mean((0, 2, 3, 4))
    once = model.predict(batch.images, cameras, batch.depth).semantics
    assert not torch.equal(once, model.predict(images, turned, depth).semantics)
    twice = model.predict(batch.images, cameras, batch.depth, mirrored=True).semantics
    same = twice == model.predict(images, turned, depth, mirrored=True).semantics
    assert float(same.float().mean()) > 0.999  # but for ties
    with pytest.raises(ValueError, match="not a lookup"):
        model.predict(batch.images, model.lookup(cameras), batch.depth, mirrored=True)


def test_a_model_is_saved_and_read_again(tmp_path):
    model = made(class_weights=(0.1, 1, 1), occupancy_weights=(0.5, 1)).eval()
    batch = scene(model.config)
    model.save_pretrained(tmp_path / "model")
    again = OccDepth.from_pretrained(tmp_path / "model")
    assert again.config == model.config and not again.training
    cameras = StereoCameras.of_batch(batch)
    first = model.predict(batch.images, cameras).semantics
    assert torch.equal(first, again.predict(batch.images, cameras).semantics)
    with pytest.raises(ValueError, match="has no colour"):
        OccDepthConfig.from_dict({**model.config.to_dict(), "colour": 1})
    with pytest.raises(ValueError, match="lacks taxonomy"):
        OccDepthConfig.from_dict({"grid": model.config.to_dict()["grid"]})


def test_an_encoder_learns_at_its_own_rate():
    model = made()
    recipe = preset("tiny").recipe
    groups = model.parameter_groups(recipe, 1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {1e-3 * rate for rate in {1.0, recipe.backbone_rate}}


def test_what_does_not_fit_is_said_at_once():
    model = made()
    batch = scene(model.config)
    cameras = StereoCameras.of_batch(batch)
    with pytest.raises(ValueError, match=r"images must be \[B, 2, 3, 64, 96\]"):
        model(batch.images[..., :90], cameras)
    with pytest.raises(ValueError, match=r"images must be \[B, 2"):
        model(batch.images[:, :1], cameras)
    with pytest.raises(ValueError, match="has 2 views, the sample 1 cameras"):
        model(batch.images, cameras.first(1))
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        model.predict(batch.images, cameras)
    output = model(batch.images, cameras)
    batch.semantics = batch.semantics + 3
    with pytest.raises(ValueError, match="class 5, but taxonomy 'planes' ends at 2"):
        model.losses(output, batch)
    batch.semantics = batch.semantics[:, :8]
    with pytest.raises(ValueError, match="the model's grid is"):
        model.losses(output, batch)
    batch.semantics = None
    with pytest.raises(ValueError, match="s0, s1 have no ground truth"):
        model.losses(output, batch)
    virtual = made(lift="flosp", virtual_view=True)
    with pytest.raises(ValueError, match="needs the depth pictures"):
        virtual(batch.images, cameras)


@pytest.mark.parametrize("changes, message", [
    ({"grid": GridSpec((0, 0, 0), (1, 1, 1), (16, 18, 8))}, "multiples of 4"),
    ({"project_scale": 3}, "project_scale must be 1 or 2"),
    ({"scales": (1, 3)}, "some of 1, 2, 4, 8"),
    ({"lift": "splat"}, "lift is one of flosp, flosp_depth"),
    ({"num_views": 1, "virtual_view": True}, "second of 2"),
    ({"class_weights": (1.0,)}, "1 class weights for the 3 classes"),
    ({"axes": (0, 1, 1)}, "order of 0, 1 and 2"),
    ({"num_relations": 3}, "num_relations must be 2 or 4"),
    ({"image_size": (370, 20)}, "at least 32 pixels"),
    ({"grid": GridSpec((0, 0, 0), (1, 1, 1), (16, 16, 4))}, "relation prior needs 2"),
    ({"decoder_channels": 16}, "halved five times"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_the_published_computation_is_one_call_away():
    cfg = as_published(CONFIG)
    assert (cfg.depth_spacing, cfg.depth_fusion, cfg.view_fusion, cfg.sampling, cfg.virtual_warp) == (
        "mismatched", "multiply", "cosine", "nearest", "published",
    )  # fmt: skip
    kitti = config(grid=SEMANTIC_KITTI.spec, project_scale=2)
    assert kitti.coarse_factor == 8 and kitti.coarse_shape == (32, 32, 4)
    assert kitti.volume_grid.shape == (128, 128, 16) and kitti.volume_grid.voxel_size == (0.4, 0.4, 0.4)


def test_a_scene_is_learnt_by_heart():
    """A road and a wall in stereo: after some steps nearly every known voxel is right."""
    model = made(relation_prior=False)
    batch = scene(model.config, 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(13):
        optimizer.zero_grad()
        run(model, batch)[1]["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 35.0)
        optimizer.step()
    for module in model.modules():  # statistics of a few steps from random weights are not those of the weights
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    prediction = model.eval().predict(batch.images, StereoCameras.of_batch(batch))
    score = SSCIoU(model.config.taxonomy)
    score.update(prediction.semantics, batch.semantics)
    found = score.compute()
    assert found["iou"] > 0.95 and found["miou"] > 0.95


def test_the_published_class_weights():
    """specs/occdepth.md 1.1 and 1.7."""
    kitti = preset("kitti_b7").model
    golden = (
        0.044617, 0.060334, 0.085200, 0.085578, 0.074740, 0.073424, 0.080129, 0.079645, 0.081769, 0.055749,
        0.065273, 0.056755, 0.068328, 0.056004, 0.060348, 0.052964, 0.068781, 0.057387, 0.071649, 0.078620,
    )  # fmt: skip
    assert kitti.class_weights == pytest.approx(golden, abs=1e-6)
    assert kitti.occupancy_weights == pytest.approx((0.044617, 0.050468), abs=1e-6)
    for name, classes in (("nyu_b7", 12), ("tartanair", 14)):
        assert preset(name).model.class_weights == (0.05, *[1.0] * (classes - 1))
    assert preset("tartanair").model.occupancy_weights == (0.05, 2.0)
