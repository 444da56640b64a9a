"""Small real components, randomly initialised, made without any download: for tests and for the embedded default.

>>> from syntheocc.models.presets import tiny_components
>>> components = tiny_components(seed=0)             # 16-32 channels, 1 M parameters
>>> components = tiny_components(seed=0, size="nano")  # six 224x400 views take a few seconds on two CPU cores
>>> pipe = SyntheOccPipeline(**components)
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from syntheocc.models.controlnet_mpi import MPIControlNetModel
from syntheocc.models.unet_multiview import MultiviewUNet2DConditionModel

# Words of the published prompt and of weather, time and place captions; each becomes one token where merges allow.
CAPTION_WORDS = (
    "show a photorealistic street view image of city road highway day night dawn dusk rain rainy snow snowy fog foggy "
    "sunny cloudy overcast sandstorm clear dark wet dry parked cars trucks bus pedestrians bicycles trees buildings "
    "intersection parking lot construction boston singapore in at the with and on front left right back camera"
).split()
MAX_TOKENS = 77


class _Size(NamedTuple):
    unet_channels: tuple[int, ...]
    down_blocks: tuple[str, ...]
    up_blocks: tuple[str, ...]
    layers_per_block: int
    heads: tuple[int, ...]
    norm_groups: int
    vae_channels: tuple[int, ...]
    text_width: int
    text_layers: int
    mid_block: str = "UNetMidBlock2DCrossAttn"
    latent_channels: int = 4
    vae_attention: bool = True
    scheduler: tuple[tuple[str, Any], ...] = ()


_SIZES = {
    "tiny": _Size(
        unet_channels=(16, 32),
        down_blocks=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_blocks=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        heads=(2, 4),
        norm_groups=8,
        vae_channels=(8, 8, 16, 16),
        text_width=32,
        text_layers=2,
    ),
    # No attention at full latent resolution, where it would cost most, and wide layers there all the same: most of the
    # arithmetic for few of the parameters. 83 GFLOP a step for six 224x400 views with guidance, 14.0 M parameters with
    # the VAE, 28 MB in float16. Training from noise alone to zero signal at the last timestep lets the text set how
    # bright a picture is (Lin et al. 2024, arXiv:2305.08891).
    "nano": _Size(
        unet_channels=(96, 128, 128),
        down_blocks=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_blocks=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        heads=(3, 4, 4),
        norm_groups=16,
        vae_channels=(32, 64, 96, 128),
        text_width=128,
        text_layers=2,
        mid_block="UNetMidBlock2D",
        latent_channels=8,
        vae_attention=False,
        scheduler=(
            ("prediction_type", "v_prediction"),
            ("rescale_betas_zero_snr", True),
            ("timestep_spacing", "trailing"),
        ),
    ),
}


def tiny_components(
    seed: int = 0,
    size: Literal["tiny", "nano"] = "tiny",
    *,
    cross_frame_attention: bool = False,
    latent_channels: int | None = None,
    tokenizer: Any = None,
    **controlnet: Any,
) -> dict[str, Any]:
    """Return {vae, text_encoder, tokenizer, unet, controlnet, scheduler}: a whole SyntheOcc, random weights.

    Args:
        seed: of all weights; torch's global generator is left as it was.
        size: "tiny" for tests, "nano" for pictures on a CPU (the size that examples/nano trains). Both have Stable
            Diffusion's factor 8 between image and latents; tiny has its 4 latent channels too, nano 8.
        cross_frame_attention: give the UNet its video layers.
        latent_channels: instead of the size's own.
        tokenizer: a CLIPTokenizer instead of `caption_tokenizer()`; the text encoder has an entry for each token.
        **controlnet: arguments of MPIControlNetModel.from_unet, e.g. `encoder_kind="scalar"`, `num_planes=8`.

    Raises:
        ValueError: an unknown size.

    """
    from transformers import CLIPTextConfig, CLIPTextModel

    if size not in _SIZES:
        raise ValueError(f"size must be one of {sorted(_SIZES)}, got {size!r}")
    shape = _SIZES[size]
    latents = latent_channels or shape.latent_channels
    tokenizer = tokenizer if tokenizer is not None else caption_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators as well
        vae = AutoencoderKL(
            block_out_channels=shape.vae_channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=latents,
            norm_num_groups=8,
            sample_size=64,
            mid_block_add_attention=shape.vae_attention,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=shape.text_width,
                intermediate_size=2 * shape.text_width,
                num_hidden_layers=shape.text_layers,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        stock = UNet2DConditionModel(
            in_channels=latents,
            out_channels=latents,
            mid_block_type=shape.mid_block,
            block_out_channels=shape.unet_channels,
            down_block_types=shape.down_blocks,
            up_block_types=shape.up_blocks,
            layers_per_block=shape.layers_per_block,
            attention_head_dim=shape.heads,  # the number of heads, whatever diffusers calls it
            norm_num_groups=shape.norm_groups,
            cross_attention_dim=shape.text_width,
            use_linear_projection=True,
            sample_size=8,
        )
        unet = MultiviewUNet2DConditionModel.from_unet(stock, cross_frame_attention=cross_frame_attention)
        controlnet_model = MPIControlNetModel.from_unet(stock, **controlnet)
    scheduler = UniPCMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        **dict(shape.scheduler),
    )
    return {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
        "controlnet": controlnet_model.eval(),
        "scheduler": scheduler,
    }


def caption_tokenizer(merges: Sequence[tuple[str, str]] | None = None):
    """Return a CLIPTokenizer whose byte-level vocabulary is built here: any text, whole tokens for caption words.

    Same special tokens, padding and length (77) as the tokenizer of Stable Diffusion; no file is read.

    Args:
        merges: pairs of tokens in the order in which byte-pair encoding joins them; default: those that make
            CAPTION_WORDS one token each. The vocabulary has 514 entries and one for each merge.
    """
    from transformers import CLIPTokenizer

    alphabet = _byte_characters()
    vocab = {token: index for index, token in enumerate([*alphabet, *(f"{token}</w>" for token in alphabet)])}
    merges = _merges_of(CAPTION_WORDS) if merges is None else [(first, second) for first, second in merges]
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merges_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that read each word from left to right."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces[:2] = ["".join(pair)]
    return merges


def _byte_characters() -> list[str]:
    """Return the 256 printable characters that byte-level BPE writes bytes as (GPT-2's table): byte b is item b."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    characters, extra = [], 0
    for byte in range(256):
        characters.append(chr(byte if byte in printable else 256 + extra))
        extra += byte not in printable
    return characters
