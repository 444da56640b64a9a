"""One run of exchange_rate.py: frames, drawings, arms, exams, in that order and within the time."""

import time
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from drawing import Drawer, load_pipeline
from exchange_data import NEW, FrameOrder, Pool, drawn, make_frames, pool_of_all, share
from perception_checks import checked_operators
from perception_data import Exam, Workshop, exam_of_all
from perception_models import Arm, Contender, Schedule, Training, draws, recording_agrees, sparseocc
from perception_run import best_rate, examine
from perception_scores import best_setting
from processes import Clock, agreed, device_of, group, kept_going
from safetensors.torch import save_file
from torch import Tensor

from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.engine.ranks import Ranks
from syntheocc.worlds.street import nominal_rig

# What is held out: (split, whether the world has another seed than in training).
LEVELS = {"val": ("val", False), "new scenes": ("train", True), "new assets": ("test", False)}
DEVELOPMENT = "val"
SCORED = (7, 15)  # key frames of a held-out scene
RESERVE = 25.0


@dataclass(frozen=True)
class Mixture:
    """The frames of an arm.

    tenths: of the training scenes whose photographs are used; blocks: what else, of the same scenes; seeds: how often.
    """

    tenths: int
    blocks: tuple[str, ...] = ()
    repeated: bool = False


ARMS = {
    "10": Mixture(1, repeated=True),
    "10+1x": Mixture(1, ("drawn 1",), repeated=True),
    "10+2x": Mixture(1, ("drawn 1", "drawn 2"), repeated=True),
    "10+1x edited": Mixture(1, ("edited",), repeated=True),
    "10+1x new": Mixture(1, ("new",), repeated=True),
    "30": Mixture(3),
    "30+1x": Mixture(3, ("drawn 1",)),
    "30+2x": Mixture(3, ("drawn 1", "drawn 2")),
    "100": Mixture(10),
    "100+1x": Mixture(10, ("drawn 1",)),
    "100+2x": Mixture(10, ("drawn 1", "drawn 2")),
}


class MixedTraining(Training):
    """A `Training` on some rows of a pool."""

    def __init__(self, contender: Contender, pool: Pool, rows: Tensor, schedule: Schedule, recorded: bool = False):
        super().__init__(contender, contender_arm(), pool.drives, schedule, pool.drives.images.is_cuda, recorded)
        self.rows = rows
        chosen = draws(schedule, len(rows))
        self.draws = ((rows[index], flips) for index, flips in chosen)


def contender_arm() -> Arm:
    """Single frames, exact labels; the preset is the contender's own."""
    return Arm(1)


def rows_of(pool: Pool, mixture: Mixture) -> Tensor:
    """The rows that an arm learns from."""
    return torch.cat([pool.rows(block, mixture.tenths) for block in ("real", *mixture.blocks)])


def run(args: Namespace) -> dict | None:
    """The report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    contender = sparseocc(args.perception, args.image_size)
    runs = [
        (name, seed) for name in args.arms for seed in range(args.seeds if ARMS[name].repeated else 1)
    ]  # fmt: skip

    def say(text: str, everyone: bool = False) -> None:
        if ranks.is_main or everyone:
            print(f"[{clock.spent():6.1f} s, rank {ranks.rank}] {text}", flush=True)

    with group(ranks, device):
        pool, exams, facts = world(args, contender, ranks, device, clock, say)
        facts["operators"] = checked_operators(device)
        failures: list[str] = []
        recorded = False
        if device.type == "cuda":
            fault = recording_agrees(
                contender, contender_arm(), pool.drives, Schedule(12, args.batch, 1e-3, args.seed)
            )
            say(f"steps recorded as CUDA graphs: {fault or 'yes'}", everyone=True)
            # Every rank the same way, or some would have fewer steps.
            recorded = agreed(float(fault is None), ranks, device, "min") == 1.0
        schedule = planned(args, contender, pool, exams, runs, recorded, ranks, clock, say)
        facts |= {"schedule": vars(schedule), "recorded": recorded}
        say(f"{len(runs)} runs of {schedule.steps} steps of {schedule.batch} samples, {clock.left():.0f} s are left")
        mine = ranks.share(runs)
        for i, (name, seed) in enumerate(mine):
            with kept_going(f"{name}, seed {seed}", failures):
                ends = clock.spent() + (clock.left() - RESERVE) / (len(mine) - i)
                own = replace(schedule, seed=args.seed + seed)
                one_run(args, name, contender, pool, exams, own, recorded, ends, clock, say)
        failures = [text for part in ranks.gather(failures) for text in part]
        facts |= {"ranks": ranks.world, "failures": failures, "spent": clock.spent()}
        report = None
        if ranks.is_main:
            from exchange_report import summarise

            scenes = {name: exam.scenes for name, exam in exams.items()}
            report = summarise(args, runs, contender.preset.taxonomy, scenes, facts)
        ranks.gather(None)
    return report


def world(
    args: Namespace, contender: Contender, ranks: Ranks, device: torch.device, clock: Clock, say: Any
) -> tuple[Pool, dict[str, Exam], dict[str, Any]]:
    """The pool and the exams of all ranks on each of them, and how long they took."""
    step = max(1, 20 // args.frames_per_scene)
    keys = tuple(range(step // 2, 20, step))[: args.frames_per_scene]
    order = FrameOrder(
        "train", args.seed, keys, args.image_size, contender.window, contender.preset, str(device),
        conditions=True, edited="10+1x edited" in args.arms,
    )  # fmt: skip
    warm = replace(order, key_frames=keys[:1], edited=False)
    workshop = Workshop(args.workers, warm, make_frames)
    facts: dict[str, Any] = {"seconds_workers": clock.spent()}
    try:
        ends = clock.spent() + args.frame_seconds
        wanted = range(ranks.rank, max(args.training_scenes, ranks.world), ranks.world)
        made = list(workshop.make(order, wanted, lambda: clock.spent() > ends))
        tenth = [one for one in made if share(one["number"], 1)]
        fresh: list[dict[str, Any]] = []
        if "10+1x new" in args.arms:
            unseen = replace(order, edited=False)
            first = NEW + ranks.rank
            fresh = list(workshop.make(unseen, range(first, first + len(tenth) * ranks.world, ranks.world)))
        facts["seconds_frames"] = clock.spent()
        say(f"{len(made)} training scenes, {len(tenth)} of them among the first tenth", everyone=True)
        held_out = {}
        each = max(1, args.scenes // ranks.world)
        for level, (split, other) in LEVELS.items():
            asked = replace(
                order, split=split, seed=args.seed + 1000 * other, key_frames=SCORED[: 1 if args.smoke else 2],
                conditions=False, edited=False, scored=True,
            )  # fmt: skip
            numbers = range(ranks.rank, each * ranks.world, ranks.world)
            held_out[level] = (asked, list(workshop.make(asked, numbers)))
        facts["seconds_exams"] = clock.spent()
    finally:
        workshop.close()
    parts = draw_all(args, made, tenth, fresh, contender.window, device)
    facts["seconds_drawn"] = clock.spent()
    say(f"views drawn for {len(made)} scenes", everyone=True)
    pool = pool_of_all(parts, ranks, device)
    exams = {}
    for level, (asked, scenes) in held_out.items():
        of = SimpleNamespace(key_frames=len(asked.key_frames), scored=tuple(range(len(asked.key_frames))))
        exams[level] = exam_of_all(scenes, of, ranks, device)  # type: ignore[arg-type]
    facts["seconds_shared"] = clock.spent()
    facts["frames"] = {name: len(rows) for name, rows in pool.blocks.items()}
    facts["frames_of_arms"] = {name: len(rows_of(pool, ARMS[name])) for name in args.arms}
    objects = sum(ranks.gather(sum(one.get("edited_objects", 0) for one in tenth)))
    facts["inserted_objects"] = objects
    say(f"rows of the pool: {facts['frames']}; {objects} objects inserted")
    return pool, exams, facts


def draw_all(
    args: Namespace, made: list[dict[str, Any]], tenth: list[dict[str, Any]], fresh: list[dict[str, Any]],
    window: tuple[int, int], device: torch.device,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """The blocks of this rank's scenes; conditions are dropped when they are drawn."""
    pipe = load_pipeline(args.model, device, getattr(torch, args.dtype))
    drawer = Drawer(pipe, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.draw_batch)
    rig = nominal_rig(args.image_size[1], args.image_size[0])  # tells which cameras are neighbours, alike in all
    wanted = {block for name in args.arms for block in ARMS[name].blocks}
    most = max((ARMS[name].tenths for name in args.arms if ARMS[name].blocks), default=0)
    parts: dict[str, list[dict[str, Any]]] = {"real": made}
    geometry = ("number", "global2img", "grid2global")

    def block(name: str, scenes: list[dict[str, Any]], seed: int, prefix: str = "", labels: str | None = None) -> None:
        if name not in wanted:
            return
        parts[name] = []
        for one in scenes:
            views = {key: one[key] for key in geometry} | {"images": drawn(one, drawer, rig, seed, window, prefix)}
            if labels is not None:
                views |= {key: one[f"{labels}{key}"] for key in ("semantics", "instances")}
            parts[name].append(views)

    used = [one for one in made if share(one["number"], most)]
    block("drawn 1", used, 1)
    block("drawn 2", used, 2)
    block("edited", [one for one in tenth if "edited_mpi" in one], 3, "edited_", "edited_")
    block("new", fresh, 4, labels="")
    for one in made:
        for name in [name for name in one if name.endswith(("mpi", "nearest", "plane"))]:
            del one[name]
    return parts


def planned(
    args: Namespace, contender: Contender, pool: Pool, exams: dict[str, Exam], runs: list[tuple[str, int]],
    recorded: bool, ranks: Ranks, clock: Clock, say: Any,
) -> Schedule:  # fmt: skip
    """The schedule that all runs can keep; the one of plan.json if there is."""
    file = args.output / "plan.json"
    plan = {"perception": args.perception, "batch": args.batch, "seed": args.seed}
    kept = read_json(file) if file.is_file() else None
    if kept is not None and {key: kept.get(key) for key in plan} != plan:
        raise SystemExit(f"{file} is of another comparison: give an empty --output folder")
    if kept is not None:
        return Schedule(kept["steps"], args.batch, kept["learning_rate"], args.seed)
    rows = rows_of(pool, ARMS[args.arms[0]])
    trials: dict[float, float] = {}
    rates = [float(rate) for rate in args.rates.split(",")]
    if not args.learning_rate:
        own = {}
        for rate in ranks.share(rates):
            schedule = Schedule(args.trial_steps, args.batch, rate, args.seed, constant=True)
            own[rate] = MixedTraining(contender, pool, rows, schedule, recorded).trial()
        trials = {rate: value for part in ranks.gather(own) for rate, value in part.items()}
    rate = args.learning_rate or best_rate(trials)
    say(f"learning rate {rate:g}; " + ", ".join(f"{r:g} {v:.2f}" for r, v in sorted(trials.items())))
    steps = float(args.train_steps or 0)
    if not steps:
        training = MixedTraining(contender, pool, rows, Schedule(10_000, args.batch, rate, args.seed), recorded)
        training.model.train()
        for _ in range(6):
            training.one()
        began = _now(pool)
        for _ in range(12):
            training.one()
        stepping = (_now(pool) - began) / 12
        exam = exams[DEVELOPMENT]
        few = replace(exam, rows=exam.rows[:8])
        examine(training, few, 2)
        began = _now(pool)
        examine(training, few, 2)
        examining = (_now(pool) - began) / len(few.rows) * sum(len(one.rows) for one in (*exams.values(), exam))
        each = -(-len(runs) // ranks.world)
        steps = ((clock.left() - RESERVE) / each - examining) / (1.05 * stepping)
        say(f"{stepping:.3f} s a step, {examining:.1f} s for the exams of a run", everyone=True)
    steps = max(2, int(agreed(steps, ranks, pool.drives.images.device, "min")))
    if ranks.is_main:
        atomic_write_json(file, {**plan, "steps": steps, "learning_rate": rate})
    return Schedule(steps, args.batch, rate, args.seed)


def _now(pool: Pool) -> float:
    if pool.drives.images.is_cuda:
        torch.cuda.synchronize()
    return time.monotonic()


def one_run(
    args: Namespace, name: str, contender: Contender, pool: Pool, exams: dict[str, Exam], schedule: Schedule,
    recorded: bool, ends: float, clock: Clock, say: Any,
) -> None:  # fmt: skip
    """Train and examine one arm with one seed, and keep it; what is there already stays."""
    folder = folder_of(args.output, name, schedule.seed - args.seed)
    if (folder / "result.json").is_file():
        say(f"{name}, seed {schedule.seed}: done before", everyone=True)
        return
    rows = rows_of(pool, ARMS[name])
    training = MixedTraining(contender, pool, rows, schedule, recorded)
    facts = training.run(folder, lambda text: None, lambda: clock.spent() > ends)
    training.model.eval()
    chosen, scores = best_setting(examine(training, exams[DEVELOPMENT]), contender.preset.taxonomy)
    setting = contender.settings[chosen]
    for level, exam in exams.items():
        (counts,) = examine(training, exam, settings=(setting,))
        save_file(counts, folder / f"{level.replace(' ', '_')}.safetensors")
    facts |= {"rows": len(rows), "rounds": training.step * schedule.batch / len(rows)}
    atomic_write_json(folder / "result.json", {"arm": name, **facts, contender.setting: setting})
    say(f"{name}, seed {schedule.seed}: {facts['steps']} steps in {facts['seconds_training']:.0f} s, last loss "
        f"{facts['last_loss']:.2f}, mIoU of {DEVELOPMENT} {max(scores):.3f}", everyone=True)  # fmt: skip


def folder_of(output: Path, name: str, seed: int) -> Path:
    """Where a run's results lie."""
    return output / f"{name.replace(' ', '_')}-seed{seed}"
