"""OccDepth on the street world in KITTI's format: stereo against one picture, with and without depth awareness.

    torchrun --nproc_per_node 4 benchmarks/occdepth_models.py --output results     one to four GPUs
    python benchmarks/occdepth_models.py --smoke --output smoke                    minutes on a CPU, means nothing

Four arms of one size train side by side, a process each (which share GPUs where there are fewer): same scenes, order,
augmentation, seed and number of steps. Then all are scored on held-out scenes, as SemanticKITTI's script counts: SC
IoU and SSC mIoU over all known voxels, with intervals of a paired bootstrap over scenes. `--output` gets report.json,
report.md and the curves, a folder for each arm (curve, weights in half precision, counts of every scene) and a few
predictions as npz. All of it is bounded by `--seconds`.
"""

import argparse
import copy
import gc
import time
from dataclasses import replace
from itertools import count as numbers_from
from pathlib import Path
from typing import Any

import torch
from occdepth_report import figures_of, summarise
from occdepth_world import StereoOrder, StereoPairs, make_pairs
from perception_data import Workshop
from perception_models import Arm, Contender, Schedule, Training, recorded_where_it_agrees
from perception_run import save_arrays
from perception_scores import commonest
from processes import Clock, agreed, device_of, fair_share, group, kept_going
from run_arguments import add_run_arguments, with_workers
from safetensors.torch import save_file
from torch import Tensor, nn

from syntheocc.engine.files import atomic_write_json
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.grids import SEMANTIC_KITTI, Preset
from syntheocc.occupancy.metrics import SSCIoU
from syntheocc.occupancy.perception.occdepth.batch import StereoBatch
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig, as_published
from syntheocc.occupancy.perception.occdepth.geometry import StereoCameras
from syntheocc.occupancy.perception.occdepth.model import OccDepth
from syntheocc.occupancy.perception.occdepth.presets import preset
from syntheocc.occupancy.perception.occdepth.recorded import RecordedTraining

# Arm -> how it differs from the preset with two views and depth.
ARMS: dict[str, dict[str, Any]] = {
    "stereo_depth": {},
    "stereo": {"lift": "flosp"},
    "mono_depth": {"num_views": 1},
    "mono": {"num_views": 1, "lift": "flosp"},
    # The published computation, mistakes included.
    "stereo_depth_published": {"published": True},
}
# What is held out: (split, whether the world has another seed than in training).
LEVELS = {"new scenes": ("train", True), "new assets": ("test", False)}
RANGES = (12.8, 25.6)  # metres ahead
RESERVE = 20.0


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--output", type=Path, required=True, help="folder of the results")
    p.add_argument("--preset", default="small", help="of OccDepth, with two views and depth")
    p.add_argument("--arms", default="stereo_depth,stereo,mono_depth,mono", help="rows of ARMS, with commas")
    p.add_argument("--seconds", type=float, default=540, help="for everything")
    p.add_argument("--drive_seconds", type=float, default=100, help="to make training scenes, workers started")
    p.add_argument("--scenes", type=int, default=48, help="held-out scenes of each level")
    p.add_argument("--training_scenes", type=int, help="at most so many training scenes")
    p.add_argument("--key_frames", type=int, default=14, help="length of a drive, two a second")
    p.add_argument("--frames", default="0,3,6,9", help="its key frames that are learnt from, with commas")
    p.add_argument("--scored", default="2,8", help="key frames of a held-out drive that are scored, with commas")
    p.add_argument("--batch", type=int, default=4, help="samples a step")
    p.add_argument("--learning_rate", type=float, default=2e-3)
    p.add_argument("--train_steps", type=int, help="steps of every arm; default: as many as the time allows")
    p.add_argument("--seed", type=int, default=0, help="of the training world, the weights and the order")
    add_run_arguments(p)
    return p


def main(argv: list[str] | None = None) -> dict | None:
    args = with_workers(parser().parse_args(argv))
    if unknown := set(args.arms.split(",")) - set(ARMS):
        raise SystemExit(f"unknown arms {sorted(unknown)}; known: {', '.join(ARMS)}")
    if args.smoke:
        args.scenes, args.workers, args.resamples, args.batch = 2, 0, 20, 1
        args.training_scenes, args.key_frames, args.frames, args.scored, args.threads = 1, 1, "0", "0", 1
        args.train_steps, args.seconds, args.preset = args.train_steps or 2, 1e6, "tiny"
    args.split = "test"
    args.frames, args.scored = (tuple(int(n) for n in text.split(",")) for text in (args.frames, args.scored))
    if max(*args.frames, *args.scored) >= args.key_frames:
        raise SystemExit(f"drives of {args.key_frames} key frames have no frame {max(*args.frames, *args.scored)}")
    return run(args)


def config_of(name: str, arm: str) -> OccDepthConfig:
    """The preset as the arm has it."""
    changes = dict(ARMS[arm])
    published = changes.pop("published", False)
    config = preset(name, **changes).model
    return as_published(config) if published else config


def contender(args: argparse.Namespace) -> Contender:
    """OccDepth as `Training` sees it."""
    base = config_of(args.preset, "stereo_depth")

    def make(arm: Arm) -> OccDepth:
        return OccDepth(config_of(args.preset, arm.model))

    def losses(model: OccDepth, batch: StereoBatch, dtype: torch.dtype | None) -> dict[str, Tensor]:
        batch.frustums = None if batch.frustums is None else batch.frustums[:, : model.config.num_views]
        network = vars(model).get("recorded") or model
        with torch.autocast(batch.images.device.type, dtype, enabled=dtype is not None):
            output = network(batch.images, StereoCameras.of_batch(batch))
        return model.losses(output, batch)

    def record(model: OccDepth, dtype: torch.dtype | None) -> None:
        vars(model)["recorded"] = RecordedTraining(model, dtype)

    def groups(model: OccDepth, rate: float) -> list[dict[str, Any]]:
        return model.parameter_groups(replace(preset(args.preset).recipe, backbone_rate=1.0), rate)

    def predict(model: OccDepth, images: Tensor, cameras: Any, settings: tuple[float, ...]) -> Any:
        return [model.predict(images, cameras).semantics], None

    def save(model: OccDepth, folder: Path) -> None:
        half = copy.deepcopy(model).half()
        for module in half.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.float()  # running statistics keep their range
        half.save_pretrained(folder)

    height, width = base.image_size
    return Contender(
        preset=Preset(base.grid, base.taxonomy),
        window=base.image_size,
        image_size=(width, height),
        make=make,
        losses=losses,
        groups=groups,
        predict=predict,
        settings=(0.0,),
        setting="",
        save=save,
        record=record,
    )


def run(args: argparse.Namespace) -> dict | None:
    """The report on rank 0, None elsewhere."""
    ranks, clock = Ranks.from_environment(), Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    # Measuring cuDNN's algorithms takes a large part of a minute an arm, of a run of minutes.
    torch.backends.cudnn.benchmark = False
    arms = args.arms.split(",")
    model, config = contender(args), config_of(args.preset, "stereo_depth")

    def say(text: str, everyone: bool = False) -> None:
        if ranks.is_main or everyone:
            print(f"[{clock.spent():6.1f} s, rank {ranks.rank}] {text}", flush=True)

    with group(ranks, device):
        pairs, exams, facts = world(args, config, ranks, device, clock, say)
        mine = ranks.share(arms)
        trial = Schedule(12, args.batch, 1e-3, args.seed)
        own = [arm_of(name) for name in mine]
        model, facts["recorded"] = recorded_where_it_agrees(model, own, pairs, trial, ranks, say)
        schedule, steps, examining = planned(args, model, mine, pairs, exams, ranks, clock, say)
        facts |= {"schedule": vars(schedule), "learning_from": len(pairs)}
        failures: list[str] = []
        for i, name in enumerate(mine):
            with kept_going(name, failures):
                # Exams of arms that are done are no longer to be paid for.
                left = clock.left() - RESERVE - examining * (len(mine) - i) / len(mine)
                ends = clock.spent() + fair_share(left, steps, mine[i:])
                one_arm(name, model, pairs, exams, schedule, args, say, lambda ends=ends: clock.spent() > ends)
        with kept_going("baseline", failures):
            if ranks.is_main:
                grid = commonest(pairs.labels, config.taxonomy.num_classes)
                for level, exam in exams.items():
                    keep_counts(args.output / "commonest_class", level, count(constant(grid), exam, config))
                    keep_scenes(exam, args.output / "samples", level)
        failures = [text for part in ranks.gather(failures) for text in part]
        facts |= {"ranks": ranks.world, "failures": failures, "seconds": clock.spent()}
        report = None
        if ranks.is_main:
            report = summarise(args, arms, config, {level: scenes_of(exam) for level, exam in exams.items()}, facts)
        # All ranks stay until the report is written: the launcher ends them together with the first that fails.
        ranks.gather(None)
    return report


def world(
    args: argparse.Namespace, config: OccDepthConfig, ranks: Ranks, device: torch.device, clock: Clock, say: Any
) -> tuple[StereoPairs, dict[str, StereoPairs], dict[str, Any]]:
    """Training frames and held-out ones of all ranks on each of them, and how long they took."""
    factor = round(config.grid.voxel_size[0] / SEMANTIC_KITTI.spec.voxel_size[0])
    order = StereoOrder(
        "train", args.seed, args.key_frames, args.frames, config.image_size, factor, config.coarse_factor, str(device)
    )
    workshop = Workshop(args.workers, replace(order, key_frames=1, frames=(0,)), make_pairs)
    say(f"{args.workers} workers a rank are ready")
    try:
        share = max(1, args.scenes // ranks.world)
        exams: dict[str, StereoPairs] = {}
        for level, (split, other_seed) in LEVELS.items():
            wanted = replace(order, split=split, seed=args.seed + 1000 * other_seed, frames=args.scored)
            held_out = list(workshop.make(wanted, range(ranks.rank, share * ranks.world, ranks.world)))
            exams[level] = StereoPairs.of_all(held_out, wanted, config, ranks, device)
        say(f"{share} held-out scenes a rank of each of {len(LEVELS)} levels")
        ends, last = clock.spent() + args.drive_seconds, args.training_scenes
        numbers = range(ranks.rank, last * ranks.world, ranks.world) if last else numbers_from(ranks.rank, ranks.world)
        made = list(workshop.make(order, numbers, lambda: clock.spent() > ends))
    finally:
        workshop.close()
    pairs = StereoPairs.of_all(made, order, config, ranks, device)
    facts = {"seconds_scenes": clock.spent(), "training_scenes": len(pairs) // pairs.per_scene}
    say(f"{len(pairs)} frames of {facts['training_scenes']} scenes to learn from, on every rank")
    return pairs, exams, facts


def planned(
    args: argparse.Namespace, model: Contender, mine: list[str], pairs: StereoPairs, exams: dict[str, StereoPairs],
    ranks: Ranks, clock: Clock, say: Any,
) -> tuple[Schedule, dict[str, float], float]:  # fmt: skip
    """The schedule that all arms can keep, seconds of a step of each of this rank's and of its exams.

    They are timed while all ranks are at it.
    """
    schedule = Schedule(args.train_steps or 1000, args.batch, args.learning_rate, args.seed)
    fit, stepping, examining = float(args.train_steps or 1e9), dict.fromkeys(mine, 1.0), 0.0
    if not args.train_steps:
        for name in mine:
            training = Training(
                model, arm_of(name), pairs, replace(schedule, steps=10_000), half=pairs.images.is_cuda, recorded=True
            )
            step = training.seconds_a_step(lambda: now(pairs))
            exam = next(iter(exams.values()))
            few = replace_rows(exam, 2 * exam.per_scene)
            count(predictor(training), few, training.model.config)
            began = now(pairs)
            count(predictor(training), few, training.model.config)
            asked = (now(pairs) - began) * sum(len(one) for one in exams.values()) / len(few)
            say(f"{name}: {step:.3f} s a step, {asked:.1f} s for the exams", everyone=True)
            stepping[name], examining = step, examining + asked
            del training
            gc.collect()  # its recording too
        if mine:
            fit = (clock.left() - examining - RESERVE) / (1.03 * sum(stepping.values()))
        fit = agreed(fit, ranks, pairs.images.device, "min")
    schedule = replace(schedule, steps=max(2, int(fit)))
    say(f"every arm has {schedule.steps} steps of {schedule.batch} samples, {clock.left():.0f} s are left")
    return schedule, stepping, examining


def arm_of(name: str) -> Arm:
    return Arm(1, model=name)


def now(pairs: StereoPairs) -> float:
    if pairs.images.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic()


def scenes_of(exam: StereoPairs) -> int:
    return len(exam) // exam.per_scene


def replace_rows(exam: StereoPairs, rows: int) -> StereoPairs:
    """The first rows alone."""
    names = ("images", "velo2img", "intrinsics", "depth", "labels", "coarse")
    return replace(exam, **{name: getattr(exam, name)[:rows] for name in names})


def predictor(training: Training) -> Any:
    """What a network answers to a batch, in evaluation mode and half precision on a GPU."""
    training.model.eval()

    def predict(batch: StereoBatch) -> Tensor:
        with torch.no_grad(), torch.autocast(
            batch.images.device.type, training.dtype, enabled=training.dtype is not None
        ):  # fmt: skip
            return training.model.predict(batch.images, StereoCameras.of_batch(batch)).semantics

    return predict


def constant(grid: Tensor) -> Any:
    """The same answer to every question."""
    return lambda batch: grid.expand(len(batch), *grid.shape)


def count(predict: Any, exam: StereoPairs, config: OccDepthConfig) -> dict[str, Tensor]:
    """Counts of every scene, int64 [S, C, C + 1] by true and predicted class: "all", by range, and "seen".

    "seen" are the voxels whose centre the left picture shows.
    """
    rows: list[dict[str, Tensor]] = []
    taxonomy = config.taxonomy
    whole, seen = SSCIoU(taxonomy, ranges=RANGES, spec=config.grid), SSCIoU(taxonomy)
    for first in range(0, len(exam), exam.per_scene):
        batch = exam.batch(torch.arange(first, first + exam.per_scene))
        guess = predict(batch)
        assert batch.semantics is not None and batch.frustums is not None
        whole.update(guess, batch.semantics)
        hidden = batch.frustums[:, 0] >= config.frustum_tiles**2
        seen.update(guess, batch.semantics.masked_fill(hidden, 255))
        # Bands of distance, the last one beyond all ranges: their sums are the volumes of SemanticKITTI's tables.
        volumes = whole.state["voxels"].cumsum(0)
        found = {f"all@{r:g}": volume.clone() for r, volume in zip(RANGES, volumes, strict=False)}
        rows.append({"all": volumes[-1].clone(), "seen": seen.state["voxels"][0].clone(), **found})
        for metric in (whole, seen):
            metric.reset()
    return {name: torch.stack([row[name] for row in rows]).cpu().contiguous() for name in rows[0]}


def keep_counts(folder: Path, level: str, counts: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(counts, folder / f"{level.replace(' ', '_')}.safetensors")


def keep_scenes(exam: StereoPairs, folder: Path, level: str) -> None:
    """What the sample predictions are of: pictures and labels of the first two scenes."""
    rows = torch.arange(0, len(exam), exam.per_scene)[:2].to(exam.images.device)
    save_arrays(folder / f"{level.replace(' ', '_')}-scenes.npz", images=exam.images[rows], labels=exam.labels[rows])


def one_arm(
    name: str, model: Contender, pairs: StereoPairs, exams: dict[str, StereoPairs], schedule: Schedule,
    args: argparse.Namespace, say: Any, enough: Any,
) -> None:  # fmt: skip
    """Train, examine and keep one arm in its folder."""
    folder = args.output / name
    training = Training(model, arm_of(name), pairs, schedule, half=pairs.images.is_cuda, recorded=True)
    facts = training.run(folder, lambda text: say(f"{name}: {text}", everyone=True), enough)
    say(f"{name}: {facts['steps']} steps in {facts['seconds_training']:.0f} s", everyone=True)
    model.save(training.model, folder / "model")
    predict = predictor(training)
    for level, exam in exams.items():
        counts = count(predict, exam, training.model.config)
        keep_counts(folder, level, counts)
        found = figures_of(counts, training.model.config.taxonomy)
        say(f"{name}, {level}: " + ", ".join(f"{k} {float(v):.3f}" for k, v in found.items()), everyone=True)
        rows = torch.arange(0, len(exam), exam.per_scene)[:2]
        path = args.output / "samples" / f"{level.replace(' ', '_')}-{name}.npz"
        save_arrays(path, prediction=predict(exam.batch(rows)))
    atomic_write_json(folder / "result.json", {"arm": name, **facts})


if __name__ == "__main__":
    main()
