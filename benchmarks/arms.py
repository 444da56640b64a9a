"""Mode `arms` of controllability.py: small models that differ in the code of the occupancy only.

Trainings are shared by the ranks; all see the same frames, batches, noise and number of steps. What is finished is
kept in the output folder and not done again. The plan and its hypotheses are in docs/controllability.md.
"""

import copy
import math
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import held_out
import torch
from condition_coding import ARMS, DENSE, CodedEncoder, samples_per_cell
from diffusers import DDPMScheduler, UNet2DConditionModel
from drawing import Drawer, load_pipeline
from follow import Scorer, the_judge
from processes import Clock, agreed, device_of, group, kept_going, of_all_ranks
from torch import Tensor
from training_bank import training_frames

from syntheocc import MPIControlNetModel, MultiviewUNet2DConditionModel, SyntheOccPipeline
from syntheocc.engine.ema import EMA
from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.report import write_strip
from syntheocc.occupancy.rendering.mpi import PlaneSpec, SemanticMPI
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE
from syntheocc.training.acceleration import prepare_for_training
from syntheocc.training.batch import TrainingBatch
from syntheocc.training.dropout import ConditionDropout
from syntheocc.training.step import Draws, SyntheOccStep
from syntheocc.worlds.cache import FrameCache, iterate_scenes

LEARNING_RATE, WARMUP, EMA_DECAY, CLIP = 6e-4, 100, 0.998, 1.0


@dataclass
class Lessons:
    """N training frames of all ranks: what a training step reads."""

    latents: Tensor  # float32 [N, V, C, h, w], scaled
    nearest: Tensor  # uint8 [N, V, h, w]
    nearest_plane: Tensor  # uint8 [N, V, h, w]
    labels: dict[int, Tensor]  # samples a cell -> uint8 [N, V, D, h, w]
    input_ids: Tensor  # int64 [N, 1, L] on the CPU
    neighbors: Tensor  # int64 [V, K] on the CPU


@dataclass
class Exam:
    """M held-out frames of all ranks: conditions, texts and labels."""

    labels: dict[int, Tensor]  # samples a cell -> uint8 [M, V, D, h, w]
    truth: Tensor  # uint8 [M, V, H, W]
    covered: Tensor  # bool [M, V, H, W]
    images: Tensor  # uint8 [M, V, 3, H, W]
    captions: list[str]
    numbers: list[int]
    rigs: list[Any]

    def mpi(self, index: int, samples: int) -> SemanticMPI:
        """Frame `index`'s condition; its nearest class is not that of all codes, which find their own."""
        labels = self.labels[samples][index]
        hit = labels != TABLE.free
        plane = hit.to(torch.uint8).argmax(1)
        nearest = labels.gather(1, plane[:, None])[:, 0]
        names = tuple(self.rigs[index].names)
        return SemanticMPI(labels, nearest, plane.to(torch.int16), TABLE, PlaneSpec(), "center", names)


class ArmStep(SyntheOccStep):
    """The training step with all noise of a step drawn at once: samples are many and small. The same for all arms."""

    def draw(self, batch: TrainingBatch, step: int, positions: Any, size: Any, seed: int) -> Draws:
        """Noise on the device, decisions on the CPU, from (seed, step)."""
        decisions = torch.Generator().manual_seed(1_000_003 * seed + step)
        noise = torch.Generator(self.device).manual_seed(1_000_003 * seed + step)
        samples, views = batch.samples, batch.views
        times = torch.randint(self.noise_scheduler.config.num_train_timesteps, (samples,), generator=decisions)
        dropped = torch.rand(samples, 2, generator=decisions)
        return Draws(
            times.repeat_interleave(views).to(self.device, non_blocking=True),
            torch.randn(tuple(size), generator=noise, device=self.device),
            None,
            (dropped[:, 0] < self.dropout.text).tolist(),
            (dropped[:, 1] < self.dropout.mpi).tolist(),
        )


def networks(arm: str, seed: int, shared: SyntheOccPipeline, smoke: bool) -> tuple[Any, Any]:
    """UNet and ControlNet of an arm on the CPU; of one seed all but the first layers are the same in every arm."""
    torch.manual_seed(seed)
    channels = (16, 32) if smoke else (48, 96, 160)
    crossed = ("CrossAttnDownBlock2D",) * (len(channels) - 1)
    stock = UNet2DConditionModel(
        in_channels=shared.vae.config.latent_channels,
        out_channels=shared.vae.config.latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *crossed),
        up_block_types=(*(name.replace("Down", "Up") for name in crossed), "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=tuple(max(1, width // 32) for width in channels),  # the number of heads
        norm_num_groups=8 if smoke else 16,
        cross_attention_dim=shared.text_encoder.config.hidden_size,
        use_linear_projection=True,
        sample_size=8,
    )
    unet = MultiviewUNet2DConditionModel.from_unet(stock)
    controlnet = MPIControlNetModel.from_unet(stock)
    torch.manual_seed(seed + 1)
    controlnet.controlnet_cond_embedding = CodedEncoder(arm, channels[0])
    return unet, controlnet


def make_step(arm: str, seed: int, shared: SyntheOccPipeline, args: Namespace, steps: int, device: Any) -> ArmStep:
    """A training step that trains all of UNet and ControlNet from scratch."""
    unet, controlnet = networks(arm, seed, shared, args.smoke)
    schedule = shared.scheduler.config
    names = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type")
    noise = DDPMScheduler(
        **{name: schedule[name] for name in names},
        rescale_betas_zero_snr=schedule.get("rescale_betas_zero_snr", False),
    )
    tokenizer = shared.tokenizer
    empty = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    step = ArmStep(
        unet.to(device),
        controlnet.to(device),
        None,
        copy.deepcopy(shared.text_encoder),  # which becomes bfloat16; the pipeline's own does not
        noise,
        dropout=ConditionDropout(),
        empty_input_ids=empty[0],
        max_train_steps=steps,
        seed=seed,
    )
    step.requires_grad_(False)
    step.unet.requires_grad_(True)
    step.controlnet.requires_grad_(True)
    on_gpu = device.type == "cuda"
    step.to(device)
    return prepare_for_training(step, torch.bfloat16 if on_gpu else torch.float32, channels_last=on_gpu)


def train(step: ArmStep, arm: str, lessons: Lessons, args: Namespace, stop: int, say: Any) -> tuple[EMA, list[float]]:
    """Train `stop` steps of the schedule of `step.max_train_steps`: the average weights, and the loss in tenths."""
    device, total = step.device, step.max_train_steps
    trained = {name: p for name, p in step.named_parameters() if p.requires_grad}
    encoder = step.controlnet.controlnet_cond_embedding
    wide = [encoder.layers[2].weight] if arm in DENSE else []
    others = [p for p in trained.values() if all(p is not one for one in wide)]
    groups = [{"params": others, "factor": 1.0}]
    if wide:
        groups.append({"params": wide, "factor": encoder.rate_of_wide_layer})
    optimizer = torch.optim.AdamW(
        groups, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=device.type == "cuda"
    )
    ema = EMA(trained, EMA_DECAY)
    picker = torch.Generator().manual_seed(step.seed)
    labels = lessons.labels[samples_per_cell(arm)]
    running, tenths = torch.zeros((), device=device), []
    since = 0
    step.unet.train()
    step.controlnet.train()
    for i in range(stop):
        rate = min((i + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * i / total)))
        for parameters in optimizer.param_groups:
            parameters["lr"] = LEARNING_RATE * rate * parameters["factor"]
        pick = torch.randint(len(labels), (args.train_batch,), generator=picker)
        here = pick.to(device)
        batch = TrainingBatch(
            input_ids=lessons.input_ids[pick],
            neighbors=lessons.neighbors,
            latents=lessons.latents[here],
            mpi_labels=labels[here],
            nearest=lessons.nearest[here],
            nearest_plane=lessons.nearest_plane[here],
        )
        loss = step(batch, i, list(range(args.train_batch)))["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        ema.update()
        running += loss.detach()
        since += 1
        if (i + 1) * 10 // stop > i * 10 // stop:
            tenths.append(float(running) / since)
            running, since = torch.zeros((), device=device), 0
            say(f"{arm}: step {i + 1} of {stop}, loss {tenths[-1]:.4f}")
    return ema, tenths


def pipeline_of(step: ArmStep, arm: str, shared: SyntheOccPipeline, smoke: bool) -> SyntheOccPipeline:
    """The arm's weights in networks laid out as usual, with the shared VAE, text encoder and sampler."""
    unet, controlnet = networks(arm, step.seed, shared, smoke)
    for network, trained in ((unet, step.unet), (controlnet, step.controlnet)):
        network.load_state_dict(trained.state_dict())
        network.to(step.device, memory_format=torch.channels_last).eval()
    pipe = SyntheOccPipeline(
        vae=shared.vae,
        text_encoder=shared.text_encoder,
        tokenizer=shared.tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=type(shared.scheduler).from_config(shared.scheduler.config),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.decode_batch_size = shared.decode_batch_size
    return pipe


def examine(
    drawer: Drawer, arm: str, exam: Exam, scorer: Scorer, most: int | None = None
) -> tuple[list, list, Tensor]:
    """Counts [2, C, C] and features [V, F] of every held-out frame, and the pictures of the first ones."""
    counts, features, first = [], [], None
    last = len(exam.captions) if most is None else most
    samples = samples_per_cell(arm)
    for start in range(0, last, drawer.batch):
        chosen = range(start, min(start + drawer.batch, last))
        drawn = drawer.draw(
            [exam.mpi(i, samples) for i in chosen],
            [exam.rigs[i] for i in chosen],
            [exam.captions[i] for i in chosen],
            [exam.numbers[i] for i in chosen],
        )
        first = drawn[:3].cpu() if first is None else first
        for i, images in zip(chosen, drawn, strict=True):
            counts.append(scorer.of(images, exam.truth[i], exam.covered[i]))
            features.append(scorer.judge.features(images).cpu())
    assert first is not None
    return counts, features, first


def lessons_of(cache: FrameCache, drawer: Drawer, ranks: Ranks) -> Lessons:
    """Training frames of all ranks, images as latents."""
    pipe = drawer.pipe
    vae = pipe.vae
    with torch.no_grad():
        parts = [
            vae.encode((part.float() / 127.5 - 1).to(vae.dtype)).latent_dist.mode().float()
            for part in cache.images.flatten(0, 1).split(6 * drawer.batch)
        ]
    latents = torch.cat(parts).unflatten(0, cache.images.shape[:2]) * vae.config.scaling_factor
    assert cache.mpi_labels_spc4 is not None
    count = int(agreed(len(cache), ranks, cache.device, "min"))
    captions = [caption for part in ranks.gather(cache.captions[:count]) for caption in part]
    tokenizer = pipe.tokenizer
    ids = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return Lessons(
        of_all_ranks(latents, ranks),
        of_all_ranks(cache.nearest, ranks),
        of_all_ranks(cache.nearest_plane, ranks),
        {1: of_all_ranks(cache.mpi_labels, ranks), 4: of_all_ranks(cache.mpi_labels_spc4, ranks)},
        ids[:, None],
        cache.neighbors,
    )


def exam_of(scenes: Any, count: int, cells: tuple, drawer: Drawer, scorer: Scorer, ranks: Ranks) -> tuple[Exam, dict]:
    """Held-out frames of all ranks, and the counts and features of the real and the reconstructed ones."""
    frames = [frame for frame, _ in zip(held_out.frames(scenes, drawer.device), range(count), strict=False)]
    references: dict[str, list] = {"real": [], "vae": [], "real features": []}
    for frame in frames:
        seen = frame.photographs
        references["real"].append(scorer.of(seen.images, seen.truth, seen.covered))
        references["vae"].append(scorer.of(drawer.reconstruct(seen.images), seen.truth, seen.covered))
        references["real features"].append(scorer.judge.features(seen.images).cpu())
    labels = {n: torch.stack([frame.mpi(cells, n).labels for frame in frames]) for n in (1, 4)}
    gathered = ranks.gather((references, [(f.scene.caption, f.number, f.rig) for f in frames]))
    facts = [fact for _, part in gathered for fact in part]

    def stacked(name: str) -> Tensor:
        return of_all_ranks(torch.stack([getattr(f.photographs, name) for f in frames]), ranks)

    exam = Exam(
        {n: of_all_ranks(value, ranks) for n, value in labels.items()},
        stacked("truth"),
        stacked("covered"),
        stacked("images"),
        [caption for caption, _, _ in facts],
        [number for _, number, _ in facts],
        [rig for _, _, rig in facts],
    )
    return exam, {name: [one for part, _ in gathered for one in part[name]] for name in references}


def steps_that_fit(
    trainings: list,
    shared: SyntheOccPipeline,
    lessons: Lessons,
    exam: Exam,
    scorer: Scorer,
    args: Namespace,
    clock: Clock,
) -> float:
    """How many steps all of a rank's trainings can have in the time left, from a few steps of each."""
    drawing, stepping = 0.0, 0.0
    warm, timed = (1, 2) if args.smoke else (4, 12)
    for seed, arm in trainings:
        step = make_step(arm, seed, shared, args, 1000, scorer.judge.head.weight.device)
        train(step, arm, lessons, args, warm, lambda text: None)
        started = time.monotonic()
        train(step, arm, lessons, args, timed, lambda text: None)
        stepping += (time.monotonic() - started) / timed
        pipe = pipeline_of(step, arm, shared, args.smoke)
        drawer = Drawer(pipe, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.batch)
        examine(drawer, arm, exam, scorer, min(2, len(exam.captions)))
        started = time.monotonic()
        one = min(args.batch, len(exam.captions))
        examine(drawer, arm, exam, scorer, one)
        drawing += (time.monotonic() - started) * len(exam.captions) / one
    return (clock.left() - 1.15 * drawing - 20) / (1.03 * stepping)


def compare(args: Namespace) -> dict | None:
    """Run mode `arms`; the report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    output = Path(args.output)
    names = tuple(args.arms.split(",")) if args.arms else ARMS
    unknown = set(names) - set(ARMS)
    if unknown:
        raise SystemExit(f"unknown arms {sorted(unknown)}; known: {', '.join(ARMS)}")
    trainings = [(int(seed), arm) for seed in args.seeds.split(",") for arm in names]
    mine = ranks.share(trainings)

    def say(text: str, everyone: bool = False) -> None:
        if ranks.is_main or everyone:
            print(f"[{clock.spent():6.1f} s, rank {ranks.rank}] {text}", flush=True)

    with group(ranks, device):
        shared = load_pipeline(args.model, device, torch.float32)
        shared.text_encoder.requires_grad_(False)
        drawer = Drawer(shared, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.batch)
        width, height = args.image_size
        cells = (height // shared.vae_scale_factor, width // shared.vae_scale_factor)
        cache = training_frames(args, ranks, device, with_spc4=True)
        say(f"{len(cache)} training frames a rank")
        count = args.scenes // ranks.world
        numbers = ranks.share(range(count * ranks.world))
        scenes = held_out.ahead(iterate_scenes(args.split, numbers, args.seed, args.image_size, args.workers))
        judge, judge_facts = the_judge(args, cache, ranks, device, say)
        scorer = Scorer(judge)
        lessons = lessons_of(cache, drawer, ranks)
        del cache
        exam, references = exam_of(scenes, count, cells, drawer, scorer, ranks)
        say(f"{len(lessons.latents)} training frames and {len(exam.captions)} held-out frames on every rank")

        plan_file = output / "plan.json"
        plan = {"trainings": [list(one) for one in trainings], "batch": args.train_batch, "scenes": len(exam.captions)}
        kept = read_json(plan_file) if plan_file.is_file() else None
        if kept is not None and {key: kept.get(key) for key in plan} != plan:
            raise SystemExit(f"{plan_file} is of another comparison: give an empty --output folder")
        if kept is not None:
            steps = kept["steps"]
        elif args.smoke or args.train_steps:
            steps = args.train_steps or 3
        else:
            fit = steps_that_fit(mine, shared, lessons, exam, scorer, args, clock)
            steps = max(10, int(agreed(fit, ranks, device, "min")))
        # All ranks have read the plan before one writes it.
        agreed(0.0, ranks, device)
        if ranks.is_main:
            atomic_write_json(plan_file, {**plan, "steps": steps})
        say(f"every training has {steps} steps of {args.train_batch} samples")
        failures: list[str] = []
        last = 0.0
        for seed, arm in mine:
            # Better a table without this row than none: the machine is gone when its time is over.
            if last > clock.left() + 40:
                failures.append(f"{arm}, seed {seed}: no time left")
                continue
            began = clock.spent()
            with kept_going(f"{arm}, seed {seed}", failures):
                one_training(arm, seed, shared, lessons, exam, scorer, args, steps, output, say)
            last = clock.spent() - began
        failures = [text for part in ranks.gather(failures) for text in part]
        agreed(0.0, ranks, device)
    if not ranks.is_main:
        return None
    from arms_report import summarise

    facts = {
        "judge": judge_facts,
        "steps": steps,
        "training_frames": len(lessons.latents),
        "ranks": ranks.world,
        "seconds": clock.spent(),
        "failures": failures,
    }
    return summarise(args, trainings, references, exam.numbers, facts, judge.taxonomy)


def one_training(
    arm: str,
    seed: int,
    shared: SyntheOccPipeline,
    lessons: Lessons,
    exam: Exam,
    scorer: Scorer,
    args: Namespace,
    steps: int,
    output: Path,
    say: Any,
) -> None:
    """Train, draw and score one arm into its folder; nothing if that is done already."""
    from safetensors.torch import save_file

    folder = output / f"{arm}-seed{seed}"
    if (folder / "result.json").is_file():
        say(f"{arm}, seed {seed}: done before", everyone=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    step = make_step(arm, seed, shared, args, steps, scorer.judge.head.weight.device)
    ema, losses = train(step, arm, lessons, args, steps, say)
    trained = time.monotonic() - started
    ema.copy_to()
    pipe = pipeline_of(step, arm, shared, args.smoke)
    drawer = Drawer(pipe, args.steps, args.guidance_scale, args.mpi_guidance_scale, args.batch)
    counts, features, first = examine(drawer, arm, exam, scorer)
    kept = {"counts": torch.stack(counts).int(), "features": torch.stack(features)}
    save_file(kept, folder / "scores.safetensors")
    mpi = exam.mpi(0, samples_per_cell(arm))
    write_strip(folder / "views.jpg", [mpi.palette_image().movedim(-1, 1), exam.images[0], *first])
    encoder = step.controlnet.controlnet_cond_embedding
    result = {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "loss_by_tenths": losses,
        "seconds_training": trained,
        "seconds": time.monotonic() - started,
        "parameters": sum(p.numel() for network in (step.unet, step.controlnet) for p in network.parameters()),
        "first_layers": sum(p.numel() for p in encoder.parameters()),
    }
    atomic_write_json(folder / "result.json", result)
    say(f"{arm}, seed {seed}: {steps} steps in {trained:.0f} s, loss {losses[-1]:.4f}", everyone=True)
