"""Frames as training samples: pictures, conditions, clips, and what cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.commands.mpi import MPIConfig
from syntheocc.commands.mpi import run as write_mpis
from syntheocc.engine.loading import BadSample
from syntheocc.models.presets import caption_tokenizer
from syntheocc.pipelines.sources import ConditionSpec
from syntheocc.training.dataset import ClipDataset, FrameReader, collate, make_clips, read_pictures


def spec_of(pixel_origin="center"):
    from syntheocc.occupancy import PlaneSpec
    from syntheocc.occupancy.taxonomy import taxonomy_named

    table = taxonomy_named("syntheocc")
    return ConditionSpec(PlaneSpec(), pixel_origin, 1, table.name, table, table.num_classes, table.free)


def dataset_of(street, num_frames=1, spec=None, **changes):
    config = street.config(num_frames=num_frames, **changes)
    frames, _ = config.read_frames()
    return ClipDataset(make_clips(frames, num_frames), FrameReader(config, spec or spec_of(), caption_tokenizer()))


def test_pictures_are_resized_by_a_bilinear_filter(street):
    """72x40 pictures of two flat fields, upper half (0, 30j, 120) and lower (10, 200, 20j), to 36x20."""
    images = read_pictures(street.frames[0], 20, 36)
    assert images.shape == (6, 3, 20, 36) and images.dtype == torch.uint8
    for j, image in enumerate(images):
        assert image[:, :9].unique(dim=1).flatten(1).unique(dim=1).flatten().tolist() == [0, 30 * j, 120]
        assert image[:, 11:].flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 20 * j]
    # the filter's support is two output rows: the border's rows mix a part of the other field
    assert 120 > int(images[1, 2, 9, 0]) > int(images[1, 2, 10, 0]) > 20


def test_a_batch_of_two_samples(street):
    dataset = dataset_of(street, use_captions=True)
    batch = collate([dataset[0], dataset[5]])
    assert batch.images.shape == (2, 6, 3, 32, 48) and batch.images.dtype == torch.uint8
    assert batch.tokens == ["token0", "token5"] and batch.frames == 1
    # one rig: the ring of the six cameras, once
    assert sorted(map(tuple, batch.neighbors.sort(dim=1).values.tolist())) == sorted(
        tuple(sorted(((i - 1) % 6, (i + 1) % 6))) for i in range(6)
    )
    # all views share a text, and the two scenes have two
    assert batch.input_ids.shape == (2, 1, 77)
    texts = caption_tokenizer().batch_decode(batch.input_ids[:, 0], skip_special_tokens=True)
    assert [text.replace(" ", "") for text in texts] == ["astreetinscene-0000", "astreetinscene-0001"]
    assert [int((grid.labels == 1).sum()) for grid in batch.grids] == [8 * 10 * 3] * 2


def test_texts_of_views_differ_where_a_file_says_so(street, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"token0": {"CAM_FRONT": "a bus"}}')
    dataset = dataset_of(street, caption_path=path)
    batch = collate([dataset[0], dataset[1]])
    assert batch.input_ids.shape == (2, 6, 77)  # the second sample's one text goes to all its views
    assert not torch.equal(batch.input_ids[0, 0], batch.input_ids[0, 1])
    assert torch.equal(batch.input_ids[1, 0], batch.input_ids[1, 5])


@pytest.mark.parametrize("pixel_origin", ["center", "corner"])
def test_mpi_files_give_the_batch_that_rendering_gives(street, make_step, pixel_origin):
    """Labels, nearest classes and planes of files that gen_mtp writes equal what the step renders by itself."""
    settings = {"dataroot_path": street.root, "info_path": (str(street.info),), "occ_kind": "syntheocc_coarse"}
    made = MPIConfig(**settings, mtp_path="mpis", height=4, width=6, pixel_origin=pixel_origin, num_planes=(256,))
    assert write_mpis(made) == 0
    rendered = dataset_of(street, spec=spec_of(pixel_origin))
    from_files = dataset_of(street, spec=spec_of(pixel_origin), occ_kind="mpi", mtp_path="mpis")
    wanted, given = (collate([data[0], data[4]]) for data in (rendered, from_files))
    step = make_step()
    step.condition = spec_of(pixel_origin)
    labels, nearest, plane = step.render_labels(wanted)
    assert (labels == 1).any() and (labels == 11).any()
    assert torch.equal(given.mpi_labels, labels)
    assert torch.equal(given.nearest, nearest)
    assert torch.equal(given.nearest_plane.int(), plane.int())
    assert torch.equal(given.images, wanted.images) and torch.equal(given.neighbors, wanted.neighbors)


def test_clips_are_neighbouring_key_frames_of_a_scene(street):
    frames, _ = street.config().read_frames()
    clips = make_clips(frames, 2)
    assert [[frame.token for frame in clip] for clip in clips] == [
        ["token0", "token1"],
        ["token1", "token2"],
        ["token3", "token4"],
        ["token4", "token5"],
    ]
    without = [frame for frame in frames if frame.token != "token1"]
    assert [[frame.token for frame in clip] for clip in make_clips(without, 2)] == [
        ["token3", "token4"],
        ["token4", "token5"],
    ]
    assert len(make_clips(frames, 3)) == 2
    with pytest.raises(ValueError, match="no scene of the 2 has 4 neighbouring"):
        make_clips(frames, 4)


def test_the_source_knows_better_than_the_clock(street):
    """`next` names the following key frame: a frame whose next one is missing has no neighbour, however near."""
    from dataclasses import replace

    first, second, third = street.frames[:3]
    linked = [replace(first, next="lost"), replace(second, next=third.token), third]
    assert [[frame.token for frame in clip] for clip in make_clips(linked, 2)] == [["token1", "token2"]]


def test_a_batch_of_clips(street):
    dataset = dataset_of(street, num_frames=3)
    batch = collate([dataset[0], dataset[1]])
    assert batch.frames == 3 and batch.rows == 6 and batch.samples == 2
    assert batch.tokens == [f"token{i}" for i in range(6)]


def damaged(street, part):
    """Damage a part of the second sample; returns what the message has to name."""
    picture = street.frames[1].image_paths["CAM_BACK"]
    if part == "truncated picture":
        picture.write_bytes(picture.read_bytes()[:60])
    elif part == "missing picture":
        picture.unlink()
    elif part == "cropped picture":
        Image.new("RGB", (40, 40)).save(picture)
    elif part == "no picture at all":
        picture.write_bytes(b"what is this")
    else:
        label = street.label(1)
        if part == "truncated label":
            label.write_bytes(label.read_bytes()[:100])
        elif part == "class out of range":
            rows = np.load(label)
            rows[0, 3] = 99
            np.save(label, rows)
        else:
            label.unlink()
        return str(label)
    return str(picture)


@pytest.mark.parametrize(
    "part",
    [
        "truncated picture",
        "missing picture",
        "cropped picture",
        "no picture at all",
        "truncated label",
        "class out of range",
        "missing label",
    ],
)
def test_what_is_damaged_is_named_and_does_not_raise(street, part):
    name = damaged(street, part)
    dataset = dataset_of(street)
    sample = dataset[1]
    assert isinstance(sample, BadSample)
    assert sample.token == "token1" and name in sample.reason
    assert not isinstance(dataset[0], BadSample)


def test_a_sample_that_lacks_a_camera_is_no_sample(street):
    dataset = dataset_of(street)
    short = dataset.clips[2][0].select_cameras(list(dataset.cameras)[:5])
    dataset = ClipDataset([(short,), *dataset.clips[:2]], dataset.read)  # the first, but not the usual one
    assert isinstance(dataset[0], BadSample) and "CAM_BACK_LEFT" in dataset[0].reason
    assert not isinstance(dataset[1], BadSample)
