"""Voxelised objects: the library's, boxes, and what was cut out of a frame.

**How an asset becomes voxels of a grid.** A voxel is taken where its centre lies in the asset, or, for parts that are
thinner than the voxel, where any point of a lattice over it does. These are the rules by which the street world's own
labels are made, so an inserted object looks to a network as the objects of its training data do. An asset of which no
voxel would be left takes every voxel that any lattice point finds.

An asset's own voxels hold 0 (nothing) or the thickness of the part that they belong to, in centimetres, 255 at most.
Legend: A B C voxels of an asset, N voxels of a grid.
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syntheocc.engine.files import read_npz
from syntheocc.occupancy.editing.regions import Box
from syntheocc.occupancy.grids import OccupancyGrid
from syntheocc.occupancy.taxonomy import Taxonomy
from syntheocc.occupancy.transforms import invert_rigid, rigid_transform, transform_points

__all__ = ["Asset", "asset_from_json", "asset_label", "asset_names", "asset_to_json", "box_asset", "library_asset"]

SOLID = 255
MAX_LATTICE = 6
_LIBRARY = Path(__file__).with_name("library.npz")
_FACTS = Path(__file__).with_name("library.json")


@dataclass(frozen=True, eq=False)
class Asset:
    """An object that can be put into any grid.

    Args:
        name: what it is called.
        classes: class names, the best first: the first one that a taxonomy knows is the label.
        category: name of its box: a detection class, or the data set's own category where there is none.
        size: length, width, height of its box, metres.
        voxels: uint8 [A, B, C] thickness in centimetres (0 nothing); None: the whole box.
        voxel_size: edges of its voxels, metres.
        voxels2box: [4, 4], from the frame of its voxels (metres, corner at the origin) to its box's.
        description: a few words.
    """

    name: str
    classes: tuple[str, ...]
    category: str
    size: tuple[float, float, float]
    voxels: np.ndarray | None = None
    voxel_size: tuple[float, float, float] = (0.05, 0.05, 0.05)
    voxels2box: Any = None
    description: str = ""

    def __post_init__(self):
        Box(torch.eye(4), self.size)  # checks the size
        if self.voxels is None:
            return
        pose = self.voxels2box
        if pose is None:
            pose = torch.eye(4, dtype=torch.float64)
            pose[:3, 3] = -torch.tensor(self.voxels.shape) * torch.tensor(self.voxel_size, dtype=torch.float64) / 2
        object.__setattr__(self, "voxels2box", rigid_transform(pose, f"voxels2box of {self.name}"))

    def place(self, grid: OccupancyGrid, box2ego: Tensor) -> Tensor:
        """The voxels of a grid that the asset takes.

        Args:
            grid: where.
            box2ego: [4, 4] pose of the asset's box.

        Returns:
            int64 [N, 3] on the CPU, sorted; may be empty.
        """
        box = Box(box2ego, self.size)
        if self.voxels is None:
            return box.voxels(grid).cpu()
        edge = max(grid.spec.voxel_size)
        index = box.grown(max(edge, *self.voxel_size)).voxels(grid).cpu()
        if not len(index):
            return index
        taken = self._on_lattice(grid, box2ego, index, 1)[:, 0] > 0
        # Points along each edge of a voxel, by thickness.
        thickness = torch.arange(SOLID + 1).double() / 100
        per_edge = (edge / thickness.clamp_min(1e-3) - 1e-6).ceil().clamp(1, MAX_LATTICE).long()
        present = per_edge[np.unique(self.voxels[self.voxels > 0]).astype(int)].unique().tolist()
        for count in (n for n in present if n > 1):
            found = self._on_lattice(grid, box2ego, index, count)
            taken |= ((found > 0) & (per_edge[found.int()] == count)).any(1)
        if not bool(taken.any()):
            taken = (self._on_lattice(grid, box2ego, index, MAX_LATTICE) > 0).any(1)
        return index[taken]

    def _on_lattice(self, grid: OccupancyGrid, box2ego: Tensor, index: Tensor, count: int) -> Tensor:
        """Uint8 [N, count^3]: the asset's voxels at a lattice of points over each voxel."""
        steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        lattice = torch.cartesian_prod(steps, steps, steps).reshape(-1, 3)
        parts = index.double().split(max(1, 1_000_000 // len(lattice)))
        return torch.cat([self._thickness(grid, box2ego, part[:, None] + lattice) for part in parts])

    def _thickness(self, grid: OccupancyGrid, box2ego: Tensor, cells: Tensor) -> Tensor:
        """Uint8 [N, S]: the asset's voxels at places [N, S, 3] of a grid, in voxels from its corner."""
        assert self.voxels is not None
        grid2asset = invert_rigid(box2ego @ self.voxels2box) @ grid.grid2ego
        lower, size = torch.tensor([grid.spec.lower, grid.spec.voxel_size], dtype=torch.float64)
        points = transform_points(grid2asset, (lower + cells * size).reshape(-1, 3))
        # 1e-9 of a voxel: a copy onto the voxels that it was cut from is exact in spite of rounding.
        at = (points / torch.tensor(self.voxel_size, dtype=torch.float64) + 1e-9).floor().long()
        shape = torch.tensor(self.voxels.shape)
        inside = ((at >= 0) & (at < shape)).all(1)
        at = torch.where(inside[:, None], at, 0)
        values = torch.from_numpy(self.voxels)[tuple(at.T)]
        return torch.where(inside, values, 0).reshape(cells.shape[:2])


def asset_label(asset: Asset, taxonomy: Taxonomy, class_name: str | None = None) -> int:
    """The label of an asset in a class table.

    Args:
        asset: the asset.
        taxonomy: the grid's.
        class_name: what the object is to be instead of the asset's own class.

    Raises:
        ValueError: the table has no word for it.
    """
    if class_name is not None:
        return taxonomy.label_of(class_name)
    exact = next((name for name in asset.classes if name in taxonomy.classes), None)
    if exact is not None:
        return taxonomy.id_of(exact)
    try:
        return taxonomy.label_of(asset.classes[0])
    except ValueError as error:
        raise ValueError(f"asset {asset.name!r}: {error}; say which of them it is to be (class)") from error


def box_asset(class_name: str, size: tuple[float, float, float], category: str | None = None) -> Asset:
    """A solid block of a class."""
    return Asset(f"box of {class_name}", (class_name,), category or class_name, size, description="a solid block")


@lru_cache(maxsize=1)
def _facts() -> dict[str, dict[str, Any]]:
    return json.loads(_FACTS.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _library() -> dict[str, Asset]:
    arrays = read_npz(_LIBRARY, list(_facts()))
    return {
        name: Asset(
            name,
            tuple(facts["classes"]),
            facts["category"],
            tuple(facts["size"]),
            arrays[name],
            description=facts["description"],
        )
        for name, facts in _facts().items()
    }


def asset_names() -> dict[str, str]:
    """Name -> description of the library's assets, with their sizes."""
    return {
        name: f"{facts['description']}, {' x '.join(f'{edge:.1f}' for edge in facts['size'])} m"
        for name, facts in _facts().items()
    }


def library_asset(name: str) -> Asset:
    """An asset of the library; ValueError with the known names otherwise."""
    if name not in _facts():
        raise ValueError(f"no asset is called {name!r}; there are {', '.join(_facts())}, and box (class and size)")
    return _library()[name]


def asset_to_json(asset: Asset) -> dict[str, Any]:
    """An asset as JSON values, exactly."""
    value = {
        "classes": list(asset.classes),
        "category": asset.category,
        "size": list(asset.size),
        "description": asset.description,
    }
    if asset.voxels is not None:
        packed = zlib.compress(np.ascontiguousarray(asset.voxels).tobytes(), 9)
        value |= {
            "shape": list(asset.voxels.shape),
            "voxel_size": list(asset.voxel_size),
            "voxels2box": asset.voxels2box.tolist(),
            "voxels": base64.b64encode(packed).decode("ascii"),
        }
    return value


def asset_from_json(name: str, value: Mapping[str, Any]) -> Asset:
    """The asset of `asset_to_json`; ValueError for keys that are missing or unknown, or damaged voxels."""
    plain, packed = {"classes", "category", "size"}, {"shape", "voxel_size", "voxels2box", "voxels"}
    known = plain | packed | {"description"}
    if not isinstance(value, Mapping) or not plain <= value.keys() <= known or 0 < len(packed & value.keys()) < 4:
        has = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"asset {name!r} has {has}; it needs {sorted(plain)}, and all or none of {sorted(packed)}")
    common = (name, tuple(map(str, value["classes"])), str(value["category"]), _triple(name, "size", value["size"]))
    text = str(value.get("description", ""))
    if "voxels" not in value:
        return Asset(*common, description=text)
    try:
        shape = tuple(int(n) for n in value["shape"])
        limit = math.prod(shape)
        if len(shape) != 3 or not 0 < limit <= 50_000_000 or min(shape) < 1:
            raise ValueError(f"shape {shape}")
        # One byte more than it may hold shows a lie without unpacking it whole.
        data = zlib.decompressobj().decompress(base64.b64decode(value["voxels"], validate=True), limit + 1)
        voxels = np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()
    except (ValueError, TypeError, zlib.error) as error:
        raise ValueError(f"asset {name!r}: its voxels cannot be read ({error}); cut it again") from error
    return Asset(*common, voxels, _triple(name, "voxel_size", value["voxel_size"]), value["voxels2box"], text)


def _triple(name: str, key: str, value: Any) -> tuple[float, float, float]:
    try:
        x, y, z = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"asset {name!r}: {key} is three numbers, got {value!r}") from error
    if not all(math.isfinite(v) and v > 0 for v in (x, y, z)):
        raise ValueError(f"asset {name!r}: {key} is positive metres, got {value!r}")
    return x, y, z
