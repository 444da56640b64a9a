"""``syntheocc edit``: change the occupancy of frames, and see what becomes of the condition and of the street.

    syntheocc edit street --insert truck --at 12 0                       the embedded street, no data needed
    syntheocc edit TOKEN --dataroot-path data/nuscenes --recipe stopped_truck.json
    syntheocc edit labels.npz --occ-kind occ3d --remove car@8,-2
    syntheocc edit --dataroot-path data/nuscenes --batch recipes/        every recipe on every frame

<out>/<recipe>/labels/<format>/...        the edited occupancy in its own format, and in Occ3D's
<out>/<recipe>/labels/<token>.json        boxes and cameras
<out>/<recipe>/infos.pkl, v1.0-*/         the boxes as info pickles and as nuScenes tables
<out>/<recipe>/pictures/                  before and after: 3D, condition, and with --model generated views
<out>/<recipe>/records/, manifest.json    what was done to each frame; what failed
<out>/<recipe>/recipe.json                the recipe
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from syntheocc.commands.edit_work import (
    STREET,
    EditFolder,
    Source,
    Views,
    file_source,
    finish_recipe,
    make_edit,
    street_source,
)
from syntheocc.commands.samples import OccupancyKind, SampleConfig
from syntheocc.engine.flags import flag

if TYPE_CHECKING:
    from syntheocc.commands.batch import Tally
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.nuscenes import NuScenesTables
    from syntheocc.occupancy.editing import Recipe

_SINGLE = ("insert", "move", "rotate", "remove", "repaint", "layout")
# Flag -> key of an edit.
_KEYS = {"edit_class": "class", "edit_name": "name"}
_PARAMETERS = ("at", "to", "by", "yaw_deg", "turn_deg", "z", "size", "edit_class", "edit_name", "allow")


@dataclass(kw_only=True)
class EditConfig(SampleConfig):
    """Edit the occupancy of frames: one edit by flags, a recipe, or a folder of recipes."""

    frame: str | None = flag(
        None, "sample token, a label file, or 'street' (the embedded one); left out: all frames", positional=True
    )
    out: Path = flag(Path("outputs/edits"), "folder of the results")
    occ_kind: Literal["grid", OccupancyKind] = flag(
        "syntheocc", "format of the label files; lidar: built from the sweep and the boxes; grid: a .npz grid file"
    )
    recipe: Path | None = flag(None, "recipe of edits, a JSON file")
    batch: Path | None = flag(None, "folder of recipes, each of which is applied to the frames")
    insert: str | None = flag(None, "put this asset somewhere (--list-assets names them; box takes --size, --class)")
    move: str | None = flag(None, "take this object elsewhere: '#3', an instance token, class@x,y")
    rotate: str | None = flag(None, "turn this object by --turn-deg")
    remove: str | None = flag(None, "take this object away")
    repaint: str | None = flag(None, "give this object another class, --class")
    layout: str | None = flag(None, "a whole situation: cone_lane, crossing_pedestrian, lost_cargo, roadworks")
    at: tuple[float, ...] = flag((), "x y in ego, metres: where to insert, or a layout's place")
    to: tuple[float, ...] = flag((), "x y: where to move, or where a cone lane ends")
    by: tuple[float, ...] = flag((), "x y: how far to move")
    yaw_deg: float | None = flag(None, "heading, degrees: 0 along x (forward), 90 to the left")
    turn_deg: float | None = flag(None, "turn to the left, degrees")
    z: float | None = flag(None, "height of the underside; by default it stands on the ground of the grid")
    size: tuple[float, ...] = flag((), "length width height of a box, metres")
    edit_class: str | None = flag(None, "class of what is inserted or repainted", aliases=("class",))
    edit_name: str | None = flag(None, "name of what is inserted", aliases=("name",))
    allow: tuple[str, ...] = flag((), "what is no error: collision, floating, outside, empty")
    set: tuple[str, ...] = flag((), "further arguments of the edit as key=value, e.g. spacing=2 pieces=4")
    cut_from: str | None = flag(None, "with --insert-cut: token of the frame that an object is cut from")
    insert_cut: str | None = flag(None, "cut this object out of the frame --cut-from and insert it --at")
    list_assets: bool = flag(False, "list the library's objects and leave")
    pictures: bool = flag(True, "draw before and after")
    model: str | None = flag(None, "pipeline folder: also generate the views before and after, at one seed")
    prompt: str | None = flag(None, "text of the views; by default the frame's caption, else the published prompt")
    seed: int = flag(0, "seed of the noise")
    height: int = flag(224, "rows of a generated view, a multiple of 8")
    width: int = flag(400, "columns of a generated view, a multiple of 8")
    num_inference_steps: int = flag(20, "denoising steps")
    guidance_scale: float = flag(2.0, "weight of the text (1: no guidance)")

    def __post_init__(self):
        super().__post_init__()
        if self.height % 8 or self.width % 8 or self.height <= 0 or self.width <= 0:
            raise ValueError(f"height and width must be positive multiples of 8, got {self.height}x{self.width}")

    def single_edit(self) -> dict[str, Any] | None:
        """The edit that the flags describe, as a recipe writes it; None where they describe none."""
        given = [name for name in _SINGLE if getattr(self, name) is not None]
        given += ["insert_cut"] if self.insert_cut is not None else []
        if len(given) > 1:
            raise ValueError(f"one edit by flags, got --{' and --'.join(given)}; write the others into a recipe")
        if not given:
            return None
        (kind,) = given
        value = getattr(self, kind)
        edit: dict[str, Any] = {"edit": "insert" if kind == "insert_cut" else value if kind == "layout" else kind}
        if kind in ("insert", "insert_cut"):
            edit["asset"] = value if kind == "insert" else "cut"
        elif kind != "layout":
            edit["object"] = value
        for name in _PARAMETERS:
            parameter = getattr(self, name)
            if parameter not in (None, ()):
                edit[_KEYS.get(name, name)] = list(parameter) if isinstance(parameter, tuple) else parameter
        if kind == "repaint" and "class" in edit:
            edit["to"] = edit.pop("class")
        if edit["edit"] == "cone_lane":
            edit |= {new: edit.pop(old) for old, new in (("at", "start"), ("to", "end")) if old in edit}
        for word in self.set:
            key, equals, text = word.partition("=")
            if not equals:
                raise ValueError(f"--set takes key=value, got {word!r}")
            try:
                edit[key] = json.loads(text)
            except ValueError:
                edit[key] = text
        return edit


def run(config: EditConfig) -> int:
    """Make the edits; returns the exit status (1: some failed)."""
    from syntheocc.commands.batch import Tally, print_summary
    from syntheocc.engine.ranks import Ranks

    if config.list_assets:
        return _list_assets()
    ranks = Ranks.from_environment()
    single = config.single_edit()
    if sum(value is not None for value in (single, config.recipe, config.batch)) != 1:
        raise ValueError(
            "say what to edit: one edit by flags (--insert car --at 12 0), --recipe file.json, or --batch folder; "
            "--list-assets shows what can be inserted"
        )
    source = _source(config)
    recipes, failed = _recipes(config, single, source)
    tables = _tables(config, source)
    views = _views(config) if config.model is not None else None
    made = skipped = 0
    with ranks.group():
        for name, recipe in recipes.items():
            try:
                tally = _apply(config, source, recipe, EditFolder(config.out / name), tables, views, ranks)
            except ValueError as error:
                failed[name] = str(error)
                continue
            made, skipped = made + tally.made, skipped + tally.skipped
            failed |= {f"{name}, {token}": reason for token, reason in tally.failed.items()}
    tally = Tally(made, skipped, failed)
    if ranks.is_main:
        print_summary(tally, "labels, boxes and pictures", config.out)
    return tally.status


def _apply(
    config: EditConfig,
    source: Source,
    recipe: "Recipe",
    outputs: EditFolder,
    tables: "NuScenesTables | None",
    views: Views | None,
    ranks: Any,
) -> "Tally":
    """Take the frames through one recipe; call it on all ranks, inside `ranks.group()`."""
    from syntheocc.commands.batch import check_settings, run_samples

    frames = [frame for frame in source.frames if recipe.frame in ("", frame.token)]
    if not frames:
        raise ValueError(f"{recipe.source} is for frame {recipe.frame}, which is not among the frames")
    names = (
        "occ_kind",
        "pictures",
        "model",
        "prompt",
        "seed",
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
    )
    settings = {name: getattr(config, name) for name in names} | {"recipe": recipe.to_json()}
    settings_file = outputs.root / "settings.json"
    check_settings(settings_file, settings, "give another --out, or remove the folder")
    make = make_edit(source, recipe, outputs, config.pictures, views)
    tally = run_samples(
        frames, outputs.is_done, make, ranks, outputs.root.name, (settings_file, settings), source.unreadable
    )
    if ranks.is_main:
        recipe.save(outputs.root / "recipe.json")
        outputs.write_manifest(frames, settings, tally)
        finish_recipe(outputs, frames, tally, tables)
    return tally


def _recipes(
    config: EditConfig, single: dict[str, Any] | None, source: Source
) -> tuple[dict[str, "Recipe"], dict[str, str]]:
    """Folder name -> recipe, and file name -> reason of those that cannot be read (one alone is an error)."""
    from syntheocc.occupancy.editing import Recipe

    if single is not None:
        assets = {}
        if config.insert_cut is not None:
            assets["cut"] = _cut(config)
        name = "-".join(str(single[key]) for key in ("edit", "asset", "object") if key in single)
        recipe = Recipe((single,), name=name, assets=assets, source="the edit by flags")
        return {re.sub(r"[^\w.-]+", "_", name): recipe}, {}
    if config.recipe is not None:
        return {config.recipe.stem: Recipe.load(config.recipe)}, {}
    assert config.batch is not None
    paths = sorted(config.batch.glob("*.json")) if config.batch.is_dir() else []
    if not paths:
        raise ValueError(f"--batch={config.batch} is no folder with recipes (*.json)")
    recipes, failed = {}, {}
    for path in paths:
        try:
            recipes[path.stem] = Recipe.load(path)
        except ValueError as error:
            failed[path.name] = str(error)
    return recipes, failed


def _source(config: EditConfig) -> Source:
    """Where the frames come from.

    Raises:
        ValueError: no such frame or file.
    """
    from syntheocc.occupancy.data.occupancy_files import occupancy_path

    if config.frame == STREET:
        return street_source()
    if config.frame is not None and Path(config.frame).suffix in (".npz", ".npy"):
        if not Path(config.frame).is_file():
            raise ValueError(f"{config.frame}: no such label file")
        if config.occ_kind == "lidar":
            raise ValueError(
                f"{config.frame} is a label file; say its format as --occ_kind (occ3d, syntheocc, grid, ...)"
            )
        return file_source(Path(config.frame), config.occ_kind)
    if config.occ_kind == "grid":
        raise ValueError("--occ_kind=grid is for one .npz file, given as the frame")
    kind: OccupancyKind = config.occ_kind
    wanted = config if config.frame is None else dataclasses.replace(config, max_samples=None)
    frames, unreadable = wanted.read_frames()
    config.check_labels(kind)
    if config.frame is not None:
        frames = [frame for frame in frames if frame.token == config.frame]
        if not frames:
            reason = unreadable.get(config.frame)
            raise ValueError(
                f"no frame {config.frame!r} in {', '.join(map(str, config.info_paths()))}"
                + (f": {reason}" if reason else "; give a sample token, a label file (.npz, .npy), or 'street'")
            )
        unreadable = {}

    def label_of(frame: "Frame") -> Path | None:
        return None if kind == "lidar" else occupancy_path(config.occupancy_root(kind), frame, kind)

    written = "syntheocc" if kind == "lidar" else kind
    return Source(frames, unreadable, lambda frame: config.read_grid(frame, kind), written, label_of)


def _cut(config: EditConfig) -> Any:
    """The object that --insert-cut asks for."""
    if config.cut_from is None:
        raise ValueError("--insert_cut needs --cut_from, the frame that the object is cut from")
    other = _source(dataclasses.replace(config, frame=config.cut_from))
    assert config.insert_cut is not None
    return other.editor(other.frames[0]).cut(config.insert_cut, "cut")


def _tables(config: EditConfig, source: Source) -> "NuScenesTables | None":
    """The nuScenes tables that hold all frames, if there are such."""
    from syntheocc.occupancy.data.nuscenes import NuScenesTables

    wanted = {frame.token for frame in source.frames}
    given = [Path(path) for path in config.info_path if Path(path).is_dir()]
    for folder in given or sorted(Path(config.dataroot_path).glob("v1.0-*")):
        if all((folder / f"{name}.json").is_file() for name in ("sample", "sample_data", "sample_annotation")):
            tables = NuScenesTables(folder, config.dataroot_path)
            if wanted <= {row.get("token") for row in tables.table("sample")}:
                return tables
    return None


def _views(config: EditConfig) -> Views:
    """A function that generates the views of a grid, always from the same noise."""
    import torch

    from syntheocc.commands.demo import DemoConfig, load_demo_pipeline

    pipe, _ = load_demo_pipeline(config.model, config.seed)
    pipe.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    pipe.set_progress_bar_config(disable=True)
    default = DemoConfig().prompt

    def draw(grid: Any, frame: "Frame") -> Any:
        output = pipe(
            config.prompt or frame.caption or default,
            occupancy=grid,
            cameras=frame.cameras,
            height=config.height,
            width=config.width,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            generator=torch.Generator().manual_seed(config.seed),
        )
        return output.images[0]

    return Views(draw)


def _list_assets() -> int:
    from syntheocc.occupancy.editing import LAYOUTS, asset_names

    for name, description in asset_names().items():
        print(f"{name:22} {description}")
    print(f"{'box':22} a solid block, with --size and --class")
    print(f"layouts: {', '.join(LAYOUTS)}")
    return 0
