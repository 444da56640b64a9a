"""Put the trained parts together: a pipeline folder in float16, checked, and packed for the way home.

python examples/nano/export.py --parts outputs/nano --output ckp/syntheocc-nano    # from saved parts
"""

import argparse
import tarfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusion import averaged, saved_averages
from transformers import CLIPTokenizer

from syntheocc.pipelines import SyntheOccPipeline

LIMIT_BYTES = 30_000_000


def export(
    vae: AutoencoderKL, components: dict[str, Any], folder: Path, image_size: tuple[int, int] | None = None
) -> SyntheOccPipeline:
    """Write the pipeline folder in float16 and read it back.

    Args:
        vae: with normalised latents.
        components: unet, controlnet, text_encoder, tokenizer, scheduler.
        folder: where to.
        image_size: width and height in pixels of the training pictures: the pipeline's default size.

    Raises:
        ValueError: the folder is larger than 30 MB, or a weight is not finite in float16.
    """
    if image_size is not None:
        components["unet"].register_to_config(img_size=[image_size[1], image_size[0]])
    pipe = SyntheOccPipeline(vae=vae.cpu(), **components).to(torch.float16)
    for name in ("vae", "unet", "controlnet", "text_encoder"):
        for key, value in getattr(pipe, name).state_dict().items():
            if not torch.isfinite(value.float()).all():
                raise ValueError(f"{name}.{key} is not finite in float16")
    pipe.save_pretrained(folder)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise ValueError(f"{folder} has {size / 1e6:.1f} MB, more than {LIMIT_BYTES / 1e6:.0f}")
    return SyntheOccPipeline.from_pretrained(folder, dtype=torch.float32)


def pack(folder: Path, output: Path, limit: int = 15 * 2**20) -> list[Path]:
    """Tar archives of a folder's files below `output`, none larger than `limit`; unpack them all in one place."""
    output.mkdir(parents=True, exist_ok=True)
    groups: list[list[Path]] = [[]]
    room = limit
    for path in sorted((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size):
        if path.stat().st_size + 2048 > room:
            groups.append([])
            room = limit
        groups[-1].append(path)
        room -= path.stat().st_size + 2048
    archives = []
    for i, group in enumerate(groups):
        archives.append(output / f"{Path(folder).name}-{i}.tar")
        with tarfile.open(archives[-1], "w") as archive:
            for path in group:
                archive.add(path, str(path.relative_to(Path(folder).parent)))
    return archives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, required=True, help="work folder of train.py")
    parser.add_argument("--output", type=Path, required=True, help="pipeline folder")
    parser.add_argument("--size", default="nano", help="of the networks, see syntheocc.models.presets")
    args = parser.parse_args()
    tokenizer = CLIPTokenizer.from_pretrained(args.parts / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.parts / "vae")
    averages = saved_averages(args.parts / "checkpoints")
    export(vae, averaged(averages, tokenizer, vae.config.latent_channels, args.size), args.output, (400, 224))


if __name__ == "__main__":
    main()
