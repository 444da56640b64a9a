"""Pictures of predictions: from above, in 3D, in the cameras, objects apart, against the truth; scenes as animations.

Below the folder of the predictions:

| file                               | shows                                                                       |
|------------------------------------|-----------------------------------------------------------------------------|
| `pictures/<token>_bev.png`         | the prediction from above                                                   |
| `pictures/<token>_3d.png`          | solid voxels, with a legend                                                 |
| `pictures/<token>_cameras.png`     | the prediction over the photographs                                         |
| `pictures/<token>_panoptic.png`    | objects in their own colours, the same over a scene, where there are objects |
| `pictures/<token>_comparison.png`  | prediction, truth, errors, where there is a label                           |
| `pictures/<token>_completion.png`  | scene completion: pictures, voxels and skin, beside the truth if there is one |
| `pictures/<scene>.webp`            | cameras and solid voxels, frame by frame                                    |
| `pictures/<scene>_completion.webp` | the sheets of completion, frame by frame                                    |
| `meshes/<token>.ply`               | the prediction's surface, where asked for                                   |
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from syntheocc.engine.files import read_npz
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.data.frames import Frame, about
from syntheocc.occupancy.grids import OccupancyGrid, Preset
from syntheocc.occupancy.perception.images import load_image
from syntheocc.occupancy.perception.labels import LabelReader
from syntheocc.occupancy.perception.transforms import ImageTransform
from syntheocc.occupancy.perception.trees import TreeLabels
from syntheocc.occupancy.pictures import (
    InstanceTracks,
    Viewpoint,
    VoxelColors,
    as_picture,
    bev_picture,
    camera_overlays,
    class_legend,
    comparison_picture,
    completion_sheet,
    contact_sheet,
    oblique_picture,
    panoptic_colors,
    resized,
    save_animation,
    save_picture,
    save_ply,
    surface_mesh,
    with_legend,
)
from syntheocc.occupancy.taxonomy import UNKNOWN

__all__ = ["FOLDER", "MESHES", "draw_predictions"]

FOLDER, MESHES = "pictures", "meshes"
# Width of one camera's picture, and of an animation, pixels.
_CAMERA, _ANIMATION = 640, 1080


def draw_predictions(
    output_dir: Path,
    frames: Sequence[Frame],
    preset: Preset,
    labels: LabelReader | TreeLabels | None = None,
    ranks: Ranks | None = None,
    view: Viewpoint = Viewpoint(),  # noqa: B008 (frozen)
    seconds: float = 0.5,
    pictures: bool = True,
    meshes: bool = False,
) -> dict[str, str]:
    """Draw the predictions of a folder that are not drawn yet, or were made anew since.

    Args:
        output_dir: holds `<token>.npz` with `pred` and perhaps `instances`, as `predict` leaves them.
        frames: whose predictions to draw; those without a file are passed over.
        preset: grid and class table of the predictions.
        labels: reads the truth; frames without a label, and labels of another grid, are passed over.
        ranks: this process among those that share the work, scene by scene; None: alone.
        view: of the solid voxels.
        seconds: between frames, also in the animations.
        pictures: draw them.
        meshes: write the surfaces as PLY files.

    Returns:
        token -> reason of what could not be drawn (a damaged file); the rest of the sample's pictures is there.
    """
    from tqdm import tqdm

    pose_of = labels.grid2ego if isinstance(labels, TreeLabels) else _lidar2ego
    if labels is not None and labels.preset.spec != preset.spec:
        labels = None
    ranks = ranks or Ranks()
    scenes = ranks.share(_scenes(frames))
    bad: dict[str, str] = {}
    with tqdm(
        total=sum(len(scene) for _, scene in scenes), desc="draw", unit="frame", disable=not ranks.is_main
    ) as bar:
        for name, scene in scenes:
            tracks, drawn, shown = InstanceTracks(seconds), False, []
            for frame in scene:
                path = Path(output_dir) / f"{frame.token}.npz"
                if path.is_file():
                    with about(f"sample {frame.token}", frame.token, bad):
                        picture = _Prediction(path, frame, preset, labels, tracks, view, pose_of)
                        if meshes:
                            picture.write_mesh()
                        if pictures:
                            drawn |= picture.draw()
                            shown.append(picture)
                            picture.compare()  # last: a damaged label costs no other picture
                bar.update()
            animation = Path(output_dir) / FOLDER / f"{name}.webp"
            if len(shown) > 1 and (drawn or not animation.is_file()):
                save_animation((picture.still() for picture in shown), animation, seconds)
                sheets = [picture.still(("completion",)) for picture in shown if picture._file("completion").is_file()]
                # A frame whose label is damaged has none, and one without truth has another.
                if len(sheets) > 1 and len({sheet.shape for sheet in sheets}) == 1:
                    save_animation(sheets, animation.with_name(f"{name}_completion.webp"), seconds)
    return bad


def _scenes(frames: Iterable[Frame]) -> list[tuple[str, list[Frame]]]:
    """Scenes by name with their frames in time order; infos that name none are followed from frame to frame."""
    frames = list(frames)
    by_token = {frame.token: frame for frame in frames}
    first: dict[str, str] = {}

    def beginning(frame: Frame) -> str:
        passed = []
        while frame.token not in first and frame.prev in by_token and frame.token not in passed:
            passed.append(frame.token)
            frame = by_token[frame.prev]
        start = first.get(frame.token, frame.token)
        first.update(dict.fromkeys([*passed, frame.token], start))
        return start

    scenes: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.timestamp_us):
        scenes.setdefault(frame.scene or f"scene_{beginning(frame)}", []).append(frame)
    return list(scenes.items())


@dataclass
class _Prediction:
    """One frame's prediction and where its pictures go."""

    path: Path
    frame: Frame
    preset: Preset
    labels: LabelReader | TreeLabels | None
    tracks: InstanceTracks
    view: Viewpoint
    pose_of: Callable[[Frame], Any]

    def write_mesh(self) -> None:
        """Write the surface, unless it is there and not older than the prediction, or there is nothing."""
        file = self.path.parent / MESHES / f"{self.path.stem}.ply"
        if not file.is_file() or file.stat().st_mtime_ns < self.path.stat().st_mtime_ns:
            mesh = surface_mesh(self.grid)
            if len(mesh.quads):
                save_ply(mesh, file)

    def draw(self) -> bool:
        """Write what is missing or older than the prediction, but for `compare`; returns whether that was anything.

        Raises:
            ValueError: the prediction or a photograph is damaged.
        """
        panoptic = self._panoptic()  # also where nothing is to draw: the tracks must see every frame
        jobs: dict[str, Callable[[], np.ndarray | None]] = {
            "bev": lambda: self._with_legend(bev_picture(self.grid, scale=_enlarged(self.grid), ego=True)),
            "3d": lambda: self._with_legend(oblique_picture(self.grid, self.view)),
            "cameras": self._cameras,
            "panoptic": lambda: None if panoptic is None else oblique_picture(self.grid, self.view, colors=panoptic),
        }
        return self._write(jobs)

    def compare(self) -> None:
        """Write the comparison with the truth, where there is a label; ValueError for a damaged one."""
        jobs = {"comparison": self._comparison}
        if isinstance(self.labels, TreeLabels):
            jobs["completion"] = self._completion
        self._write(jobs)

    def _write(self, jobs: Mapping[str, Callable[[], np.ndarray | None]]) -> bool:
        made, drawn = self.path.stat().st_mtime_ns, False
        for name, job in jobs.items():
            file = self._file(name)
            if file.is_file() and file.stat().st_mtime_ns >= made:
                continue
            picture = job()
            if picture is not None:
                save_picture(picture, file, compress_level=3)  # the usual 6 takes longer than the drawing
                drawn = True
        return drawn

    def still(self, names: Sequence[str] = ("cameras", "3d")) -> np.ndarray:
        """A frame of an animation: pictures above each other, from the files; by default cameras and solid voxels."""
        from PIL import Image

        rows = []
        for name in names:
            with Image.open(self._file(name)) as picture:
                rows.append(as_picture(picture))
        return np.concatenate([resized(row, _ANIMATION * row.shape[0] // row.shape[1], _ANIMATION) for row in rows])

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds."""
        return read_npz(self.path, ["pred"])

    @cached_property
    def grid(self) -> OccupancyGrid:
        """The predicted classes."""
        return self._on_grid(self.arrays["pred"])

    def _panoptic(self) -> VoxelColors | None:
        """Colours of the objects; None where the model tells none apart."""
        if "instances" not in self.arrays:
            return None
        numbers = self.tracks.update(self.grid, self.arrays["instances"], self.frame.ego2global)
        return panoptic_colors(self.grid, numbers)

    def _on_grid(self, values: Any) -> OccupancyGrid:
        spec, taxonomy = self.preset
        return OccupancyGrid(values, spec, taxonomy, None if spec.frame == "ego" else self.pose_of(self.frame))

    def _with_legend(self, picture: np.ndarray) -> np.ndarray:
        return with_legend(picture, class_legend(self.preset.taxonomy))

    def _cameras(self) -> np.ndarray:
        rig, photos = self.frame.cameras, self._photos()
        camera = next(iter(rig.values()))
        size = round(_CAMERA / camera.width * camera.height), _CAMERA
        return contact_sheet(camera_overlays(self.grid, rig, photos, size=size), columns=min(3, len(rig)))

    def _photos(self) -> dict[str, np.ndarray]:
        """The photographs that exist, small."""
        rig, photos = self.frame.cameras, {}
        for name, path in self.frame.image_paths.items():
            if not path.is_file():  # a missing camera, where the job allowed it: drawn without its photograph
                continue
            camera = rig[name]
            scale = _CAMERA / camera.width
            window = ImageTransform(scale, 0, 0, round(scale * camera.height), _CAMERA)
            photos[name] = load_image(path, (camera.height, camera.width), window)
        return photos

    def _truth(self) -> OccupancyGrid | None:
        """The labels, where there are any."""
        if self.labels is None:
            return None
        found = replace(self.labels, optional=True)(self.frame)
        if found is None:
            return None
        return OccupancyGrid(found.semantics, self.preset.spec, self.labels.preset.taxonomy, self.grid.grid2ego)

    def _completion(self) -> np.ndarray:
        return completion_sheet(self._photos(), self.grid, self._truth(), self.frame.cameras)

    def _comparison(self) -> np.ndarray | None:
        truth = self._truth()
        if truth is None:
            return None
        assert self.labels is not None
        known = None
        if isinstance(self.labels, TreeLabels):
            return comparison_picture(self.grid, truth, known, self.view)
        if self.labels.kind in ("occ3d", "openocc_v2"):
            seen = replace(self.labels, optional=True, mask="camera")(self.frame)
            known = seen.semantics != UNKNOWN if seen is not None else None
        return comparison_picture(self.grid, truth, known, self.view)

    def _file(self, name: str) -> Path:
        return self.path.parent / FOLDER / f"{self.path.stem}_{name}.png"


def _lidar2ego(frame: Frame) -> Any:
    return frame.lidar2ego


def _enlarged(grid: OccupancyGrid) -> int:
    """Pixels a voxel that make a picture from above about 800 pixels wide."""
    return max(1, round(800 / max(grid.spec.shape[:2])))
