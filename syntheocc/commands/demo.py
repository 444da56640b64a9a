"""``syntheocc demo``: the embedded street through the whole road, with no data and no download."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.pipelines import SyntheOccPipeline

NANO = Path(__file__).resolve().parents[2] / "ckp" / "syntheocc-nano"


@dataclass(kw_only=True)
class DemoConfig:
    """Draw the embedded street: what six cameras should see, and what the networks make of it."""

    output_dir: Path = flag(Path("outputs/demo"), "folder of the pictures")
    model: str | None = flag(
        None, "pipeline folder; by default ckp/syntheocc-nano, and while that is missing a small untrained network"
    )
    prompt: str = flag("show a photorealistic street view image", "what the picture should look like")
    seed: int = flag(0, "seed of the street's details and of the noise")
    height: int = flag(224, "rows of a generated picture, a multiple of 8")
    width: int = flag(400, "columns of a generated picture, a multiple of 8")
    num_inference_steps: int = flag(12, "denoising steps")
    guidance_scale: float = flag(2.0, "weight of the text (1: no guidance)")

    def __post_init__(self):
        if self.height % 8 or self.width % 8 or self.height <= 0 or self.width <= 0:
            raise ValueError(f"height and width must be positive multiples of 8, got {self.height}x{self.width}")


def run(config: DemoConfig) -> int:
    """Write conditions.png, generated.png, street.png (both, row by row), bev.png, occupancy.png (3D), one a view."""
    import torch

    from syntheocc.occupancy import render_mpi
    from syntheocc.occupancy.pictures import (
        bev_picture,
        class_legend,
        condition_pictures,
        contact_sheet,
        labelled,
        oblique_picture,
        resized,
        save_picture,
        tiled,
        with_legend,
    )
    from syntheocc.worlds.street import example_street

    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is found before the work
    grid, rig, _ = example_street(config.seed)
    size = (config.height, config.width)
    # finer than the networks' condition (a cell there is 8 pixels), so that a person can read it
    seen = condition_pictures(render_mpi(grid, rig, config.height // 2, config.width // 2))
    conditions = dict(zip(rig.names, [resized(picture, *size, nearest=True) for picture in seen], strict=True))

    pipe, description = load_demo_pipeline(config.model, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe.to(device)
    pipe.set_progress_bar_config(desc="six views", unit="step", leave=False)
    output = pipe(
        config.prompt,
        occupancy=grid,
        cameras=rig,
        height=config.height,
        width=config.width,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        generator=torch.Generator().manual_seed(config.seed),
    )
    generated = dict(zip(rig.names, output.images[0], strict=True))

    save_picture(contact_sheet(conditions), folder / "conditions.png")
    save_picture(contact_sheet(generated), folder / "generated.png")
    save_picture(bev_picture(grid, ego=True), folder / "bev.png")
    save_picture(with_legend(oblique_picture(grid), class_legend(grid.taxonomy, grid)), folder / "occupancy.png")
    for name, picture in generated.items():
        save_picture(picture, folder / "views" / f"{name}.png")
    rows = []
    for start in range(0, len(rig), 3):
        names = rig.names[start : start + 3]
        rows.append([labelled(conditions[name], f"{name}  condition") for name in names])
        rows.append([labelled(generated[name], f"{name}  generated") for name in names])
    sheet = save_picture(tiled(rows), folder / "street.png")
    print(f"wrote {sheet}: six condition views with the generated ones below them ({description})")
    return 0


def load_demo_pipeline(model: str | None, seed: int) -> tuple["SyntheOccPipeline", str]:
    """The pipeline of the demo and a few words about it.

    Args:
        model: a pipeline folder, or None: ckp/syntheocc-nano where it exists, else small random weights.
        seed: of the random weights.

    Raises:
        ValueError: `model` is not a pipeline folder.
    """
    import torch

    from syntheocc.commands import quiet_loading
    from syntheocc.pipelines import SyntheOccPipeline

    quiet_loading()
    folder = Path(model) if model is not None else NANO
    if (folder / "model_index.json").is_file():
        # Half-precision files would leave the text encoder alone in half precision, which a CPU is slow in.
        return SyntheOccPipeline.from_pretrained(folder, dtype=torch.float32), f"model {folder.name}"
    if model is not None:
        raise ValueError(
            f"{model} is not a pipeline folder (no model_index.json); leave --model out for the embedded one"
        )
    from syntheocc.models.presets import tiny_components

    return SyntheOccPipeline(**tiny_components(seed, size="nano")), "small untrained networks: noise is expected"
