"""``syntheocc loop``: images -> occupancy -> conditions -> generated views -> occupancy, scored at every arrow.

    syntheocc loop                                                  # a street made on the way, nothing to download
    syntheocc loop --dataroot data/nuscenes --scenes scene-0103 --perception out/small
    syntheocc loop --label gts/scene-0103/<token>/labels.npz       # a label alone, seen by nominal cameras
    torchrun --nproc_per_node 8 -m syntheocc.commands loop ...     # the processes share the frames; the same report

`--output_dir` gets `loop_<token>.png` (every stage on one sheet), report.json and report.md, the generated views and
the grids. What each stage does, and what it refuses: docs/loop.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.commands.demo import NANO
from syntheocc.commands.samples import OccupancyKind
from syntheocc.engine.flags import flag
from syntheocc.engine.ranks import Ranks

if TYPE_CHECKING:
    from syntheocc.commands.loop_scores import LoopScores
    from syntheocc.commands.loop_sources import LoopInput
    from syntheocc.commands.loop_stages import Generator
    from syntheocc.occupancy import OccupancyGrid

JUDGE = NANO.parent / "judge"


@dataclass(kw_only=True)
class LoopConfig:
    """Close the loop: read occupancy from images, generate views from it, read them again, and score every arrow."""

    output_dir: Path = flag(Path("outputs/loop"), "folder of the results")
    dataroot: Path | None = flag(None, "data root of the frames; by default a street is made on the way")
    info_path: tuple[str, ...] = flag((), "info pickles or table folders; by default the tables below --dataroot")
    tokens: tuple[str, ...] = flag((), "samples to take; by default all")
    scenes: tuple[str, ...] = flag((), "scenes to take; by default all")
    max_samples: int | None = flag(None, "take the first so many samples only")
    label: Path | None = flag(None, "a label file: alone, or the label of the one sample that --tokens names")
    labels: Literal["none", OccupancyKind] = flag("occ3d", "format of the labels; none: nothing is held against them")
    labels_root: Path | None = flag(None, "root of the label files; by default their usual place below --dataroot")
    start: Literal["images", "label"] = flag(
        "images",
        "generate from the occupancy that is read from the images, or from the label",
        aliases=("start-from",),  # torchrun reads --start as a short form of flags of its own, and refuses it
    )
    read_again: bool = flag(True, "read occupancy from the generated views")
    perception: Path | None = flag(None, "folder of a trained perception model; by default the one in ckp/")
    confidence: float | None = flag(None, "a predicted voxel below it is free; by default the model's own rule")
    close_holes: int = flag(0, "close holes of the grid up to twice so many voxels wide before generating")
    edit: Path | None = flag(None, "recipe of edits that are made before generating (syntheocc edit)")
    model: Path = flag(NANO, "pipeline folder of the generator")
    judge: Path | None = flag(None, "folder of the judge of views; by default the one in ckp/, where there is one")
    prompt: str | None = flag(None, "text for all views; by default the sample's caption")
    frames: int = flag(1, "key frames of the street that is made on the way")
    seed: int = flag(0, "seed of that street and of the noise")
    height: int = flag(224, "rows of a generated view")
    width: int = flag(400, "columns of a generated view")
    num_inference_steps: int = flag(12, "denoising steps")
    guidance_scale: float = flag(2.0, "weight of the text (1: no guidance)")
    device: str = flag("auto", "cpu, cuda, cuda:1, ...; auto: a GPU where there is one")

    def __post_init__(self):
        if self.height % 8 or self.width % 8 or self.height <= 0 or self.width <= 0:
            raise ValueError(f"height and width must be positive multiples of 8, got {self.height}x{self.width}")
        if self.frames < 1 or self.num_inference_steps < 1:
            raise ValueError(f"frames and num_inference_steps are 1 or more, got {self.frames} and "
                             f"{self.num_inference_steps}")  # fmt: skip
        if self.start == "label" and self.labels == "none":
            raise ValueError("--start label begins with labels; give their format as --labels")
        if self.label is not None and self.dataroot is not None and len(self.tokens) != 1:
            raise ValueError(f"--label is one sample's; name it with --tokens (one, got {len(self.tokens)})")
        if self.label is not None and self.dataroot is None and self.start == "images":
            self.start = "label"  # a label alone has no images

    def settings(self) -> dict[str, Any]:
        """What the results depend on, as JSON values."""
        from dataclasses import asdict

        plain = lambda v: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v  # noqa: E731
        return {name: plain(value) for name, value in asdict(self).items() if name not in ("output_dir", "device")}


def run(config: LoopConfig) -> int:
    """Run the loop on every frame; returns the exit status (1: some frames failed)."""
    from syntheocc.commands.batch import SHOWN_FAILURES

    result = loop(config)
    status = 1 if result["failed"] else 0
    if not Ranks.from_environment().is_main:
        return status
    print(result["table"])
    for token, reason in list(result["failed"].items())[:SHOWN_FAILURES]:
        print(f"failed: {token}: {reason}")
    print(f"wrote {len(result['frames'])} sheets (loop_<token>.png), report.json and report.md to {config.output_dir}")
    return status


def loop(config: LoopConfig) -> dict[str, Any]:
    """Run the loop and write everything; under torchrun, one's own frames and on the main process the report.

    Returns:
        the report, the same on all processes: "arrows" (figures over all frames), "frames" (the same by token),
        "classes", "failed", "table", and the file of each sheet under "sheets".

    Raises:
        ValueError: nothing to begin with, a model that is not there, or no frame that could be used.
    """
    ranks = Ranks.from_environment()
    with ranks.group():
        return _loop(config, ranks)


def _loop(config: LoopConfig, ranks: Ranks) -> dict[str, Any]:
    from syntheocc.commands.loop_sources import agreed, checked
    from syntheocc.commands.loop_stages import Perceiver, PredictionEdits, default_perception
    from syntheocc.commands.loop_work import LoopWork, progress
    from syntheocc.occupancy.grids import OCC3D_NUSCENES

    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    device = _device(config.device, ranks)
    recipe = None
    if config.edit is not None:
        from syntheocc.occupancy.editing import Recipe

        recipe = Recipe.load(config.edit)
    edits = PredictionEdits(close_holes=config.close_holes, recipe=recipe)
    perceiver = None
    if config.start == "images" or config.read_again:
        perceiver = Perceiver(config.perception or default_perception(), device, config.confidence)
    preset = OCC3D_NUSCENES if perceiver is None else perceiver.preset
    inputs, failed = _inputs(config, folder, preset, ranks)
    inputs = checked(inputs, perceiver if config.start == "images" else None, failed)
    # Every process knows all frames: one's own have others' in their history.
    inputs = agreed(inputs, failed, ranks)
    _some(inputs, failed)
    own = {one.frame.token for one in inputs if one.own}

    predicted: dict[str, OccupancyGrid] = {}
    with_images = [one.frame for one in inputs if one.frame.image_paths]
    if perceiver is not None and with_images:
        predicted, bad = perceiver.predict(with_images, progress("read occupancy"), own)
        failed |= bad
    work = LoopWork(
        folder,
        config.start,
        edits,
        _generator(config, folder, device),
        _scores(config, preset, device),
        (config.height, config.width),
        predicted,
        failed,
    )
    frames = agreed(work.generate(inputs), failed, ranks)  # and all views are written
    _some(frames, failed)
    again: dict[str, OccupancyGrid] = {}
    if config.read_again and perceiver is not None:
        drawn = [work.generator.placed(one.frame) for one in frames]
        again, bad = perceiver.predict(drawn, progress("read again"), own)
        failed |= bad
    frames = agreed([one for one in frames if one.frame.token not in failed], failed, ranks)
    sheets = work.judge(frames, again)
    tokens = [one.frame.token for one in frames]
    parts = ranks.gather((work.scores.state(), sheets))
    work.scores.load([state for state, _ in parts], tokens)
    sheets = {token: path for _, part in parts for token, path in part.items()}
    report = _report(config, work.scores, {token: sheets[token] for token in tokens}, failed)
    if ranks.is_main:
        _write(report, folder)
    return report


def _some(frames: list[Any], failed: dict[str, str]) -> None:
    """Raise ValueError where no frame is left."""
    if not frames:
        token, reason = next(iter(failed.items()), ("", "there is no frame"))
        raise ValueError(f"none of {len(failed)} frames can be used; {token}: {reason}" if token else reason)


def _inputs(config: LoopConfig, folder: Path, preset: Any, ranks: Ranks) -> tuple[list["LoopInput"], dict[str, str]]:
    from syntheocc.commands.loop_sources import data_root_inputs, label_input, procedural_inputs, read_label
    from syntheocc.commands.samples import SampleConfig

    kind = None if config.labels == "none" else config.labels
    size = (config.width, config.height)
    if config.dataroot is None:
        if config.label is not None:
            return [replace(label_input(config.label, config.labels, size), own=ranks.is_main)], {}
        return procedural_inputs(folder / "images", preset, config.seed, config.frames, size, ranks=ranks), {}
    paths = config.info_path or _tables(Path(config.dataroot))
    given = SampleConfig(dataroot_path=config.dataroot, info_path=paths, occ_path=config.labels_root)
    read = None if config.label is not None else kind
    inputs, failed = data_root_inputs(given, read, config.tokens, config.scenes, config.max_samples, ranks)
    if config.label is not None and inputs:
        assert kind is not None
        frame = inputs[0].frame
        named = config.label.parent.name
        if config.label.name == "labels.npz" and len(named) == 32 and named != frame.token:
            raise ValueError(
                f"{config.label} is the label of sample {named}, not of {frame.token}; give the label of the sample "
                "that --tokens names"
            )
        label, observed = read_label(config.label, kind, frame)
        inputs = [replace(inputs[0], label=label, observed=observed)]
    return inputs, failed


def _tables(root: Path) -> tuple[str, ...]:
    """The tables' folder of a data root; nothing where there is not exactly one, for the infos to be read."""
    from syntheocc.occupancy.data.nuscenes import read_tables

    if not root.is_dir():
        raise ValueError(f"data root {root} is not a folder; give the folder that holds samples/ as --dataroot")
    return (str(read_tables(root).folder),) if any(root.glob("*/sample.json")) else ()


def _device(name: str, ranks: Ranks) -> Any:
    from syntheocc.occupancy.perception.predict import device_of

    return device_of(name, ranks)


def _generator(config: LoopConfig, folder: Path, device: Any) -> "Generator":
    from syntheocc.commands.demo import load_demo_pipeline
    from syntheocc.commands.loop_stages import Generator
    from syntheocc.training.captions import Captions

    pipe, _ = load_demo_pipeline(str(config.model), config.seed)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    captions = Captions(config.prompt or "show a photorealistic street view image", use_captions=config.prompt is None)
    names = ("height", "width", "num_inference_steps", "guidance_scale")
    settings = {name: getattr(config, name) for name in names}
    return Generator(pipe, captions, folder / "generated", config.seed, settings)


def _scores(config: LoopConfig, preset: Any, device: Any) -> "LoopScores":
    from syntheocc.commands.loop_scores import LoopScores

    judge, path = None, config.judge or JUDGE
    if (path / "config.json").is_file():
        from syntheocc.evaluation.judge import Judge

        judge = Judge.from_pretrained(path).to(device)
    elif config.judge is not None:
        raise ValueError(f"{path} holds no judge (config.json); give the folder that Judge.save_pretrained wrote")
    return LoopScores(preset, judge)


def _report(
    config: LoopConfig, scores: "LoopScores", sheets: dict[str, Path], failed: dict[str, str]
) -> dict[str, Any]:
    from syntheocc.commands.dataset import code_version
    from syntheocc.commands.loop_scores import ARROWS, VIEWS
    from syntheocc.evaluation.report import markdown_table

    summary = scores.summary()
    rows = [
        [arrow, found.get("mIoU"), found.get("IoU"), found.get("RayIoU"), found.get("same")]
        for arrow, found in ((name, summary[name]) for name in [*ARROWS, VIEWS] if name in summary)
    ]
    table = markdown_table([f"{len(sheets)} frames", "mIoU", "IoU", "RayIoU", "same class"], rows)
    return {
        "settings": config.settings(),
        **code_version(),
        "arrows": summary,
        "frames": scores.frames,
        "classes": scores.classes(),
        "failed": failed,
        "table": table,
        "sheets": sheets,
    }


def _write(report: dict[str, Any], folder: Path) -> None:
    from syntheocc.engine.files import atomic_write_json, atomic_write_text
    from syntheocc.evaluation.report import plain

    kept = {name: value for name, value in report.items() if name not in ("table", "sheets")}
    atomic_write_json(folder / "report.json", plain(kept))
    atomic_write_text(folder / "report.md", report["table"] + "\n")
