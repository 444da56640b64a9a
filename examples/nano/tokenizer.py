"""Train the byte-pair encoding of the small model on the world's captions.

    python examples/nano/tokenizer.py --output outputs/nano/tokenizer     # seconds

At most 1,000 tokens: 512 bytes (inside and at the end of a word), two special ones, the rest merges that are learned.
"""

import argparse
import itertools
import json
from pathlib import Path

from texts import PUBLISHED, prompts_of
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from syntheocc.models.presets import CAPTION_WORDS, caption_tokenizer
from syntheocc.worlds.layout import LAYOUTS
from syntheocc.worlds.weather import LIGHTS, WEATHERS, caption_of

MAX_VOCABULARY = 1000
# How CLIP splits a text into words.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CATEGORIES = (
    "vehicle.bus.rigid",
    "vehicle.trailer",
    "vehicle.construction",
    "vehicle.truck",
    "vehicle.bicycle",
    "vehicle.motorcycle",
    "human.pedestrian.adult",
)


def corpus() -> list[str]:
    """Every way to name a street's sky and layout, and all words for what is in it."""
    texts = [PUBLISHED, *CAPTION_WORDS]
    for weather, light, kind in itertools.product(WEATHERS, LIGHTS, LAYOUTS):
        for categories in ((), _CATEGORIES, _CATEGORIES * 2):
            texts += [prompt for prompt, _ in prompts_of(caption_of(weather, light, kind, categories), weather, light)]
    return texts


def train_tokenizer(max_vocabulary: int = MAX_VOCABULARY):
    """A CLIPTokenizer whose merges were learned on the corpus."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    room = max_vocabulary - 2 * 256 - 2
    # The trainer counts its alphabet too, which is part of the 512.
    trainer = trainers.BpeTrainer(vocab_size=room, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(corpus(), trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in merges]
    return caption_tokenizer(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/nano/tokenizer"))
    args = parser.parse_args()
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(args.output)
    example = "a rainy night street, turning left at a crossing, with a bus and pedestrians"
    print(f"{len(tokenizer)} tokens in {args.output}; {example!r} has {len(tokenizer(example).input_ids)} of them")


if __name__ == "__main__":
    main()
