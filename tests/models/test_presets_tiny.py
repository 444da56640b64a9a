"""The small components: real classes, the same for the same seed, a tokenizer made without any file."""

import pytest
import torch

from syntheocc.models.presets import caption_tokenizer, tiny_components


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = tiny_components(seed=1), tiny_components(seed=1), tiny_components(seed=2)
    assert torch.equal(torch.rand(3), want)
    for name in ("vae", "text_encoder", "unet", "controlnet"):
        a, b, c = (next(x[name].parameters()) for x in (first, second, other))
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert not first[name].training


@pytest.mark.parametrize("size", ["tiny", "nano"])
def test_all_parts_fit_together(size):
    parts = tiny_components(size=size, num_planes=8)
    ids = parts["tokenizer"](
        ["street view image", ""], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        text = parts["text_encoder"](ids)[0]
        latents = parts["vae"].encode(torch.zeros(2, 3, 64, 96)).latent_dist.mode()
        assert latents.shape == (2, {"tiny": 4, "nano": 8}[size], 8, 12)
        labels = torch.randint(0, 17, (2, 8, 8, 12), dtype=torch.uint8)
        out = parts["controlnet"](latents, 1, text, labels)
        noise = parts["unet"](
            latents,
            1,
            text,
            cross_attention_kwargs={"neighbors": torch.tensor([[1], [0]])},
            down_block_additional_residuals=out.down_block_res_samples,
            mid_block_additional_residual=out.mid_block_res_sample,
        ).sample
        assert parts["vae"].decode(noise).sample.shape == (2, 3, 64, 96)


def test_nano_fits_into_the_repository():
    parts = tiny_components(size="nano")
    count = sum(
        sum(p.numel() for p in parts[name].parameters()) for name in ("vae", "text_encoder", "unet", "controlnet")
    )
    assert count < 15e6  # 30 MB in float16


def test_the_tokenizer_reads_anything(tmp_path):
    tokenizer = caption_tokenizer()
    prompt = "Show a photorealistic street view image"
    ids = tokenizer(prompt).input_ids
    assert len(ids) == 2 + 6 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt.lower()
    strange = tokenizer("Z\u00fcrich 42 \u96e8").input_ids
    assert tokenizer.unk_token_id not in strange[1:-1]
    assert tokenizer.model_max_length == 77
    tokenizer.save_pretrained(tmp_path)
    from transformers import CLIPTokenizer

    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("Z\u00fcrich 42 \u96e8").input_ids == strange and again.pad_token_id == tokenizer.pad_token_id


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="nano"):
        tiny_components(size="huge")
