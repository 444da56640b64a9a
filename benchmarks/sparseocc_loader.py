"""The loader of benchmarks/sparseocc.py: decoding, batches from workers, the model fed by them."""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measuring import Bench, rate_of
from sparseocc_inputs import write_drive
from torch.utils.data import DataLoader

from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling, collate
from syntheocc.occupancy.perception.sparseocc import SparseOcc
from syntheocc.occupancy.perception.sparseocc.acceleration import prepare_for_inference
from syntheocc.occupancy.perception.sparseocc.temporal import OnlinePredictor
from syntheocc.occupancy.perception.transforms import ImageAugmentation


def loader(bench: Bench) -> None:
    """Decoding a sample's images, batches from workers, and the model online fed by them."""
    config = SparseOcc.from_preset(bench.args.preset).config
    height, width = config.image_size
    image = ImageAugmentation(height=height, width=width)
    size = (90, 160) if bench.args.smoke else (900, 1600)
    with tempfile.TemporaryDirectory() as folder:
        frames = write_drive(Path(folder), 4 if bench.args.smoke else 40, size)
        sizes = [path.stat().st_size for path in Path(folder).glob("*-CAM_*.jpg")]
        bench.row("loader", "pictures", kilobytes=statistics.mean(sizes) / 1e3)
        for draft in (True, False):
            data = OccupancyFrames(
                frames, Sampling(num_frames=config.num_frames, image=image, training=True, draft=draft), config.grid
            )
            started = time.perf_counter()
            data[len(frames) - 1]
            seconds = time.perf_counter() - started
            what = f"one process, training sample, draft mode {'on' if draft else 'off'}"
            bench.row("loader", what, ms=1e3 * seconds, images=config.num_frames * 6)
        rounds = 1 if bench.args.smoke else 4
        train = Sampling(num_frames=config.num_frames, image=image, training=True)
        data = OccupancyFrames(frames, train, config.grid, rounds=rounds)
        rate = rate_of(_loader(bench, data))
        bench.row("loader", f"{bench.args.workers} workers, training samples", samples_per_second=rate)
        current = Sampling(num_frames=config.num_frames, image=image, current_only=True)
        data = OccupancyFrames(frames, current, config.grid, rounds=rounds if bench.args.smoke else 8 * rounds)
        net = prepare_for_inference(SparseOcc.from_preset(bench.args.preset).to(bench.device))
        online = OnlinePredictor(net, cuda_graph=True)

        def predicted() -> Iterable[Any]:
            for batch in _loader(bench, data):
                batch = batch.to(bench.device)
                grids = online(batch.shots, {batch.tokens[0]: batch.images[0, 0]}, batch.ego2img)
                yield grids.semantics.cpu()

        rate = rate_of(predicted())
        bench.row("loader", f"{bench.args.workers} workers, online, bfloat16, to the host", frames_per_second=rate)


def _loader(bench: Bench, data: OccupancyFrames) -> DataLoader:
    return DataLoader(
        data, batch_size=1, collate_fn=collate, num_workers=bench.args.workers,
        pin_memory=bench.device.type == "cuda", prefetch_factor=4 if bench.args.workers else None,
    )  # fmt: skip
