"""What ``syntheocc loop`` begins with: a street made on the way, a data root's frames, or a label file alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.grids import OccupancyGrid, Preset

if TYPE_CHECKING:
    from syntheocc.occupancy.data.samples import SampleConfig

__all__ = ["LoopInput", "agreed", "checked", "data_root_inputs", "label_input", "procedural_inputs"]

ALONE = Ranks()


@dataclass(frozen=True, eq=False)
class LoopInput:
    """One frame and what is known of it.

    Args:
        frame: cameras, and pictures where there are any.
        label: its true occupancy, None unknown.
        observed: bool [X, Y, Z] of the label, what the cameras see; None: it is found from the label itself.
        own: whether this process works on it. Another's has no label here: it stands in the history of one's own, and
            its lidar is where rays start.
    """

    frame: Frame
    label: OccupancyGrid | None = None
    observed: Tensor | None = None
    own: bool = True


def procedural_inputs(
    folder: Path,
    preset: Preset,
    seed: int,
    frames: int,
    size: tuple[int, int],
    split: str = "val",
    ranks: Ranks = ALONE,
) -> list[LoopInput]:
    """The first key frames of a street scene, photographed into a folder, with exact labels.

    Args:
        folder: gets `samples/<CAM>/...jpg`.
        preset: grid, in ego, and class table of the labels.
        seed: of the world.
        frames: how many key frames, 0.5 s apart.
        size: width and height of the pictures.
        split: of the world; "val" scenes have layouts and assets that no shipped model was trained on.
        ranks: the process's place; it photographs its own frames.
    """
    from syntheocc.engine.files import atomic_write_image
    from syntheocc.worlds.camera_images import render_view
    from syntheocc.worlds.labels import exact_grid
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.splits import scene_seed
    from syntheocc.worlds.timeline import key_frame, readings

    number = scene_seed(seed, split, 0)
    # By day: the sheet is there to be looked at.
    scene = make_scene(number, split=split, image_size=size, key_frames=frames, weather="clear", light="day")
    fired = readings(scene)
    inputs = []
    for index, t in enumerate(scene.key_times):
        of = {reading.channel: reading for reading in fired if reading.sample == index}
        frame = key_frame(scene, index, folder, of)
        if index % ranks.world != ranks.rank:
            inputs.append(LoopInput(frame, own=False))
            continue
        for name, path in frame.image_paths.items():
            moment = of[name].t
            view = render_view(scene, scene.rig[name], scene.ego.pose_at(moment), moment)
            atomic_write_image(path, torch.as_tensor(view.image).cpu().numpy(), quality=95, subsampling=0)
        inputs.append(LoopInput(frame, exact_grid(scene, t, preset)))
    return inputs


def data_root_inputs(
    config: "SampleConfig",
    kind: str | None,
    tokens: Sequence[str] = (),
    scenes: Sequence[str] = (),
    most: int | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[LoopInput], dict[str, str]]:
    """Frames of a data root and their labels.

    Args:
        config: where they are; infos by default, the JSON tables where there are none.
        kind: format of the labels; None: no labels are read.
        tokens: samples to take; none given: all.
        scenes: scenes to take; none given: all.
        most: take the first so many of them only.
        ranks: the process's place; it reads the labels of its own frames.

    Returns:
        the inputs in time order, and token -> reason of those whose label is missing, damaged, or another frame's.

    Raises:
        ValueError: no frames, or a token or scene that is not among them.
    """
    from syntheocc.occupancy.data.occupancy_files import occupancy_path
    from syntheocc.occupancy.data.samples import usual_label_root

    frames, bad = config.read_frames()
    unknown = [token for token in tokens if token not in {frame.token for frame in frames} | set(bad)]
    unknown += [name for name in scenes if name not in {frame.scene for frame in frames}]
    if unknown:
        raise ValueError(
            f"no sample or scene is called {', '.join(unknown)}; there are {len(frames)} samples such as "
            f"{frames[0].token}, of scenes {', '.join(sorted({frame.scene for frame in frames})[:5])}"
        )
    chosen = [
        frame for frame in frames if (not tokens or frame.token in tokens) and (not scenes or frame.scene in scenes)
    ]
    inputs, lost = [], {token: reason for token, reason in bad.items() if not tokens or token in tokens}
    for index, frame in enumerate(sorted(chosen, key=lambda frame: (frame.scene, frame.timestamp_us))[:most]):
        if index % ranks.world != ranks.rank:
            inputs.append(LoopInput(frame, own=False))
            continue
        try:
            label = observed = None
            if kind is not None:
                root = config.occ_path or usual_label_root(config.dataroot_path, kind)  # type: ignore[arg-type]
                label, observed = read_label(occupancy_path(root, frame, kind), kind, frame)
            inputs.append(LoopInput(frame, label, observed))
        except ValueError as error:
            lost[frame.token] = str(error)
    return inputs, lost


def read_label(path: Path, kind: str, frame: Frame) -> tuple[OccupancyGrid, Tensor | None]:
    """A label file and its mask of what the cameras see, if it has one.

    Raises:
        ValueError: a missing or damaged file, or one of another sample.
    """
    from syntheocc.occupancy.data.belonging import check_belongs
    from syntheocc.occupancy.data.occ3d import read_occ3d
    from syntheocc.occupancy.data.occupancy_files import preset_of, read_occupancy

    if kind in ("occ3d", "openocc_v2"):
        labels = read_occ3d(path, preset_of(kind))
        grid, observed = labels.grid, labels.mask_camera
    else:
        grid, observed = read_occupancy(path, kind, frame.lidar2ego), None
    check_belongs(grid, frame)
    return grid, observed


def label_input(path: Path, kind: str, size: tuple[int, int]) -> LoopInput:
    """A label file alone, seen by cameras placed like those of nuScenes; there are no pictures.

    Args:
        path: e.g. Occ3D's `labels.npz`.
        kind: its format.
        size: width and height of the cameras' pictures.

    Raises:
        ValueError: a missing or damaged file.
    """
    from syntheocc.worlds.street import LIDAR2EGO, nominal_rig

    width, height = size
    parent = path.parent.name or "label"
    frame = Frame(
        token=parent if path.name == "labels.npz" else path.name.split(".")[0],
        scene="",
        timestamp_us=0,
        cameras=nominal_rig(height, width),
        lidar2ego=torch.from_numpy(LIDAR2EGO),
        ego2global=torch.eye(4, dtype=torch.float64),
    )
    return LoopInput(frame, *read_label(path, kind, frame))


def checked(inputs: Sequence[LoopInput], reads: Any | None, lost: dict[str, str]) -> list[LoopInput]:
    """The inputs that can be used; the reasons of the others go into `lost`.

    Args:
        inputs: the frames; another process's are left to it.
        reads: the `Perceiver` that will read their pictures; None: nobody will.
        lost: token -> reason, added to.
    """
    from syntheocc.occupancy.data.belonging import check_pictures, check_sees

    good = []
    for one in inputs:
        if not one.own:
            good.append(one)
            continue
        try:
            if reads is not None:
                reads.check_rig(one.frame)
                one.frame.check_files(lidar=False)
            check_pictures(one.frame)
            if one.label is not None:
                check_sees(one.label, one.frame.cameras, one.frame.token)
        except ValueError as error:
            lost[one.frame.token] = str(error)
            continue
        good.append(one)
    return good


def agreed(inputs: Sequence[LoopInput], lost: dict[str, str], ranks: Ranks) -> list[LoopInput]:
    """The inputs that the process which works on them has not lost; call it on all ranks, inside `ranks.group()`.

    Args:
        inputs: one's own that are left, and all of the others'.
        lost: token -> reason of one's own; those of the others are added.
        ranks: the process's place.
    """
    parts = ranks.gather(([one.frame.token for one in inputs if one.own], dict(lost)))
    kept = {token for tokens, _ in parts for token in tokens}
    merged = {token: reason for _, reasons in parts for token, reason in reasons.items()}
    lost.clear()
    lost.update(sorted(merged.items()))
    return [one for one in inputs if one.frame.token in kept]
