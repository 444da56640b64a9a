"""The judge learns, reads, saves and loads; its disturbances keep images images."""

import math

import pytest
import torch

from syntheocc.evaluation.judge import Judge
from syntheocc.evaluation.judge_training import class_weights, disturbed, train_judge
from syntheocc.evaluation.scores import confusion, mean_iou


def stripes(count, seed):
    """Pictures of sky above a road, at a height drawn for each, with 255 in one column."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 32, 48, dtype=torch.uint8)
    for i, row in enumerate(torch.randint(8, 24, (count,), generator=random).tolist()):
        labels[i, row:] = 11
    images = torch.where(labels[:, None] == 11, 60, 200).expand(-1, 3, -1, -1)
    noise = torch.randint(-20, 20, images.shape, generator=random)
    labels[:, :, 0] = 255
    return (images + noise).clamp(0, 255).to(torch.uint8), labels


def test_the_judge_has_the_size_it_says_and_any_size_of_picture_fits(tmp_path):
    judge = Judge()
    judge.save_pretrained(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert 1.5e6 < size <= 2e6
    small = Judge(channels=(4, 8, 8)).eval()
    assert small(torch.zeros(1, 3, 33, 50)).shape == (1, 17, 33, 50)
    assert small.features(torch.zeros(2, 3, 33, 50)).shape == (2, 20)


def test_it_learns_to_tell_road_from_sky_and_comes_back_from_disk(tmp_path):
    torch.manual_seed(0)
    judge = Judge(channels=(8, 16))
    images, labels = stripes(32, 0)
    told = []
    steps = train_judge(judge, images, labels, max_steps=30, batch_size=8, learning_rate=1e-2, log=told.append)
    assert steps == 30 and 9 <= len(told) <= 11 and not judge.training
    held_images, held_labels = stripes(8, 1)
    seen = judge.predict(held_images, batch_size=3)
    assert seen.dtype == torch.uint8
    assert float(mean_iou(confusion(seen, held_labels, 17))) > 0.9
    judge.save_pretrained(tmp_path)
    again = Judge.from_pretrained(tmp_path)
    assert float((again.predict(held_images) == seen).float().mean()) > 0.995
    assert torch.allclose(again.features(held_images), judge.features(held_images), atol=2e-2)
    # Floats in [0, 1] are read like bytes.
    assert float((again.predict(held_images / 255) == again.predict(held_images)).float().mean()) > 0.999


def test_the_same_seed_gives_the_same_judge():
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        judge = Judge(channels=(4, 8))
        train_judge(judge, *stripes(8, 0), max_steps=3, batch_size=4, seed=5)
        outcomes.append(torch.cat([p.flatten() for p in judge.parameters()]))
    assert torch.equal(*outcomes)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="no judge could be read"):
        Judge.from_pretrained(tmp_path)
    Judge(channels=(4, 8)).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace("4", "6")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((ValueError, RuntimeError), match="fit|size mismatch"):
        Judge.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="no judge could be read"):
        Judge.from_pretrained(tmp_path)


def test_class_weights_by_hand():
    # Shares 0.8, 0.2 and 0 of three classes: (1/3 / 0.8) ** 0.5, (1/3 / 0.2) ** 0.5, and the limit.
    expected = [math.sqrt(1 / 2.4), math.sqrt(1 / 0.6), 5.0]
    assert class_weights(torch.tensor([80, 20, 0]), limit=5.0).tolist() == pytest.approx(expected, rel=1e-4)
    assert class_weights(torch.tensor([80, 20, 0]), power=0.0).tolist() == [1, 1, 1]


def test_disturbed_images_stay_images_and_differ_from_one_another():
    images = torch.full((6, 3, 16, 24), 128, dtype=torch.uint8)
    changed = disturbed(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and float(changed.min()) >= 0 and float(changed.max()) <= 1
    means = changed.mean((1, 2, 3))
    assert float(means.std()) > 0.01
    assert torch.equal(changed, disturbed(images, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="seconds or max_steps"):
        train_judge(Judge(channels=(4, 8)), *stripes(2, 0))
    with pytest.raises(ValueError, match="do not fit"):
        train_judge(Judge(channels=(4, 8)), images, torch.zeros(5, 16, 24), max_steps=1)
