"""The small model is sampled as it was trained: the same conditions, the same networks' inputs, the same schedule."""

import sys
from pathlib import Path

import pytest
import torch

from syntheocc.models.presets import tiny_components
from syntheocc.occupancy.grids import SYNTHEOCC
from syntheocc.pipelines import SyntheOccPipeline
from syntheocc.worlds.cache import build_cache
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.splits import scene_seed

SIZE = (80, 48)


@pytest.fixture(scope="module")
def nano():
    """The modules of examples/nano, which is no package."""
    folder = str(Path(__file__).resolve().parents[2] / "examples" / "nano")
    names = ("bank", "diffusion", "texts", "vae", "parallel")
    sys.path.insert(0, folder)
    try:
        import bank
        import diffusion
        import texts
        import vae

        yield {"bank": bank, "diffusion": diffusion, "texts": texts, "vae": vae}
    finally:
        sys.path.remove(folder)
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cache():
    return build_cache("train", [2], 2, image_size=SIZE)


def test_conditions_of_the_cache_are_those_the_pipeline_renders(cache):
    pipe = SyntheOccPipeline(**tiny_components(size="tiny"))
    scene = make_scene(scene_seed(0, "train", 2), image_size=SIZE)
    grid = exact_grid(scene, cache.times[1], SYNTHEOCC)
    conditions, height, width = pipe.check_inputs(
        prompt="", occupancy=grid, cameras=cache.rig(1), height=SIZE[1], width=SIZE[0], num_inference_steps=1
    )
    rendered = pipe.prepare_mpi(conditions, height, width)
    assert torch.equal(rendered.labels[0], cache.mpi_labels[1])
    assert torch.equal(rendered.nearest[0], cache.nearest[1])
    assert torch.equal(conditions.neighbors(1), cache.neighbors)


def test_training_and_sampling_give_the_networks_the_same_inputs(nano, cache):
    components = tiny_components(size="tiny")
    step = nano["diffusion"].make_step(components)
    latents = torch.randn(2, 6, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    bank = nano["bank"].Bank.of(cache, latents.half())
    ids = nano["texts"].tokenize(components["tokenizer"], ["night"])[None].expand(2, -1, -1)
    batch = nano["diffusion"].Samples(bank, ids, seed=3).batch(1)
    draws = step.draw(batch, 0, [0], (6, 4, 6, 10), seed=0)
    noisy = torch.randn(6, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = step.encode_text(batch, [False])
        seen = step.encode_condition(batch.mpi_labels, batch.nearest, [False])
        trained = step.predict(noisy, draws.timesteps, text, seen, batch)
        pipe = SyntheOccPipeline(**components)
        condition = pipe.controlnet.encode_condition(batch.mpi_labels[0], batch.nearest[0])
        embeds = pipe.encode_prompt("night", 1, 6)
        links = pipe.unet.link_views(6, batch.neighbors)
        sampled = pipe.predict_noise(noisy, draws.timesteps[0], embeds, condition, links)
    torch.testing.assert_close(sampled, trained)


def test_normalising_the_latents_changes_no_picture(nano):
    vae = tiny_components(size="tiny")["vae"]
    pictures = torch.randint(0, 256, (8, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = vae.decode(nano["vae"].encode(vae, pictures)).sample.detach()

    class Alone:
        def average_(self, tensors):
            pass

        def log(self, message):
            pass

    nano["vae"].normalise_latents(Alone(), vae, pictures, torch.Generator().manual_seed(1))
    latents = nano["vae"].encode(vae, pictures)
    torch.testing.assert_close(vae.decode(latents).sample.detach(), before, rtol=1e-3, atol=1e-4)
    assert latents.mean((0, 2, 3)).abs().max() < 0.1 and (latents.std((0, 2, 3)) - 1).abs().max() < 0.2
    assert vae.config.scaling_factor == 1


def test_a_bank_comes_back_from_the_disk_as_it_was(nano, cache, tmp_path):
    bank = nano["bank"].Bank.of(cache, torch.randn(2, 6, 4, 6, 10).half())
    bank.save(tmp_path / "bank")
    loaded = nano["bank"].Bank.load(tmp_path / "bank", "cpu")
    for name in ("latents", "mpi_labels", "nearest", "nearest_plane", "neighbors"):
        assert torch.equal(getattr(loaded, name), getattr(bank, name)), name
    assert loaded.frames == bank.frames


def test_prompts_name_weather_and_light(nano):
    prompts_of, published = nano["texts"].prompts_of, nano["texts"].PUBLISHED
    for weather in ("clear", "overcast", "rain", "fog"):
        for light in ("day", "dusk", "night"):
            prompts = prompts_of("a caption, with words", weather, light)
            assert sum(share for _, share in prompts) == pytest.approx(1)
            assert (published in dict(prompts)) == ((weather, light) == ("clear", "day"))
