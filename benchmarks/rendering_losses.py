"""Which occupancy the losses on rays ask for: the true one, one with thin ground, or the true one a voxel lower.

    python benchmarks/rendering_losses.py --output DIR     a table of three scenes, a few minutes on a CPU
    python benchmarks/rendering_losses.py --smoke          one scene, few rays, two designs

A model's answer is made from exact grids of street scenes (opacity 0.95 where something is, 0.002 elsewhere, its class
with certainty; thin ground: 0.3 there) and its training loss is computed on rays of the scenes' lidar. Nothing is
learnt. Where the ratio is below 1, training lowers the road. "Points": a ray must end at its point; "voxels": anywhere
in its point's voxel (`syntheocc.occupancy.rendering.surfaces`, the presets').
"""

from dataclasses import replace
from typing import Any

import reporting
import torch
from rendering_truth import GROUND, TAXONOMY, Street, asked_for
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
ANSWERS = ("truth", "thin_ground", "one_voxel_lower")
OPAQUE, THIN, CLEAR = 0.95, 0.3, 0.002


def step_of(design: str, voxels: bool) -> Any:
    """The training step, around a small network that is not asked."""
    name, preset, changes = DESIGNS[design]
    entry: Any = model_entry(name)
    config, recipe = entry.preset(f"{preset}_small")
    step = entry.step_class(entry.model_class(replace(config, voxel_surfaces=voxels, **changes)))
    step.class_weights = torch.tensor(recipe.rays.loss_weights or (1.0,) * TAXONOMY.num_classes)
    return step


def answer(step: Any, opacity: Tensor, classes: Tensor) -> VolumeOutput:
    """A model that says this. RenderOcc's opacity is that of two samples, 1 - (1 + exp(raw - 13.8155))^-1."""
    shift = 13.8155 if type(step).__name__ == "RenderOccStep" else 0.0
    return VolumeOutput(torch.logit(opacity) + shift, 6.0 * classes, torch.zeros(0))


@torch.no_grad()
def loss(step: Any, street: Street, said: str) -> float:
    """Of the street as one of `ANSWERS`."""
    occupied, classes = street.occupied, street.features[..., : TAXONOMY.free]
    opacity = torch.where(occupied > 0, OPAQUE, CLEAR)
    if said == "thin_ground":
        opacity = torch.where(classes[..., GROUND].sum(-1) > 0, THIN, opacity)
    elif said == "one_voxel_lower":
        # What leaves below comes in above, where nothing is.
        opacity, classes = opacity.roll(-1, -1), classes.roll(-1, -2)
        opacity[..., -1] = CLEAR
    rays = replace(street.rays, weights=step.class_weights[street.rays.labels])
    found = step.ray_losses(answer(step, opacity, classes), None, rays, None, [torch.Generator().manual_seed(0)])
    return float(sum(found.values()))


def main() -> None:
    args, made = asked_for(__doc__)
    found = []
    for design in ("SplattingOcc, 0.12 m", "SplattingOcc, 0.2 m") if args.smoke else DESIGNS:
        for voxels in (False, True):
            step = step_of(design, voxels)
            losses = {said: sum(loss(step, street, said) for street in made) / len(made) for said in ANSWERS}
            ratio = losses["one_voxel_lower"] / losses["truth"]
            found.append({"design": design, "surfaces": "voxels" if voxels else "points", **losses, "ratio": ratio})
            print(reporting.line_of(found[-1]), flush=True)
    reporting.keep_rows(args.output, "rendering-losses.json", found)


if __name__ == "__main__":
    main()
