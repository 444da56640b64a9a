"""The whole model: any rig, repeatable predictions, learning, saving; online and offline give the same."""

import json

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, OPENOCC_V2
from syntheocc.occupancy.perception.sparseocc import PRESETS, SparseOcc, SparseOccConfig, preset
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor


@pytest.mark.parametrize(("frames", "views", "version"), [(1, 1, "1.1"), (2, 6, "1.0"), (3, 4, "1.1")])
def test_any_number_of_frames_and_cameras(frames, views, version, ring):
    model = SparseOcc.from_preset("tiny", num_frames=frames, version=version).eval()
    images = torch.randint(0, 256, (1, frames, views, 3, 64, 96), dtype=torch.uint8)
    grids = model.predict(images, ring(1, frames, views, 64, 96))
    assert grids.semantics.shape == (1, 40, 40, 8) and grids.semantics.dtype == torch.uint8


def test_two_evaluations_are_identical_and_training_is_not(tiny, tiny_inputs):
    first, second = tiny(*tiny_inputs), tiny(*tiny_inputs)
    assert torch.equal(first.predictions[-1].mask_logits, second.predictions[-1].mask_logits)
    tiny.train()
    with pytest.raises(ValueError, match="eval"):
        tiny.predict(*tiny_inputs)


def test_bytes_are_normalised_as_the_config_says(tiny, tiny_inputs):
    images = torch.full((1, 3, 64, 96), 100, dtype=torch.uint8)
    mean, std = torch.tensor(tiny.config.image_mean), torch.tensor(tiny.config.image_std)
    normalised = ((100 - mean) / std).view(3, 1, 1).expand(1, 3, 64, 96)
    for a, b in zip(tiny.encode(images), tiny.encode(normalised), strict=True):
        torch.testing.assert_close(a, b)


def test_a_missing_camera_is_ignored(tiny, tiny_inputs):
    """Whatever stands in for its images, the prediction is the same."""
    images, ego2img = tiny_inputs[0].clone(), tiny_inputs[1].clone()
    ego2img[:, :, 1] = 0
    images[:, :, 1] = 0
    black = tiny(images, ego2img)
    images[:, :, 1] = 7
    white = tiny(images, ego2img)
    assert torch.equal(black.predictions[-1].mask_logits, white.predictions[-1].mask_logits)
    assert torch.isfinite(black.predictions[-1].mask_logits).all()


def test_wrong_shapes_are_refused(tiny, tiny_inputs, scene):
    images, ego2img = tiny_inputs
    with pytest.raises(ValueError, match="64, 96"):
        tiny(images[..., :32], ego2img)
    with pytest.raises(ValueError, match="reads 2 frames"):
        tiny(images[:, :1], ego2img[:, :1])
    with pytest.raises(ValueError, match="samples, frames, views"):
        tiny(images[:, :, :2], ego2img)
    with pytest.raises(ValueError, match="grid"):
        tiny.losses(tiny(images, ego2img), scene[None, :20])


def test_labels_of_another_dataset_are_refused(tiny_inputs, scene):
    model = SparseOcc.from_preset("tiny", taxonomy=OPENOCC_V2.taxonomy, class_frequencies=None)
    with pytest.raises(ValueError, match="class 17, but taxonomy 'openocc_v2' ends at 16"):
        model.losses(model(*tiny_inputs), torch.stack([scene, scene]))


def test_half_precision_weights_and_autocast_predict_and_learn(tiny, tiny_inputs, scene):
    labels = torch.stack([scene, scene])
    with torch.autocast("cpu", torch.bfloat16):
        tiny.losses(tiny.train()(*tiny_inputs), labels)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny.parameters())
    images = torch.randint(0, 256, (1, 2, 3, 3, 64, 96), dtype=torch.uint8)
    output = tiny.eval().bfloat16()(images, tiny_inputs[1][:1])
    assert output.predictions[-1].mask_logits.dtype == torch.bfloat16
    assert tiny.grids(output).semantics.shape == (1, 40, 40, 8)


def test_a_samples_random_points_and_dropout_do_not_depend_on_its_batch(tiny, tiny_inputs):
    """One generator a sample: the same masks alone and in a batch."""
    tiny.train()
    for module in tiny.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def masks(rows):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return tiny(*(x[rows] for x in tiny_inputs), generators).predictions[-1].mask_logits

    torch.testing.assert_close(masks([0, 1])[1], masks([1])[0])
    with pytest.raises(ValueError, match="1 seeds for 2 samples"):
        tiny(*tiny_inputs, [torch.Generator()])


def test_a_few_steps_learn_the_scene(tiny, tiny_inputs, scene):
    """Overfits one sample: the road is found. A loss that falls without that would not show in the prediction."""
    recipe = preset("tiny").recipe
    images, ego2img = (x[:1] for x in tiny_inputs)
    tiny.train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(tiny.parameter_groups(recipe), lr=1e-3, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    history = []
    for _ in range(40):
        loss = tiny.losses(tiny(images, ego2img, generator), scene[None])["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tiny.parameters(), recipe.max_grad_norm)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]
    predicted = tiny.eval().predict(images, ego2img).semantics[0]
    known = scene != 255
    road = (scene == 11) & known
    assert ((predicted == 11) & road).sum() > 0.5 * ((predicted == 11) & known | road).sum()


def test_panoptic_predictions_and_losses(tiny_inputs, scene):
    things = preset("r50_704x256_8f_pano").model.instance_classes
    model = SparseOcc.from_preset("tiny", instance_classes=things)
    instances = torch.zeros(scene.shape, dtype=torch.int32)
    instances[10:14, 10:12], instances[24:28, 10:12] = 1, 2
    losses = model.losses(model(*tiny_inputs), torch.stack([scene] * 2), torch.stack([instances] * 2))
    assert torch.isfinite(losses["loss"])
    assert model.eval().predict(*tiny_inputs).instances.shape == (2, 40, 40, 8)


def test_learning_rates_of_backbone_and_offsets(tiny):
    recipe = preset("tiny").recipe
    groups = tiny.parameter_groups(recipe)
    assert sum(len(group["params"]) for group in groups) == len(list(tiny.parameters()))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = dict(tiny.named_parameters())
    assert rate[id(names["head.voxel_decoder.stages.0.sampling.sampling_offset.bias"])] == pytest.approx(5e-5)
    assert rate[id(names["head.mask_decoder.sampling.offset.bias"])] == pytest.approx(5e-4)
    assert rate[id(names["image_encoder.backbone.embedder.embedder.convolution.weight"])] == pytest.approx(5e-5)
    assert rate[id(names["image_encoder.neck.fpn_convs.0.weight"])] == pytest.approx(5e-4)


def test_saving_and_loading_round_trip(tiny, tiny_inputs, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = SparseOcc.from_pretrained(tmp_path / "model")
    assert loaded.config == tiny.config and not loaded.training
    assert torch.equal(
        loaded(*tiny_inputs).predictions[-1].mask_logits, tiny(*tiny_inputs).predictions[-1].mask_logits
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_config_survives_json(name):
    config = preset(name).model
    assert SparseOccConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_wrong_paths_and_folders_are_errors_never_random_weights(tiny, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        SparseOcc.from_pretrained(tmp_path / "absent")
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_queries": 7}))
    with pytest.raises(ValueError, match=r"query_features.weight \[20, 32\] instead of \[7, 32\]"):
        SparseOcc.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "OccDepth"}))
    with pytest.raises(ValueError, match="SparseOcc"):
        SparseOcc.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        SparseOcc.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="model.safetensors"):
        SparseOcc.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dims": 30}, "num_heads 4"),
        ({"stages": ()}, "at least one stage"),
        ({"version": "2.0"}, "version"),
        ({"instance_classes": (17,)}, r"instance_classes \[17\]"),
        ({"class_frequencies": (10.0,)}, "1 class frequencies"),
        ({"num_frames": 0}, "num_frames"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **changes)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="r50_704x256_8f_openocc"):
        preset("r101")
    assert preset("r50_704x256_8f_openocc").model.taxonomy.num_classes == 17
    assert preset("r50_704x256_8f").model.grid == OCC3D_NUSCENES.spec


@pytest.fixture
def drive(ring):
    """Six frames of three cameras, and the history of each (newest first, two frames with the current one)."""
    generator = torch.Generator().manual_seed(5)
    images = {i: torch.randn(3, 3, 64, 96, generator=generator) for i in range(6)}
    history = [[i, i - 1] if i else [0] for i in range(6)]
    ego2img = torch.stack([ring(1, 2, 3, 64, 96)[0] for _ in range(6)])
    ego2img[:, 1, :, :3, 3] += 0.3  # the car has moved
    return images, history, ego2img


class Counting(dict):
    """Counts how often each frame's images are read."""

    def __init__(self, values):
        super().__init__(values)
        self.reads: list = []

    def __getitem__(self, key):
        self.reads.append(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("order", [[[0], [1], [2], [3], [4], [5]], [[4, 1], [0, 5], [3, 2]], [[5, 4, 3, 2, 1, 0]]])
def test_cached_history_gives_the_predictions_of_all_images_at_once(tiny, drive, order):
    """Frame by frame, in pairs of any order, and all together; no image is read twice."""
    images, history, ego2img = drive
    online, source = OnlinePredictor(tiny, capacity=6), Counting(images)
    for batch in order:
        found = online([history[i] for i in batch], source, ego2img[batch])
        stacked = torch.stack([torch.stack([images[j] for j in (history[i] * 2)[:2]]) for i in batch])
        expected = tiny.predict(stacked, ego2img[batch])
        assert torch.equal(found.semantics, expected.semantics)
    assert sorted(source.reads) == list(range(6))


def test_a_jump_in_the_drive_names_the_frame_that_is_needed(tiny, drive):
    images, history, ego2img = drive
    online = OnlinePredictor(tiny)
    online([history[1]], images, ego2img[1:2])
    with pytest.raises(ValueError, match="frame 4 is neither"):
        online([history[5]], {5: images[5]}, ego2img[5:6])
    with pytest.raises(ValueError, match="1 to 2 frames"):
        online([[5, 4, 3]], images, ego2img[5:6])
    assert 1 in online and len(online) == 2
    online.clear()
    assert len(online) == 0


def test_the_least_recently_used_frame_is_forgotten_first(tiny, drive):
    images, history, ego2img = drive
    online = OnlinePredictor(tiny, capacity=2)
    for i in (0, 1, 2):
        online([history[i]], images, ego2img[i : i + 1])
    assert [i in online for i in range(3)] == [False, True, True]
    with pytest.raises(ValueError, match="capacity 1"):
        OnlinePredictor(tiny, capacity=1)
