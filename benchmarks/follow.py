"""Mode `evaluate` of controllability.py: how far a pipeline's views follow the occupancy (docs/controllability.md).

Every rank draws and judges its own scenes; rank 0 gathers the counts of each and reports. Steps that would overrun the
time budget end early and say on how many scenes they stand.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import held_out
import torch
from drawing import Drawer, load_pipeline
from edits import counterfactuals
from processes import Clock, agreed, device_of, group, kept_going, same_on_all_ranks
from torch import Tensor
from torch.nn import functional as F
from training_bank import Bank, training_frames

from syntheocc.engine.files import atomic_write_json
from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.consistency import overlaps, warp_difference
from syntheocc.evaluation.judge import Judge
from syntheocc.evaluation.judge_training import train_judge
from syntheocc.evaluation.nearest import nearest_condition, nearest_image, thumbnails
from syntheocc.evaluation.report import write_strip
from syntheocc.evaluation.scores import confusion
from syntheocc.evaluation.sensitivity import DOSES, Dose, motion_of, moved_rig
from syntheocc.worlds.cache import FrameCache, iterate_scenes

PIXELS = ("covered", "all")


@dataclass
class Records:
    """What one rank found, scene by scene; lists are parallel to `scenes` where not said otherwise."""

    scenes: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    # row -> per scene int64 [2 (covered, all), C, C]
    counts: dict[str, list[Tensor]] = field(default_factory=dict)
    # kind -> per scene (difference, correlation, pixels)
    between_views: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)  # per scene [V, F]
    copies: dict[str, list[Tensor]] = field(default_factory=dict)  # per scene [V] distances
    condition_shares: list[float] = field(default_factory=list)  # equal cells of the nearest training condition
    dose_scenes: list[int] = field(default_factory=list)
    doses: dict[str, list[Tensor]] = field(default_factory=dict)  # per dose scene int64 [2, C, C]
    edits: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def the_judge(
    args: Namespace, cache: FrameCache | None, ranks: Ranks, device: torch.device, say: Any
) -> tuple[Judge, dict]:
    """The judge from a folder, or trained on this run's training frames by all ranks together and saved."""
    if args.judge and (Path(args.judge) / "model.safetensors").is_file():
        say(f"judge from {args.judge}")
        return Judge.from_pretrained(args.judge).to(device), {"trained_here": False}
    torch.manual_seed(args.seed)
    judge = Judge().to(device)
    if device.type == "cuda":
        judge.to(memory_format=torch.channels_last)
    trained: torch.nn.Module = judge
    if ranks.world > 1:
        from torch.nn.parallel import DistributedDataParallel

        trained = DistributedDataParallel(judge, device_ids=[device.index] if device.type == "cuda" else None)
    assert cache is not None and cache.semantics is not None
    steps = train_judge(
        trained,
        cache.images.flatten(0, 1),
        cache.semantics.flatten(0, 1),
        seconds=None if args.smoke else args.judge_seconds,
        max_steps=3 if args.smoke else None,
        batch_size=args.judge_batch,
        seed=args.seed + ranks.rank,
        progress=lambda share: agreed(share, ranks, device),
        autocast=torch.bfloat16 if device.type == "cuda" else None,
        log=say,
    )
    same_on_all_ranks(judge, ranks)
    judge.eval()
    if ranks.is_main:
        folder = Path(args.output) / "judge"
        judge.save_pretrained(folder)
        say(f"judge saved in {folder}")
    facts = {"trained_here": True, "steps": steps, "images_a_step": args.judge_batch * ranks.world}
    return judge, facts


class Scorer:
    """Counts of judged against true classes, over covered and over all pixels."""

    def __init__(self, judge: Judge):
        self.judge, self.classes = judge, judge.taxonomy.num_classes

    def counts(self, seen: Tensor, truth: Tensor, covered: Tensor) -> Tensor:
        """int64 [2, C, C] on the CPU, of class pictures [V, H, W]."""
        return torch.stack([confusion(seen, truth, self.classes, covered), confusion(seen, truth, self.classes)]).cpu()

    def of(self, images: Tensor, truth: Tensor, covered: Tensor) -> Tensor:
        """The same of images uint8 [V, 3, H, W], read by the judge."""
        return self.counts(self.judge.predict(images), truth, covered)


def main_rows(frames: list, drawer: Drawer, scorer: Scorer, bank: Any, cells: tuple, records: Records) -> list[dict]:
    """Draw and score one batch of frames; returns the pictures of each, for strips and later steps."""
    mpis = [frame.mpi(cells) for frame in frames]
    rigs, captions = [frame.rig for frame in frames], [frame.scene.caption for frame in frames]
    seeds = [frame.number for frame in frames]
    generated = drawer.draw(mpis, rigs, captions, seeds)
    without = drawer.draw([mpi.free_like() for mpi in mpis], rigs, captions, seeds)
    share, index = nearest_condition(torch.stack([mpi.nearest for mpi in mpis]), bank.nearest)
    shown = []
    for i, frame in enumerate(frames):
        seen = frame.photographs
        size = seen.images.shape[-2:]
        flat = mpis[i].palette_image().movedim(-1, 1)
        rows = {
            "real": seen.images,
            "vae": drawer.reconstruct(seen.images),
            "generated": generated[i],
            "flat mpi": F.interpolate(flat, size=size, mode="nearest"),
            "nearest training frame": bank.images[index[i]],
            "no condition": without[i],
        }
        for name, images in rows.items():
            records.counts.setdefault(name, []).append(scorer.of(images, seen.truth, seen.covered))
        as_prediction = F.interpolate(mpis[i].nearest[:, None].float(), size=size, mode="nearest")[:, 0]
        counted = scorer.counts(as_prediction.to(torch.uint8), seen.truth, seen.covered)
        records.counts.setdefault("nearest class itself", []).append(counted)
        for name in ("real", "vae", "generated"):
            records.features.setdefault(name, []).append(scorer.judge.features(rows[name]).cpu())
        for name in ("real", "generated"):
            near, _ = nearest_image(thumbnails(rows[name]), bank.small)
            records.copies.setdefault(name, []).append(near.cpu())
        records.condition_shares.append(float(share[i]))
        records.scenes.append(frame.number)
        records.captions.append(frame.scene.caption)
        shown.append({"mpi": mpis[i], **rows})
    return shown


def between_views(frames: list, shown: list[dict], records: Records) -> None:
    """Warp differences of a rank's frames; a stranger is the next frame of the rank."""
    for i, frame in enumerate(frames):
        found = overlaps(frame.photographs.depth, frame.rig)
        for name in ("real", "vae", "generated"):
            images = shown[i][name].float() / 255
            records.between_views.setdefault(name, []).append(warp_difference(images, found))
        stranger = shown[(i + 1) % len(shown)]["generated"].float() / 255
        images = shown[i]["generated"].float() / 255
        result = warp_difference(images, found, stranger)
        records.between_views.setdefault("generated beside another scene", []).append(result)


def dose_response(
    frames: list,
    shown: list[dict],
    drawer: Drawer,
    scorer: Scorer,
    cells: tuple,
    records: Records,
    clock: Clock,
    doses: Sequence[Dose] = DOSES,
) -> list[Tensor]:
    """Score the changed conditions of some frames; returns rows of pictures of the first frame, front views."""
    strips: dict[str, list[Tensor]] = {"condition": [], "generated": [], "photograph": []}
    for start in range(0, len(frames), drawer.batch):
        batch = frames[start : start + drawer.batch]
        if start and clock.left() < 0:
            break
        found: dict[str, list[Tensor]] = {}
        for dose in doses:
            if dose.kind == "swap":
                partners = [(start + i + 1) % len(frames) for i in range(len(batch))]
                mpis = [shown[p]["mpi"] for p in partners]
                changed = [frames[p].photographs for p in partners]
                rigs = [frames[p].rig for p in partners]
            else:
                motions = [
                    motion_of(dose, torch.Generator().manual_seed(7 * frame.number + round(10 * dose.amount)))
                    for frame in batch
                ]
                rigs = [moved_rig(frame.rig, motion) for frame, motion in zip(batch, motions, strict=True)]
                mpis = [frame.mpi(cells, rig=rig) for frame, rig in zip(batch, rigs, strict=True)]
                changed = [
                    held_out.photograph(frame.scene, [frame.t], drawer.device, [motion])[0]
                    for frame, motion in zip(batch, motions, strict=True)
                ]
            drawn = drawer.draw(
                mpis, rigs, [frame.scene.caption for frame in batch], [frame.number for frame in batch]
            )
            for frame, other, images in zip(batch, changed, drawn, strict=True):
                own, seen = frame.photographs, scorer.judge.predict(images)
                real = scorer.judge.predict(other.images)
                counts = {
                    "generated, original labels": scorer.counts(seen, own.truth, own.covered),
                    "generated, changed labels": scorer.counts(seen, other.truth, other.covered),
                    "photograph, original labels": scorer.counts(real, own.truth, own.covered),
                    "photograph, changed labels": scorer.counts(real, other.truth, other.covered),
                }
                for name, count in counts.items():
                    found.setdefault(f"{dose.name}|{name}", []).append(count)
            if start == 0:
                view = 1 if len(drawn[0]) > 1 else 0
                strips["condition"].append(mpis[0].palette_image().movedim(-1, 1)[view])
                strips["generated"].append(drawn[0][view])
                strips["photograph"].append(changed[0].images[view])
        # Together, so that a batch that fails leaves no half of it.
        for name, values in found.items():
            records.doses.setdefault(name, []).extend(values)
        records.dose_scenes += [frame.number for frame in batch]
    return [torch.stack(row) for row in strips.values() if row]


def evaluate(args: Namespace) -> dict | None:
    """Run mode `evaluate`; the report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    output = Path(args.output)

    def say(text: str) -> None:
        if ranks.is_main:
            print(f"[{clock.spent():6.1f} s] {text}", flush=True)

    records = Records()
    with group(ranks, device):
        pipe = load_pipeline(args.model, device, getattr(torch, args.dtype))
        drawer = Drawer(pipe, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.batch)
        width, height = args.image_size
        cells = (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        cache = training_frames(args, ranks, device)
        numbers = ranks.share(range(args.scenes))
        # The held-out scenes are made while the judge learns.
        scenes = held_out.ahead(iterate_scenes(args.split, numbers, args.seed, args.image_size, args.workers))
        records.seconds["training frames"] = clock.spent()
        judge, judge_facts = the_judge(args, cache, ranks, device, say)
        records.seconds["judge"] = clock.spent()
        scorer = Scorer(judge)
        reference = judge.features(cache.images[:: max(1, len(cache) // 200)].flatten(0, 1)).cpu()
        bank = Bank.of_cache(cache, ranks)
        del cache
        say(f"{len(bank.images)} training frames on every rank")
        frames, shown, batch = [], [], []
        for frame in held_out.frames(scenes, device):
            batch.append(frame)
            if len(batch) == drawer.batch or frame.number == numbers[-1]:
                shown += main_rows(batch, drawer, scorer, bank, cells, records)
                frames += batch
                batch = []
                say(f"{len(frames)} of {len(numbers)} scenes of rank 0 drawn and judged")
        records.seconds["main rows"] = clock.spent()
        strip: list[Tensor] = []
        pictures: dict[str, list[Tensor]] = {}
        with kept_going("between views", records.failures):
            between_views(frames, shown, records)
        records.seconds["between views"] = clock.spent()
        # Doses take two thirds of what is left, edits the rest.
        chosen = math.ceil(args.dose_scenes / ranks.world)
        dosed = Clock(0.65 * max(clock.left() - 5, 0))
        doses = (DOSES[3], DOSES[-1]) if args.smoke else DOSES
        with kept_going("doses", records.failures):
            strip = dose_response(frames[:chosen], shown, drawer, scorer, cells, records, dosed, doses)
        records.seconds["doses"] = clock.spent()
        chosen = math.ceil(args.edit_scenes / ranks.world)
        with kept_going("edits", records.failures):
            pictures = counterfactuals(frames[:chosen], shown, drawer, judge, cells, records, Clock(clock.left() - 5))
        records.seconds["edits"] = clock.spent()
        gathered = ranks.gather(records)
        if ranks.is_main:
            # JSON has no NaN: what was not asked is null.
            plain = lambda v: None if isinstance(v, float) and math.isnan(v) else v  # noqa: E731
            entries = [{key: plain(value) for key, value in entry.items()} for one in gathered for entry in one.edits]
            atomic_write_json(output / "edits.json", entries)
            for i, one in enumerate(shown[:4]):
                names = ("real", "vae", "generated", "no condition")
                rows = [one["mpi"].palette_image().movedim(-1, 1), *(one[name] for name in names)]
                write_strip(output / f"views-{records.scenes[i]:04d}.jpg", rows)
            if strip:
                write_strip(output / "doses.jpg", strip)
            for name, rows in pictures.items():
                write_strip(output / f"edit-{name}.jpg", rows)
    if not ranks.is_main:
        return None
    from follow_report import summarise

    facts = {"judge": judge_facts, "training_frames": len(bank.images), "ranks": ranks.world}
    facts["failures"] = [text for one in gathered for text in one.failures]
    return summarise(args, gathered, reference, facts, judge.taxonomy)
