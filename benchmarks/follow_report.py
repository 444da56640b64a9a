"""From the counts of all ranks to the tables and the JSON of mode `evaluate`."""

import math
import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

import reporting
import torch
from torch import Tensor

from syntheocc.engine.files import atomic_write_json, atomic_write_text
from syntheocc.evaluation.bootstrap import Interval, Resamples
from syntheocc.evaluation.kernel_distance import kernel_distance
from syntheocc.evaluation.report import markdown_table, plain
from syntheocc.evaluation.scores import class_iou, mean_iou
from syntheocc.occupancy.taxonomy import Taxonomy

FLOORS = ("flat mpi", "nearest training frame", "no condition")
ROWS = ("real", "vae", "generated", *FLOORS, "nearest class itself")
PIXELS = ("covered", "all")


def joined(gathered: list[Any], name: str) -> dict[str, list]:
    """A records' dict of lists, the ranks' lists one after another."""
    keys = [key for records in gathered for key in getattr(records, name)]
    return {
        key: [one for records in gathered for one in getattr(records, name).get(key, [])]
        for key in dict.fromkeys(keys)
    }


def scores(counts: dict[str, list[Tensor]], draws: Resamples) -> dict[str, Any]:
    """Mean IoU of every row with its interval, ratios, and the headline, for both sets of pixels."""
    result: dict[str, Any] = {}
    for p, pixels in enumerate(PIXELS):
        values = {row: mean_iou(draws.sums(torch.stack([c[p] for c in counts[row]]))) for row in ROWS}
        floor = max(FLOORS, key=lambda row: float(values[row][0]))
        headline = (values["generated"] - values[floor]) / (values["vae"] - values[floor])
        result[pixels] = {
            "miou": {row: draws.interval(value) for row, value in values.items()},
            "of_real": {row: draws.interval(value / values["real"]) for row, value in values.items()},
            "of_vae": {row: draws.interval(value / values["vae"]) for row, value in values.items()},
            "floor": floor,
            "headline": draws.interval(headline),
            "generated_minus_floor": draws.interval(values["generated"] - values[floor]),
        }
    return result


def summarise(args: Namespace, gathered: list[Any], reference: Tensor, facts: dict, taxonomy: Taxonomy) -> dict:
    """Write report.json and report.md into the output folder and return the report.

    Args:
        args: of the command.
        gathered: the records of all ranks.
        reference: float [N, F] judge features of real training images, which set the scale of the kernel distance.
        facts: what else to note.
        taxonomy: the judge's.
    """
    counts = joined(gathered, "counts")
    scenes = [scene for records in gathered for scene in records.scenes]
    draws = Resamples(len(scenes), args.resamples, seed=0)
    report: dict[str, Any] = {
        "benchmark": "controllability evaluate",
        **reporting.provenance(args),
        "scenes": len(scenes),
        "sampler": {
            "steps": args.steps,
            "guidance_scale": args.guidance_scale,
            "mpi_guidance_scale": args.mpi_guidance_scale,
            "dtype": args.dtype,
        },
        "scores": scores(counts, draws),
        **facts,
        "seconds": gathered[0].seconds,
    }
    sums = {row: torch.stack(counts[row]).sum(0) for row in ROWS}
    report["classes"] = {
        name: {row: float(class_iou(sums[row][0])[i]) for row in ROWS}
        | {"share_of_pixels": float(sums["real"][0][i].sum() / sums["real"][0].sum())}
        for i, name in enumerate(taxonomy.classes)
        if int(sums["real"][0][i].sum()) > 0
    }
    report["doses"] = dose_table(gathered, args)
    report["edits"] = edit_table(gathered, args)
    report["between_views"] = {
        name: {
            "difference": draws.interval(draws.means(torch.tensor([v[0] for v in values]))),
            "correlation": draws.interval(draws.means(torch.tensor([v[1] for v in values]))),
        }
        for name, values in joined(gathered, "between_views").items()
        if len(values) == len(scenes)
    }
    features = {name: torch.cat(parts) for name, parts in joined(gathered, "features").items()}
    views = len(features["real"]) // len(scenes)
    owner = torch.arange(len(scenes)).repeat_interleave(views)
    mean, scale = reference.mean(0), reference.std(0).clamp_min(1e-6)
    scaled = {name: (value - mean) / scale for name, value in features.items()}
    report["kernel_distance"] = {
        name: kernel_distance(scaled["real"], scaled[name], owner) for name in ("vae", "generated")
    }
    copies = {name: torch.cat(parts) for name, parts in joined(gathered, "copies").items()}
    nearest_percent = torch.quantile(copies["real"], 0.01)
    report["copies"] = {
        name: {
            "median_distance": float(value.median()),
            "share_below_1_percent_of_real": float((value < nearest_percent).float().mean()),
        }
        for name, value in copies.items()
    }
    shares = [share for records in gathered for share in records.condition_shares]
    report["nearest_training_condition_share"] = statistics.median(shares)
    text = as_markdown(report)
    report = plain(report)
    atomic_write_json(Path(args.output) / "report.json", report)
    atomic_write_text(Path(args.output) / "report.md", text)
    print(text)
    return report


def dose_table(gathered: list[Any], args: Namespace) -> dict:
    """Covered mIoU of every dose and pairing, on the scenes that all doses have."""
    doses = joined(gathered, "doses")
    total = sum(len(records.dose_scenes) for records in gathered)
    if total < 2:
        return {"scenes": total, "table": {}}
    draws = Resamples(total, args.resamples, seed=1)
    table: dict[str, dict[str, Interval]] = {"no change": {}}
    for row, name in (("generated", "generated"), ("real", "photograph")):
        same = [one.counts[row][one.scenes.index(scene)][0] for one in gathered for scene in one.dose_scenes]
        for labels in ("original labels", "changed labels"):
            table["no change"][f"{name}, {labels}"] = draws.interval(mean_iou(draws.sums(torch.stack(same))))
    for key, counts in doses.items():
        dose, pairing = key.split("|")
        table.setdefault(dose, {})[pairing] = draws.interval(mean_iou(draws.sums(torch.stack([c[0] for c in counts]))))
    return {"scenes": total, "table": table}


def edit_table(gathered: list[Any], args: Namespace) -> dict:
    """Each kind of edit: how often it took, what was seen, and how much of the rest changed."""
    entries = [entry for records in gathered for entry in records.edits]
    table = {}
    for kind in ("insert", "remove", "repaint"):
        chosen = [entry for entry in entries if entry["kind"] == kind]
        if len(chosen) < 2:
            continue
        took = {
            "insert": lambda e: e["label_after"] >= 0.5,
            "remove": lambda e: e["label_after"] <= 0.5 * e["label_before"] if e["label_before"] >= 0.25 else None,
            "repaint": lambda e: e["other_after"] >= 0.5,
        }[kind]
        draws = Resamples(len(chosen), args.resamples, seed=2)
        columns = {
            "took": [math.nan if took(entry) is None else float(took(entry)) for entry in chosen],
            **{
                name: [entry[name] for entry in chosen]
                for name in (
                    "label_real",
                    "label_before",
                    "label_after",
                    "other_after",
                    "rest_changed",
                    "seed_changed",
                    "rest_labels",
                )
            },
        }
        means = {name: draws.means(torch.tensor(values, dtype=torch.float64)) for name, values in columns.items()}
        table[kind] = {name: draws.interval(value) for name, value in means.items()}
        table[kind]["rest_of_seed"] = draws.interval(means["rest_changed"] / means["seed_changed"])
        table[kind]["edits"] = len(chosen)
        table[kind]["asked"] = sum(math.isfinite(value) for value in columns["took"])
    return table


def as_markdown(report: dict) -> str:
    """The tables, for people."""
    parts = [f"{report['scenes']} {report['split']} scenes, {report['chip']}; intervals are 95 %, paired over scenes."]
    for pixels in PIXELS:
        found = report["scores"][pixels]
        rows = [[row, found["miou"][row], found["of_real"][row], found["of_vae"][row]] for row in ROWS]
        parts.append(markdown_table([f"judge, {pixels} pixels", "mIoU", "of real", "of VAE"], rows))
        parts.append(f"headline ({pixels}): (generated - {found['floor']}) / (VAE - floor) = {found['headline']}")
    names = ("real", "vae", "generated", "nearest training frame", "no condition")
    rows = [
        [name, f"{100 * values['share_of_pixels']:.2f} %", *(values[row] for row in names)]
        for name, values in report["classes"].items()
    ]
    parts.append(markdown_table(["class (covered)", "pixels", *names], rows))
    if report["doses"]["table"]:
        pairings = list(next(iter(report["doses"]["table"].values())))
        rows = [[dose, *(found[p] for p in pairings)] for dose, found in report["doses"]["table"].items()]
        parts.append(markdown_table([f"dose, {report['doses']['scenes']} scenes (covered mIoU)", *pairings], rows))
    names = (
        "edits",
        "took",
        "label_real",
        "label_before",
        "label_after",
        "other_after",
        "rest_changed",
        "seed_changed",
        "rest_labels",
    )
    rows = [[kind, *(found[name] for name in names)] for kind, found in report["edits"].items()]
    if rows:
        parts.append(markdown_table(["edit", *(name.replace("_", " ") for name in names)], rows))
    rows = [[name, found["difference"], found["correlation"]] for name, found in report["between_views"].items()]
    parts.append(markdown_table(["between views", "difference", "correlation"], rows))
    rows = [[name, f"{d.generated:.4f} +- {d.generated_std:.4f}"] for name, d in report["kernel_distance"].items()]
    floor = report["kernel_distance"]["generated"]
    rows.append(["real against real (floor)", f"{floor.floor:.4f} +- {floor.floor_std:.4f}"])
    parts.append(markdown_table(["kernel distance to real", "KID, judge features"], rows))
    rows = [
        [name, found["median_distance"], found["share_below_1_percent_of_real"]]
        for name, found in report["copies"].items()
    ]
    header = ["nearest training image", "median distance", "share nearer than 1 % of real"]
    parts.append(markdown_table(header, rows, digits=4))
    parts += [f"FAILED: {text}" for text in report["failures"]]
    seconds = "; ".join(f"{name} until {value:.0f} s" for name, value in report["seconds"].items())
    parts.append(f"Time of rank 0: {seconds}.")
    return "\n\n".join(parts) + "\n"
