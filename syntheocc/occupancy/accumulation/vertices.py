"""Surfaces that others reconstructed, as vertices: SyntheOcc's recipe for its 0.2 m labels.

A file a key frame, in the lidar's (or the ego) frame: `.npy` with rows x, y, z or x, y, z, class (metres), or `.ply`
(ascii or binary, vertices only), named after the lidar file or the sample's token. A voxel that holds a vertex is
occupied. Where the file has classes the majority decides; else a voxel takes the class of the nearest voxel in which
the sweeps found one, as SurroundOcc labels its meshes. Vertices must lie closer together than voxels are wide: a
triangle is not drawn between its corners. Legend: N vertices.
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import not_opened, read_npy
from syntheocc.occupancy.data.frames import Frame
from syntheocc.occupancy.taxonomy import UNKNOWN, Taxonomy

__all__ = ["read_vertices", "vertices_path"]

# PLY's names of number types, the old and the new ones.
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_PLY_CLASSES = ("label", "class", "semantic", "scalar_label")
_LONGEST_HEADER = 1 << 16


def vertices_path(folder: str | os.PathLike, frame: Frame) -> Path:
    """The vertices of a frame.

    Raises:
        ValueError: no file of any of the names that they may have.
    """
    stems = [frame.token] if frame.lidar_path is None else [frame.lidar_path.name, frame.token]
    names = [f"{stem}{suffix}" for stem in stems for suffix in (".npy", ".ply")]
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ValueError(f"{folder}: holds no vertices of sample {frame.token}; looked for {', '.join(names)}")


def read_vertices(path: str | os.PathLike, taxonomy: Taxonomy) -> tuple[Tensor, Tensor]:
    """Read vertices.

    Args:
        path: `.npy` or `.ply`.
        taxonomy: what the classes in the file mean.

    Returns:
        float64 [N, 3] metres, and labels uint8 [N], all 255 where the file has no classes.

    Raises:
        ValueError: a damaged file, other columns, coordinates that are not finite, unknown classes.
    """
    rows = _read_ply(Path(path)) if Path(path).suffix == ".ply" else read_npy(path)
    if rows.ndim != 2 or rows.shape[1] not in (3, 4) or rows.dtype.kind not in "fiu":
        raise ValueError(f"{path}: vertices are rows x, y, z or x, y, z, class; got {rows.dtype} {list(rows.shape)}")
    points = torch.from_numpy(np.ascontiguousarray(rows[:, :3], dtype=np.float64))
    if not bool(torch.isfinite(points).all()):
        raise ValueError(f"{path}: holds coordinates that are not finite; it is damaged")
    if rows.shape[1] == 3:
        return points, torch.full((len(points),), UNKNOWN, dtype=torch.uint8)
    classes = rows[:, 3]
    strange = ~np.isin(classes, [*range(taxonomy.num_classes), UNKNOWN])
    if strange.any():
        raise ValueError(
            f"{path}: class {classes[strange][0]:g} is not in table {taxonomy.name!r} (0..{taxonomy.num_classes - 1}, "
            "255 unknown); give the table that the file was made with"
        )
    labels = torch.from_numpy(classes.astype(np.uint8))
    # Free in a list of surfaces is what SurroundOcc's files call noise.
    labels[labels == taxonomy.free] = UNKNOWN
    return points, labels


def _read_ply(path: Path) -> np.ndarray:
    """Rows [N, 3] or [N, 4] of a PLY file's vertices (Turk 1994)."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise not_opened(path, error) from error
    end = data.find(b"end_header", 0, _LONGEST_HEADER)
    start = data.find(b"\n", end) + 1
    if not data.startswith(b"ply") or end < 0 or not start:
        raise ValueError(f"{path}: no PLY file, or its header is damaged")
    form, element, count = "", "", 0
    fields: list[tuple[str, str]] = []
    for line in data[:end].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            form = words[1]
        elif words[:1] == ["element"]:
            if not fields and words[1] != "vertex":
                raise ValueError(f"{path}: its first element is {words[1]!r}; vertices must come first")
            element, count = words[1], int(words[2]) if words[1] == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            if words[1] not in _PLY_TYPES:
                raise ValueError(f"{path}: a vertex's property {' '.join(words[1:])!r} is of no type that is known")
            fields.append((words[2], _PLY_TYPES[words[1]]))
    names = [name for name, _ in fields]
    wanted = ["x", "y", "z", *[name for name in _PLY_CLASSES if name in names][:1]]
    if any(name not in names for name in wanted):
        raise ValueError(f"{path}: its vertices have {names}, which lack x, y or z")
    if form == "ascii":
        lines = data[start:].split(b"\n")[:count]
        try:
            table = np.array([line.split()[: len(fields)] for line in lines], dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path}: its vertices are damaged ({error})") from error
        if table.shape != (count, len(fields)):
            raise ValueError(f"{path}: {count} vertices are announced, but the file ends before")
        return table[:, [names.index(name) for name in wanted]]
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    if order is None:
        raise ValueError(f"{path}: PLY of format {form!r}; known are ascii and binary")
    record = np.dtype([(name, order + kind) for name, kind in fields])
    if len(data) - start < count * record.itemsize:
        raise ValueError(f"{path}: {count} vertices are announced, but the file ends before")
    vertices = np.frombuffer(data, record, count, start)
    return np.stack([vertices[name].astype(np.float64) for name in wanted], 1)
