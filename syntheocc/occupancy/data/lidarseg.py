"""Classes of lidar points: nuScenes-lidarseg and nuScenes-panoptic, for key sweeps.

| file below the data root                              | content                                                   |
|-------------------------------------------------------|-----------------------------------------------------------|
| `lidarseg/<version>/<lidar token>_lidarseg.bin`       | uint8, one raw category id (0..31) a point                |
| `panoptic/<version>/<lidar token>_panoptic.npz`       | `data`: uint16, raw id * 1000 + instance (0: none)        |

The order is that of the sweep's points. `<version>` is `v1.0-trainval`, `v1.0-mini` or the like. Raw ids are those of
`category.json`'s `index` once a lidarseg package was unpacked over the tables.
Specification: specs/occflownet_splattingocc.md 1.2, 1.3. Legend: N points.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import not_opened, read_npz
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.taxonomy import OCC3D_TAXONOMY, UNKNOWN, Taxonomy

__all__ = [
    "LIDARSEG_NAMES",
    "NOISE_AND_EGO",
    "LidarPoints",
    "LidarReader",
    "lidarseg_names",
    "lidarseg_table",
    "read_lidarseg",
    "read_panoptic",
]

# The index is the raw id.
LIDARSEG_NAMES = (
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
)
# Raw id -> Occ3D's ids 0..16, with the official 0 for personal mobility (1.2).
_TO_OCC3D = (0, 0, 7, 7, 7, 0, 7, 0, 0, 1, 0, 0, 8, 0, 2, 3, 3, 4, 5, 0, 0, 6, 9, 10, 11, 12, 13, 14, 15, 0, 16, 0)
_PERSONAL_MOBILITY = "human.pedestrian.personal_mobility"
# What no model should learn to see: noise, and the car that carries the sensors.
NOISE_AND_EGO = (LIDARSEG_NAMES.index("noise"), LIDARSEG_NAMES.index("vehicle.ego"))


class LidarPoints(NamedTuple):
    """A key sweep with classes: points float32 [N, 3] metres, lidar frame; labels uint8 [N], 255 no class."""

    points: Tensor
    labels: Tensor


def lidarseg_table(
    personal_mobility: Literal["others", "pedestrian"] = "others",
    drop_raw_ids: Iterable[int] = (),
    taxonomy: Taxonomy = OCC3D_TAXONOMY,
    names: Sequence[str] = LIDARSEG_NAMES,
) -> np.ndarray:
    """Lookup table uint8 [256] from raw id to class.

    Args:
        personal_mobility: the class of scooters and the like: "others" (nuScenes' own choice, RenderOcc) or
            "pedestrian" (OccFlowNet).
        drop_raw_ids: raw ids that become 255, e.g. `NOISE_AND_EGO`. The published systems drop none.
        taxonomy: whose classes.
        names: category names by raw id, where they differ from nuScenes' (see `lidarseg_names`).

    Raises:
        ValueError: a category that nuScenes does not have, a raw id without category, or an unknown choice.
    """
    if personal_mobility not in ("others", "pedestrian"):
        raise ValueError(f"personal_mobility is 'others' or 'pedestrian', got {personal_mobility!r}")
    unknown = sorted(set(names) - set(LIDARSEG_NAMES))
    if unknown or len(names) > UNKNOWN:
        raise ValueError(f"no rule for the lidarseg categories {', '.join(unknown)}; nuScenes has {LIDARSEG_NAMES}")
    dropped = list(drop_raw_ids)
    outside = [raw for raw in dropped if not 0 <= raw < len(names)]
    if outside:
        raise ValueError(f"drop_raw_ids {outside} are no raw ids; those are 0..{len(names) - 1}")
    of_name = dict(zip(LIDARSEG_NAMES, _TO_OCC3D, strict=True))
    of_name[_PERSONAL_MOBILITY] = OCC3D_TAXONOMY.id_of(personal_mobility)
    to_taxonomy = OCC3D_TAXONOMY.mapping_to(taxonomy)
    table = np.full(256, UNKNOWN, np.uint8)
    table[: len(names)] = to_taxonomy[[of_name[name] for name in names]]
    table[dropped] = UNKNOWN
    return table


def lidarseg_names(tables: NuScenesTables) -> tuple[str, ...]:
    """Category names by raw id, as `category.json` says.

    Raises:
        ValueError: a category without `index` (the tables are the detection package's own: unpack lidarseg's over
            them), or indices that are not 0, 1, 2, ...
    """
    indices = {int(tables.field("category", row, "index")): row["name"] for row in tables.table("category")}
    if sorted(indices) != list(range(len(indices))) or len(indices) != len(tables.table("category")):
        raise ValueError(f"{tables.folder}/category.json: indices must be 0, 1, 2, ...; got {sorted(indices)}")
    return tuple(indices[i] for i in range(len(indices)))


def read_lidarseg(path: str | os.PathLike, num_points: int | None = None) -> np.ndarray:
    """Raw category ids of a `_lidarseg.bin`, uint8 [N].

    Args:
        path: the file.
        num_points: N of the sweep that it belongs to, where known.

    Raises:
        ValueError: no such file, or another number of points.
    """
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise not_opened(path, error) from error
    return _of_length(raw, num_points, path)


def read_panoptic(path: str | os.PathLike, num_points: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Raw category ids uint8 [N] and instances uint16 [N] (0: none) of a `_panoptic.npz`.

    Args:
        path: the file.
        num_points: N of the sweep that it belongs to, where known.

    Raises:
        ValueError: no such file, a damaged one, or another number of points.
    """
    data = read_npz(path, ["data"])["data"]
    if data.ndim != 1 or data.dtype.kind not in "iu" or (len(data) and not 0 <= data.min() <= data.max() < 256_000):
        raise ValueError(f"{path}: data is raw id * 1000 + instance, one a point; got {data.dtype} {list(data.shape)}")
    data = _of_length(data, num_points, path).astype(np.int64)
    return (data // 1000).astype(np.uint8), (data % 1000).astype(np.uint16)


@dataclass(frozen=True)
class LidarReader:
    """Reads key sweeps with classes: `reader(frame)`.

    Args:
        root: the data root, which holds `lidarseg/` or `panoptic/`.
        kind: whose files give the classes.
        version: the folder below `lidarseg/`, e.g. "v1.0-mini"; None: wherever the file is found.
        personal_mobility, drop_raw_ids, taxonomy, names: see `lidarseg_table`. Noise and the car itself are no
            labels unless `drop_raw_ids` is empty, as in the published systems.
        allow_missing_files: a sweep or label file that does not exist counts as a frame without lidar instead of an
            error.

    Raises:
        ValueError: an unknown kind, or what `lidarseg_table` says.
    """

    root: str | os.PathLike
    kind: Literal["lidarseg", "panoptic"] = "lidarseg"
    version: str | None = None
    personal_mobility: Literal["others", "pedestrian"] = "others"
    drop_raw_ids: tuple[int, ...] = NOISE_AND_EGO
    taxonomy: Taxonomy = OCC3D_TAXONOMY
    names: tuple[str, ...] = LIDARSEG_NAMES
    allow_missing_files: bool = False
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.kind not in ("lidarseg", "panoptic"):
            raise ValueError(f"point classes come from 'lidarseg' or 'panoptic' files, not {self.kind!r}")
        table = lidarseg_table(self.personal_mobility, self.drop_raw_ids, self.taxonomy, self.names)
        object.__setattr__(self, "_table", table)

    def path_of(self, frame: Frame) -> Path:
        """Where a frame's label file lies, or would lie.

        Raises:
            ValueError: the frame's source does not name the sweep's token, which the files are called after.
        """
        token = frame.extras.get("lidar_token")
        if not token:
            raise ValueError(
                f"sample {frame.token}: {self.kind} files are named after the sweep's token, which "
                f"{frame.extras.get('style', 'its source')} does not hold; use BEVDet's infos or the JSON tables"
            )
        name = f"{token}_{self.kind}.{'bin' if self.kind == 'lidarseg' else 'npz'}"
        folder = Path(self.root) / self.kind
        if self.version is not None:
            return folder / self.version / name
        versions = [path.name for path in sorted(folder.glob("v1.0-*"))]
        found = [folder / version / name for version in versions if (folder / version / name).is_file()]
        return (found or [folder / (versions or ["v1.0-trainval"])[0] / name])[0]

    def __call__(self, frame: Frame) -> LidarPoints | None:
        """Read a frame's sweep; None where it has none.

        Raises:
            ValueError: a file that does not exist (unless `allow_missing_files`) or is damaged, files that do not
                belong together, or a raw id without category.
        """
        if frame.lidar_path is None:
            return None
        path = self.path_of(frame)
        if self.allow_missing_files and not (frame.lidar_path.is_file() and path.is_file()):
            return None
        points = read_lidar(frame.lidar_path)
        if self.kind == "lidarseg":
            raw = read_lidarseg(path, len(points))
        else:
            raw, _ = read_panoptic(path, len(points))
        if len(raw) and int(raw.max()) >= len(self.names):
            raise ValueError(f"{path}: raw id {int(raw.max())}, but the categories are 0..{len(self.names) - 1}")
        # A copy: torch would keep all five columns alive.
        return LidarPoints(
            torch.from_numpy(np.ascontiguousarray(points[:, :3], dtype=np.float32)),
            torch.from_numpy(self._table[raw]),
        )


def _of_length(values: np.ndarray, num_points: int | None, path: str | os.PathLike) -> np.ndarray:
    if num_points is not None and len(values) != num_points:
        raise ValueError(f"{path}: classes of {len(values)} points, but the sweep has {num_points}; it is another's")
    return values
