"""Validation pictures of networks in training."""

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.pictures import strip
from syntheocc.training.acceleration import prepare_for_training, trainable_parameters
from syntheocc.training.dataset import FrameReader, make_clips, read_pictures
from syntheocc.training.networks import load_networks, noise_scheduler
from syntheocc.training.step import SyntheOccStep
from syntheocc.training.validation import Validation, spread


@pytest.fixture
def validation_of(street):
    """A function that makes the validation of a job whose networks are laid out for training in `dtype`."""

    def make(dtype=torch.float32, which="crossview+controlnet", ranks=Ranks(), **changes):  # noqa: B008
        config = street.config(**changes)
        pipe = load_networks(config)
        step = SyntheOccStep(
            pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder, noise_scheduler(pipe), max_train_steps=2,
            empty_input_ids=torch.zeros(77, dtype=torch.int64),
        )  # fmt: skip
        trainable_parameters(step, which)
        prepare_for_training(step, dtype, channels_last=False)
        frames, _ = config.read_frames()
        read = FrameReader(config, step.condition, pipe.tokenizer)
        clips = spread(make_clips(frames, config.num_frames), 2)
        return Validation(config, step, pipe, clips, read, ranks)

    return make


def test_samples_are_spread_over_the_data():
    assert spread(list("abcdef"), 2) == ["a", "d"]
    assert spread(list("abc"), 5) == ["a", "b", "c"]
    assert spread(list("abc"), 0) == []


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "which"), [(torch.float32, "crossview+controlnet"), (torch.bfloat16, "all"),
                                              (torch.bfloat16, "crossview+controlnet")])  # fmt: skip
def test_strips_are_written_and_handed_to_the_trackers(validation_of, street, dtype, which):
    validate = validation_of(dtype, which)
    strips = validate(7)
    folder = street.root / "out" / "validation" / "step-000007"
    assert sorted(path.name for path in folder.iterdir()) == ["token0.jpg", "token3.jpg"]
    assert sorted(strips) == ["validation/token0", "validation/token3"]
    for picture in strips.values():
        assert picture.shape == (3 * 32 + 2 * 4, 6 * 48 + 5 * 4, 3) and picture.dtype == np.uint8
    with Image.open(folder / "token0.jpg") as image:
        assert image.size == (6 * 48 + 5 * 4, 3 * 32 + 2 * 4)
    # the real row shows the sample's own pictures: the lower field of view j is (10, 200, 20 j)
    real = strips["validation/token3"][-8:, 52 + 8 : 52 + 40].reshape(-1, 3)
    assert np.abs(real.astype(int) - (10, 200, 20)).max() <= 2
    # the condition's lower half is road, and the generated row is no flat field
    assert strips["validation/token0"][36 - 8, 52 + 24].tolist() != [0, 0, 0]
    assert strips["validation/token0"][40:60].std() > 5


@torch.no_grad()
def test_a_sample_is_drawn_alike_whoever_draws_it(validation_of):
    together = validation_of()(1)
    again = validation_of()(2)
    apart = [validation_of(ranks=Ranks(rank, 2))(1) for rank in range(2)]
    assert sorted(apart[0] | apart[1]) == sorted(together) and not apart[0].keys() & apart[1].keys()
    for name, picture in (again | apart[0] | apart[1]).items():
        assert np.array_equal(picture, together[name]), name


@torch.no_grad()
def test_clips_are_drawn_as_video(validation_of, street):
    """Two clips of three frames: a strip of three rows for each frame, and the frames are not all drawn alike."""
    strips = validation_of(num_frames=3, which="crossframe")(1)
    assert list(strips) == ["validation/token0", "validation/token3"]
    height = 3 * 32 + 2 * 4
    for picture in strips.values():
        assert picture.shape == (3 * height, 6 * 48 + 5 * 4, 3)
    first, last = (strips["validation/token0"][f * height : (f + 1) * height] for f in (0, 2))
    assert not np.array_equal(first[36:68], last[36:68])
    for f, shown in ((0, first), (2, last)):
        photos = read_pictures(street.frames[f], 32, 48).permute(0, 2, 3, 1)
        assert np.array_equal(shown[-32:], strip({"real": list(photos)}, street.frames[f].cameras.names)), f


@torch.no_grad()
def test_a_sample_that_cannot_be_read_is_left_out(validation_of, street, capsys):
    street.label(3).unlink()
    assert list(validation_of()(1)) == ["validation/token0"]
    assert "validation sample token3 is left out" in capsys.readouterr().err
