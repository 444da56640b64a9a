"""Augmentations: the specification's matrices, pixels against Pillow's own steps, grids against points."""

import colorsys
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.images import load_image
from syntheocc.occupancy.perception.photometric import Photometric, apply_photometric, draw_photometric
from syntheocc.occupancy.perception.transforms import (
    GridTransform,
    ImageAugmentation,
    ImageTransform,
    draw_grid_transform,
    transform_labels,
)

SPEC = GridSpec((-4.0, -4.0, -1.0), 0.5, (16, 16, 4))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_published_image_matrices():
    """Specs/sparseocc.md 1.5 (vector N): the test window, and a mirrored training one."""
    augmentation = ImageAugmentation(height=256, width=704)
    test = augmentation.for_test(900, 1600)
    assert (test.scale, test.left, test.top, test.scaled_size(900, 1600)) == (0.44, 0, 140, (396, 704))
    assert torch.allclose(
        test.matrix(), torch.tensor([[0.44, 0, 0, 0], [0, 0.44, -140, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
    )
    mirrored = ImageTransform(0.5, 40, 194, 256, 704, flip=True)
    assert mirrored.matrix().tolist() == [[-0.5, 0, 744, 0], [0, 0.5, -194, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_turns_by_hand():
    """A quarter turn counter-clockwise about the centre (352, 128): what was right of it is above it."""
    turn = ImageTransform(1.0, 0, 0, 256, 704, rotation=math.pi / 2).matrix()
    moved = turn @ torch.tensor([362.0, 128, 1, 1]).double()
    assert torch.allclose(moved, torch.tensor([352.0, 118, 1, 1]).double())
    g = rng()
    augmentation = ImageAugmentation(height=256, width=704, max_rotation=math.radians(5.4))
    angles = torch.tensor([augmentation.draw(900, 1600, g).rotation for _ in range(200)]).rad2deg()
    assert 5.0 < float(angles.max()) <= 5.4 and -5.4 <= float(angles.min()) < -5.0
    with pytest.raises(ValueError, match="max_rotation"):
        ImageAugmentation(height=256, width=704, max_rotation=-0.1)


def test_training_draws_cover_the_published_range():
    augmentation = ImageAugmentation(height=256, width=704)
    g = rng()
    draws = [augmentation.draw(900, 1600, g) for _ in range(400)]
    scales = torch.tensor([d.scale for d in draws])
    assert 0.38 <= float(scales.min()) < 0.39 and 0.54 < float(scales.max()) <= 0.55
    assert 0.4 < np.mean([d.flip for d in draws]) < 0.6
    # Where the scaled image is narrower than the window, in about 36 % of the draws.
    assert 0.3 < np.mean([d.scaled_size(900, 1600)[1] < 704 for d in draws]) < 0.43
    for d in draws:
        height, width = d.scaled_size(900, 1600)
        assert d.top == height - 256 and 0 <= d.left <= max(0, width - 704)
    assert not any(ImageAugmentation(height=256, width=704, flip=False).draw(900, 1600, g).flip for _ in range(20))
    assert augmentation.draw(900, 1600, rng(3)) == augmentation.draw(900, 1600, rng(3))
    with pytest.raises(ValueError, match="must be positive"):
        ImageAugmentation(height=0, width=704)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A smooth colour picture of 90 x 160 pixels with some edges, as a JPEG and as a PNG."""
    y, x = np.mgrid[:90, :160]
    red, green = 127 + 90 * np.sin(x / 17), 127 + 90 * np.cos(y / 11)
    pixels = np.stack([red, green, (x + y) % 160 * 1.0], -1)
    pixels[30:60, 40:90] = (200, 40, 60)
    folder: Path = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(folder / "a.jpg", quality=95)
    image.save(folder / "a.png")
    return folder


TRANSFORMS = [
    ImageTransform(0.44, 0, 14, 25, 70),
    ImageTransform(0.5, 4, 20, 25, 70, flip=True),
    ImageTransform(0.38, 0, 9, 25, 70),  # narrower than the window
    ImageTransform(0.3, -3, -5, 40, 60),  # beyond the image on all sides
    ImageTransform(1.3, 20, 30, 64, 96),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_pixels_are_those_of_resizing_cropping_and_mirroring_the_whole_picture(picture, name, transform):
    whole = Image.open(picture / name).convert("RGB")
    height, width = transform.scaled_size(90, 160)
    expected = whole.resize((width, height), Image.Resampling.BICUBIC).crop(
        (transform.left, transform.top, transform.left + transform.width, transform.top + transform.height)
    )
    if transform.flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    exact = load_image(picture / name, (90, 160), transform, draft=False)
    difference = np.abs(exact.astype(int) - np.asarray(expected).astype(int))
    assert exact.flags.c_contiguous and difference.max() <= 2 and difference.mean() < 0.1
    quick = load_image(picture / name, (90, 160), transform)
    assert np.abs(quick.astype(int) - exact.astype(int)).mean() < 3


def test_draft_mode_decodes_fewer_pixels(picture, monkeypatch):
    """At scale 0.5 and at 0.55 the decoder gives half the picture, beyond that the whole one."""
    sizes = []
    for name in ("resize", "crop"):  # the half picture at scale 0.5 needs no resizing any more
        plain = getattr(Image.Image, name)
        spied = lambda self, *a, plain=plain, **k: (sizes.append(self.size), plain(self, *a, **k))[1]  # noqa: E731
        monkeypatch.setattr(Image.Image, name, spied)
    for scale in (0.2, 0.5, 0.55, 0.6):
        load_image(picture / "a.jpg", (90, 160), ImageTransform(scale, 0, 0, 10, 10))
    load_image(picture / "a.jpg", (90, 160), ImageTransform(0.2, 0, 0, 10, 10), draft=False)
    assert sizes == [(40, 23), (80, 45), (80, 45), (160, 90), (160, 90)]


def test_the_matrix_says_where_pixels_go(picture, tmp_path):
    """A bright spot is found where the matrix puts it, to half a pixel."""
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[50:54, 90:94] = 255  # centre of the spot: pixel (91.5, 51.5)
    Image.fromarray(pixels).save(tmp_path / "spot.png")
    for transform in (
        ImageTransform(0.5, 4, 10, 30, 60),
        ImageTransform(0.5, 4, 10, 30, 60, flip=True),
        ImageTransform(0.5, 4, 10, 30, 60, rotation=0.3),
        ImageTransform(0.5, 4, 10, 30, 60, flip=True, rotation=-0.3),
    ):
        got = load_image(tmp_path / "spot.png", (90, 160), transform)[..., 0].astype(float)
        rows, columns = np.mgrid[:30, :60]
        at = (got * columns).sum() / got.sum(), (got * rows).sum() / got.sum()
        u, v, *_ = (transform.matrix() @ torch.tensor([91.5, 51.5, 1.0, 1.0]).double()).tolist()
        assert abs(at[0] - u) < 1 and abs(at[1] - v) < 0.51


def test_pictures_that_do_not_fit_are_named(picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes((picture / "a.jpg").read_bytes()[:700])
    test = ImageTransform(0.5, 0, 0, 10, 10)
    for path, size, message in (
        (tmp_path / "none.jpg", (90, 160), "none.jpg: cannot be read"),
        (tmp_path / "broken.jpg", (90, 160), "broken.jpg: cannot be read"),
        (picture / "a.jpg", (900, 1600), "has 90 x 160 pixels"),
        (picture / "a.jpg", (90, 160), "decoder must be"),
    ):
        with pytest.raises(ValueError, match=message):
            load_image(path, size, test, decoder="gd" if "decoder" in message else "pillow")


def test_turbojpeg_gives_the_same_pictures(picture):
    pytest.importorskip("simplejpeg", reason="needs simplejpeg")
    for transform in TRANSFORMS:
        one = load_image(picture / "a.jpg", (90, 160), transform).astype(int)
        other = load_image(picture / "a.jpg", (90, 160), transform, decoder="turbojpeg").astype(int)
        assert np.abs(one - other).mean() < 2


def test_grid_matrices_by_hand():
    quarter = GridTransform(yaw=math.pi / 2).matrix() @ torch.tensor([1.0, 0, 3, 1]).double()
    assert torch.allclose(quarter, torch.tensor([0.0, 1, 3, 1]).double(), atol=1e-12)
    # First the turn, then the mirror: x goes to y, then y to -y.
    both = GridTransform(yaw=math.pi / 2, flip_y=True).matrix() @ torch.tensor([1.0, 0, 3, 1]).double()
    assert torch.allclose(both, torch.tensor([0.0, -1, 3, 1]).double(), atol=1e-12)


def test_labels_are_mirrored_and_turned_by_hand():
    labels = torch.arange(16 * 16 * 4).view(SPEC.shape)
    assert torch.equal(transform_labels(labels, SPEC, GridTransform(flip_x=True)), labels.flip(0))
    assert torch.equal(transform_labels(labels, SPEC, GridTransform(flip_y=True)), labels.flip(1))
    assert torch.equal(transform_labels(labels, SPEC, GridTransform(yaw=math.pi / 2)), labels.rot90(1, (0, 1)))
    assert torch.equal(transform_labels(labels, SPEC, GridTransform()), labels)


@pytest.mark.parametrize("seed", range(4))
def test_every_label_is_that_of_its_old_place(seed):
    labels = torch.randint(0, 18, SPEC.shape, generator=rng(seed), dtype=torch.uint8)
    transform = draw_grid_transform(rng(seed), scales=(0.9, 1.1))
    moved = transform_labels(labels, SPEC, transform)
    centers = torch.cat([SPEC.centers(), torch.ones(*SPEC.shape, 1, dtype=torch.float64)], -1)
    old = (centers @ torch.linalg.inv(transform.matrix()).T)[..., :3]
    index, inside = SPEC.index_of(old)
    expected = torch.where(inside, labels[index.unbind(-1)], torch.tensor(255, dtype=torch.uint8))
    # Apart from centres that fall on a face to within rounding, of which a random turn has none.
    assert torch.equal(moved, expected) and 0.02 < float((moved == 255).float().mean()) < 0.4


def test_published_share_of_unknown_voxels():
    """7 to 12 % of the voxels are turned out of sight (specs/sparseocc.md 1.6); 0 without a turn."""
    labels = torch.zeros(100, 100, 1, dtype=torch.uint8)
    spec = GridSpec((-40.0, -40.0, 0.0), 0.8, (100, 100, 1))
    g = rng(1)
    shares = [float((transform_labels(labels, spec, draw_grid_transform(g)) == 255).float().mean()) for _ in range(60)]
    assert 0.05 < np.mean(shares) < 0.12 and max(shares) < 0.15


def neutral(number):
    one = torch.ones(number)
    return Photometric(one * 0, one, one, one * 0, one, torch.arange(3).expand(number, 3))


def test_photometric_changes_by_hand():
    image = torch.tensor([200.0, 100, 50]).view(1, 3, 1, 1)

    def changed(**fields):
        draw = neutral(1)
        for name, value in fields.items():
            setattr(draw, name, torch.tensor([value]))
        return apply_photometric(image, draw).flatten().tolist()

    assert changed() == [200, 100, 50]
    assert changed(brightness=10.0, early_contrast=0.5) == [105, 55, 30]
    assert changed(late_contrast=2.0) == [400, 200, 100]  # nothing is clamped
    assert changed(channels=[2, 0, 1]) == [50, 200, 100]
    assert changed(saturation=0.5) == [200, 150, 125]  # distances below the largest channel are halved
    # Hue 20 degrees: -20 makes it pure red's hue, where green and blue are equal.
    assert changed(hue=-20.0) == pytest.approx([200, 50, 50], abs=1e-3)


def test_colours_against_the_standard_library():
    g = rng(2)
    pixels = torch.randint(0, 256, (64, 3), generator=g).float()
    draw = neutral(64)
    draw.saturation = torch.rand(64, generator=g) + 0.5
    draw.hue = 36 * torch.rand(64, generator=g) - 18
    got = apply_photometric(pixels.view(64, 3, 1, 1), draw).flatten(1)
    for pixel, s_factor, shift, result in zip(pixels, draw.saturation, draw.hue, got, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255).tolist())
        h, s = (h + float(shift) / 360) % 1, s * float(s_factor)
        # colorsys extrapolates linearly in s as we do, so s > 1 is no exception.
        expected = torch.tensor(colorsys.hsv_to_rgb(h, s, v)) * 255
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=0.02)


def test_photometric_draws_are_each_images_own():
    draw = draw_photometric(400, rng())
    for values, still in ((draw.brightness, 0), (draw.saturation, 1), (draw.hue, 0)):
        assert 0.4 < float((values == still).float().mean()) < 0.6
    changed = (draw.early_contrast != 1) | (draw.late_contrast != 1)
    assert 0.4 < float(changed.float().mean()) < 0.6 and not bool(
        ((draw.early_contrast != 1) & (draw.late_contrast != 1)).any()
    )
    assert sorted(draw.channels.sum(1).unique().tolist()) == [3]
    assert float(draw.brightness.abs().max()) <= 32 and float(draw.hue.abs().max()) <= 18
    # Images of a sample look the same whatever batch they are in, whatever the memory format.
    images = torch.randint(0, 256, (4, 3, 5, 6), generator=rng(1), dtype=torch.uint8)
    parts = [draw_photometric(2, rng(i)) for i in range(2)]
    together = apply_photometric(images.to(memory_format=torch.channels_last), Photometric.cat(parts))
    for i, part in enumerate(parts):
        assert torch.equal(together[2 * i : 2 * i + 2], apply_photometric(images[2 * i : 2 * i + 2], part))


def test_the_specification_has_these_matrices():
    """The same numbers from the file that the specification comes with, where it is at hand."""
    path = Path(__file__).resolve().parents[4] / "shared/specs/sparseocc_vectors.json"
    if not path.is_file():
        pytest.skip("needs the specification's vectors")
    vectors = json.loads(path.read_text())["N_ida"]
    for name, flip in (("test", False), ("train_example", True)):
        left, top, right, bottom = vectors[name]["crop"]
        transform = ImageTransform(vectors[name]["resize"], left, top, bottom - top, right - left, flip)
        assert torch.allclose(transform.matrix(), torch.tensor(vectors[name]["mat"]).double(), atol=1e-6)
