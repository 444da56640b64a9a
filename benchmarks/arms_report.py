"""The table of mode `arms`: every training's scores, and the differences that the plan asks about."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import reporting
import torch
from safetensors.torch import load_file

from syntheocc.engine.files import atomic_write_json, atomic_write_text, read_json
from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.evaluation.kernel_distance import kernel_distance
from syntheocc.evaluation.report import markdown_table, plain
from syntheocc.evaluation.scores import class_iou, mean_iou
from syntheocc.occupancy.taxonomy import Taxonomy

# (hypothesis of docs/controllability.md, arm, arm that it is compared with)
QUESTIONS = (
    ("1", "rgb", "none"),
    ("2", "first_hit", "categorical_visible"),
    ("3", "rgb_depth", "rgb"),
    ("4", "categorical", "scalar"),
    ("5", "categorical", "categorical_visible"),
    ("6", "categorical_spc4", "categorical"),
    ("7", "categorical", "first_hit"),
    ("7", "categorical", "rgb"),
)
THIN = ("bicycle", "motorcycle", "pedestrian", "traffic_cone", "barrier")
LEAST = 0.01  # mIoU; smaller differences are not claimed


def summarise(
    args: Namespace, trainings: list, references: dict, numbers: list[int], facts: dict, taxonomy: Taxonomy
) -> dict:
    """Write report.json and report.md from the folders of the trainings and return the report."""
    output = Path(args.output)
    draws = Resamples(len(numbers), args.resamples, seed=0)
    thin = [taxonomy.id_of(name) for name in THIN]
    real = torch.cat(references["real features"])
    mean, scale = real.mean(0), real.std(0).clamp_min(1e-6)
    owner = torch.arange(len(numbers)).repeat_interleave(len(real) // len(numbers))
    rows: dict[str, dict[str, Any]] = {}
    values, thin_values = {}, {}

    def score(name: str, counts: torch.Tensor) -> dict[str, Any]:
        sums = draws.sums(counts)  # [1+B, 2, C, C]
        values[name] = mean_iou(sums[:, 0])
        thin_values[name] = class_iou(sums[:, 0])[:, thin].nanmean(-1)
        return {
            "covered": draws.interval(values[name]),
            "all": draws.interval(mean_iou(sums[:, 1])),
            "thin": draws.interval(thin_values[name]),
            "classes": dict(zip(taxonomy.classes, class_iou(sums[0, 0]).tolist(), strict=True)),
        }

    for name in ("real", "vae"):
        rows[name] = score(name, torch.stack(references[name]))
    for seed, arm in trainings:
        folder = output / f"{arm}-seed{seed}"
        if not (folder / "result.json").is_file():
            continue
        found = load_file(folder / "scores.safetensors")
        name = f"{arm} ({seed})"
        distance = kernel_distance((real - mean) / scale, (found["features"].flatten(0, 1) - mean) / scale, owner)
        rows[name] = {**score(name, found["counts"]), "kernel_distance": distance, **read_json(folder / "result.json")}
    differences = []
    for seed in dict.fromkeys(seed for seed, _ in trainings):
        for hypothesis, arm, other in QUESTIONS:
            a, b = f"{arm} ({seed})", f"{other} ({seed})"
            if a in rows and b in rows:
                interval = draws.interval(values[a] - values[b])
                claimed = (interval.low > 0 or interval.high < 0) and abs(interval.value) > LEAST
                differences.append(
                    {
                        "hypothesis": hypothesis,
                        "seed": seed,
                        "arm": arm,
                        "other": other,
                        "covered": interval,
                        "thin": draws.interval(thin_values[a] - thin_values[b]),
                        "differs": claimed,
                    }
                )
    report = {
        "benchmark": "controllability arms",
        **reporting.provenance(args),
        "scenes": len(numbers),
        **facts,
        "rows": rows,
        "differences": differences,
    }
    text = as_markdown(report)
    atomic_write_json(output / "report.json", plain(report))
    atomic_write_text(output / "report.md", text)
    print(text)
    return plain(report)


def as_markdown(report: dict) -> str:
    """The tables, for people."""
    parts = [
        f"{report['scenes']} {report['split']} scenes; every training {report['steps']} steps on "
        f"{report['training_frames']} frames; {report['chip']} x {report['ranks']}; 95 % intervals over scenes."
    ]
    table = []
    for name, row in report["rows"].items():
        distance = row.get("kernel_distance")
        kid = None if distance is None else f"{distance.generated:.3f} (floor {distance.floor:.3f})"
        loss = row["loss_by_tenths"][-1] if "loss_by_tenths" in row else None
        cells = [row["covered"], row["all"], row["thin"], kid, loss, row.get("first_layers"), row.get("parameters")]
        table.append([name, *cells])
    header = [
        "arm (seed)",
        "covered mIoU",
        "all mIoU",
        "thin classes",
        "KID",
        "last loss",
        "first layers",
        "parameters",
    ]
    parts.append(markdown_table(header, table))
    table = [
        [
            d["hypothesis"],
            d["seed"],
            f"{d['arm']} - {d['other']}",
            d["covered"],
            d["thin"],
            "yes" if d["differs"] else "no",
        ]
        for d in report["differences"]
    ]
    if table:
        parts.append(
            markdown_table(["hypothesis", "seed", "difference", "covered mIoU", "thin classes", "differs"], table)
        )
    parts += [f"FAILED: {text}" for text in report["failures"]]
    return "\n\n".join(parts) + "\n"
