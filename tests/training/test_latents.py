"""Latents that are encoded once: what is kept, what is made again, and that training does not see the difference."""

import os

import pytest
import torch

from syntheocc.models.presets import caption_tokenizer, tiny_components
from syntheocc.training.dataset import ClipDataset, FrameReader, collate, make_clips, read_pictures
from syntheocc.training.latents import LatentCache, encode_moments, fingerprint


@pytest.fixture(scope="module")
def vae():
    return tiny_components(seed=0)["vae"]


def encoder(vae, made):
    """A reader of 48x32 pictures that lists what it is asked for, and what encodes them."""

    def read(frame):
        made.append(frame.token)
        return read_pictures(frame, 32, 48)

    return read, lambda images: encode_moments(vae, images)


def test_what_is_there_is_not_made_again(street, vae, tmp_path):
    cache, made = LatentCache(tmp_path, "vae"), []
    assert cache.fill(street.frames[:2], *encoder(vae, made), show=False) == (2, {})
    assert cache.fill(street.frames[:3], *encoder(vae, made), show=False) == (1, {})  # an interrupted job goes on
    assert made == ["token0", "token1", "token2"]
    moments = cache.read(street.frames[0])
    assert moments.shape == (6, 8, 4, 6)
    wanted = vae.encode(read_pictures(street.frames[0], 32, 48).float() / 127.5 - 1).latent_dist.parameters
    assert torch.equal(moments, wanted)
    assert not [path for path in cache.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_ahead_make_the_same_files(readers, street, vae, tmp_path):
    cache, alone = LatentCache(tmp_path, "many"), LatentCache(tmp_path, "alone")
    street.frames[4].image_paths["CAM_BACK"].write_bytes(b"damaged")
    made, failed = cache.fill(street.frames, *encoder(vae, []), readers=readers, show=False)
    assert made == 5 and list(failed) == ["token4"]
    alone.fill(street.frames, *encoder(vae, []), readers=0, show=False)
    for frame in street.frames[:4]:
        assert cache.path(frame).read_bytes() == alone.path(frame).read_bytes()


def test_changed_pictures_and_damaged_files_are_encoded_again(street, vae, tmp_path):
    cache, made = LatentCache(tmp_path, "vae"), []
    cache.fill(street.frames[:3], *encoder(vae, made), show=False)
    made.clear()
    picture = street.frames[1].image_paths["CAM_FRONT"]
    picture.write_bytes(street.frames[4].image_paths["CAM_FRONT"].read_bytes())
    os.utime(picture, ns=(1, 1))
    whole = cache.path(street.frames[2]).read_bytes()
    cache.path(street.frames[2]).write_bytes(whole[:50])
    with pytest.raises(ValueError, match="token2.safetensors: cached latents cannot be read"):
        cache.read(street.frames[2])
    cache.fill(street.frames[:3], *encoder(vae, made), show=False)
    assert made == ["token1", "token2"]
    assert cache.path(street.frames[2]).read_bytes() == whole


def test_pictures_that_cannot_be_read_leave_no_latents(street, vae, tmp_path):
    cache = LatentCache(tmp_path, "vae")
    cache.fill(street.frames[:1], *encoder(vae, []), show=False)
    street.frames[0].image_paths["CAM_FRONT"].write_bytes(b"")
    street.frames[1].image_paths["CAM_BACK"].unlink()
    made, failed = cache.fill(street.frames[:3], *encoder(vae, []), show=False)
    assert made == 1 and list(failed) == ["token0", "token1"]
    assert "CAM_FRONT" in failed["token0"] and "CAM_BACK" in failed["token1"]
    with pytest.raises(ValueError, match="token0.safetensors: no cached latents"):
        cache.read(street.frames[0])


def test_the_fingerprint_knows_what_latents_depend_on(vae):
    base = fingerprint(vae, 32, 48, torch.float32)
    assert base == fingerprint(tiny_components(seed=0)["vae"], 32, 48, torch.float32)
    others = [
        fingerprint(vae, 48, 32, torch.float32),
        fingerprint(vae, 32, 48, torch.bfloat16),
        fingerprint(tiny_components(seed=1)["vae"], 32, 48, torch.float32),
    ]
    assert len({base, *others}) == 4
    changed = tiny_components(seed=0)["vae"]
    with torch.no_grad():
        changed.decoder.conv_in.weight += 1  # the decoder does not encode
    assert fingerprint(changed, 32, 48, torch.float32) == base


def test_a_step_on_cached_latents_is_the_step_on_pictures(street, make_step, tmp_path):
    step = make_step()
    config = street.config(occ_kind="syntheocc_coarse")
    frames, _ = config.read_frames()
    cache = LatentCache(tmp_path, "vae")
    cache.fill(frames, *encoder(step.vae, []), show=False)
    losses = []
    for latents in (None, cache):
        read = FrameReader(config, step.condition, caption_tokenizer(), latents)
        dataset = ClipDataset(make_clips(frames, 1), read)
        batch = collate([dataset[0], dataset[3]])
        assert (batch.latents is None) == (latents is None)
        losses.append(step(batch, step=5, positions=[0, 1])["loss"].item())
    # encoded six by six or twelve at once: sums in another order
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(step(batch, step=6, positions=[0, 1])["loss"].item(), rel=1e-5)
