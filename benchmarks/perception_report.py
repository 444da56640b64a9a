"""Tables of perception.py: every arm on every level, the differences that the plan asks about, the curves."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import reporting
from perception_models import Contender
from perception_scores import by_class, figures
from safetensors.torch import load_file

from syntheocc.engine.files import atomic_write_image, atomic_write_json, atomic_write_text, read_json
from syntheocc.evaluation.bootstrap import Interval, Resamples
from syntheocc.evaluation.report import markdown_table, plain

# (hypothesis of docs/perception.md, arm, arm that it is compared with)
QUESTIONS = (
    ("2", "4f", "1f"),
    ("2", "8f", "1f"),
    ("3", "8f", "4f"),
    ("4", "4f", "4f_accumulated"),
    ("2D labels: what flow adds", "volume_2d_flow", "volume_2d"),
    ("2D labels: splatting for rendering", "splatting", "volume_2d_flow"),
    ("2D labels: metric rendering for RenderOcc's", "volume_2d", "renderocc"),
    ("2D labels: 3D labels for them", "trunk_3d", "volume_2d_flow"),
)
ASKED = (
    "mIoU camera", "mIoU camera, dynamic", "RayIoU", "RayIoU, dynamic", "RayPQ", "mIoU camera_accumulated",
    "RayIoU accumulated",
)  # fmt: skip
LEAST = 0.01  # smaller differences are not claimed
BASELINES = ("all free", "commonest class")
COLUMNS = {
    "mIoU": "mIoU camera",
    "dynamic": "mIoU camera, dynamic",
    "static": "mIoU camera, static",
    "IoU": "IoU camera",
    "free as free": "free camera",
    "mIoU, no mask": "mIoU all",
    "RayIoU": "RayIoU",
    "RayIoU@1": "RayIoU@1",
    "RayIoU@2": "RayIoU@2",
    "RayIoU@4": "RayIoU@4",
    "RayIoU, dynamic": "RayIoU, dynamic",
    "RayPQ": "RayPQ",
}


def summarise(
    args: Namespace, arms: list[str], contender: Contender, scenes: dict[str, int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write report.json, report.md and the curves from the folders of the arms; returns the report."""
    output, taxonomy = Path(args.output), contender.preset.taxonomy
    done = [name for name in arms if (output / name / "result.json").is_file()]
    values: dict[tuple[str, str], dict[str, Any]] = {}
    levels: dict[str, dict[str, Any]] = {}
    differences = []
    for level, number in scenes.items():
        draws = Resamples(number, args.resamples, seed=0)
        file = f"{level.replace(' ', '_')}.safetensors"
        rows: dict[str, Any] = {}
        for name in (*BASELINES, *done):
            path = output / name.replace(" ", "_") / file
            if not path.is_file():
                continue
            counts = load_file(path)
            values[level, name] = figures(counts, draws, taxonomy)
            rows[name] = {
                "figures": {key: draws.interval(value) for key, value in values[level, name].items()},
                "classes": by_class(counts, taxonomy),
            }
            other = output / name / file.replace(".", "-published.")
            if other.is_file():
                found = figures(load_file(other), draws, taxonomy)
                rows[name]["published_setting"] = {k: draws.interval(v) for k, v in found.items() if "PQ" not in k}
            base = values.get((level, "commonest class"))
            if name in done and base is not None:
                ratio = values[level, name]["mIoU camera"] / base["mIoU camera"]
                rows[name]["times_commonest"] = draws.interval(ratio)
        levels[level] = rows
        for hypothesis, arm, other_arm in QUESTIONS:
            if arm in rows and other_arm in rows:
                a, b = values[level, arm], values[level, other_arm]
                found = {key: draws.interval(a[key] - b[key]) for key in ASKED if key in a and key in b}
                differences.append(
                    {
                        "hypothesis": hypothesis,
                        "level": level,
                        "arm": arm,
                        "other": other_arm,
                        "differences": found,
                        "claimed": {key: claimed(interval) for key, interval in found.items()},
                    }
                )
    report = {
        "benchmark": "perception",
        **reporting.provenance(args),
        "model": args.model,
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
    curves = {name: _curve(output / name / "log.jsonl") for name in done if (output / name / "log.jsonl").is_file()}
    if any(curves.values()):
        atomic_write_image(output / "curves.png", draw_curves(curves))
    print(text)
    return plain(report)


def claimed(interval: Interval) -> bool:
    """Whether a difference is one by the plan's rule."""
    return (interval.low > 0 or interval.high < 0) and abs(interval.value) > LEAST


def as_markdown(report: dict[str, Any]) -> str:
    """The tables, for people; intervals at 95 % over scenes."""
    plan = report["schedule"]
    parts = [
        f"{report['model']}: {plan['steps']} steps of {plan['batch']} samples on {report['learning_from']} key frames "
        f"of {report['training_scenes']} scenes; {report['ranks']} x {report['chip']}; "
        f"{report['seconds']:.0f} s in all; 95 % intervals over scenes."
    ]
    for level, rows in report["levels"].items():
        table = []
        for name, row in rows.items():
            found = row["figures"]
            table.append([name, *(found.get(key) for key in COLUMNS.values()), row.get("times_commonest")])
        parts.append(f"### {level} ({report['scenes'][level]} scenes)")
        parts.append(markdown_table(["", *COLUMNS, "x commonest"], table))
        if any("mIoU camera_accumulated" in row["figures"] for row in rows.values()):
            keys = ("mIoU camera_accumulated", "mIoU all_accumulated", "RayIoU accumulated")
            table = [[name, *(row["figures"].get(key) for key in keys)] for name, row in rows.items()]
            parts.append("Scored against accumulated labels:")
            parts.append(markdown_table(["", "mIoU", "mIoU, no mask", "RayIoU"], table))
        names = list(rows)
        classes = list(next(iter(rows.values()))["classes"])
        for key in ("IoU", "RayIoU", "RayPQ"):
            table = [[c, *(rows[name]["classes"][c][key] for name in names)] for c in classes]
            parts.append(markdown_table([f"{key} of", *names], table))
    if report["differences"]:
        table = []
        for one in report["differences"]:
            for key, interval in one["differences"].items():
                who = f"{one['arm']} - {one['other']}"
                table.append(
                    [one["hypothesis"], one["level"], who, key, interval, "yes" if one["claimed"][key] else ""]
                )
        parts.append("### Differences")
        parts.append(markdown_table(["hypothesis", "level", "difference", "figure", "", "claimed"], table))
    table = []
    for name, one in report["arms"].items():
        setting = next(iter(one["setting"].items()))
        row = [one["steps"], one["rounds"], one["seconds_training"], one["last_loss"], one["skipped_steps"]]
        table.append([name, *row, f"{setting[0]} {setting[1]}", one["parameters"] / 1e6])
    header = ["arm", "steps", "rounds", "seconds", "last loss", "skipped", "chosen", "million parameters"]
    parts.append(markdown_table(header, table))
    parts += [f"FAILED: {text}" for text in report["failures"]]
    return "\n\n".join(parts) + "\n"


def _curve(path: Path) -> list[tuple[float, float]]:
    import json

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def draw_curves(curves: dict[str, list[tuple[float, float]]], width: int = 900, height: int = 480) -> np.ndarray:
    """Loss over steps, a line an arm: uint8 [height, width, 3]."""
    from PIL import Image, ImageDraw

    colours = ("#1b6ca8", "#c8553d", "#3c7a57", "#7a5195", "#888888")
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 60, 20, width - 20, height - 40
    last = max(step for points in curves.values() for step, _ in points)
    losses = sorted(loss for points in curves.values() for _, loss in points)
    high, low = losses[int(0.99 * (len(losses) - 1))], 0.0
    place = lambda step, loss: (  # noqa: E731
        left + (right - left) * step / last,
        bottom - (bottom - top) * (min(loss, high) - low) / max(high - low, 1e-6),
    )
    for i in range(5):
        value = low + (high - low) * i / 4
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((8, y - 6), f"{value:.1f}", fill="black")
        step = last * i / 4
        draw.text((place(step, low)[0] - 10, bottom + 8), f"{step:.0f}", fill="black")
    for i, (name, points) in enumerate(curves.items()):
        draw.line([place(*point) for point in points], fill=colours[i % len(colours)], width=2)
        draw.text((right - 150, top + 16 * i), name, fill=colours[i % len(colours)])
    return np.asarray(picture)
