"""The nuScenes JSON tables, read and written as they are: rows of dicts found by token.

Tables may be partial or reduced: a table that is absent, or a field that a row lacks, matters only when it is asked
for, and is then named. `nuscenes_frames` makes `Frame`s of the rows. Schema: nuscenes.org, "Data format" (v1.0).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from syntheocc.engine.files import atomic_write_json, read_json

__all__ = ["CATEGORY_TO_DETECTION", "TABLE_NAMES", "NuScenesTables", "read_tables", "write_tables"]

Row = Mapping[str, Any]

TABLE_NAMES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

# The detection task's merging of categories; the others (animals, strollers, debris, ...) have no detection class.
CATEGORY_TO_DETECTION = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}


class NuScenesTables:
    """Rows of the tables in one folder, loaded when first asked for.

    Args:
        folder: the folder that holds `sample.json` and the other tables.
        root: the data root that `filename` fields are relative to (holds `samples/`).

    Raises:
        ValueError: later, naming the table, row or field that is missing when it is needed.
    """

    def __init__(self, folder: str | os.PathLike, root: str | os.PathLike):
        self.folder = Path(folder)
        self.root = Path(root)
        self._tables: dict[str, list[dict]] = {}
        self._index: dict[str, dict[str, dict]] = {}
        self._channels_of: dict[str, str] = {}

    def has(self, table: str) -> bool:
        """Whether the folder holds this table."""
        return table in self._tables or (self.folder / f"{table}.json").is_file()

    def table(self, table: str) -> list[dict]:
        """All rows of a table."""
        if table not in self._tables:
            path = self.folder / f"{table}.json"
            if not path.is_file():
                present = sorted(p.stem for p in self.folder.glob("*.json"))
                raise ValueError(f"{path}: the table {table!r} is needed here; the folder holds {present}")
            rows = read_json(path)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise ValueError(f"{path}: a nuScenes table is a list of records; this is another kind of JSON file")
            self._tables[table] = rows
        return self._tables[table]

    def get(self, table: str, token: str) -> dict:
        """One row by its token."""
        if table not in self._index:
            self._index[table] = {self.field(table, row, "token"): row for row in self.table(table)}
        row = self._index[table].get(token)
        if row is None:
            raise ValueError(
                f"{self.folder / table}.json: no row has the token {token!r}, which another table refers to; "
                "the tables do not belong together or were cut too short"
            )
        return row

    def field(self, table: str, row: Row, name: str) -> Any:
        """A field of a row that must be there."""
        if name not in row:
            raise ValueError(f"{self.folder / table}.json: row {row.get('token')!r} lacks the field {name!r}")
        return row[name]

    def channel_of(self, data: Row) -> str:
        """The sensor channel ("CAM_FRONT") of a `sample_data` row."""
        calibrated = self.field("sample_data", data, "calibrated_sensor_token")
        if calibrated not in self._channels_of:
            mount = self.get("calibrated_sensor", calibrated)
            sensor = self.get("sensor", self.field("calibrated_sensor", mount, "sensor_token"))
            self._channels_of[calibrated] = self.field("sensor", sensor, "channel")
        return self._channels_of[calibrated]

    @cached_property
    def key_data(self) -> dict[str, dict[str, dict]]:
        """Sample token -> sensor channel -> the key frame's `sample_data` row."""
        found: dict[str, dict[str, dict]] = {}
        for row in self.table("sample_data"):
            if self.field("sample_data", row, "is_key_frame"):
                found.setdefault(self.field("sample_data", row, "sample_token"), {})[self.channel_of(row)] = row
        return found

    @cached_property
    def annotations(self) -> dict[str, list[dict]]:
        """Sample token -> its `sample_annotation` rows, in the table's order."""
        found: dict[str, list[dict]] = {}
        for row in self.table("sample_annotation"):
            found.setdefault(self.field("sample_annotation", row, "sample_token"), []).append(row)
        return found

    def category_of(self, annotation: Row) -> str:
        """The category name of an annotation (devkit exports carry it in the row, the tables through the instance)."""
        if "category_name" in annotation:
            return annotation["category_name"]
        instance = self.get("instance", self.field("sample_annotation", annotation, "instance_token"))
        return self.field("category", self.get("category", self.field("instance", instance, "category_token")), "name")

    def attribute_of(self, annotation: Row) -> str:
        """The name of an annotation's attribute ("vehicle.parked"), "" where it has none."""
        tokens = annotation.get("attribute_tokens")
        return self.field("attribute", self.get("attribute", tokens[0]), "name") if tokens else ""

    def velocity_of(self, annotation: Row, max_seconds: float = 1.5) -> tuple[float, float, float]:
        """Velocity in global axes, m/s, by differences between the neighbouring annotations of the same object.

        Central difference where both neighbours exist, one-sided otherwise. NaN where the object has no neighbour or
        the neighbours are more than `max_seconds` apart (twice that for the central difference): as the devkit does.
        """
        unknown = (float("nan"),) * 3
        before, after = annotation.get("prev"), annotation.get("next")
        if not before and not after:
            return unknown
        first = self.get("sample_annotation", before) if before else annotation
        last = self.get("sample_annotation", after) if after else annotation
        stamps = [
            self.field("sample", self.get("sample", self.field("sample_annotation", row, "sample_token")), "timestamp")
            for row in (first, last)
        ]
        seconds = (stamps[1] - stamps[0]) * 1e-6
        if not 0 < seconds <= max_seconds * (2 if before and after else 1):
            return unknown
        start, end = (self.field("sample_annotation", row, "translation") for row in (first, last))
        x, y, z = ((b - a) / seconds for a, b in zip(start, end, strict=True))
        return (x, y, z)


def read_tables(root: str | os.PathLike, version: str | None = None) -> NuScenesTables:
    """Open the tables of a nuScenes data root.

    Args:
        root: the data root (holds `samples/` and `v1.0-*/`), or a folder that holds the `.json` tables themselves.
        version: the tables' folder below the root, e.g. "v1.0-mini" or "tables_reduced". Left out, the root must hold
            the tables or exactly one `v1.0-*` folder.

    Raises:
        ValueError: no tables, or more than one version to choose from; names what is there.
    """
    root = Path(root)
    if version is not None:
        if not (root / version / "sample.json").is_file():
            raise ValueError(f"{root / version} holds no sample.json; there is {_folders(root)} below {root}")
        return NuScenesTables(root / version, root)
    if (root / "sample.json").is_file():
        return NuScenesTables(root, root.parent if (root.parent / "samples").is_dir() else root)
    versions = [folder for folder in _folders(root) if (root / folder / "sample.json").is_file()]
    if not versions:
        raise ValueError(
            f"{root}: holds no folder with nuScenes tables (v1.0-*/sample.json); check the path, or give info files"
        )
    if len(versions) != 1:
        raise ValueError(f"{root}: {versions} with nuScenes tables; give version=, one of them, or info files")
    return NuScenesTables(root / versions[0], root)


def write_tables(folder: str | os.PathLike, tables: Mapping[str, Sequence[Row] | Iterable[Row]]) -> None:
    """Write tables as JSON, every one of `TABLE_NAMES`; those not given become empty.

    Args:
        folder: e.g. `<data root>/v1.0-synthetic`; made when missing.
        tables: table name -> rows.

    Raises:
        ValueError: an unknown table, a row without a token, or a token used twice.
    """
    unknown = sorted(set(tables) - set(TABLE_NAMES))
    if unknown:
        raise ValueError(f"{folder}: {unknown} are no nuScenes tables; known are {', '.join(TABLE_NAMES)}")
    rows_of = {name: [dict(row) for row in tables.get(name, ())] for name in TABLE_NAMES}
    for name, rows in rows_of.items():
        tokens = [row.get("token") for row in rows]
        if not all(tokens) or len(set(tokens)) != len(tokens):
            raise ValueError(f"{folder}/{name}.json: every row needs a token of its own; one is empty or used twice")
    for name, rows in rows_of.items():
        atomic_write_json(Path(folder) / f"{name}.json", rows, indent=0)


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
