"""The library: made of the world's solids, faithful to them in any grid; boxes; assets as JSON."""

import json

import pytest
import torch
from small_street import SPEC, pose

from syntheocc.occupancy import GridSpec, OccupancyGrid
from syntheocc.occupancy.editing.assets import (
    asset_from_json,
    asset_label,
    asset_names,
    asset_to_json,
    box_asset,
    library_asset,
)
from syntheocc.occupancy.taxonomy import (
    OCC3D_TAXONOMY,
    SEMANTIC_KITTI_TAXONOMY,
    SYNTHEOCC_TAXONOMY,
    TAXONOMIES,
)
from syntheocc.worlds import asset_library
from syntheocc.worlds.families import random_for
from syntheocc.worlds.palette import Palette
from syntheocc.worlds.voxelize import paint

CLASSES = "car truck bus trailer construction_vehicle pedestrian bicycle motorcycle traffic_cone barrier".split()


def empty(spec: GridSpec = SPEC) -> OccupancyGrid:
    return OccupancyGrid(torch.zeros(spec.shape, dtype=torch.uint8), spec, SYNTHEOCC_TAXONOMY)


def test_the_library_has_every_class_and_only_plausible_sizes():
    names = asset_names()
    assert {asset_library.LIBRARY[name].classes[0] for name in names} == {*CLASSES, "others"}
    assert set(names) == set(asset_library.LIBRARY) and {*CLASSES, "lost_cargo"} <= set(names)
    for name in names:
        asset = library_asset(name)
        assert 0.3 < min(asset.size) and max(asset.size) < 18, name
        # The voxels reach every side of the box to within a few centimetres more than their own size.
        held = torch.from_numpy(asset.voxels).nonzero()
        spare = (torch.tensor(asset.voxels.shape) - (held.amax(0) - held.amin(0) + 1)).tolist()
        assert max(spare) <= 4, (name, spare)
        assert all(-1e-3 <= n * 0.05 - edge < 0.051 for n, edge in zip(asset.voxels.shape, asset.size, strict=True)), (
            name
        )
    with pytest.raises(ValueError, match="no asset is called 'tank'; there are car, "):
        library_asset("tank")


@pytest.mark.parametrize("name", ["car", "traffic_cone"])
def test_the_shipped_library_is_what_the_world_bakes(name):
    voxels, facts = asset_library.bake(name)
    asset = library_asset(name)
    assert torch.equal(torch.from_numpy(voxels), torch.from_numpy(asset.voxels)) and list(asset.size) == facts["size"]


@pytest.mark.parametrize("edge", [0.2, 0.4])
@pytest.mark.parametrize("name", ["car_suv", "bicycle", "construction_vehicle", "pedestrian"])
def test_an_asset_becomes_the_voxels_that_the_worlds_labels_would_have(name, edge):
    entry = asset_library.LIBRARY[name]
    model = entry.make(random_for(0, "library", name), Palette(random_for(0, "library paint"), "train"))
    spec = GridSpec((-8.0, -4.0, -2.0), edge, (round(16 / edge), round(8 / edge), round(4.8 / edge)))
    where = pose(0.13, -0.31, 0.07, 0.6)
    exact = paint(model.primitives.transformed(where), spec, backend="torch") >= 0
    placed = torch.zeros(spec.shape, dtype=torch.bool)
    placed[tuple(library_asset(name).place(empty(spec), where).T)] = True
    both, either = int((placed & exact).sum()), int((placed | exact).sum())
    assert both / either > (0.75 if name in ("bicycle", "pedestrian") else 0.94), (both, either)


def test_even_a_cone_leaves_a_voxel_wherever_it_stands():
    random = torch.Generator().manual_seed(0)
    cone = library_asset("traffic_cone")
    coarse = empty(GridSpec((-4.0, -4.0, -2.0), 0.5, (16, 16, 8)))
    for x, y, z, yaw in (torch.rand(30, 4, generator=random) * 2 - 1).tolist():
        index = cone.place(coarse, pose(x, y, z, 3 * yaw))
        assert 1 <= len(index) <= 30
    assert len(cone.place(coarse, pose(30, 0, 0))) == 0


def test_labels_by_taxonomy():
    assert asset_label(library_asset("pedestrian"), SEMANTIC_KITTI_TAXONOMY) == SEMANTIC_KITTI_TAXONOMY.id_of("person")
    assert asset_label(library_asset("bus"), SEMANTIC_KITTI_TAXONOMY) == SEMANTIC_KITTI_TAXONOMY.id_of("other_vehicle")
    cargo = library_asset("lost_cargo")
    assert asset_label(cargo, OCC3D_TAXONOMY) == OCC3D_TAXONOMY.id_of("others")
    assert asset_label(cargo, SYNTHEOCC_TAXONOMY) == SYNTHEOCC_TAXONOMY.id_of("manmade")
    assert asset_label(cargo, SEMANTIC_KITTI_TAXONOMY, "fence") == SEMANTIC_KITTI_TAXONOMY.id_of("fence")
    for name, taxonomy in (("lost_cargo", "semantic_kitti"), ("traffic_cone", "semantic_kitti"), ("car", "nyuv2")):
        with pytest.raises(ValueError, match=f"{name}.*has no class.*say which of them"):
            asset_label(library_asset(name), TAXONOMIES[taxonomy])


def test_assets_as_json():
    for asset in (library_asset("barrier"), box_asset("car", (4.0, 2.0, 1.5))):
        again = asset_from_json("again", json.loads(json.dumps(asset_to_json(asset))))
        assert again.size == asset.size and again.classes == asset.classes
        where = pose(0.3, 0.2, 0.6, 0.7)
        assert torch.equal(again.place(empty(), where), asset.place(empty(), where))
    good = asset_to_json(library_asset("barrier"))
    for change in ({"voxels": "AAAA"}, {"shape": [1, 2]}, {"shape": [9999, 9999, 9999]}, {"size": [1, 0, 1]},
                   {"shape": [3, 3, 3]}, {"colour": 1}):  # fmt: skip
        with pytest.raises(ValueError, match="barrier"):
            asset_from_json("barrier", good | change)
    with pytest.raises(ValueError, match="needs"):
        asset_from_json("x", {"classes": ["car"]})
