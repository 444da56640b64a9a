"""Mode `sweep` of controllability.py: sampler settings against one another on development scenes.

Each setting draws the same scenes from the same noise; the one that is chosen makes the figures of mode `evaluate` on
other scenes. More guidance by the MPI follows the condition more and looks less like the world: both are shown.
"""

from argparse import Namespace
from pathlib import Path

import held_out
import torch
from drawing import Drawer, load_pipeline
from follow import Scorer, the_judge
from processes import Clock, device_of, group
from training_bank import training_frames

from syntheocc.engine.files import atomic_write_json, atomic_write_text
from syntheocc.engine.ranks import Ranks
from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.evaluation.kernel_distance import kernel_distance
from syntheocc.evaluation.report import markdown_table, plain, write_strip
from syntheocc.evaluation.scores import mean_iou
from syntheocc.worlds.cache import iterate_scenes


def sweep(args: Namespace) -> dict | None:
    """Run mode `sweep`; the report on rank 0, None elsewhere."""
    ranks = Ranks.from_environment()
    clock = Clock(args.seconds)
    torch.set_num_threads(max(1, args.threads))
    device = device_of(ranks, args.device)
    settings = []
    for text in args.settings.split():
        steps, guidance, mpi_guidance = text.split(",")
        settings.append((int(steps), float(guidance), float(mpi_guidance)))

    def say(text: str) -> None:
        if ranks.is_main:
            print(f"[{clock.spent():6.1f} s] {text}", flush=True)

    with group(ranks, device):
        pipe = load_pipeline(args.model, device, getattr(torch, args.dtype))
        width, height = args.image_size
        cells = (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
        numbers = ranks.share(range(args.scenes))
        scenes = held_out.ahead(iterate_scenes(args.split, numbers, args.seed, args.image_size, args.workers))
        judge_exists = args.judge and (args.judge / "model.safetensors").is_file()
        cache = None if judge_exists else training_frames(args, ranks, device)
        judge, _ = the_judge(args, cache, ranks, device, say)
        del cache
        scorer = Scorer(judge)
        frames = list(held_out.frames(scenes, device))
        real = [judge.features(frame.photographs.images).cpu() for frame in frames]
        found, first = {}, [frames[0].photographs.images] if frames else []
        for setting in settings:
            if found and clock.left() < 0:
                break
            drawn = Drawer(pipe, *setting, args.batch).draw(
                [frame.mpi(cells) for frame in frames],
                [frame.rig for frame in frames],
                [frame.scene.caption for frame in frames],
                [frame.number for frame in frames],
            )
            found[setting] = [
                (scorer.of(images, f.photographs.truth, f.photographs.covered), judge.features(images).cpu())
                for f, images in zip(frames, drawn, strict=True)
            ]
            first.append(drawn[0])
            say(f"steps, text and MPI guidance {setting} drawn")
        gathered = ranks.gather((real, found))
    if not ranks.is_main:
        return None
    return summarise(args, gathered, [row.cpu() for row in first])


def summarise(args: Namespace, gathered: list, strips: list[torch.Tensor]) -> dict:
    """The table of the settings that every rank got to, written into the output folder."""
    real = torch.stack([features for part, _ in gathered for features in part])  # [S, V, F]
    owner = torch.arange(len(real)).repeat_interleave(real.shape[1])
    flat = real.flatten(0, 1)
    mean, scale = flat.mean(0), flat.std(0).clamp_min(1e-6)
    draws = Resamples(len(real), args.resamples, seed=0)
    rows, entries = [], []
    for setting in gathered[0][1]:
        if not all(setting in found for _, found in gathered):
            continue
        results = [one for _, found in gathered for one in found[setting]]
        sums = draws.sums(torch.stack([counts for counts, _ in results]))
        covered, everywhere = draws.interval(mean_iou(sums[:, 0])), draws.interval(mean_iou(sums[:, 1]))
        features = torch.cat([features for _, features in results])
        distance = kernel_distance((flat - mean) / scale, (features - mean) / scale, owner)
        steps, guidance, mpi_guidance = setting
        rows.append([f"{steps}", guidance, mpi_guidance, covered, everywhere, distance.generated, distance.floor])
        entries.append(
            {
                "steps": steps,
                "guidance_scale": guidance,
                "mpi_guidance_scale": mpi_guidance,
                "covered": covered,
                "all": everywhere,
                "kernel_distance": distance,
            }
        )
    header = ["steps", "text guidance", "MPI guidance", "covered mIoU", "all mIoU", "KID", "KID of real halves"]
    text = f"{len(real)} {args.split} scenes\n\n{markdown_table(header, rows)}\n"
    report = plain({"benchmark": "controllability sweep", "scenes": len(real), "settings": entries})
    atomic_write_json(Path(args.output) / "sweep.json", report)
    atomic_write_text(Path(args.output) / "sweep.md", text)
    write_strip(Path(args.output) / "sweep.jpg", strips)
    print(text)
    return report
