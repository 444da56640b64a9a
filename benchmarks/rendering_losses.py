"""Which occupancy the losses on rays ask for: the true one, or the same one voxel lower.

    python benchmarks/rendering_losses.py --output DIR     a table of three scenes, a few minutes on a CPU
    python benchmarks/rendering_losses.py --smoke          one scene, few rays, two designs

A model's answer is made from exact grids of street scenes (opacity 0.95 where something is, 0.002 elsewhere, its class
with certainty) and its training loss is computed on rays of the scenes' lidar. Nothing is learnt. Where the ratio is
below 1, training lowers the road. "Points": a ray must end at its point; "voxels": anywhere in its point's voxel
(`syntheocc.occupancy.rendering.surfaces`, the presets').
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import reporting
import torch
from rendering_truth import TAXONOMY, Street, streets
from torch import Tensor

from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.volume_model import VolumeOutput
from syntheocc.occupancy.rendering.gaussian import SplatSettings

# Name -> entry of the registry, preset, changes of its config.
DESIGNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "OccFlowNet": ("occflownet", "occflownet_2d", {}),
    "RenderOcc": ("renderocc", "renderocc_7frame", {}),
    **{
        f"SplattingOcc, {scale} m": ("splattingocc", "splattingocc", {"splats": SplatSettings(scale=scale)})
        for scale in (0.1, 0.12, 0.14, 0.2, 0.27)
    },
}
OPAQUE, CLEAR = 0.95, 0.002


def step_of(design: str, voxels: bool) -> Any:
    """The training step, around a small network that is not asked."""
    name, preset, changes = DESIGNS[design]
    entry: Any = model_entry(name)
    config, recipe = entry.preset(f"{preset}_small")
    step = entry.step_class(entry.model_class(replace(config, voxel_surfaces=voxels, **changes)))
    step.class_weights = torch.tensor(recipe.rays.loss_weights or (1.0,) * TAXONOMY.num_classes)
    return step


def answer(step: Any, occupied: Tensor, classes: Tensor) -> VolumeOutput:
    """A model that says this. RenderOcc's opacity is that of two samples, 1 - (1 + exp(raw - 13.8155))^-1."""
    opacity = torch.where(occupied > 0, OPAQUE, CLEAR)
    shift = 13.8155 if type(step).__name__ == "RenderOccStep" else 0.0
    return VolumeOutput(torch.logit(opacity) + shift, 6.0 * classes, torch.zeros(0))


@torch.no_grad()
def loss(step: Any, street: Street, lower: bool) -> float:
    """Of the street as it is, or one voxel lower."""
    occupied, classes = street.occupied, street.features[..., : TAXONOMY.free]
    if lower:
        # What leaves below comes in above, where nothing is.
        occupied, classes = occupied.roll(-1, -1).clone(), classes.roll(-1, -2)
        occupied[..., -1] = 0
    rays = replace(street.rays, weights=step.class_weights[street.rays.labels])
    found = step.ray_losses(answer(step, occupied, classes), None, rays, None, [torch.Generator().manual_seed(0)])
    return float(sum(found.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for rendering-losses.json")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    number, azimuths, step = (1, 60, 8) if args.smoke else (args.scenes, 360, 4)
    made, found = list(streets(number, azimuths, step)), []
    for design in ("SplattingOcc, 0.12 m", "SplattingOcc, 0.2 m") if args.smoke else DESIGNS:
        for voxels in (False, True):
            asked = step_of(design, voxels)
            truth, lower = (sum(loss(asked, street, flag) for street in made) / len(made) for flag in (False, True))
            row = {
                "design": design,
                "surfaces": "voxels" if voxels else "points",
                "truth": truth,
                "one_voxel_lower": lower,
                "ratio": lower / truth,
            }
            found.append(row)
            print(reporting.line_of(row), flush=True)
    reporting.keep_rows(args.output, "rendering-losses.json", found)


if __name__ == "__main__":
    main()
