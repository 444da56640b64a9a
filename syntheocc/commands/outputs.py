"""The folder that batch generation fills, one sample at a time.

<save>/<CAM>/<original picture name>     a view, resized to the original's size: perception code reads the folder
                                         in place of samples/
<save>/strips/<token>.jpg                condition / generated / real, one column a camera
<save>/strips/<token>_3d.jpg             the occupancy that the views were generated from, where it is at hand
<save>/labels/<token>.json               boxes and cameras of the sample
<save>/labels/<kind>/...                 its occupancy, laid out as in its data set
<save>/records/<token>.json              seed, prompt and file names; written last, it marks the sample as done
<save>/settings.json, manifest.json      what all samples were made with; all records, and what failed
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syntheocc.engine.files import atomic_write_bytes, atomic_write_json, read_json

if TYPE_CHECKING:
    import numpy as np

    from syntheocc.commands.batch import Tally
    from syntheocc.occupancy import Camera, OccupancyGrid
    from syntheocc.occupancy.data.frames import Frame
    from syntheocc.occupancy.data.occ3d import Occ3DLabels

JPEG = {"quality": 95, "subsampling": 0}


class OutputFolder:
    """Names, writes and finds the results of samples.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def view_path(self, frame: "Frame", camera: str) -> Path:
        """Where a generated view goes: the original picture's name below the camera's folder."""
        if camera not in frame.image_paths:
            raise ValueError(f"{camera} has no picture, and the generated view is named after it")
        return self.root / camera / frame.image_paths[camera].name

    def record_path(self, frame: "Frame") -> Path:
        """The file that marks a sample as done."""
        return self.root / "records" / f"{frame.token}.json"

    def is_done(self, frame: "Frame") -> bool:
        """Whether a sample's record and every file that it names exist."""
        try:
            record = read_json(self.record_path(frame))
        except ValueError:  # none yet, or emptied by a crash of the machine: made again
            return False
        return all((self.root / name).is_file() for name in record["files"])

    def write_views(self, frame: "Frame", images: Sequence[Any]) -> dict[str, str]:
        """Write one picture a camera in the original's size; camera -> path below the root."""
        from syntheocc.occupancy.pictures import resized, save_picture

        names = {}
        for camera, image in zip(frame.cameras.names, images, strict=True):
            path = self.view_path(frame, camera)
            size = frame.cameras[camera].height, frame.cameras[camera].width
            options = JPEG if path.suffix.lower() in (".jpg", ".jpeg") else {}
            save_picture(resized(image, *size), path, **options)
            names[camera] = str(path.relative_to(self.root))
        return names

    def write_strip(
        self, frame: "Frame", conditions: Sequence["np.ndarray"], images: Sequence[Any], photos: Sequence["np.ndarray"]
    ) -> str:
        """Write the strip; without photographs it has two rows. Tiles have the size of the generated views."""
        from syntheocc.occupancy.pictures import as_picture, save_picture, strip

        rows = {"condition": conditions, "generated": images, "real": photos}
        picture = strip(rows, frame.cameras.names, size=as_picture(images[0]).shape[:2])
        path = save_picture(picture, self.root / "strips" / f"{frame.token}.jpg", quality=90)
        return str(path.relative_to(self.root))

    def write_solid(self, frame: "Frame", grid: "OccupancyGrid") -> str:
        """Write the sample's occupancy as solid voxels with a legend."""
        from syntheocc.occupancy.pictures import class_legend, oblique_picture, save_picture, with_legend

        picture = with_legend(oblique_picture(grid), class_legend(grid.taxonomy, grid))
        path = save_picture(picture, self.root / "strips" / f"{frame.token}_3d.jpg", quality=90)
        return str(path.relative_to(self.root))

    def write_labels(
        self,
        frame: "Frame",
        grid: "OccupancyGrid | Occ3DLabels | None" = None,
        kind: str | None = None,
        source: Path | None = None,
    ) -> list[str]:
        """Write what is true of the generated views: boxes and cameras as JSON, and the occupancy.

        Args:
            frame: the sample.
            grid: its occupancy, written in format `kind` unless it comes straight from a file; with Occ3D's masks or
                without.
            kind: the format, one of occupancy_files.OCCUPANCY_KINDS; None: no occupancy is at hand.
            source: the label file that the grid was read from, copied byte for byte (it may hold masks, instances).

        Returns:
            The paths below the root.
        """
        from syntheocc.occupancy.data.occ3d import Occ3DLabels, write_occ3d
        from syntheocc.occupancy.data.occupancy_files import occupancy_path, write_occupancy

        paths = []
        if kind is not None:
            path = occupancy_path(self.root / "labels" / kind, frame, kind)
            if source is not None:
                atomic_write_bytes(path, source.read_bytes())
            elif isinstance(grid, Occ3DLabels):
                write_occ3d(grid, path)
            else:
                assert grid is not None
                write_occupancy(grid, path, kind)
            paths.append(str(path.relative_to(self.root)))
        path = self.root / "labels" / f"{frame.token}.json"
        atomic_write_json(
            path, frame_labels(frame) | {"occupancy": paths[0] if paths else None, "occupancy_kind": kind}
        )
        return [*paths, str(path.relative_to(self.root))]

    def write_record(self, frame: "Frame", record: dict[str, Any]) -> None:
        """Mark a sample as done; call it after everything else is written."""
        atomic_write_json(self.record_path(frame), record)

    def write_manifest(self, frames: Sequence["Frame"], settings: dict[str, Any], tally: "Tally") -> Path:
        """Gather the records of all samples that did not fail, in the job's order."""
        records = [read_json(self.record_path(frame)) for frame in frames if frame.token not in tally.failed]
        path = self.root / "manifest.json"
        atomic_write_json(path, {"settings": settings, "samples": records, "failed": dict(tally.failed)})
        return path


def frame_labels(frame: "Frame") -> dict[str, Any]:
    """Boxes and cameras of a sample as JSON values: metres, radians, ego frame at the lidar's time.

    `boxes` is None where the source has no annotations; unknown velocities are null, unknown point counts -1.
    """
    boxes = frame.boxes
    listed = None
    if boxes is not None:
        velocities = [[None if v != v else v for v in row] for row in boxes.velocities.tolist()]
        listed = [
            {
                "name": boxes.names[i],
                "center": boxes.centers[i].tolist(),
                "size_lwh": boxes.sizes[i].tolist(),
                "yaw": float(boxes.yaws[i]),
                "box2ego": boxes.box2ego[i].tolist(),
                "velocity": velocities[i],
                "num_lidar_points": int(boxes.num_lidar_points[i]),
                "num_radar_points": int(boxes.num_radar_points[i]),
                "attribute": boxes.attributes[i],
                "instance_token": boxes.instance_tokens[i],
            }
            for i in range(len(boxes))
        ]
    cameras = {
        name: {
            "image": frame.image_paths[name].name,
            "model": frame.cameras[name].model,
            "intrinsics": frame.cameras[name].intrinsics.tolist(),
            "cam2ego": frame.cameras[name].cam2ego.tolist(),
            **_lens(frame.cameras[name]),
            "height": frame.cameras[name].height,
            "width": frame.cameras[name].width,
        }
        for name in frame.cameras.names
    }
    return {
        "token": frame.token,
        "scene": frame.scene,
        "timestamp_us": frame.timestamp_us,
        "lidar2ego": None if frame.lidar2ego is None else frame.lidar2ego.tolist(),
        "ego2global": None if frame.ego2global is None else frame.ego2global.tolist(),
        "boxes": listed,
        "cameras": cameras,
    }


def _lens(camera: "Camera") -> dict[str, Any]:
    """What else there is to a camera that is no plain pinhole."""
    lens: dict[str, Any] = {} if camera.distortion is None else {"distortion": asdict(camera.distortion)}
    return lens | ({"xi": camera.xi} if camera.model == "unified" else {})


def read_photos(frame: "Frame") -> list["np.ndarray"]:
    """The real pictures of a sample [V], uint8 [H, W, 3].

    Raises:
        ValueError: one is missing or damaged; the message says how to go on without them.
    """
    from PIL import Image

    from syntheocc.occupancy.pictures import as_picture

    photos = []
    for camera in frame.cameras.names:
        path = frame.image_paths.get(camera)
        try:
            if path is None:
                raise FileNotFoundError(f"{camera} has no picture")
            with Image.open(path) as image:
                photos.append(as_picture(image))
        except (OSError, SyntaxError) as error:
            raise ValueError(
                f"the real picture {path} cannot be read ({error}); copy it again, or give --real_row=False for "
                "strips without photographs"
            ) from error
    return photos
