"""From the counts of all ranks to the tables of occupancy_judge.py, and the frames on which the judges disagree."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
from occupancy_frames import Reader
from perception_scores import figures, ray_iou, voxel_iou
from torch import Tensor

from syntheocc.engine.files import atomic_write_json, atomic_write_text
from syntheocc.evaluation.bootstrap import Resamples
from syntheocc.evaluation.report import markdown_table, plain
from syntheocc.evaluation.scores import class_iou, mean_iou
from syntheocc.occupancy.taxonomy import Taxonomy

ROWS = ("real", "vae", "generated", "flat mpi", "nearest training frame", "no condition")
FLOORS = ROWS[3:]
COVERED = 0


def joined(gathered: list[Any], taxonomy_counts: str, row: str) -> dict[str, Tensor]:
    """Counts of a history ("drive", "still") and row of all ranks' scenes, name -> [S, ...]."""
    ones = [one for found in gathered for one in found.counts.get(taxonomy_counts, {}).get(row, [])]
    return {name: torch.stack([one[name] for one in ones]) for name in ones[0]}


def pixels_of(gathered: list[Any], row: str) -> Tensor:
    """Counts of the 2D judge on covered pixels, int64 [S, C, C]."""
    return torch.stack([one[COVERED] for found in gathered for one in found.pixels[row]])


def table_of(values: dict[str, Tensor], draws: Resamples) -> dict[str, Any]:
    """Rows with intervals, ratios to real and VAE, and the headline of one figure, [1 + B] for each row."""
    floor = max(FLOORS, key=lambda row: float(values[row][0]))
    headline = (values["generated"] - values[floor]) / (values["vae"] - values[floor])
    return {
        "rows": {row: draws.interval(value) for row, value in values.items()},
        "of_real": {row: draws.interval(value / values["real"]) for row, value in values.items()},
        "of_vae": {row: draws.interval(value / values["vae"]) for row, value in values.items()},
        "floor": floor,
        "headline": draws.interval(headline),
        "generated_minus_floor": draws.interval(values["generated"] - values[floor]),
        "vae_minus_generated": draws.interval(values["vae"] - values["generated"]),
    }


def scene_scores(gathered: list[Any], taxonomy: Taxonomy) -> dict[str, Tensor]:
    """Per scene what generating cost by each judge: figure of the generated views minus that of the VAE's, [S]."""
    change = {}
    counts = {row: joined(gathered, "drive", row) for row in ("vae", "generated")}
    change["3D"] = ray_iou(counts["generated"]["rays"], taxonomy).flatten(-2).nanmean(-1) - ray_iou(
        counts["vae"]["rays"], taxonomy
    ).flatten(-2).nanmean(-1)
    change["2D"] = mean_iou(pixels_of(gathered, "generated")) - mean_iou(pixels_of(gathered, "vae"))
    return change


def ranked(values: Tensor) -> Tensor:
    """Places of values [..., S] in their order, from 0."""
    return values.argsort(-1).argsort(-1).double()


def disagreements(gathered: list[Any], taxonomy: Taxonomy, number: int) -> dict[str, Any]:
    """The scenes on which the judges' verdicts lie furthest apart, and how much they agree over all scenes."""
    scenes = [scene for found in gathered for scene in found.scenes]
    about = [one for found in gathered for one in found.about]
    if len(scenes) < 2:
        return {"scenes": {}}
    change = scene_scores(gathered, taxonomy)
    places = {name: ranked(values.nan_to_num(0)) / (len(scenes) - 1) for name, values in change.items()}
    apart = places["2D"] - places["3D"]
    order = apart.argsort().tolist()
    chosen: dict[int, dict[str, Any]] = {}
    for kind, rows in (("3D judge content, 2D judge not", order[:number]),
                       ("2D judge content, 3D judge not", order[::-1][:number])):  # fmt: skip
        for i in rows:
            chosen[scenes[i]] = {
                "kind": kind,
                "change_2D": float(change["2D"][i]),
                "change_3D": float(change["3D"][i]),
                "place_2D": float(places["2D"][i]),
                "place_3D": float(places["3D"][i]),
                "lost_3D": _lost(gathered, i, taxonomy),
                **about[i],
            }
    draws = Resamples(len(scenes), 1000, seed=0)
    every = torch.cat([torch.arange(len(scenes))[None], draws.picks])
    x, y = ranked(change["2D"].nan_to_num(0)[every]), ranked(change["3D"].nan_to_num(0)[every])
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    correlation = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    groups = {}
    for key in ("light", "weather"):
        for word in sorted({one[key] for one in about}):
            own = torch.tensor([one[key] == word for one in about])
            groups[word] = {
                "scenes": int(own.sum()),
                **{name: float(values[own].nanmean()) for name, values in change.items()},
            }
    return {"scenes": chosen, "rank_correlation": draws.interval(correlation), "groups": groups}


def _lost(gathered: list[Any], index: int, taxonomy: Taxonomy) -> dict[str, float]:
    """The three classes whose RayIoU (mean of the thresholds) fell most from VAE to generated views in one scene."""
    values = []
    for row in ("vae", "generated"):
        counts = joined(gathered, "drive", row)["rays"][index]
        values.append(ray_iou(counts, taxonomy).nanmean(0))
    change = values[1] - values[0]
    order = change.nan_to_num(0).argsort().tolist()[:3]
    return {taxonomy.classes[c]: float(change[c]) for c in order if float(change[c].nan_to_num(0)) < 0}


def summarise(
    args: Namespace, gathered: list[Any], taxonomy: Taxonomy, pixel_taxonomy: Taxonomy, chosen: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write report.json and report.md, and return the report."""
    scenes = sum(len(found.scenes) for found in gathered)
    draws = Resamples(scenes, args.resamples, seed=0)
    tables: dict[str, Any] = {}
    for history in gathered[0].counts:
        values = {row: figures(joined(gathered, history, row), draws, taxonomy) for row in ROWS}
        for key in ("mIoU camera", "RayIoU", "mIoU camera, dynamic", "IoU camera"):
            tables[f"{key} ({history})"] = table_of({row: values[row][key] for row in ROWS}, draws)
    pixels = {row: mean_iou(draws.sums(pixels_of(gathered, row))) for row in ROWS}
    tables["2D mIoU, covered"] = table_of(pixels, draws)
    report = {
        "benchmark": "occupancy judge",
        **reporting.provenance(args),
        "scenes": scenes,
        **facts,
        "tables": tables,
        "classes": by_class(gathered, taxonomy, pixel_taxonomy),
        "disagreement": chosen,
        "seconds": gathered[0].seconds,
    }
    text = as_markdown(report)
    output = Path(args.output)
    atomic_write_json(output / "report.json", plain(report))
    atomic_write_text(output / "report.md", text)
    print(text)
    return plain(report)


def by_class(gathered: list[Any], taxonomy: Taxonomy, pixel_taxonomy: Taxonomy) -> dict[str, Any]:
    """Class -> row -> IoU over voxels, RayIoU, and the 2D judge's IoU; classes by the 3D table."""
    sums = {row: {name: value.sum(0) for name, value in joined(gathered, "drive", row).items()} for row in ROWS}
    voxels = {row: voxel_iou(sums[row]["camera"], taxonomy) for row in ROWS}
    rays = {row: ray_iou(sums[row]["rays"], taxonomy).nanmean(0) for row in ROWS}
    pixels = {row: class_iou(pixels_of(gathered, row).sum(0)) for row in ROWS}
    found: dict[str, Any] = {}
    for c, name in enumerate(taxonomy.classes):
        if c == taxonomy.free or bool(voxels["real"][c].isnan()):
            continue
        in_2d = pixel_taxonomy.classes.index(name) if name in pixel_taxonomy.classes else None
        found[name] = {
            row: {
                "IoU": float(voxels[row][c]),
                "RayIoU": float(rays[row][c]),
                "2D": float("nan") if in_2d is None else float(pixels[row][in_2d]),
            }
            for row in ROWS
        }
    return found


def as_markdown(report: dict[str, Any]) -> str:
    """The tables, for people."""
    parts = [
        f"{report['scenes']} {report['split']} scenes, {report['ranks']} x {report['chip']}, {report['spent']:.0f} s; "
        f"{report['frames_a_sample']} frames a sample; intervals are 95 %, paired over scenes."
    ]
    for name, table in report["tables"].items():
        rows = [[row, table["rows"][row], table["of_real"][row], table["of_vae"][row]] for row in ROWS]
        parts.append(markdown_table([name, "", "of real", "of VAE"], rows))
        parts.append(f"headline: (generated - {table['floor']}) / (VAE - floor) = {table['headline']}")
    names = ("real", "vae", "generated", "nearest training frame")
    for key in ("IoU", "RayIoU", "2D"):
        rows = [[name, *(found[row][key] for row in names)] for name, found in report["classes"].items()]
        parts.append(markdown_table([f"{key} of", *names], rows))
    chosen = report["disagreement"]
    if chosen["scenes"]:
        parts.append(
            "What generating cost, scene by scene (generated minus VAE): rank correlation of the 2D judge's mIoU and "
            f"the 3D judge's RayIoU {chosen['rank_correlation']}."
        )
        rows = [[word, one["scenes"], one["2D"], one["3D"]] for word, one in chosen["groups"].items()]
        parts.append(markdown_table(["scenes", "number", "2D change", "3D change"], rows))
        rows = [
            [f"{number}", one["kind"], one["change_2D"], one["change_3D"], ", ".join(one["lost_3D"]), one["caption"]]
            for number, one in chosen["scenes"].items()
        ]
        parts.append(markdown_table(["scene", "", "2D", "3D", "lost most in 3D", "caption"], rows))
    parts += [f"FAILED: {text}" for text in report["failures"]]
    seconds = "; ".join(f"{name} until {value:.0f} s" for name, value in report["seconds"].items())
    parts.append(f"Time of rank 0: {seconds}.")
    return "\n\n".join(parts) + "\n"


def draw_sheets(output: Path, chosen: dict[str, Any], kept: dict[int, dict[str, Any]], reader: Reader) -> None:
    """Draw this rank's chosen scenes: views above, what was asked and what was read from each row below."""
    from syntheocc.occupancy.grids import OccupancyGrid
    from syntheocc.occupancy.pictures import (
        class_legend,
        labelled,
        legend,
        oblique_picture,
        resized,
        save_picture,
        strip,
        tiled,
    )

    for number, one in chosen["scenes"].items():
        if number not in kept:
            continue
        mine = kept[number]
        pictures = {name: [view.movedim(0, -1).numpy() for view in views] for name, views in mine["views"].items()}
        rows = {"condition": pictures["mpi"], **{name: pictures[name] for name in ("real", "vae", "generated")}}
        top = strip(rows, size=pictures["real"][0].shape[:2])
        labels = {"label": mine["label"], **{f"read from {name}": labels for name, labels in mine["read"].items()}}
        grids = {name: OccupancyGrid(values, *reader.preset) for name, values in labels.items()}
        wide = (top.shape[1] - 12) // len(grids)
        tiles = [
            labelled(oblique_picture(grid, height=round(0.62 * wide), width=wide), name)
            for name, grid in grids.items()
        ]
        below = tiled([tiles], background=(255, 255, 255))
        below = resized(below, below.shape[0] * top.shape[1] // below.shape[1], top.shape[1])
        key = legend(class_legend(reader.preset.taxonomy, *grids.values()), top.shape[1])
        kind = one["kind"].replace(",", "").replace(" ", "-")
        save_picture(np.concatenate([top, below, key]), output / f"apart-{kind}-{number:04d}.jpg", quality=90)
