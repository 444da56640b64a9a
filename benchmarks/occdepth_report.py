"""Tables of occdepth_models.py: every arm on every level, the differences that issue and paper ask about.

Legend: S scenes, B resamples, C classes.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import reporting
import torch
from perception_report import _curve, claimed, draw_curves
from perception_scores import geometry_iou, voxel_iou
from safetensors.torch import load_file
from torch import Tensor

from syntheocc.engine.files import atomic_write_image, atomic_write_json, atomic_write_text, read_json
from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.evaluation.report import markdown_table, plain
from syntheocc.occupancy.perception.occdepth.config import OccDepthConfig
from syntheocc.occupancy.taxonomy import Taxonomy

# (question, arm, arm that it is compared with)
QUESTIONS = (
    ("a second view, with depth", "stereo_depth", "mono_depth"),
    ("a second view, without", "stereo", "mono"),
    ("depth, with two views", "stereo_depth", "stereo"),
    ("depth, with one view", "mono_depth", "mono"),
    ("both", "stereo_depth", "mono"),
    ("what is corrected", "stereo_depth", "stereo_depth_published"),
)
ASKED = ("IoU", "mIoU", "IoU seen", "mIoU seen", "IoU@12.8", "mIoU@12.8")


def figures_of(counts: dict[str, Tensor], taxonomy: Taxonomy, draws: Resamples | None = None) -> dict[str, Tensor]:
    """IoU and mIoU of every set of voxels; float64 [1 + B] with draws of scenes, else a number.

    The mIoU is over the classes that the held-out labels have: the world has not all of SemanticKITTI's.
    """
    found: dict[str, Tensor] = {}
    for name, values in counts.items():
        summed = values.sum(0) if draws is None else draws.sums(values)
        title = name.replace("all", "").replace("seen", " seen")
        present = values.sum((0, 2)) > 0
        iou = voxel_iou(summed, taxonomy)[..., present].nan_to_num(0.0)
        occupied = torch.arange(taxonomy.num_classes)[present] != taxonomy.free
        found[f"IoU{title}"] = geometry_iou(summed, taxonomy)
        found[f"mIoU{title}"] = iou[..., occupied].mean(-1)
    return found


def summarise(
    args: Namespace, arms: list[str], config: OccDepthConfig, scenes: dict[str, int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write report.json, report.md and the curves from the folders of the arms; returns the report."""
    output, taxonomy = Path(args.output), config.taxonomy
    done = [name for name in arms if (output / name / "result.json").is_file()]
    levels: dict[str, Any] = {}
    differences = []
    for level, number in scenes.items():
        draws = Resamples(number, args.resamples, seed=0)
        values: dict[str, dict[str, Tensor]] = {}
        rows: dict[str, Any] = {}
        for name in ("commonest class", *done):
            path = output / name.replace(" ", "_") / f"{level.replace(' ', '_')}.safetensors"
            if not path.is_file():
                continue
            counts = load_file(path)
            values[name] = figures_of(counts, taxonomy, draws)
            by_class = voxel_iou(counts["all"].sum(0), taxonomy).tolist()
            rows[name] = {
                "figures": {key: draws.interval(value) for key, value in values[name].items()},
                "classes": {c: v for c, v in zip(taxonomy.classes, by_class, strict=True) if v == v},
            }
        levels[level] = rows
        for question, arm, other in QUESTIONS:
            if arm in values and other in values:
                found = {key: draws.interval(values[arm][key] - values[other][key]) for key in ASKED}
                differences.append(
                    {
                        "question": question, "level": level, "arm": arm, "other": other, "differences": found,
                        "claimed": {key: claimed(interval) for key, interval in found.items()},
                    }
                )  # fmt: skip
    report = {
        "benchmark": "occdepth_models",
        **reporting.provenance(args),
        "preset": args.preset,
        "scenes": scenes,
        "scored_frames_a_scene": len(args.scored),
        **facts,
        "arms": {name: read_json(output / name / "result.json") for name in done},
        "levels": levels,
        "differences": differences,
    }
    text = as_markdown(report)
    atomic_write_json(output / "report.json", plain(report))
    atomic_write_text(output / "report.md", text)
    curves = {name: _curve(output / name / "log.jsonl") for name in done}
    if any(curves.values()):
        atomic_write_image(output / "curves.png", draw_curves(curves))
    print(text)
    return plain(report)


def as_markdown(report: dict[str, Any]) -> str:
    """The tables, for people; intervals at 95 % over scenes."""
    plan = report["schedule"]
    parts = [
        f"{report['preset']}: {plan['steps']} steps of {plan['batch']} samples on {report['learning_from']} frames of "
        f"{report['training_scenes']} scenes; {report['ranks']} processes, {report['chip']}; "
        f"{report['seconds']:.0f} s in all. 95 % intervals over scenes; fractions of all known voxels, of those "
        "of the left picture (seen), and of those within so many metres."
    ]
    for level, rows in report["levels"].items():
        names = list(rows)
        keys = list(next(iter(rows.values()))["figures"]) if rows else []
        parts.append(f"### {level} ({report['scenes'][level]} scenes)")
        parts.append(markdown_table(["", *keys], [[n, *(rows[n]["figures"][key] for key in keys)] for n in names]))
        classes = list(rows[names[0]]["classes"]) if rows else []
        table = [[c, *(rows[name]["classes"].get(c) for name in names)] for c in classes]
        parts.append(markdown_table(["IoU of", *names], table))
    table = [
        [one["question"], one["level"], f"{one['arm']} - {one['other']}", key, interval,
         "yes" if one["claimed"][key] else ""]
        for one in report["differences"] for key, interval in one["differences"].items()
    ]  # fmt: skip
    if table:
        parts += ["### Differences", markdown_table(["", "level", "difference", "figure", "", "claimed"], table)]
    table = [
        [name, one["steps"], one["rounds"], one["seconds_training"], one["last_loss"], one["skipped_steps"],
         one["parameters"] / 1e6]
        for name, one in report["arms"].items()
    ]  # fmt: skip
    header = ["arm", "steps", "rounds", "seconds", "last loss", "skipped", "million parameters"]
    parts.append(markdown_table(header, table))
    parts += [f"FAILED: {text}" for text in report["failures"]]
    return "\n\n".join(parts) + "\n"
