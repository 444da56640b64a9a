"""Edits are exact: what was inserted is there, what was removed is gone, nothing else changed; undo gives all back."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_street import OBJECTS, SPEC, make_boxes, make_street, pose

from syntheocc.occupancy import (
    NYUV2,
    OCC3D_NUSCENES,
    OPENOCC_V2,
    SEMANTIC_KITTI,
    SURROUNDOCC,
    SYNTHEOCC_COARSE,
    TARTANAIR,
    GridSpec,
    OccupancyGrid,
    render_mpi,
)
from syntheocc.occupancy.editing import LAYOUTS, Editor, library_asset
from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE

CAR, TRUCK, ROAD = TABLE.id_of("car"), TABLE.id_of("truck"), TABLE.id_of("driveable_surface")


def voxels(grid, name):
    return {tuple(index) for index in (grid.labels == grid.taxonomy.label_of(name)).nonzero().tolist()}


def test_insert_is_what_the_asset_says_and_nothing_else(street, boxes):
    editor = Editor(street, boxes, "token")
    name = editor.insert("car_van", at=(-5.0, 1.8), yaw_deg=190, velocity=(-3.0, 0.0))
    inserted = voxels(editor.grid, "car") - voxels(street, "car")
    assert name == "car_van" and editor.inserted == ("car_van",)
    assert {tuple(index) for index in editor.changed.nonzero().tolist()} == inserted
    box = editor.boxes
    assert box.names == ("car", "pedestrian", "car") and box.velocities[2].tolist() == [-3.0, 0.0]
    assert box.sizes[2].tolist() == pytest.approx(library_asset("car_van").size)
    # It stands on the road, whose upper face is z = 0.
    assert float(box.centers[2, 2] - box.sizes[2, 2] / 2) == pytest.approx(0.0, abs=1e-9)
    assert math.degrees(float(box.yaws[2])) == pytest.approx(-170)
    assert len(box.instance_tokens[2]) == 32 and box.num_lidar_points.tolist() == [50, 9, -1]
    assert 0.7 < len(inserted) * 0.4**3 / math.prod(library_asset("car_van").size) < 1.3
    assert torch.equal(street.labels, make_street().labels) and len(boxes) == 2, "what was handed in has changed"
    on_walk = Editor(street, boxes)
    on_walk.insert("pedestrian", at=(3.0, 5.4))
    assert float(on_walk.boxes.centers[2, 2] - on_walk.boxes.sizes[2, 2] / 2) == pytest.approx(0.4)


def test_remove_takes_object_and_box_and_closes_the_ground(street, boxes):
    street.labels[55:65, 13:17, 2] = TABLE.free  # never seen: no road below the car
    street.labels[58, 15, 2] = CAR
    editor = Editor(street, boxes)
    editor.remove("#0")
    assert not voxels(editor.grid, "car") and editor.boxes.names == ("pedestrian",)
    expected = make_street()
    expected.labels[voxel_index(voxels(expected, "car"))] = TABLE.free
    assert torch.equal(editor.grid.labels, expected.labels), "the road under the car is whole again"
    editor.remove("b" * 32)
    assert len(editor.boxes) == 0 and editor.boxes is not None
    assert set(editor.grid.labels.unique().tolist()) == {0, ROAD, TABLE.id_of("sidewalk"), TABLE.id_of("manmade")}


def voxel_index(found):
    return tuple(torch.tensor(sorted(found)).T)


def test_neighbours_keep_their_voxels(street, boxes):
    """Two cars a voxel apart: the margin of one reaches into the other."""
    street.labels[50:54, 13:17, 3:6] = CAR
    from syntheocc.occupancy.data.frames import Boxes

    both = Boxes(
        torch.stack([boxes.box2ego[0], pose(4.8, -2.0, 0.8)]),
        torch.tensor([[4.0, 1.6, 1.6], [1.6, 1.6, 1.2]]),
        ("car", "car"),
    )
    editor = Editor(street, both)
    editor.remove("#0")
    assert voxels(editor.grid, "car") == {(x, y, z) for x in range(50, 54) for y in range(13, 17) for z in range(3, 6)}


def test_moves_by_whole_voxels_copy_the_object_exactly(street, boxes):
    editor = Editor(street, boxes)
    before = voxels(street, "car")
    editor.move("#0", by=(6.0, 0.8), allow=[])
    assert voxels(editor.grid, "car") == {(x + 15, y + 2, z) for x, y, z in before}
    assert editor.boxes.centers[0].tolist() == pytest.approx([14.0, -1.2, 0.8])
    assert editor.boxes.instance_tokens[0] == "a" * 32 and editor.boxes.velocities[0].tolist() == [3.0, 0.0]
    editor.rotate("#0", 90)
    assert editor.boxes.velocities[0].tolist() == pytest.approx([0.0, 3.0], abs=1e-9)
    assert math.degrees(float(editor.boxes.yaws[0])) == pytest.approx(90)
    editor.move("a" * 32, to=(8.0, -2.0), yaw_deg=0)
    assert torch.equal(editor.grid.labels, street.labels) and not bool(editor.changed.any())
    editor.move("#1", by=(0.0, 2.4))  # from the sidewalk down to the road: a voxel lower
    assert float(editor.boxes.centers[1, 2]) == pytest.approx(0.8)


@pytest.mark.parametrize("first", ["repaint", "move"])
def test_a_moved_object_of_another_class_is_another_instance(street, boxes, first):
    boxes = replace(boxes, attributes=("vehicle.parked", "pedestrian.standing"))
    editor = Editor(street, boxes, "token")
    steps = {"repaint": lambda: editor.repaint("truck", "#0"), "move": lambda: editor.move("#0", by=(0.4, 0))}
    for kind in (first, *(steps.keys() - {first})):
        steps[kind]()
    editor.move("#1", by=(0.4, 0))
    assert editor.boxes.names == ("truck", "pedestrian")
    assert editor.boxes.instance_tokens[0] != boxes.instance_tokens[0], "tables know one category for an instance"
    assert editor.boxes.instance_tokens[1] == boxes.instance_tokens[1]
    assert editor.boxes.attributes[1] == "pedestrian.standing"


def test_arguments_that_say_nothing_are_named(street, boxes):
    editor, nan = Editor(street, boxes), float("nan")
    block = {"class_name": "car", "at": (-5.0, 1.8)}
    for edit, said in (
        (lambda: editor.move("#0"), "say where to"),
        (lambda: editor.move("#0", by=(1, 0), z=nan), "z is 1 finite"),
        (lambda: editor.rotate("#0", nan), "turn_deg is 1 finite"),
        (lambda: editor.insert("car", (-5.0, 1.8), yaw_deg="north"), "yaw_deg is 1 number"),
        (lambda: editor.insert("box", size=(1, 2), **block), "size is 3 finite"),
        (lambda: editor.insert("box", size="abc", **block), "size is 3 numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            edit()
    assert not editor.edits


def test_what_is_no_object_has_no_box(street, boxes):
    editor = Editor(street, boxes)
    editor.repaint("manmade", "#0")
    assert editor.boxes.names == ("pedestrian",) and not voxels(editor.grid, "car")
    assert voxels(editor.grid, "manmade") >= voxels(street, "car")
    editor.insert("box", at=(-5.0, 1.8), class_name="vegetation", size=(2, 2, 2), name="hedge")
    assert editor.boxes.names == ("pedestrian",) and editor.inserted == ("hedge",)
    editor.repaint("truck", "hedge")
    assert editor.boxes.names == ("pedestrian", "truck")
    while editor.undo():
        pass
    assert editor.boxes.names == boxes.names
    for edit in (
        lambda: editor.repaint("free", "#0"),
        lambda: editor.insert("car", at=(-5.0, 1.8), class_name="free"),
        lambda: editor.insert("box", at=(-5.0, 1.8), class_name="free", size=(1, 1, 1)),
    ):
        with pytest.raises(ValueError, match="no object; remove"):
            edit()
    assert not editor.edits and torch.equal(editor.grid.labels, street.labels)
    other = Editor(street.map_to(OCC3D_NUSCENES.taxonomy), boxes)
    other.repaint("others", "#0")
    assert other.boxes.names[0] == "movable_object.debris"


def test_repaint_keeps_shape_and_place(street, boxes):
    editor = Editor(street, boxes)
    editor.repaint("truck", "#0")
    assert voxels(editor.grid, "truck") == voxels(street, "car") and editor.boxes.names == ("truck", "pedestrian")
    editor.repaint("bus", {"class": "truck", "near": [8, -2]})
    assert voxels(editor.grid, "bus") == voxels(street, "car") and editor.boxes.names[0] == "bus"
    region = {"center": [0, 5.5, 0], "size": [4, 2, 2]}
    editor.repaint("terrain", region=region, from_classes=["sidewalk"])
    painted = voxels(editor.grid, "terrain")
    assert painted == {(x, y, z) for x, y, z in voxels(street, "sidewalk") if 35 <= x < 45 and 31 <= y < 36}
    name = editor.insert("car", at=(-10.0, 0.0))
    editor.repaint("barrier", region={"center": [-10, 0, 1], "size": [2, 4, 4]}, from_classes=["car"])
    with pytest.raises(ValueError, match="partly repainted"):
        editor.move(name, by=(1, 0))
    with pytest.raises(ValueError, match="nothing of car"):
        editor.repaint("truck", region=region, from_classes=["car"])
    with pytest.raises(ValueError, match="from"):
        editor.repaint("truck", region=region)


def test_what_cannot_be_is_an_error_and_changes_nothing(street, boxes):
    editor = Editor(street, boxes)
    for message, edit in {
        "collides with car": lambda: editor.insert("truck_pickup", at=(8.0, -1.0)),
        "collides with the ego car": lambda: editor.insert("pedestrian", at=(1.0, 0.5)),
        r"far.*reaches out of the grid.*x -16.0 to 24.0": lambda: editor.insert("car", at=(23.5, 0.0), name="far"),
        "floats 1.00 m above": lambda: editor.insert("car", at=(-8.0, 0.0), z=1.0),
        "is sunk 0.50 m into": lambda: editor.insert("car", at=(-8.0, 0.0), z=-0.5),
        "no asset is called 'tank'": lambda: editor.insert("tank", at=(-8.0, 0.0)),
        "has no class 'tank'": lambda: editor.insert("car", at=(-8.0, 0.0), class_name="tank"),
        "needs class and size": lambda: editor.insert("box", at=(-8.0, 0.0)),
        "no object 'nobody'": lambda: editor.remove("nobody"),
        "no object '#7'.*#0 to #1": lambda: editor.remove("#7"),
        "no car within 2 m of .20, 0.; the nearest is 12.2 m": lambda: editor.remove(
            {"class": "car", "near": [20, 0], "within": 2}
        ),
        "no voxel of an object lies in the box": lambda: editor.remove({"center": [0, 0, 1], "size": [1, 1, 1]}),
        "not both": lambda: editor.move("#0", to=(1, 2), by=(1, 2)),
        "finite": lambda: editor.insert("car", at=(math.nan, 0)),
        "allow is a list": lambda: editor.insert("car", at=(-8, 0), allow=["everything"]),
        "cones.*collides with car": lambda: LAYOUTS["cone_lane"](editor, start=(5, 1.8), end=(12, -2.7)),
    }.items():
        with pytest.raises(ValueError, match=message):
            edit()
        assert torch.equal(editor.grid.labels, street.labels) and len(editor.boxes) == 2 and not editor.edits, message
    for allow, place in (("collision", {"at": (8.0, -1.0)}), ("floating", {"at": (-8.0, 0.0), "z": 1.0}),
                         ("outside", {"at": (23.5, 0.0)})):  # fmt: skip
        editor.insert("car", **place, allow=[allow])
    street.labels[street.labels == ROAD] = TABLE.free
    with pytest.raises(ValueError, match="no ground there"):
        Editor(street).insert("car", at=(-8.0, 0.0))


def test_a_box_without_voxels_is_an_error_unless_allowed(street, boxes):
    street.labels[street.labels == CAR] = TABLE.free
    editor = Editor(street, boxes)
    for edit in (editor.remove, lambda name: editor.move(name, by=(1, 0)), lambda name: editor.repaint("bus", name)):
        with pytest.raises(ValueError, match=r"box #0 \(car\) holds no voxel"):
            edit("#0")
    editor.remove("#0", allow=["empty"])
    assert editor.boxes.names == ("pedestrian",) and not bool(editor.changed.any())


def test_frames_without_boxes_have_connected_objects(street):
    editor = Editor(street)
    editor.move("car@8,-2", by=(4.0, 0.0), yaw_deg=0)
    assert editor.boxes.names == ("car",) and editor.boxes.sizes[0].tolist() == pytest.approx([4.0, 1.6, 1.6])
    assert voxels(editor.grid, "car") == {(x + 10, y, z) for x, y, z in voxels(street, "car")}
    editor.remove({"class": "pedestrian", "near": [-6, -5]})
    assert not voxels(editor.grid, "pedestrian")
    with pytest.raises(ValueError, match="no voxel of bus"):
        editor.remove("bus@0,0")
    with pytest.raises(ValueError, match="is no object"):
        editor.remove("sidewalk@0,5")
    assert Editor(street).boxes is None


def test_layouts(street, boxes):
    editor = Editor(street, boxes)
    LAYOUTS["cone_lane"](editor, start=(-14, -3), end=(-2, -3), spacing=3)
    assert editor.inserted == tuple(f"cones.{i}" for i in range(1, 6))
    assert editor.boxes.centers[2:, 0].tolist() == pytest.approx([-14, -11, -8, -5, -2])
    LAYOUTS["crossing_pedestrian"](editor, ahead=12.0, side="left", progress=0.25, width=7)
    person = editor.boxes.filter(lambda name: name == "pedestrian")
    assert person.centers[1, :2].tolist() == pytest.approx([12, 1.75])
    assert person.velocities[1].tolist() == pytest.approx([0, -1.4]) and float(person.yaws[1]) == pytest.approx(
        -1.5708, abs=1e-3
    )
    LAYOUTS["lost_cargo"](editor, at=(17, -1), pieces=2)
    assert set(editor.boxes.names) >= {"movable_object.debris"}
    LAYOUTS["roadworks"](editor, at=(-9, 1.5), width=4)
    count = len(editor.boxes)
    editor.remove("cones")
    assert len(editor.boxes) == count - 5 and not any(name.startswith("cones") for name in editor.inserted)
    assert [edit["edit"] for edit in editor.edits][0] == "cone_lane" and len(editor.edits) == 5
    with pytest.raises(ValueError, match="no room for piece 2"):
        LAYOUTS["lost_cargo"](Editor(street), at=(-8, 0), pieces=2, spread=0)


PRESETS = {
    "occ3d": (OCC3D_NUSCENES, False), "openocc": (OPENOCC_V2, False), "syntheocc": (SYNTHEOCC_COARSE, True),
    "surroundocc": (SURROUNDOCC, True), "kitti": (SEMANTIC_KITTI, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_every_street_preset(name, lidar_pose):
    (spec, taxonomy), askew = PRESETS[name]
    grid = make_street(spec, taxonomy, lidar_pose if askew else None)
    editor = Editor(grid, make_boxes())
    editor.insert("bus", at=(22.0, 2.0), yaw_deg=180)
    editor.insert("pedestrian", at=(12.0, -5.0))
    assert voxels(editor.grid, "bus") and len(voxels(editor.grid, "pedestrian")) >= 2
    box = editor.boxes
    # On the upper face of the ground's voxels, which are as thick as the grid's.
    assert abs(float(box.centers[2, 2] - box.sizes[2, 2] / 2)) < max(spec.voxel_size)
    editor.remove("#0")
    assert not voxels(editor.grid, "car")
    assert len(voxels(editor.grid, "driveable_surface")) >= len(voxels(grid, "driveable_surface"))
    if name == "kitti":
        with pytest.raises(ValueError, match="semantic_kitti.*has no class 'traffic_cone'"):
            editor.insert("traffic_cone", at=(10.0, 3.0))
        editor.insert("traffic_cone", at=(10.0, 3.0), class_name="pole")


def test_a_camera_frame_whose_y_looks_down():
    grid2ego = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    spec, taxonomy = TARTANAIR
    labels = torch.full(spec.shape, taxonomy.free, dtype=torch.uint8)
    labels[:, 45:, :] = taxonomy.id_of("floor")  # y 1.5 m: ego z 0
    grid = OccupancyGrid(labels, spec, taxonomy, grid2ego)
    editor = Editor(grid)
    editor.insert("box", at=(6.0, 1.0), class_name="chair", size=(0.4, 0.4, 0.8))
    chair = (editor.grid.labels == taxonomy.id_of("chair")).nonzero()
    assert chair[:, 1].unique().tolist() == list(range(37, 45)) and len(chair) == 4 * 4 * 8
    editor.remove("chair@6,1")
    assert torch.equal(editor.grid.labels, labels)
    with pytest.raises(ValueError, match="nyuv2.*has no class 'car'"):
        Editor(OccupancyGrid(torch.zeros(NYUV2.spec.shape, dtype=torch.uint8), *NYUV2, torch.eye(4))).insert(
            "car", (1, 1)
        )


def test_what_is_removed_is_gone_from_every_plane_and_what_is_inserted_is_seen(street, boxes, six_cameras):
    editor = Editor(street, boxes)
    before = render_mpi(street, six_cameras, 14, 25)
    front = six_cameras.names.index("CAM_FRONT")
    assert bool((before.labels[front] == CAR).any())
    editor.remove("#0")
    gone = render_mpi(editor.grid, six_cameras, 14, 25)
    assert not bool((gone.labels == CAR).any()) and not bool((gone.nearest == CAR).any())
    same = before.labels != CAR
    below = (gone.labels == ROAD) | (gone.labels == TABLE.free)
    assert torch.equal(gone.labels[same], before.labels[same]) and bool(below[~same].all())
    editor.insert("truck_pickup", at=(9.0, 0.0))
    seen = render_mpi(editor.grid, six_cameras, 14, 25)
    assert bool((seen.nearest[front] == TRUCK).any())
    only = seen.labels == TRUCK
    assert torch.equal(seen.labels[~only], gone.labels[~only])


def test_cut_from_one_frame_into_another(street, boxes):
    source = Editor(street, boxes)
    asset = source.cut("#0", "their_car")
    fresh = make_street()
    fresh.labels[fresh.labels == CAR] = TABLE.free
    target = Editor(fresh, None)
    target.insert(asset, at=(8.0, -2.0))
    assert torch.equal(target.grid.labels, street.labels) and target.boxes.names == ("car",)
    fine = make_street(GridSpec((-16.0, -8.0, -1.0), 0.2, (200, 80, 24)))
    editor = Editor(fine)
    editor.insert(asset, at=(-4.0, 0.0), yaw_deg=30)
    volume = (int((editor.grid.labels == CAR).sum()) - int((fine.labels == CAR).sum())) * 0.2**3
    assert volume == pytest.approx(4.0 * 1.6 * 1.6, rel=0.1)
    group = Editor(street, boxes)
    LAYOUTS["cone_lane"](group, start=(-14, -3), end=(-8, -3))
    with pytest.raises(ValueError, match="a group of"):
        group.cut("cones", "x")


@pytest.mark.gpu
def test_grids_on_a_gpu_are_edited_as_those_on_the_cpu(street, boxes):
    editors = [Editor(grid, boxes) for grid in (street, street.to("cuda"))]
    for editor in editors:
        editor.insert("truck_pickup", at=(15.0, 1.0), yaw_deg=20)
        editor.move("#0", by=(0.7, 0.3), turn_deg=5)
        editor.repaint("bus", "#0")
        editor.repaint("terrain", region={"center": [0, 5.5, 0], "size": [4, 2, 2]}, from_classes=["sidewalk"])
        editor.remove("pedestrian@-6,-5")
        LAYOUTS["lost_cargo"](editor, at=(-8, 0))
    assert editors[1].grid.device.type == "cuda" and editors[1].changed.device.type == "cuda"
    assert torch.equal(editors[1].grid.labels.cpu(), editors[0].grid.labels)
    assert editors[1].cut("#0", "x").voxels.shape == editors[0].cut("#0", "x").voxels.shape
    on_gpu = Editor(street.to("cuda"))
    on_gpu.remove("car@8,-2")
    assert not bool((on_gpu.grid.labels == CAR).any())


PLACES = st.tuples(st.floats(-14, 20), st.floats(-6, 6))
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("insert"), st.sampled_from(["car", "pedestrian", "traffic_cone"]), PLACES, st.floats(0, 360)
        ),
        st.tuples(st.just("move"), st.sampled_from(["#0", "#1", "car", "pedestrian"]), PLACES, st.floats(0, 360)),
        st.tuples(st.just("remove"), st.sampled_from(["#0", "#1", "car", "traffic_cone"])),
        st.tuples(st.just("repaint"), st.sampled_from(["#0", "car"]), st.sampled_from(["truck", "bus"])),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_any_sequence_can_be_undone_redone_and_replayed(steps):
    street, boxes = make_street(), make_boxes()
    editor = Editor(street, boxes)
    states = [(editor.grid.labels.clone(), editor.boxes)]
    for step in steps:
        try:
            if step[0] == "insert":
                editor.insert(step[1], step[2], yaw_deg=step[3])
            elif step[0] == "move":
                editor.move(step[1], to=step[2], yaw_deg=step[3])
            elif step[0] == "remove":
                editor.remove(step[1])
            else:
                editor.repaint(step[2], step[1])
        except ValueError:
            assert torch.equal(editor.grid.labels, states[-1][0]), "a failed edit left traces"
            continue
        states.append((editor.grid.labels.clone(), editor.boxes))
    assert len(editor.edits) == len(states) - 1
    # Buildings never change; a changed voxel lies above, below or in an old or new box, or within a voxel of it.
    wall = street.labels == TABLE.id_of("manmade")
    assert torch.equal(editor.grid.labels[wall], street.labels[wall])
    reach = torch.zeros(int(editor.changed.sum()), dtype=torch.bool)
    for _, held in states:
        columns = replace(held, sizes=held.sizes + torch.tensor([0.0, 0.0, 20.0]))
        reach |= columns.contains(SPEC.centers()[editor.changed], margin=0.4).any(0)
    assert bool(reach.all())
    last = editor.grid.labels.clone()
    replayed = editor.recipe().edit(street, boxes)
    assert torch.equal(replayed.grid.labels, last) and replayed.boxes.names == editor.boxes.names
    assert torch.allclose(replayed.boxes.box2ego, editor.boxes.box2ego)
    for labels, held in reversed(states[:-1]):
        assert editor.undo()
        assert torch.equal(editor.grid.labels, labels) and editor.boxes.names == held.names
    assert not editor.undo() and torch.equal(editor.grid.labels, street.labels)
    while editor.redo():
        pass
    assert torch.equal(editor.grid.labels, last)


@settings(max_examples=15, deadline=None)
@given(PLACES, st.floats(-180, 180), st.sampled_from(["car", "bicycle", "barrier", "lost_cargo"]))
def test_insert_then_remove_gives_back_every_voxel(place, yaw, asset):
    street = make_street()
    editor = Editor(street, make_boxes())
    try:
        name = editor.insert(asset, place, yaw_deg=yaw)
    except ValueError:
        return
    assert bool(editor.changed.any())
    grown = editor.boxes.filter([2])
    corner = SPEC.centers()[editor.changed]
    assert bool(grown.contains(corner, margin=0.4)[0].all()), "a voxel outside its box changed"
    editor.remove(name)
    assert torch.equal(editor.grid.labels, street.labels) and len(editor.boxes) == len(OBJECTS)
