"""Tables of exchange_rate.py: every arm on every level, what it gains over real frames alone, and the exchange rate.

With m(n) = a + b ln n through the arms of real frames alone, an arm of n real and g generated frames that gains d over
its n real ones is worth n exp(d / b) real frames, and each generated one (n exp(d / b) - n) / g of them. Intervals are
over scenes and, where an arm has several seeds, over seeds: both are drawn anew in every resample, the same for all
arms.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import reporting
import torch
from exchange_data import INSERTED, RARE
from exchange_run import ARMS, folder_of
from perception_scores import by_class, figures, ray_iou, voxel_iou
from safetensors.torch import load_file
from torch import Tensor

from syntheocc.engine.files import atomic_write_json, atomic_write_text, read_json
from syntheocc.evaluation.bootstrap import Interval, Resamples
from syntheocc.evaluation.report import markdown_table, plain
from syntheocc.occupancy.taxonomy import Taxonomy

FIGURES = ("mIoU camera", "RayIoU", "mIoU camera, rare", "RayIoU, rare", "mIoU camera, dynamic", "IoU camera")
EXCHANGED = FIGURES[:4]
# Beyond this many times the real frames the curve says nothing.
FARTHEST = 1000.0


def values_of(counts: dict[str, Tensor], draws: Resamples, taxonomy: Taxonomy) -> dict[str, Tensor]:
    """`FIGURES` on the sample and each resample of the scenes, float64 [1 + B]."""
    found = figures(counts, draws, taxonomy)
    rare = [taxonomy.id_of(name) for name in RARE if name in taxonomy.classes]
    found["mIoU camera, rare"] = voxel_iou(draws.sums(counts["camera"]), taxonomy)[..., rare].nanmean(-1)
    found["RayIoU, rare"] = ray_iou(draws.sums(counts["rays"]), taxonomy)[..., rare].flatten(-2).nanmean(-1)
    return {name: found[name] for name in FIGURES}


def over_seeds(values: Sequence[Tensor], seed: int = 0) -> Tensor:
    """The mean over seeds of values [1 + B] each, in every resample over as many seeds drawn anew."""
    stacked = torch.stack(list(values))  # [K, 1 + B]
    number, rows = stacked.shape
    picks = torch.randint(number, (number, rows), generator=torch.Generator().manual_seed(seed))
    picks[:, 0] = torch.arange(number)
    return stacked.gather(0, picks).mean(0)


def slope_of(frames: Sequence[int], values: Sequence[Tensor]) -> Tensor:
    """Slope of figures [1 + B] over the logarithm of the numbers of frames, least squares: [1 + B]."""
    x = torch.tensor([math.log(n) for n in frames], dtype=torch.float64)
    x = x - x.mean()
    y = torch.stack(list(values))
    return (x[:, None] * (y - y.mean(0))).sum(0) / x.square().sum()


def exchange_of(gain: Tensor, slope: Tensor, real: int, generated: int) -> Tensor:
    """Real frames that one generated frame is worth, [1 + B]; NaN where more real frames do not help."""
    growth = (gain / slope).clamp(-math.log(FARTHEST), math.log(FARTHEST))
    rate = real * (growth.exp() - 1) / generated
    return torch.where(slope > 0, rate, torch.nan)


def summarise(
    args: Namespace, runs: list[tuple[str, int]], taxonomy: Taxonomy, scenes: dict[str, int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write report.json and report.md from the folders of the runs, and return the report."""
    output = Path(args.output)
    done = [(name, seed) for name, seed in runs if (folder_of(output, name, seed) / "result.json").is_file()]
    names = list(dict.fromkeys(name for name, _ in done))
    levels = {}
    for level, number in scenes.items():
        draws = Resamples(number, args.resamples, seed=0)
        file = f"{level.replace(' ', '_')}.safetensors"
        counts = {run: load_file(folder_of(output, *run) / file) for run in done}
        each = {run: values_of(value, draws, taxonomy) for run, value in counts.items()}
        arms = {
            name: {
                key: over_seeds([each[run][key] for run in done if run[0] == name]) for key in FIGURES
            }
            for name in names
        }  # fmt: skip
        classes = {}
        for name in names:
            own_runs = [counts[run] for run in done if run[0] == name]
            classes[name] = by_class({key: sum(one[key] for one in own_runs) for key in own_runs[0]}, taxonomy)
        levels[level] = {
            "arms": {
                name: {key: draws.interval(value) for key, value in found.items()} for name, found in arms.items()
            },
            "seeds": {
                name: {key: [float(each[run][key][0]) for run in done if run[0] == name] for key in EXCHANGED}
                for name in names
            },
            "gains": gains(arms, facts["frames_of_arms"], draws),
            "classes": classes,
        }
    report = {
        "benchmark": "exchange rate",
        **reporting.provenance(args),
        "scenes": scenes,
        **facts,
        "rare": list(RARE),
        "inserted_a_frame": INSERTED,
        "runs": {
            f"{name}, seed {seed}": read_json(folder_of(output, name, seed) / "result.json") for name, seed in done
        },
        "levels": levels,
    }
    text = as_markdown(report)
    atomic_write_json(output / "report.json", plain(report))
    atomic_write_text(output / "report.md", text)
    print(text)
    return plain(report)


def gains(arms: dict[str, dict[str, Tensor]], frames: dict[str, int], draws: Resamples) -> dict[str, dict[str, Any]]:
    """Arm with generated frames -> figure -> what it gains over its real frames alone, and the exchange rate."""
    alone = [name for name in ("10", "30", "100") if name in arms]
    found: dict[str, dict[str, Any]] = {}
    for name, own in arms.items():
        base = str(10 * ARMS[name].tenths)
        if not ARMS[name].blocks or base not in arms:
            continue
        real = frames[base]
        found[name] = {"real": real, "generated": frames[name] - real}
        for key in EXCHANGED:
            gain = own[key] - arms[base][key]
            row: dict[str, Any] = {"gain": draws.interval(gain)}
            if len(alone) > 1:
                slope = slope_of([frames[one] for one in alone], [arms[one][key] for one in alone])
                rate = exchange_of(gain, slope, real, frames[name] - real)
                row |= {
                    "exchange": draws.interval(rate),
                    "slope": draws.interval(slope),
                    "resamples_without_slope": float((slope[1:] <= 0).double().mean()),
                }
            found[name][key] = row
    return found


def sign_of(interval: Interval) -> str:
    """What a gain's interval says."""
    return "helps" if interval.low > 0 else "hurts" if interval.high < 0 else "open"


def as_markdown(report: dict[str, Any]) -> str:
    """The tables, for people."""
    plan = report["schedule"]
    parts = [
        f"{len(report['runs'])} runs of {plan['steps']} steps of {plan['batch']} samples, {report['ranks']} x "
        f"{report['chip']}, {report['spent']:.0f} s; frames {report['frames']}; 95 % intervals over scenes and seeds."
    ]
    for level, found in report["levels"].items():
        parts.append(f"### {level} ({report['scenes'][level]} scenes)")
        rows = [
            [name, report["frames_of_arms"][name], len(found["seeds"][name]["RayIoU"]), *(own[key] for key in FIGURES)]
            for name, own in found["arms"].items()
        ]
        parts.append(markdown_table(["arm (% real)", "frames", "seeds", *FIGURES], rows))
        rows = [
            [name, key, own[key]["gain"], sign_of(own[key]["gain"]), own[key].get("exchange")]
            for name, own in found["gains"].items()
            for key in EXCHANGED
        ]
        if rows:
            header = ["arm", "figure", "gain over its real frames", "", "one generated frame = x real frames"]
            parts.append(markdown_table(header, rows))
        names = list(found["classes"])
        rows = [[c, *(found["classes"][n][c]["IoU"] for n in names)] for c in found["classes"][names[0]]]
        parts.append(markdown_table(["IoU of", *names], rows))
    rows = [
        [name, f"{one['steps']}", one["rows"], one["rounds"], one["seconds_training"], one["last_loss"]]
        for name, one in report["runs"].items()
    ]
    parts.append(markdown_table(["run", "steps", "frames", "rounds", "seconds", "last loss"], rows))
    parts += [f"FAILED: {text}" for text in report["failures"]]
    return "\n\n".join(parts) + "\n"
