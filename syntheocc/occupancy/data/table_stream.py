"""nuScenes tables too large to hold whole: read row by row, keeping what info files need.

The three big tables of v1.0-trainval are 2.6 million sensor readings, as many ego poses and 1.2 million annotations;
parsed whole they are some ten gigabytes of Python objects. Half of the readings are radar's and most fields are never
asked for: `LeanTables` answers the same questions as `NuScenesTables` from what is left.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from syntheocc.engine.files import not_opened
from syntheocc.occupancy.data.nuscenes import NuScenesTables

__all__ = ["LeanTables", "stream_rows"]

_CHUNK = 1 << 24  # characters
_LONGEST_ROW = 1 << 20

# What is kept of the big tables' rows.
_KEPT = {
    "sample_data": (
        "token sample_token ego_pose_token calibrated_sensor_token timestamp is_key_frame height width filename prev"
    ).split(),
    "ego_pose": "token translation rotation".split(),
    "sample_annotation": "token sample_token instance_token attribute_tokens category_name prev next".split()
    + "translation size rotation num_lidar_pts num_radar_pts".split(),
}
# Tokens that many rows share, kept once each.
_SHARED = ("sample_token", "calibrated_sensor_token", "instance_token", "ego_pose_token", "prev", "next")


def stream_rows(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The records of a JSON table one after the other, in constant memory.

    Raises:
        ValueError: a missing file, or one that is no list of records or ends before its list does; the message says
            after which record.
    """
    path = Path(path)
    try:
        file = open(path, encoding="utf-8")
    except OSError as error:
        raise not_opened(path, error) from error
    decode = json.JSONDecoder().raw_decode
    count, last = 0, "the start"
    with file:
        try:
            text, at = file.read(_CHUNK).lstrip(), 1
            if not text.startswith("["):
                raise ValueError(f"{path}: a nuScenes table is a list of records; this is another kind of file")
            while True:
                at = _skip(text, at)
                if at >= len(text):
                    more = file.read(_CHUNK)
                    if not more:
                        raise ValueError(_damaged(path, count, last, "the file ends there"))
                    text, at = more, 0
                    continue
                if text[at] == "]":
                    if text[at + 1 :].strip() or file.read().strip():
                        raise ValueError(_damaged(path, count, last, "more text follows the list"))
                    return
                try:
                    row, at = decode(text, at)
                except json.JSONDecodeError as error:
                    # A record that was cut by the chunk's end, unless a whole megabyte does not make one.
                    more = file.read(_CHUNK) if len(text) - at < _LONGEST_ROW else ""
                    if not more:
                        raise ValueError(_damaged(path, count, last, error.msg)) from error
                    text, at = text[at:] + more, 0
                    continue
                if not isinstance(row, dict):
                    raise ValueError(_damaged(path, count, last, f"{row!r} is no record"))
                count, last = count + 1, f"row {row.get('token')!r}"
                yield row
        except UnicodeDecodeError as error:
            raise ValueError(_damaged(path, count, last, str(error))) from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _damaged(path: Path, count: int, last: str, why: str) -> str:
    return (
        f"{path}: not a whole JSON table: after {count} rows ({last}) {why}; it is damaged or truncated, copy it again"
    )


class LeanTables(NuScenesTables):
    """The tables of one folder, the big ones without radar and without fields that info files do not hold.

    Args:
        folder: the folder that holds `sample.json` and the other tables.
        root: the data root that `filename` fields are relative to.
        channels: the sensors whose readings are kept.
        key_frames_only: channels of which only the key frames' readings are kept.
        progress: called with a table's name and its rows; gives the rows back (a progress bar).
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        root: str | os.PathLike,
        channels: Sequence[str],
        key_frames_only: Sequence[str] = (),
        progress: Callable[[str, Iterator[dict]], Iterator[dict]] = lambda _, rows: rows,
    ):
        super().__init__(folder, root)
        self._channels, self._key_frames_only = set(channels), set(key_frames_only)
        self._progress = progress

    def table(self, table: str) -> list[dict]:
        """All rows of a table; of the big ones those that are kept."""
        if table in _KEPT and table not in self._tables and self.has(table):
            rows = self._progress(table, stream_rows(self.folder / f"{table}.json"))
            keep = {"sample_data": self._wanted_data, "ego_pose": self._wanted_pose}.get(table, lambda _: True)
            if table == "ego_pose":
                self._poses = {self.field("sample_data", row, "ego_pose_token") for row in self.table("sample_data")}
            self._tables[table] = [_slim(row, _KEPT[table]) for row in rows if keep(row)]
        return super().table(table)

    def _wanted_data(self, row: dict) -> bool:
        channel = self.channel_of(row)
        return channel in self._channels and (channel not in self._key_frames_only or bool(row.get("is_key_frame")))

    def _wanted_pose(self, row: dict) -> bool:
        return row.get("token") in self._poses

    def release(self) -> None:
        """Forget the big tables, once every frame is made."""
        for table in _KEPT:
            self._tables.pop(table, None)
            self._index.pop(table, None)
        for cached in ("key_data", "annotations"):
            self.__dict__.pop(cached, None)


def _slim(row: dict, kept: Sequence[str]) -> dict:
    out = {name: row[name] for name in kept if name in row}
    for name in _SHARED:
        if isinstance(out.get(name), str):
            out[name] = sys.intern(out[name])
    if isinstance(out.get("token"), str):
        out["token"] = sys.intern(out["token"])
    for name in ("translation", "rotation", "size"):
        if isinstance(out.get(name), list):
            out[name] = tuple(out[name])
    return out
