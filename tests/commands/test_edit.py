"""`syntheocc edit` and `infer.py --edit`: labels, boxes, pictures; batches that go on past what cannot be made."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.commands import edit, edit_work, exit_status, generate, main
from syntheocc.commands.batch import Tally
from syntheocc.commands.edit import EditConfig
from syntheocc.commands.outputs import frame_labels
from syntheocc.engine.files import atomic_write_json, read_json
from syntheocc.occupancy import OCC3D_NUSCENES, OccupancyGrid, Recipe
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.nuscenes import NuScenesTables
from syntheocc.occupancy.data.nuscenes_frames import frames_from_tables, read_nuscenes, write_nuscenes
from syntheocc.occupancy.data.occ3d import Occ3DLabels, read_occ3d, write_occ3d
from syntheocc.occupancy.data.occupancy_files import read_occupancy

TRUCK = {"edit": "insert", "asset": "truck", "at": [-15, 8], "name": "truck"}


def config(dataset, out, **more):
    given = {
        "dataroot_path": dataset.root,
        "info_path": (str(dataset.info),),
        "occ_kind": "syntheocc_coarse",
        "out": out,
        "pictures": False,
    }
    return EditConfig(**(given | more))


def write_recipe(path, *edits, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 1, "edits": list(edits)} | more))
    return path


def test_a_batch_goes_on_past_bad_edits_and_lists_them(tiny_dataset, tmp_path, capsys):
    recipes, out = tmp_path / "recipes", tmp_path / "out"
    write_recipe(recipes / "truck.json", TRUCK)
    # The car ahead moves by 5 m a sample: it is near (11, 0) in the first alone.
    write_recipe(recipes / "gone.json", {"edit": "remove", "object": {"class": "car", "near": [11, 0], "within": 1}})
    write_recipe(recipes / "typo.json", {"edit": "insert", "asset": "trukc", "at": [0, 0]}, frame="token1")
    write_recipe(recipes / "far.json", TRUCK | {"at": [80, 0], "name": "far"}, frame="token2")
    (recipes / "broken.json").write_text("{")
    assert exit_status(edit.run, config(tiny_dataset, out, batch=recipes)) == 1
    said = capsys.readouterr().out
    assert "of 4 samples" in said and "5 failed" in said
    for words in (
        "broken.json: not a JSON document",
        "gone, token1: .*gone.json, edit 1 .remove.: no car within 1 m of .11, 0.; the nearest is 5.0 m away",
        "typo, token1: .*no asset is called 'trukc'",
        "far, token2: .*far .truck. at .80, 0. reaches out of the grid",
    ):
        assert re.search(words, said), (words, said)
    for i in range(3):
        before = read_occupancy(tiny_dataset.label_path(i), "syntheocc_coarse", tiny_dataset.frames[i].lidar2ego)
        label = (
            out / "truck" / "labels" / "syntheocc_coarse" / tiny_dataset.label_path(i).relative_to(tiny_dataset.root)
        )
        after = read_occupancy(label, "syntheocc_coarse", tiny_dataset.frames[i].lidar2ego)
        assert set(after.labels[after.labels != before.labels].tolist()) == {2}
        listed = read_json(out / "truck" / "labels" / f"token{i}.json")["boxes"]
        assert [box["name"] for box in listed] == ["car", "truck"] and np.allclose(listed[1]["center"][:2], [-15, 8])
        occ3d = read_occ3d(out / "truck" / "labels" / "occ3d" / "scene-0001" / f"token{i}" / "labels.npz")
        assert occ3d.grid.spec == OCC3D_NUSCENES.spec and int((occ3d.grid.labels == 10).sum()) > 100
        assert bool(occ3d.mask_camera.any()) and int((occ3d.grid.labels == 11).sum()) > 10_000
    # nuScenes form: the truck is in the infos of every frame, at the same place in ego.
    frames = read_infos(out / "truck" / "infos.pkl")
    assert [frame.boxes.names for frame in frames] == [("car", "truck")] * 3
    assert np.allclose(frames[1].boxes.centers[1, :2], [-15, 8], atol=0.05)
    assert len(json.loads((out / "truck" / "sample_annotation.json").read_text())) == 6
    assert read_json(out / "gone" / "labels" / "token0.json")["boxes"] == []
    assert set(read_json(out / "gone" / "manifest.json")["failed"]) == {"token1", "token2"}
    # Run again: what is there stays, what failed is tried again; another recipe of that name is not mixed in.
    written = {path: path.stat().st_mtime_ns for path in (out / "truck" / "labels").rglob("*") if path.is_file()}
    assert exit_status(edit.run, config(tiny_dataset, out, batch=recipes)) == 1
    assert "of 0 samples" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())
    write_recipe(recipes / "truck.json", TRUCK | {"yaw_deg": 20})
    assert exit_status(edit.run, config(tiny_dataset, out, batch=recipes)) == 1
    assert "truck: " in (said := capsys.readouterr().out) and "results of other settings" in said


def test_flags_files_and_pictures(tiny_dataset, tmp_path, capsys):
    flags = ["--out", str(tmp_path / "one"), "--at", "-15", "8", "--yaw-deg", "90", "--class", "bus"]
    place = ["--dataroot-path", str(tiny_dataset.root), "--info-path", str(tiny_dataset.info)]
    assert main(["edit", "token1", *place, "--occ-kind", "syntheocc_coarse", "--insert", "truck", *flags]) == 0
    folder = tmp_path / "one" / "insert-truck"
    assert Recipe.load(folder / "recipe.json").edits == (
        {"edit": "insert", "asset": "truck", "at": [-15.0, 8.0], "yaw_deg": 90.0, "class": "bus"},
    )
    assert [path.name for path in (folder / "records").glob("*")] == ["token1.json"]
    with Image.open(folder / "pictures" / "token1_3d.png") as image:
        assert image.width > 1600
    with Image.open(folder / "pictures" / "token1_condition.png") as image:
        assert image.height == 2 * 224 + 4
        rows = np.asarray(image.convert("RGB")).astype(int)
        # Below the title of a tile: the bus, a large orange thing, is in the lower row alone.
        orange = (rows[..., 0] > 2.5 * rows[..., 1]) & (rows[..., 0] > 100) & (rows[..., 2] < 40)
        assert not orange[40:224].any() and orange[268:].sum() > 300
    assert main(["edit", "--list-assets"]) == 0
    assert "car_hatchback" in (said := capsys.readouterr().out) and "cone_lane" in said
    assert main(["edit", "street", "--layout", "parade"]) == 2
    assert "no edit is called 'parade'" in capsys.readouterr().err
    for given, message in (
        ({"frame": "token9", "insert": "car"}, "no frame 'token9'"),
        ({"frame": "token1"}, "say what to edit"),
        ({"insert": "car", "remove": "#1"}, "one edit by flags"),
        ({"insert": "car"}, "lacks at"),
        ({"frame": "none.npz", "remove": "#1"}, "none.npz: no such label file"),
        ({"batch": tmp_path / "nothing"}, "no folder with recipes"),
        ({"insert_cut": "#0", "at": (1.0, 2.0)}, "needs --cut_from"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.run(config(tiny_dataset, tmp_path / "none", **given))
    job = config(tiny_dataset, tmp_path / "cut", frame="token0", insert_cut="#0", cut_from="token2", at=(-15.0, 8.0))
    assert edit.run(job) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert [box["name"] for box in read_json(folder / "labels" / "token0.json")["boxes"]] == ["car", "car"]
    assert Recipe.load(folder / "recipe.json").assets["cut"].voxels is not None


def test_an_occ3d_file_keeps_its_masks_and_instances(tmp_path, capsys):
    labels = torch.full(OCC3D_NUSCENES.spec.shape, 17, dtype=torch.uint8)
    labels[:, :, 2] = 11
    labels[120:130, 95:100, 3:6] = 4
    masks = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    instances = (labels == 4).to(torch.uint8) * 7
    path = tmp_path / "token" / "labels.npz"
    grid = OccupancyGrid(labels, *OCC3D_NUSCENES)
    write_occ3d(Occ3DLabels(grid, masks, masks, instances), path)
    out = tmp_path / "out"
    job = EditConfig(frame=str(path), occ_kind="occ3d", out=out, pictures=False, move="car@10,-1", by=(4.0, 0.0))
    assert edit.run(job) == 0
    found = read_occ3d(next((out / "move-car_10_-1" / "labels" / "occ3d").rglob("labels.npz")))
    changed = found.grid.labels != labels
    moved = found.grid.labels == 4
    assert torch.equal(moved[130:140, 95:100, 3:6], labels[120:130, 95:100, 3:6] == 4) and int(moved.sum()) == 150
    assert torch.equal(found.mask_camera, masks | changed) and torch.equal(found.mask_lidar, masks | changed)
    assert set(found.instances[moved].tolist()) == {8} and int((found.instances != 0).sum()) == 150
    listed = read_json(out / "move-car_10_-1" / "labels" / "token.json")["boxes"]
    assert [box["name"] for box in listed] == ["car"] and np.allclose(listed[0]["center"], [14, -1, 0.8])


def test_nuscenes_tables_get_the_boxes_as_they_are_now(tiny_dataset, tmp_path):
    write_nuscenes(tiny_dataset.root, "v1.0-tiny", tiny_dataset.frames)
    tables = tiny_dataset.root / "v1.0-tiny"
    place = {"info_path": (str(tables),), "out": tmp_path / "out"}
    recipe = write_recipe(
        tmp_path / "both.json",
        TRUCK | {"class": "bus"},
        {"edit": "move", "object": "#0", "by": [0, 6]},
        {"edit": "repaint", "object": "#0", "to": "truck"},
    )
    assert edit.run(config(tiny_dataset, recipe=recipe, **place)) == 1, "tables without a bus category"
    write_recipe(recipe, TRUCK | {"asset": "car"}, {"edit": "move", "object": "#0", "by": [0, 6]})
    assert edit.run(config(tiny_dataset, recipe=recipe, **(place | {"out": tmp_path / "again"}))) == 0
    written = NuScenesTables(tmp_path / "again" / "both" / "v1.0-tiny", tiny_dataset.root)
    for before, after in zip(read_nuscenes(tables), frames_from_tables(written), strict=True):
        assert (
            after.boxes.names == ("car", "car") and after.boxes.instance_tokens[0] == before.boxes.instance_tokens[0]
        )
        assert np.allclose(after.boxes.centers[0] - before.boxes.centers[0], [0, 6, 0], atol=1e-6)
        assert np.allclose(after.boxes.centers[1, :2], [-15, 8])


def test_boxes_keep_radar_counts_and_attributes(tiny_dataset, tmp_path):
    """What an edit does not touch is in its info pickles as it was in the source."""
    boxes = dataclasses.replace(
        tiny_dataset.frames[0].boxes, num_lidar_points=[0], num_radar_points=[3], attributes=("vehicle.parked",)
    )
    frame = dataclasses.replace(tiny_dataset.frames[0], boxes=boxes)
    outputs = edit_work.EditFolder(tmp_path)
    atomic_write_json(tmp_path / "labels" / f"{frame.token}.json", frame_labels(frame))
    record = {"token": frame.token, "files": []}
    outputs.write_record(frame, record)
    edit_work.finish_recipe(outputs, [frame], Tally(1, 0, {}), None)
    (read,) = read_infos(tmp_path / "infos_v1.1.pkl", tiny_dataset.root)
    assert read.boxes.num_radar_points.tolist() == [3] and read.boxes.num_lidar_points.tolist() == [0]
    assert edit_work._boxes_of(outputs, frame).attributes == ("vehicle.parked",)


def test_infer_with_an_edit(tiny_dataset, tiny_model, tmp_path, capsys):
    recipe = write_recipe(
        tmp_path / "gone.json", {"edit": "remove", "object": {"class": "car", "near": [11, 0], "within": 6}}
    )
    job = generate.GenerateConfig(
        dataroot_path=tiny_dataset.root,
        info_path=(str(tiny_dataset.info),),
        save_img_path=tmp_path / "out",
        model_path_infer=str(tiny_model),
        occ_kind="syntheocc_coarse",
        width=96,
        height=64,
        num_inference_steps=1,
        cfg_scale=1.0,
        edit=recipe,
    )
    assert exit_status(generate.run, job) == 1, "the third frame's car is 10 m away"
    assert "token2: " in (said := capsys.readouterr().out) and "gone.json, edit 1 (remove): no car within 6 m" in said
    for i in (0, 1):
        assert read_json(tmp_path / "out" / "labels" / f"token{i}.json")["boxes"] == []
        path = (
            tmp_path
            / "out"
            / "labels"
            / "syntheocc_coarse"
            / tiny_dataset.label_path(i).relative_to(tiny_dataset.root)
        )
        grid = read_occupancy(path, "syntheocc_coarse", tiny_dataset.frames[i].lidar2ego)
        # The box is smaller than the voxels of its car: what lies more than a voxel outside of it stays.
        assert 0 < int((grid.labels == 1).sum()) < 3 * 8 * 3
    # Another edit of that name, or none, is another job.
    write_recipe(recipe, {"edit": "remove", "object": "#0"})
    assert exit_status(generate.run, job) == 2 and "edit: " in capsys.readouterr().err
    assert exit_status(generate.run, dataclasses.replace(job, edit=None)) == 2
    for change, message in (
        ({"occ_kind": "mpi"}, "MPI files are rendered already"),
        ({"edit": tmp_path / "no.json"}, "no such recipe"),
        ({"as_dataset": tmp_path / "set", "occ_kind": "lidar"}, "writes the edited labels beside the views"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(job, **change)


def test_a_data_set_of_edited_labels_holds_those_and_no_others(tiny_dataset, tiny_model, tmp_path):
    assert edit.run(config(tiny_dataset, tmp_path / "out", frame="token0", insert="truck", at=(-15.0, 8.0))) == 0
    folder = tmp_path / "out" / "insert-truck"
    job = generate.GenerateConfig(
        dataroot_path=tiny_dataset.root,
        info_path=(str(folder / "infos.pkl"),),
        occ_kind="syntheocc_coarse",
        occ_path=folder / "labels" / "syntheocc_coarse",
        as_dataset=tmp_path / "set",
        model_path_infer=str(tiny_model),
        width=96,
        height=64,
        num_inference_steps=1,
        cfg_scale=1.0,
    )
    assert generate.run(job) == 0
    place = tiny_dataset.label_path(0).relative_to(tiny_dataset.root)
    written = (tmp_path / "set" / place).read_bytes()
    assert written == (folder / "labels" / "syntheocc_coarse" / place).read_bytes()
    assert written != tiny_dataset.label_path(0).read_bytes()
    assert read_nuscenes(tmp_path / "set")[0].boxes.names == ("car", "truck")


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_key_frame_built_from_its_sweep(real_data, tmp_path):
    root, token = real_data / "nuscenes_scene0061", "ca9a282c9e77460f8360f564131a8af5"
    job = EditConfig(
        dataroot_path=root,
        info_path=(str(root / "info_mmdet3d_v1.1.pkl"),),
        occ_kind="lidar",
        frame=token,
        out=tmp_path,
        pictures=False,
        recipe=write_recipe(
            tmp_path / "real.json",
            {"edit": "remove", "object": "pedestrian@-12.7,1.8"},
            {"edit": "insert", "asset": "car", "at": [12, 0], "name": "car"},
        ),
    )
    assert edit.run(job) == 0
    record = read_json(tmp_path / "real" / "records" / f"{token}.json")
    assert record["boxes_before"] == record["boxes_after"] == 69 and record["changed_voxels"] > 1000
    (frame,) = read_infos(tmp_path / "real" / "infos_v1.1.pkl", root)
    near = (frame.boxes.centers[:, :2] - torch.tensor([-12.7, 1.8])).norm(dim=1)
    assert not any(name == "pedestrian" for name, gap in zip(frame.boxes.names, near, strict=True) if gap < 0.5)
    assert frame.boxes.names[-1] == "car" and np.allclose(frame.boxes.centers[-1, :2], [12, 0], atol=0.1)
