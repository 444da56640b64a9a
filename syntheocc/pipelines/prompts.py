"""Prompts of samples and views, and their embeddings.

S samples, V views, L tokens, C text width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import logging, scale_lora_layers, unscale_lora_layers
from torch import Tensor

logger = logging.get_logger(__name__)


def count_prompts(name: str, prompt: Any) -> int | None:
    """S of a prompt given as a list, None for a `str` (shared by all samples). Raises ValueError on other types."""
    if isinstance(prompt, str):
        return None
    if not isinstance(prompt, (list, tuple)) or len(prompt) == 0:
        raise ValueError(f"`{name}` must be a str, a list[S] of str or a list[S][V] of str; got {prompt!r}")
    for item in prompt:
        texts = [item] if isinstance(item, str) else item
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{name}` holds {item!r}; give a str for each sample, or a list of V str")
    return len(prompt)


def spread_prompts(name: str, prompt: Any, samples: int, views: int) -> list[str]:
    """The text of every view, `[S*V]` with views fastest, from `str | list[S] | list[S][V]`."""
    rows = [prompt] * samples if isinstance(prompt, str) else list(prompt)
    if len(rows) != samples:
        raise ValueError(f"`{name}` has {len(rows)} samples, the conditions {samples}")
    texts = []
    for s, row in enumerate(rows):
        row = [row] * views if isinstance(row, str) else list(row)
        if len(row) != views:
            raise ValueError(f"`{name}[{s}]` has {len(row)} texts for {views} views; give one a view, or one str")
        texts.extend(row)
    return texts


def check_embeds(name: str, embeds: Tensor, samples: int | None, views: int | None) -> None:
    """Raise ValueError unless `embeds` is `[S, L, C]` (one text a sample) or `[S, V, L, C]`; None skips a count."""
    if not isinstance(embeds, Tensor) or embeds.ndim not in (3, 4):
        shape = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise ValueError(f"`{name}` must be [S, L, C] or [S, V, L, C]; got {shape}")
    if samples is not None and embeds.shape[0] != samples:
        raise ValueError(f"`{name}` has {embeds.shape[0]} samples, the conditions {samples}")
    if views is not None and embeds.ndim == 4 and embeds.shape[1] != views:
        raise ValueError(f"`{name}` has {embeds.shape[1]} views, the rig {views}")


def repeat_embeds(embeds: Tensor, views: int, frames: int, copies: int) -> Tensor:
    """`[S, L, C]` or `[S, V, L, C]` for every view of the batch: `[S*copies*F*V, L, C]`."""
    if embeds.ndim == 3:
        embeds = embeds[:, None].expand(-1, views, -1, -1)
    embeds = embeds[:, None, None].expand(-1, copies, frames, -1, -1, -1)
    return embeds.reshape(-1, *embeds.shape[-2:])


def encode_texts(tokenizer: Any, text_encoder: Any, texts: list[str], device: torch.device, clip_skip: int | None):
    """CLIP embeddings `[len(texts), L, C]`. A text that occurs often (one caption for six views) is encoded once.

    clip_skip: number of last layers left out; the final layer norm is applied all the same, as in diffusers.
    """
    unique = list(dict.fromkeys(texts))
    tokens = tokenizer(
        unique, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    _warn_truncated(tokenizer, unique, tokens.input_ids)
    # SD 2.1's text encoder has no such entry, and its config class may drop it: absent means no mask.
    use_mask = getattr(text_encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if use_mask else None
    if clip_skip is None:
        embeds = text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
    else:
        output = text_encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=True)
        # transformers 5 dropped the inner `text_model`; older versions keep the norm there.
        owner = getattr(text_encoder, "text_model", text_encoder)
        embeds = owner.final_layer_norm(output.hidden_states[-(clip_skip + 1)])
    return embeds[[unique.index(text) for text in texts]]


def _warn_truncated(tokenizer: Any, texts: list[str], kept: Tensor) -> None:
    whole = tokenizer(texts, padding="longest", return_tensors="pt").input_ids
    if whole.shape[-1] > kept.shape[-1]:
        lost = tokenizer.batch_decode(whole[:, tokenizer.model_max_length - 1 : -1], skip_special_tokens=True)
        logger.warning(
            "prompts are cut at %d tokens; not seen by the text encoder: %s",
            tokenizer.model_max_length,
            [text for text in lost if text],
        )


@contextmanager
def lora_scale(text_encoder: Any, cross_attention_kwargs: dict[str, Any] | None) -> Iterator[None]:
    """Scale the text encoder's LoRA layers by `cross_attention_kwargs["scale"]`, as the UNet scales its own."""
    scale = (cross_attention_kwargs or {}).get("scale")
    if scale is None:
        yield
        return
    scale_lora_layers(text_encoder, scale)
    try:
        yield
    finally:
        unscale_lora_layers(text_encoder, scale)
