"""Speed of the street world's renderer, and whether its classes can be told by colour alone.

    python benchmarks/world.py                          six 900x1600 images on the CPU, 2 threads
    python benchmarks/world.py --device cuda            six 224x400 images a frame, 8 frames a call
    python benchmarks/world.py --colour                 a nearest-neighbour classifier of pixel colours

A frame is all six cameras, each at its own instant, with everything that depends on the instant: poses of all actors,
light maps, visibility, shading, lens and noise. Scenes are made and moved to the device beforehand; calls alternate
between scenes and instants. Times on a GPU are wall-clock around calls that end with the images on the device.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

import reporting
import torch

from syntheocc.worlds.camera_images import Shot, render_shots
from syntheocc.worlds.lidar import camera_time
from syntheocc.worlds.scene import Scene, make_scene
from syntheocc.worlds.taxonomy import WORLD_TAXONOMY

TARGET = {"cuda": "at least 300 frames of six 224x400 images a second", "cpu": "at most 6 s a frame of six 900x1600"}


def shots_of(scene: Scene, times: list[float]) -> list[Shot]:
    cameras = list(scene.rig.values()) * len(times)
    moments = [camera_time(end, camera) for end in times for camera in scene.rig.values()]
    poses = torch.from_numpy(scene.ego.poses_at(moments))
    return [Shot(*shot) for shot in zip(cameras, poses, moments, strict=True)]


def measure(scenes: list[Scene], device: torch.device, frames: int, repeats: int) -> dict:
    """Seconds a frame (median, least, greatest), of the first call, and the share spent in single stages."""

    def call(k: int) -> float:
        scene = scenes[k % len(scenes)]
        times = [0.5 + 0.37 * k + 0.11 * i for i in range(frames)]
        started = time.perf_counter()
        views = render_shots(scene, shots_of(scene, times), device)
        assert len(views) == frames * len(scene.rig)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / frames

    first = [call(k) for k in range(len(scenes))][0]
    times = [call(k) for k in range(1, repeats + 1)]
    return {
        "seconds_a_frame": statistics.median(times),
        "least": min(times),
        "greatest": max(times),
        "frames_a_second": 1 / statistics.median(times),
        "first_call_s": first * frames,
    }


def colour_miou(seeds_train: range, seeds_test: range, pixels: int = 4000, size: tuple[int, int] = (400, 224)) -> dict:
    """Mean IoU of the nearest training colour's class, over the classes that occur, sky left out.

    Colours are what a network would see (the bytes of the photographs); training and test pixels come from different
    scenes, ``pixels`` of each, drawn evenly over their images.
    """

    def draw(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
        colors, labels = [], []
        for seed in seeds:
            scene = make_scene(seed, image_size=size)
            random = torch.Generator().manual_seed(seed)
            for view in render_shots(scene, shots_of(scene, [scene.key_times[3]])):
                image, classes = view.image.reshape(-1, 3), view.labels.flatten()
                pick = torch.randperm(len(classes), generator=random)[: pixels // 6]
                colors.append(image[pick].float())
                labels.append(classes[pick])
        colors, labels = torch.cat(colors), torch.cat(labels)
        kept = labels != WORLD_TAXONOMY.free
        return colors[kept], labels[kept].long()

    known, answers = draw(seeds_train)
    asked, truth = draw(seeds_test)
    guess = torch.cat([answers[torch.cdist(part, known).argmin(1)] for part in asked.split(1000)])
    ious = {}
    for label in truth.unique().tolist():
        both = ((guess == label) & (truth == label)).sum()
        ious[WORLD_TAXONOMY.classes[label]] = float(both / ((guess == label) | (truth == label)).sum())
    return {"miou": statistics.mean(ious.values()), "accuracy": float((guess == truth).float().mean()), "ious": ious}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", help="width x height (default: 1600x900 on a CPU, 400x224 on a GPU)")
    parser.add_argument("--frames", type=int, help="frames a call (default: 1 on a CPU, 8 on a GPU)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=9, help="timed calls; the median counts")
    parser.add_argument("--scenes", type=int, default=2, help="how many scenes")
    parser.add_argument("--colour", action="store_true", help="the colour classifier instead of the speed")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/world-<device>.json)")
    parser.add_argument("--commit", help="commit to record where the checkout has no git")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    report = {
        "benchmark": "world",
        "chip": torch.cuda.get_device_name() if device.type == "cuda" else reporting.cpu_name(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": args.commit or reporting.commit(),
        "command": shlex.join(["python", *reporting.without(sys.argv, ("--output", "--commit"))]),
        "load_average": os.getloadavg()[0],
    }
    if args.colour:
        report |= colour_miou(range(args.scenes), range(100, 100 + args.scenes))
        for name, iou in report["ious"].items():
            print(f"{name:<24}{100 * iou:6.1f} %")
        print(f"mIoU {report['miou']:.3f} (must stay below 0.35), accuracy {report['accuracy']:.3f}")
        kind = "colour"
    else:
        size = args.size or ("1600x900" if device.type == "cpu" else "400x224")
        width, height = (int(number) for number in size.split("x"))
        scenes = [make_scene(seed, image_size=(width, height)) for seed in range(args.scenes)]
        frames = args.frames or (1 if device.type == "cpu" else 8)
        report |= {"size": size, "frames_a_call": frames, "target": TARGET[device.type]}
        report |= {"threads": args.threads, "solids": [len(scene.primitives_at(0.0)) for scene in scenes]}
        report |= measure(scenes, device, frames, args.repeats)
        print(f"{report['chip']}, torch {report['torch']}, six {size} images a frame, {report['solids']} solids")
        print(f"{'s/frame':>10}{'least':>10}{'greatest':>10}{'frames/s':>10}{'first call s':>14}")
        columns = ("seconds_a_frame", "least", "greatest", "frames_a_second")
        print("".join(f"{report[name]:>10.4g}" for name in columns) + f"{report['first_call_s']:>14.3g}")
        print(f"target: {report['target']}")
        kind = device.type
    output = args.output or Path(__file__).parent / "results" / f"world-{kind}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
