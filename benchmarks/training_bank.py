"""Training frames on a device: for the judge, and for what is nearest among them."""

from argparse import Namespace
from dataclasses import dataclass, replace

import torch
from processes import of_all_ranks
from torch import Tensor

from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.nearest import thumbnails
from syntheocc.worlds.cache import FrameCache, build_cache

# Scenes of the training split that a run may reach; time ends it earlier.
_MANY = 100_000


def training_frames(args: Namespace, ranks: Ranks, device: torch.device, with_spc4: bool = False) -> FrameCache:
    """The rank's training frames, as many as `args.render_seconds` allow; a fixed few in a smoke run."""
    folder = args.cache and args.cache / f"train-{args.training_seed}-rank{ranks.rank}of{ranks.world}"
    # FrameCache.save writes this file last.
    if folder and (folder / "frames.json").is_file():
        cache = FrameCache.load(folder, device)
        if cache.mpi_labels_spc4 is not None or not with_spc4:
            return cache
    last = ranks.rank + 1 if args.smoke else _MANY
    cache = build_cache(
        "train",
        range(ranks.rank, last, ranks.world),
        frames_per_scene=2 if args.smoke else args.frames_per_scene,
        seed=args.training_seed,
        device=device,
        workers=args.workers,
        seconds=None if args.smoke else args.render_seconds,
        with_spc4=with_spc4 or bool(folder),
        with_geometry=True,
        image_size=args.image_size,
    )
    cache = replace(cache, depth=None)  # nothing here asks for the depth of training frames
    if folder:
        cache.save(folder)
    return cache


@dataclass
class Bank:
    """N training frames of V views of all ranks, for what is nearest.

    images uint8 [N, V, 3, H, W]; nearest uint8 [N, V, h, w], the conditions' nearest classes; small float32 [N*V, F],
    thumbnails.
    """

    images: Tensor
    nearest: Tensor
    small: Tensor

    @classmethod
    def of_cache(cls, cache: FrameCache, ranks: Ranks) -> "Bank":
        """The frames of all ranks on each of them."""
        small = torch.cat([thumbnails(part) for part in cache.images.flatten(0, 1).split(600)])
        parts = (cache.images, cache.nearest, small)
        return cls(*(of_all_ranks(part, ranks) for part in parts))
