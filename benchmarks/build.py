"""Labels that `syntheocc occupancy build` makes of the procedural street's sensors, against the street itself.

    python benchmarks/build.py --tree TREE                     16 key frames of a tree of `syntheocc world`
    python benchmarks/build.py --tree TREE --every 20          fewer of them
    python benchmarks/build.py --make-tree TREE                make the tree first (some minutes)

The tree holds what a data set's sensors would see (key sweeps, sweeps between, lidarseg, boxes) and, as its label
files, the exact occupancy. That is not what any sensor can see: the truth calls a voxel occupied when its *centre* is
inside a solid, two voxels deep; returns lie *on* surfaces, and the voxel that holds one has its centre outside as
often as inside. So two more figures stand beside IoU: of the voxels that were built, how many are exactly occupied or
touch one that is (precision within one voxel), and how many of the exact ones are built or touch one that is (recall).

Regions: "lidar" is what the rays of all key sweeps observed and "camera" what the cameras see (Occ3D's two masks of
the exact labels); "all" is every voxel of the grid, most of which nothing ever saw. Times are of one process, without
the files' writing; processor's seconds beside wall seconds, which other work on the machine stretches.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reporting
import torch

from syntheocc.occupancy import OCC3D_NUSCENES, SYNTHEOCC
from syntheocc.occupancy.accumulation.frames import BuildRules, FrameLabels
from syntheocc.occupancy.accumulation.point_classes import RuleClasses
from syntheocc.occupancy.accumulation.scene import Scene, read_scene
from syntheocc.occupancy.accumulation.sources import SceneFiles, point_classes, read_sources
from syntheocc.occupancy.building import build_occupancy
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.occ3d import Occ3DLabels, read_occ3d
from syntheocc.occupancy.data.occupancy_files import occupancy_path, read_occupancy
from syntheocc.occupancy.metrics import OccupancyIoU

RINGS = ((0.0, 15.0), (15.0, 30.0), (30.0, 60.0))
BARE = BuildRules(ground_reach=0, close=0, fill_objects=False, mirror_objects=False)
TARGETS = {"0.4 m": 3.0, "0.2 m": 10.0}


class Scores:
    """Figures of one way to make labels, over frames."""

    def __init__(self, spec: Any):
        taxonomy = OCC3D_NUSCENES.taxonomy
        self.distance = spec.centers()[..., :2].norm(dim=-1)
        self.metrics = {name: OccupancyIoU(taxonomy, "lidar") for name in ("lidar", "camera", "all")}
        self.metrics |= {f"{near:g}-{far:g} m": OccupancyIoU(taxonomy, "lidar") for near, far in RINGS}
        self.counts = torch.zeros(10, dtype=torch.int64)

    def update(self, labels: torch.Tensor, known: torch.Tensor | None, seen: Any, truth: Occ3DLabels) -> None:
        """Count a frame: published labels [X, Y, Z], what is known, mask_camera, and the exact labels."""
        lidar, camera, free = truth.mask_lidar, truth.mask_camera, truth.grid.taxonomy.free
        assert lidar is not None and camera is not None
        exact = truth.grid.labels
        for name, mask in (("lidar", lidar), ("camera", camera), ("all", torch.ones_like(lidar))):
            self.metrics[name].update(labels, exact, mask)
        for near, far in RINGS:
            ring = (self.distance >= near) & (self.distance < far)
            self.metrics[f"{near:g}-{far:g} m"].update(labels, exact, lidar & ring)
        built, solid = labels != free, exact != free
        near_solid, near_built = grown(solid), grown(built)
        terms = [built & lidar, built & lidar & near_solid, solid & lidar, solid & lidar & near_built]
        if known is not None:
            empty = known & ~built
            terms += [empty, empty & ~solid, known & lidar, known | lidar, seen & camera & known & lidar]
            terms += [(seen | camera) & known & lidar]
            self.counts += torch.stack([term.sum() for term in terms])
        else:
            self.counts[:4] += torch.stack([term.sum() for term in terms])

    def result(self) -> dict[str, Any]:
        """All figures as shares of one."""
        share = [(self.counts[i + 1] / self.counts[i]).item() for i in (0, 2, 4)]
        figures = {name: metric.compute() for name, metric in self.metrics.items()}
        both = lambda i: (self.counts[i] / self.counts[i + 1]).item()  # noqa: E731
        out: dict[str, Any] = {name: {"IoU": f["IoU"], "mIoU": f["mIoU"]} for name, f in figures.items()}
        out["precision_within_one_voxel"], out["recall_within_one_voxel"], out["free_is_free"] = share
        out["mask_lidar_iou"], out["mask_camera_iou"] = both(6), both(8)
        rows = figures["lidar"].per_class
        out["classes"] = {name: row["IoU"] for name, row in rows.items() if row["gt"] and name != "free"}
        return out


def grown(mask: torch.Tensor) -> torch.Tensor:
    """A voxel and its 26 neighbours."""
    return torch.nn.functional.max_pool3d(mask[None, None].float(), 3, 1, 1)[0, 0].bool()


def clocked(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds, processor's seconds."""
    wall, busy = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - busy


def one_sweep(frame: Frame) -> torch.Tensor:
    """The one-sweep builder's labels, in ego."""
    assert frame.lidar_path is not None
    grid = build_occupancy(read_lidar(frame.lidar_path), frame.boxes, frame.lidar2ego, *OCC3D_NUSCENES)
    return grid.labels


def chosen_frames(files: SceneFiles, every: int) -> list[Frame]:
    """Every so manieth key frame of a scene, from the middle of the first stretch."""
    return list(files.frames[every // 2 :: every])


def measure(tree: Path, every: int, classes: str) -> dict[str, Any]:
    """Scores and times over a tree; see the module."""
    files, _, tables = read_sources(tree)
    reader = RuleClasses() if classes == "rules" else point_classes(tree, "lidarseg", tables)
    ways = {"default": BuildRules(), "40 sweeps": BuildRules(sweeps=40), "all sweeps": BuildRules(sweeps=0)}
    ways = {"default": BuildRules()} if classes == "rules" else {"returns alone": BARE, **ways}
    scores = {name: Scores(OCC3D_NUSCENES.spec) for name in ways}
    alone, fine = Scores(OCC3D_NUSCENES.spec), OccupancyIoU(SYNTHEOCC.taxonomy, None)
    fine_seen = OccupancyIoU(SYNTHEOCC.taxonomy, "lidar")
    times: dict[str, list[tuple[float, float]]] = {}

    def labelled(scene: Scene, frame: Frame, spec: Any, rules: BuildRules, masks: bool, key: str) -> FrameLabels:
        found, *spent = clocked(lambda: scene.labels(frame, spec, rules, masks))
        times.setdefault(key, []).append((spent[0], spent[1]))
        return found

    count = 0
    for one in files:
        scene, *spent = clocked(lambda one=one: read_scene(one.frames, one.sweeps, reader))  # type: ignore[misc]
        per_frame = (spent[0] / len(one.frames), spent[1] / len(one.frames))
        times.setdefault("reading a scene, per key frame", []).append(per_frame)
        chosen = chosen_frames(one, every)
        # Compiles the kernels, outside the times.
        scene.labels(chosen[0], OCC3D_NUSCENES.spec, BARE)
        for frame in chosen:
            count += 1
            truth = read_occ3d(occupancy_path(tree / "gts", frame, "occ3d"))
            for name, rules in ways.items():
                found = labelled(scene, frame, OCC3D_NUSCENES.spec, rules, True, f"0.4 m, both masks, {name}")
                scores[name].update(found.published().labels, found.mask_lidar, found.mask_camera, truth)
            if classes == "rules":
                alone.update(one_sweep(frame), None, None, truth)
                continue
            exact = read_occupancy(occupancy_path(tree, frame, "syntheocc"), "syntheocc", frame.lidar2ego)
            found = labelled(scene, frame, SYNTHEOCC.spec, BuildRules(), False, "0.2 m, no camera mask, default")
            built = found.published().map_to(SYNTHEOCC.taxonomy)
            fine.update(built, exact)
            fine_seen.update(built, exact, found.mask_lidar)
            labelled(scene, frame, SYNTHEOCC.spec, BuildRules(), True, "0.2 m, both masks, default")
        print(f"{one.name}: {len(chosen)} key frames", file=sys.stderr, flush=True)
    out: dict[str, Any] = {"frames": count, "ways": {name: score.result() for name, score in scores.items()}}
    if classes == "rules":
        result = alone.result()
        kept = ("lidar", "camera", "all", "precision_within_one_voxel", "recall_within_one_voxel", "classes")
        out["ways"]["one sweep"] = {name: result[name] for name in (*kept, *(f"{a:g}-{b:g} m" for a, b in RINGS))}
    else:
        figures = {"all": fine.compute(), "lidar": fine_seen.compute()}
        out["0.2 m"] = {name: {"IoU": f["IoU"], "mIoU": f["mIoU"]} for name, f in figures.items()}
    out["seconds"] = {
        name: {"wall": statistics.median(w for w, _ in rows), "processor": statistics.median(p for _, p in rows)}
        for name, rows in times.items()
    }
    return out


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    regions = ["lidar", "camera", "all", *(f"{a:g}-{b:g} m" for a, b in RINGS)]
    head = "".join(f"{name:>14}" for name in (*regions, "prec +-1", "recall +-1", "free right", "mask L/C"))
    lines = [f"{'0.4 m, IoU / mIoU in %':<28}{head}"]
    for source, part in report["classes"].items():
        for name, way in part["ways"].items():
            row = "".join(f"{100 * way[r]['IoU']:>8.1f}/{100 * way[r]['mIoU']:>5.1f}" for r in regions)
            row += "".join(f"{100 * way[k + '_within_one_voxel']:>14.1f}" for k in ("precision", "recall"))
            if "free_is_free" in way:
                row += f"{100 * way['free_is_free']:>14.1f}"
                row += f"{100 * way['mask_lidar_iou']:>9.1f}/{100 * way['mask_camera_iou']:.1f}"
            lines.append(f"{source + ', ' + name:<28}{row}")
    fine = report["classes"]["lidarseg"]["0.2 m"]
    for name, figures in fine.items():
        region = "where known" if name == "lidar" else "all voxels"
        lines.append(f"0.2 m, {region}: IoU {100 * figures['IoU']:.1f}, mIoU {100 * figures['mIoU']:.1f}")
    lines.append("per class, lidarseg, default, in the lidar's mask, %:")
    rows = report["classes"]["lidarseg"]["ways"]["default"]["classes"]
    lines.append("  " + ", ".join(f"{name} {100 * iou:.1f}" for name, iou in rows.items()))
    lines.append(f"{'seconds a key frame (median)':<52}{'wall':>8}{'processor':>11}")
    for source, part in report["classes"].items():
        for name, spent in part["seconds"].items():
            lines.append(f"{source + ': ' + name:<52}{spent['wall']:>8.2f}{spent['processor']:>11.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="data root of `syntheocc world --sweeps` with exact labels")
    parser.add_argument("--make-tree", type=Path, help="make one there: 4 scenes, seed 5, tiny pictures")
    parser.add_argument("--every", type=int, default=5, help="score every so manieth key frame")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/build.json)")
    args = parser.parse_args()
    if args.make_tree is not None:
        args.tree = args.make_tree
        world = "world --scenes 4 --val-scenes 2 --key-frames 20 --size 16x16 --sweeps --seed 5".split()
        subprocess.run([sys.executable, "-m", "syntheocc.commands", *world, "--out", str(args.tree)], check=True)
    if args.tree is None:
        parser.error("give --tree, or --make-tree to make one")
    torch.set_num_threads(args.threads)
    report = {
        "benchmark": "build",
        **reporting.run_summary(torch.device("cpu"), ("--output", "--tree", "--make-tree")),
        "machine": platform.machine(),
        "threads": args.threads,
        "targets_s": TARGETS,
        "classes": {source: measure(args.tree, args.every, source) for source in ("lidarseg", "rules")},
    }
    print(f"{report['device']}, torch {report['torch']}, {report['classes']['lidarseg']['frames']} key frames")
    print(table(report))
    output = args.output or Path(__file__).parent / "results" / "build.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
