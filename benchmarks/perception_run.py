"""One run of perception.py: drives, arms, exams, in that order and within the time."""

import gc
import shutil
import time
from argparse import Namespace
from dataclasses import replace
from itertools import count as numbers_from
from pathlib import Path
from typing import Any

import torch
from perception_checks import checked_operators
from perception_data import ACCUMULATED, EXACT, Drives, Exam, Order, Workshop, drives_of_all, exam_of_all
from perception_models import ARMS, MODELS, Arm, Contender, Schedule, Training, recorded_where_it_agrees
from perception_scores import AT_ONCE, best_setting, commonest, constant, count
from processes import Clock, agreed, device_of, fair_share, group, kept_going
from safetensors.torch import save_file
from torch import Tensor

from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.report import plain

# What is held out: (split, whether the world has another seed than in training, whether the cameras are others).
LEVELS = {
    "val": ("val", False, False),  # settings are chosen here
    "new scenes": ("train", True, False),
    "new assets": ("test", False, False),
    "new rig": ("test", True, True),
}
DEVELOPMENT = "val"
# Seconds kept for what cannot be estimated, and for the report.
RESERVE = 25.0


def run(args: Namespace) -> dict | None:
    """The report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    if args.model not in MODELS:
        raise SystemExit(f"unknown model {args.model!r}; known: {', '.join(MODELS)}")
    arms = args.arms.split(",")
    if unknown := set(arms) - set(ARMS):
        raise SystemExit(f"unknown arms {sorted(unknown)}; known: {', '.join(ARMS)}")
    contender = MODELS[args.model]()
    mine = ranks.share(arms)

    def say(text: str, everyone: bool = False) -> None:
        if ranks.is_main or everyone:
            print(f"[{clock.spent():6.1f} s, rank {ranks.rank}] {text}", flush=True)

    with group(ranks, device):
        drives, exams, facts = world(args, contender, arms, ranks, device, clock, say)
        facts["operators"] = checked_operators(device)
        say(f"operators: {facts['operators'] or 'plain torch'}", everyone=True)
        failures: list[str] = []
        trial = Schedule(12, args.batch, 1e-3, args.seed)
        contender, facts["recorded"] = recorded_where_it_agrees(
            contender, [ARMS[name] for name in mine], drives, trial, ranks, say
        )
        schedule, steps = planned(args, contender, mine, drives, exams, ranks, clock, say)
        facts |= {"schedule": vars(schedule), "learning_from": len(drives)}
        say(f"every arm has {schedule.steps} steps of {schedule.batch} samples, {clock.left():.0f} s are left")
        best: tuple[float, str] = (-1.0, "")
        for i, name in enumerate(mine):
            with kept_going(name, failures):
                shown = lambda text, name=name: say(f"{name}: {text}", everyone=True)  # noqa: E731
                # Of a rank's arms each has its share of the time; an arm that is cut short is better than a lost one.
                left = clock.left() - RESERVE - (len(mine) - i) * exam_seconds(exams)
                ends = clock.spent() + fair_share(left, steps, mine[i:])
                found = one_arm(
                    name, contender, drives, exams, schedule, args, shown, lambda ends=ends: clock.spent() > ends
                )
                best = max(best, (found["development"], name))
        with kept_going("baselines", failures):
            baselines(contender, drives, exams, ranks, args.output)
            if ranks.is_main:
                keep_scenes(exams, args.output / "samples")
        failures = [text for part in ranks.gather(failures) for text in part]
        # Through the host, not the device: a rank whose device failed must not take the others with it.
        best = max(ranks.gather(best))
        facts |= {"ranks": ranks.world, "failures": failures, "best": best[1], "seconds": clock.spent()}
        report = None
        if ranks.is_main:
            from perception_report import summarise

            if best[1]:
                shutil.copytree(args.output / best[1] / "model", args.output / "model", dirs_exist_ok=True)
            report = summarise(args, arms, contender, {name: exam.scenes for name, exam in exams.items()}, facts)
        # All ranks stay until the report is written: the launcher ends them together with the first that fails.
        ranks.gather(None)
    return report


def world(
    args: Namespace, contender: Contender, arms: list[str], ranks: Ranks, device: torch.device, clock: Clock, say: Any
) -> tuple[Drives, dict[str, Exam], dict[str, Any]]:
    """Training drives and exams of all ranks on each of them, and how long they took."""
    accumulated = any(ARMS[name].labels == ACCUMULATED for name in arms)
    order = Order(
        "train", args.seed, args.key_frames, contender.image_size, contender.window, contender.preset, str(device),
        accumulated=accumulated, rays=contender.rays,
    )  # fmt: skip
    workshop = Workshop(args.workers, replace(order, key_frames=2, accumulated=False))
    facts: dict[str, Any] = {"seconds_workers": clock.spent()}
    say(f"{args.workers} workers a rank are ready")
    try:
        ends = clock.spent() + args.drive_seconds
        last = None if args.training_scenes is None else args.training_scenes
        wanted = range(ranks.rank, last, ranks.world) if last else numbers_from(ranks.rank, ranks.world)
        made = list(workshop.make(order, wanted, lambda: clock.spent() > ends))
        facts["seconds_drives"] = clock.spent()
        say(f"{len(made)} training drives", everyone=True)
        share = max(1, args.scenes // ranks.world)
        held_out: dict[str, list] = {}
        orders: dict[str, Order] = {}
        for level in args.levels:
            split, other_seed, new_rig = LEVELS[level]
            orders[level] = replace(
                order, split=split, seed=args.seed + 1000 * other_seed, key_frames=args.exam_frames,
                scored=args.scored, new_rig=new_rig, rays=False,
            )  # fmt: skip
            held_out[level] = list(workshop.make(orders[level], range(ranks.rank, share * ranks.world, ranks.world)))
        facts["seconds_exams"] = clock.spent()
        say(f"{share} held-out drives of each of {len(args.levels)} levels", everyone=True)
    finally:
        workshop.close()
    drives = drives_of_all(made, args.key_frames, ranks, device)
    drives.top = contender.image_size[1] - contender.window[0]
    exams = {level: exam_of_all(held_out[level], orders[level], ranks, device) for level in args.levels}
    facts["seconds_shared"] = clock.spent()
    facts["training_scenes"] = len(drives) // args.key_frames
    say(f"{len(drives)} training frames and {sum(len(e.rows) for e in exams.values())} scored ones on every rank")
    return drives, exams, facts


def planned(
    args: Namespace, contender: Contender, mine: list[str], drives: Drives, exams: dict[str, Exam], ranks: Ranks,
    clock: Clock, say: Any,
) -> tuple[Schedule, dict[str, float]]:  # fmt: skip
    """The schedule that all arms can keep, and seconds of a step of each of this rank's.

    From a few steps and an exam of each; the schedule of plan.json if there is one.
    """
    file = args.output / "plan.json"
    plan = {"model": args.model, "batch": args.batch, "seed": args.seed}
    kept = read_json(file) if file.is_file() else None
    if kept is not None and {key: kept.get(key) for key in plan} != plan:
        raise SystemExit(f"{file} is of another comparison: give an empty --output folder")
    if kept is not None:
        return Schedule(kept["steps"], args.batch, kept["learning_rate"], args.seed), dict.fromkeys(mine, 1.0)
    trials = {} if args.learning_rate else tried_rates(args, contender, drives, ranks)
    rate = args.learning_rate or best_rate(trials)
    say(
        f"learning rate {rate:g}; mean losses of the trials: " + ", ".join(f"{r:g} {v:.2f}" for r, v in trials.items())
    )
    schedule = Schedule(args.train_steps or 1000, args.batch, rate, args.seed)
    fit, stepping = float(args.train_steps or 1e9), dict.fromkeys(mine, 1.0)
    if not args.smoke:
        examining = 0.0
        for name in mine:
            timed = step_seconds(contender, ARMS[name], drives, exams, schedule)
            parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in timed[2].items())
            say(f"{name}: {timed[0]:.3f} s a step ({parts}), {timed[1]:.1f} s for the exams", everyone=True)
            stepping[name], examining = timed[0], examining + timed[1]
        if mine and not args.train_steps:
            fit = (clock.left() - examining - RESERVE) / (1.03 * sum(stepping.values()))
    fit = agreed(fit, ranks, drives.images.device, "min")
    steps = max(2, int(fit))
    # All ranks have looked for the plan before one writes it.
    if ranks.is_main:
        atomic_write_json(file, {**plan, "steps": steps, "learning_rate": rate, "trials": plain(list(trials.items()))})
    return replace(schedule, steps=steps), stepping


def tried_rates(args: Namespace, contender: Contender, drives: Drives, ranks: Ranks) -> dict[float, float]:
    """Learning rate -> mean training loss at the end of a short trial of one arm; the ranks share them."""
    rates = [float(rate) for rate in args.rates.split(",")]
    found = {}
    names = args.arms.split(",")
    trial = ARMS[names[len(names) // 2]] if contender.rays else Arm(4)
    for rate in ranks.share(rates):
        schedule = Schedule(args.trial_steps, args.batch, rate, args.seed, constant=True)
        found[rate] = Training(contender, trial, drives, schedule, half=drives.images.is_cuda, recorded=True).trial()
    parts = ranks.gather(found)
    return {rate: part[rate] for rate in rates for part in parts if rate in part}


def best_rate(trials: dict[float, float]) -> float:
    """The smallest rate whose trial was within a hundredth of the best one."""
    lowest = min(trials.values())
    return min(rate for rate, loss in trials.items() if loss <= 1.01 * lowest)


def step_seconds(
    contender: Contender, arm: Arm, drives: Drives, exams: dict[str, Exam], schedule: Schedule
) -> tuple[float, float, dict[str, float]]:
    """Seconds of a training step, of all exams, and of a step's parts, from a network that is thrown away."""
    on_gpu = drives.images.is_cuda
    training = Training(contender, arm, drives, replace(schedule, steps=10_000), half=on_gpu, recorded=True)
    stepping = training.seconds_a_step(lambda: _now(drives))
    parts = training.parts(lambda: _now(drives))
    exam = exams[DEVELOPMENT]
    few = replace(exam, rows=exam.rows[: max(exam.per_scene, AT_ONCE // exam.per_scene * exam.per_scene)])
    examine(training, few, 2)
    began = _now(drives)
    examine(training, few, 2)
    scored = sum(len(one.rows) for one in exams.values())
    # The development scenes are asked twice.
    examining = (_now(drives) - began) * (scored + len(exam.rows)) / len(few.rows)
    del training
    gc.collect()  # its recording too
    return stepping, examining, parts


def _now(drives: Drives) -> float:
    if drives.images.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic()


def exam_seconds(exams: dict[str, Exam]) -> float:
    """A guess of an arm's exams where nothing better is known: a twentieth of a second a scored frame."""
    return 0.05 * sum(len(exam.rows) for exam in exams.values())


@torch.no_grad()
def examine(training: Training, exam: Exam, most: int = 0, settings: tuple[float, ...] | None = None) -> list[dict]:
    """Counts of every scene for each setting; quick ones of all settings where none are given and `most` is 0."""
    quick = settings is None and not most
    settings = settings or (training.contender.settings[:most] if most else training.contender.settings)
    return count(predictor(training, exam, settings), exam, training.contender.preset, len(settings), quick)


def predictor(training: Training, exam: Exam, settings: tuple[float, ...]) -> Any:
    """What the network answers, in evaluation mode and half precision on a GPU."""
    training.model.eval()
    device = exam.drives.images.device

    def predict(rows: Tensor) -> Any:
        images, ego2img = exam.drives.inputs(exam.rows[rows], training.arm.frames)
        with torch.no_grad(), torch.autocast(device.type, training.dtype, enabled=training.dtype is not None):
            return training.contender.predict(training.model, images, ego2img, settings)

    return predict


def one_arm(
    name: str, contender: Contender, drives: Drives, exams: dict[str, Exam], schedule: Schedule, args: Namespace,
    say: Any, enough: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train, examine and keep one arm in its folder; what is there already is read."""
    folder = args.output / name
    if (folder / "result.json").is_file():
        say("done before")
        return read_json(folder / "result.json")
    training = Training(contender, ARMS[name], drives, schedule, half=drives.images.is_cuda, recorded=True)
    facts = training.run(folder, say, enough)
    say(f"{facts['steps']} steps in {facts['seconds_training']:.0f} s, last loss {facts['last_loss']:.2f}")
    training.model.eval()
    contender.save(training.model, folder / "model")
    began = time.monotonic()
    published = contender.settings[0]
    chosen, scores = best_setting(examine(training, exams[DEVELOPMENT]), contender.preset.taxonomy)
    setting = contender.settings[chosen]
    say(f"mIoU of {DEVELOPMENT} by {contender.setting}: " + ", ".join(f"{v:.3f}" for v in scores))
    for level, exam in exams.items():
        counts, as_published = examine(training, exam, settings=(setting, published))
        save_file(counts, folder / f"{level.replace(' ', '_')}.safetensors")
        save_file(as_published, folder / f"{level.replace(' ', '_')}-published.safetensors")
        keep_samples(training, exam, setting, args.output / "samples" / f"{level.replace(' ', '_')}-{name}.npz")
    result = {
        "arm": name,
        "frames": ARMS[name].frames,
        "labels": ARMS[name].labels,
        **facts,
        "setting": {
            contender.setting: setting,
            "development_mIoU": dict(zip(contender.settings, scores, strict=True)),
        },
        "development": scores[chosen],
        "seconds_exams": time.monotonic() - began,
    }
    atomic_write_json(folder / "result.json", result)
    say(f"examined in {result['seconds_exams']:.0f} s")
    return result


def baselines(contender: Contender, drives: Drives, exams: dict[str, Exam], ranks: Ranks, output: Path) -> None:
    """Counts of two constant answers: all free, and each voxel's commonest class in the training labels."""
    spec, taxonomy = contender.preset
    grids = {
        "all free": lambda: torch.full(spec.shape, taxonomy.free, dtype=torch.uint8, device=drives.images.device),
        "commonest class": lambda: commonest(drives.labels[EXACT][0], taxonomy.num_classes),
    }
    # The last ranks have the fewest arms.
    for name in ranks.share(list(grids)[::-1]) if ranks.world > 1 else list(grids):
        grid = grids[name]()
        for level, exam in exams.items():
            folder = output / name.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            (counts,) = count(constant(grid), exam, contender.preset)
            save_file(counts, folder / f"{level.replace(' ', '_')}.safetensors")


def shown_rows(exam: Exam) -> Tensor:
    """The scored frames that are kept as samples: the last one of the first two scenes."""
    return torch.arange(exam.per_scene - 1, len(exam.rows), exam.per_scene)[:2]


def keep_scenes(exams: dict[str, Exam], folder: Path) -> None:
    """What the sample predictions are of: pictures, labels, masks."""
    for level, exam in exams.items():
        rows = shown_rows(exam)
        images, _ = exam.drives.inputs(exam.rows[rows], 1)
        index = rows.to(images.device)
        semantics, instances = (values[index] for values in exam.drives.labels[EXACT])
        save_arrays(
            folder / f"{level.replace(' ', '_')}-scenes.npz",
            images=images[:, 0].permute(0, 1, 3, 4, 2),
            labels=semantics,
            instances=instances,
            camera_mask=exam.masks["camera"][index],
        )


def keep_samples(training: Training, exam: Exam, setting: float, path: Path) -> None:
    """The predictions of the frames of `keep_scenes`."""
    (guess,), panoptic = predictor(training, exam, (setting,))(shown_rows(exam))
    arrays = {"prediction": guess}
    if panoptic is not None:
        arrays |= {"panoptic_prediction": panoptic[0], "predicted_instances": panoptic[1].to(torch.uint8)}
    save_arrays(path, **arrays)


def save_arrays(path: Path, **arrays: Tensor) -> None:
    """Write tensors as a compressed npz."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{key: value.cpu().numpy() for key, value in arrays.items()})
