"""One run of occupancy_judge.py: every rank draws and reads its own scenes, rank 0 gathers the counts and reports."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import held_out
import torch
from drawing import Drawer, load_pipeline
from follow import Scorer, the_judge
from occupancy_frames import Moment, Reader, asked, load_reader, moments
from perception_checks import checked_operators
from perception_scores import voxel_iou
from processes import Clock, agreed, device_of, group, kept_going
from torch import Tensor
from torch.nn import functional as F
from training_bank import Bank, training_frames

from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.nearest import nearest_condition
from syntheocc.occupancy.cameras import NUSCENES_CAMERAS
from syntheocc.occupancy.metrics import OccupancyIoU, RayIoU
from syntheocc.worlds.cache import iterate_scenes

ROWS = ("real", "vae", "generated", "flat mpi", "nearest training frame", "no condition")
# Kept of every scene, for the sheets.
SHOWN = ("real", "vae", "generated")
# Seconds kept for gathering, sheets and the report.
RESERVE = 25.0


@dataclass
class Found:
    """What one rank found, scene by scene; all lists are parallel."""

    scenes: list[int] = field(default_factory=list)
    about: list[dict[str, Any]] = field(default_factory=list)
    # history ("drive", "still") -> row -> per scene {"camera": [C, C + 1], "rays": [C + 1, C + 1, K + 1]}
    counts: dict[str, dict[str, list[dict[str, Tensor]]]] = field(default_factory=dict)
    # row -> per scene int64 [2 (covered, all), C, C] of the 2D judge
    pixels: dict[str, list[Tensor]] = field(default_factory=dict)
    tuning: list[list[Tensor]] = field(default_factory=list)  # per tuning scene, per threshold
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Counter:
    """Counts of one prediction against a frame's truth."""

    def __init__(self, reader: Reader):
        spec, taxonomy = reader.preset
        self.voxels, self.rays = OccupancyIoU(taxonomy, "camera"), RayIoU(taxonomy, spec)

    def __call__(self, seen: Tensor, moment: Moment, rays: bool = True) -> dict[str, Tensor]:
        """The counts of labels [X, Y, Z], on the CPU."""
        asked = moment.asked
        truth, observed = asked.label.labels.to(seen.device), asked.observed.to(seen.device)
        self.voxels.update(seen, truth, observed)
        counts = {"camera": _taken(self.voxels, "voxels")}
        if rays:
            self.rays.update(seen, truth, [asked.origins])
            counts["rays"] = _taken(self.rays, "rays")
        return counts


def _taken(metric: Any, name: str) -> Tensor:
    state = metric.state[name].clone().cpu()
    metric.reset()
    return state


def rows_of(batch: Sequence[Moment], drawer: Drawer, bank: Bank, cells: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The views of every row, uint8 [T, V, 3, H, W], of each frame; and its "mpi" pictures [V, 3, h, w]."""
    per_frame = [one.mpis(cells) for one in batch]
    mpis = [mpi for own in per_frame for mpi in own]
    rigs = [rig for one in batch for rig in one.rigs]
    captions, seeds = [c for one in batch for c in one.captions], [s for one in batch for s in one.seeds]
    generated = drawer.draw(mpis, rigs, captions, seeds)
    without = drawer.draw([mpi.free_like() for mpi in mpis], rigs, captions, seeds)
    _, index = nearest_condition(torch.stack([mpi.nearest for mpi in mpis]), bank.nearest)
    found, first = [], 0
    for one, own in zip(batch, per_frame, strict=True):
        part = slice(first, first + len(own))
        first += len(own)
        real = torch.stack([seen.images for seen in one.photographs])
        size = real.shape[-2:]
        flat = [F.interpolate(mpi.palette_image().movedim(-1, 1), size=size, mode="nearest") for mpi in own]
        found.append(
            {
                "real": real,
                "vae": drawer.reconstruct(real.flatten(0, 1)).unflatten(0, real.shape[:2]),
                "generated": generated[part],
                "flat mpi": torch.stack(flat).to(real.device),
                "nearest training frame": bank.images[index[part].to(bank.images.device)],
                "no condition": without[part],
                "mpi": own[0].palette_image().movedim(-1, 1),
            }
        )
    return found


def tuned(
    args: Namespace, reader: Reader, ranks: Ranks, device: torch.device, found: Found
) -> tuple[float, list[float]]:
    """The threshold with the highest mIoU on real views of new scenes of the training families."""
    thresholds = [float(value) for value in args.thresholds.split(",")]
    numbers = ranks.share(range(args.tuning_scenes))
    scenes = held_out.ahead(
        asked(
            iterate_scenes("train", numbers, args.training_seed + 1000, args.image_size, args.workers),
            reader.preset,
            reader.frames,
        )
    )
    counter = Counter(reader)
    for moment in moments(scenes, device):
        images = torch.stack([seen.images for seen in moment.photographs])
        read = reader.read(images, moment, thresholds=thresholds)
        found.tuning.append([counter(seen, moment, rays=False)["camera"] for seen in read])
    every = [one for part in ranks.gather(found.tuning) for one in part]
    taxonomy = reader.preset.taxonomy
    scores = [
        float(voxel_iou(torch.stack([one[i] for one in every]).sum(0), taxonomy).nanmean())
        for i in range(len(thresholds))
    ]
    return thresholds[max(range(len(scores)), key=scores.__getitem__)], scores


def run(args: Namespace) -> dict | None:
    """The report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    found = Found()
    kept: dict[int, dict[str, Any]] = {}

    def say(text: str) -> None:
        if ranks.is_main:
            print(f"[{clock.spent():6.1f} s] {text}", flush=True)

    with group(ranks, device):
        pipe = load_pipeline(args.model, device, getattr(torch, args.dtype))
        drawer = Drawer(pipe, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.batch)
        width, height = args.image_size
        cells = (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        operators = checked_operators(device)
        say(f"operators: {operators or 'plain torch'}")
        reader = load_reader(args.weights, device, NUSCENES_CAMERAS)
        reader.threshold, scores = tuned(args, reader, ranks, device, found)
        found.seconds["threshold"] = clock.spent()
        say(f"voxel_threshold {reader.threshold}; mIoU of real views of training families: "
            + ", ".join(f"{score:.3f}" for score in scores))  # fmt: skip
        cache = training_frames(args, ranks, device)
        judge, judge_facts = the_judge(args, cache, ranks, device, say)
        scorer, counter = Scorer(judge), Counter(reader)
        bank = Bank.of_cache(cache, ranks)
        del cache
        found.seconds["training frames"] = clock.spent()
        say(f"{len(bank.images)} training frames on every rank, {reader.frames} frames a sample")
        numbers = ranks.share(range(args.scenes))
        scenes = iterate_scenes(args.split, numbers, args.seed, args.image_size, args.workers)
        histories = ("drive", "still") if reader.frames > 1 else ("drive",)
        batch: list[Moment] = []
        at_once = max(1, args.batch // reader.frames)
        with kept_going("scenes", found.failures):
            for moment in moments(held_out.ahead(asked(scenes, reader.preset, reader.frames)), device):
                batch.append(moment)
                if len(batch) < at_once and moment.asked.number != numbers[-1]:
                    continue
                for one, rows in zip(batch, rows_of(batch, drawer, bank, cells), strict=True):
                    score_one(one, rows, reader, counter, scorer, histories, found, kept)
                batch = []
                say(f"{len(found.scenes)} of {len(numbers)} scenes of rank 0 drawn and read")
                if clock.left() < RESERVE:
                    found.failures.append(f"rank {ranks.rank}: time for {len(found.scenes)} of {len(numbers)} scenes")
                    break
        found.seconds["scenes"] = clock.spent()
        gathered = ranks.gather(found)
        report = None
        from occupancy_judge_report import disagreements, draw_sheets, summarise

        chosen = disagreements(gathered, reader.preset.taxonomy, args.sheets)
        with kept_going("sheets", found.failures):
            draw_sheets(Path(args.output), chosen, kept, reader)
        ranks.gather(None)  # the sheets are there when the report is
        if ranks.is_main:
            facts = {
                "ranks": ranks.world,
                "operators": operators,
                "judge_2d": judge_facts,
                "training_frames": len(bank.images),
                "frames_a_sample": reader.frames,
                "voxel_threshold": reader.threshold,
                "voxel_thresholds_mIoU": scores,
                "failures": [text for one in gathered for text in one.failures],
                "spent": clock.spent(),
            }
            report = summarise(args, gathered, reader.preset.taxonomy, judge.taxonomy, chosen, facts)
        agreed(0.0, ranks, device)
    return report


def score_one(
    moment: Moment, rows: dict[str, Tensor], reader: Reader, counter: Counter, scorer: Scorer,
    histories: Sequence[str], found: Found, kept: dict[int, dict[str, Any]],
) -> None:  # fmt: skip
    """Read every row of a frame with both judges, and keep what a sheet would show."""
    asked, now = moment.asked, moment.photographs[0]
    read = {}
    counts: dict[str, dict[str, dict[str, Tensor]]] = {history: {} for history in histories}
    pixels = {}
    for name in ROWS:
        for history in histories:
            (seen,) = reader.read(rows[name], moment, still=history == "still")
            counts[history][name] = counter(seen, moment)
            if history == histories[0] and name in SHOWN:
                read[name] = seen.cpu()
        pixels[name] = scorer.of(rows[name][0], now.truth, now.covered)
    # Together, so that a frame that fails leaves no half of it.
    for history in histories:
        for name in ROWS:
            found.counts.setdefault(history, {}).setdefault(name, []).append(counts[history][name])
    for name in ROWS:
        found.pixels.setdefault(name, []).append(pixels[name])
    found.scenes.append(asked.number)
    scene = asked.scene
    found.about.append({"caption": scene.caption, "weather": scene.weather, "light": scene.light})
    views = {name: rows[name][0].cpu() for name in SHOWN} | {"mpi": rows["mpi"].cpu()}
    kept[asked.number] = {"views": views, "read": read, "label": asked.label.labels}
