"""``--as_dataset``: the generated tree passes what the original passes, and does not depend on how it came about."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syntheocc.commands import exit_status, generate
from syntheocc.commands.dataset import weights_digest
from syntheocc.commands.generate import GenerateConfig, run
from syntheocc.commands.generate_sample import sample_seed
from syntheocc.engine.files import read_json
from syntheocc.occupancy.data.generated import edited_samples
from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidar import read_lidar
from syntheocc.occupancy.data.nuscenes import TABLE_NAMES, read_tables
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.split_infos import INFO_FILES, info_file


def job(root, model, out, **more):
    given = {
        "dataroot_path": root,
        "gen_train_or_val": "train",
        "model_path_infer": str(model),
        "as_dataset": out,
        "width": 96,
        "height": 56,
        "num_inference_steps": 1,
        "cfg_scale": 1.0,
    }
    return GenerateConfig(**(given | more))


@pytest.fixture(scope="module")
def generated(street_root, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("generated") / "nuscenes"
    assert exit_status(run, job(street_root, tiny_model, out)) == 0
    return out


def files(root):
    """Relative path -> bytes of every file, links followed."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


@pytest.fixture(params=["original", "generated"])
def tree(request, street_root, generated):
    """What follows holds for either tree."""
    return street_root if request.param == "original" else generated


class TestAsTheOriginal:
    def test_readers(self, tree, street_root):
        frames, originals = read_nuscenes(tree), read_nuscenes(street_root)
        assert [f.token for f in frames] == [f.token for f in originals] and len(frames) == 3
        tables = read_tables(tree)
        assert all(tables.table(name) for name in TABLE_NAMES)
        named = [row["filename"] for name in ("sample_data", "map") for row in tables.table(name)]
        named += [row["filename"] for name in ("lidarseg", "panoptic") for row in tables.table(name)]
        assert all((tree / name).is_file() for name in named)
        for frame, original in zip(frames, originals, strict=True):
            frame.check_files()
            assert (frame.prev, frame.next, frame.caption) == (original.prev, original.next, original.caption)
            assert torch.equal(frame.cameras.cam2ego, original.cameras.cam2ego)
            assert torch.equal(frame.boxes.box2ego, original.boxes.box2ego)
            assert torch.equal(frame.boxes.velocities.nan_to_num(9), original.boxes.velocities.nan_to_num(9))
            assert (read_lidar(frame.lidar_path) == read_lidar(original.lidar_path)).all()
            for name, path in frame.image_paths.items():
                with Image.open(path) as picture:
                    assert picture.size == (frame.cameras[name].width, frame.cameras[name].height)

    @pytest.mark.parametrize("style", INFO_FILES)
    def test_infos(self, tree, style):
        infos = read_infos(tree / info_file(style, "train"), tree)
        assert len(infos) == 3 and all(info.extras["style"] == style for info in infos)
        for info, frame in zip(infos, read_nuscenes(tree), strict=True):
            info.check_files()
            assert info.token == frame.token and all(path.is_relative_to(tree) for path in info.image_paths.values())
            assert (info.cameras.cam2ego - frame.cameras.cam2ego).abs().max() < 1e-6

    def test_perception_trains_on_it(self, tree, tmp_path):
        from syntheocc.occupancy.perception.settings import TrainConfig
        from syntheocc.occupancy.perception.train import train

        result = train(
            TrainConfig(
                dataroot=tree, preset="tiny", output_dir=tmp_path, max_train_steps=1, global_batch_size=1,
                labels="occ3d", frames_per_sample=1,
            )
        )  # fmt: skip
        assert result.step == 1 and (tmp_path / "model.safetensors").is_file()
        assert not list(tmp_path.glob("bad_samples*"))

    def test_the_generator_trains_on_it(self, tree, tiny_model):
        from syntheocc.pipelines import SyntheOccPipeline
        from syntheocc.pipelines.sources import condition_spec
        from syntheocc.training.config import TrainConfig
        from syntheocc.training.dataset import FrameReader

        pipe = SyntheOccPipeline.from_pretrained(tiny_model)
        config = TrainConfig(dataroot_path=tree, gen_train_or_val="train", occ_kind="occ3d", height=56, width=96)
        reader = FrameReader(config, condition_spec(pipe.controlnet), pipe.tokenizer)
        for frame in config.read_frames()[0]:
            row = reader(frame)
            assert tuple(row.images.shape) == (6, 3, 56, 96) and row.grid.occupied().any()

    def test_devkit(self, tree):
        devkit = pytest.importorskip("nuscenes.nuscenes")
        tables = devkit.NuScenes("v1.0-trainval", str(tree), verbose=False)
        for frame in read_nuscenes(tree):
            sample = tables.get("sample", frame.token)
            for name, path in frame.image_paths.items():
                assert tables.get_sample_data_path(sample["data"][name]) == str(path)
            assert len(tables.get_boxes(sample["data"]["LIDAR_TOP"])) == len(frame.boxes)


def test_perception_trains_on_original_and_generated_frames(street_root, generated):
    """All tokens are there twice; each tree has its own pictures, the lidar is one and the same."""
    from syntheocc.occupancy.perception.mixture import training_mixture
    from syntheocc.occupancy.perception.registry import model_entry

    for name, preset in (("sparseocc", "tiny"), ("occflownet", "occflownet_2d_flow_tiny")):
        entry = model_entry(name)
        infos = (str(street_root / info_file("bevdet", "train")),)
        given = {"max_train_steps": 1, "global_batch_size": 1, "lr_warmup_steps": 1, "info_path": infos}
        settings = entry.train_settings(
            model=name, preset=preset, dataroot=street_root, extra_dataroot=(generated,), extra_share=(0.5,), **given
        )
        config, recipe = entry.preset(preset)
        data = training_mixture(entry, entry.fit(config, settings), recipe, settings)
        tokens = [frame.token for frame in read_nuscenes(street_root)]
        assert [frame.token for frame in data.frames] == tokens * 2
        found = [data[index] for index in data.order(0)]
        assert sorted(sample.tokens[0] for sample in found) == sorted([*tokens, *(f"{generated}:{t}" for t in tokens)])
        one, other = data.datasets
        assert not any(torch.equal(one.images_of(token), other.images_of(token)) for token in tokens)
        if name == "occflownet":
            assert all(len(sample.rays.depth) for sample in found)
            for frame, twin in zip(one.frames, other.frames, strict=True):
                assert torch.equal(one.ray_frame(frame).points, other.ray_frame(twin).points)


def test_what_is_generated_and_what_is_the_original(street_root, generated):
    """Pictures are new, everything else is the original's, and the manifest tells how each frame was made."""
    lines = (generated / "generated" / "manifest.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    frames = read_nuscenes(street_root)
    assert [record["token"] for record in records] == [frame.token for frame in frames]
    for record, frame in zip(records, frames, strict=True):
        assert record["seed"] == sample_seed(0, frame.token) and record["prompt"] == frame.caption
        assert record["condition"]["kind"] == "syntheocc" and (street_root / record["condition"]["file"]).is_file()
        assert len(record["weights"]["sha256"]) == 64 and record["recipe"] is None and record["version"]
        for name, place in record["views"].items():
            assert (generated / place).read_bytes() != frame.image_paths[name].read_bytes()
            assert not (generated / place).is_symlink()
    for folder in ("gts", "occ3d_panoptic", "nuscenes_occ", "nuScenes-Occupancy", "lidarseg", "maps"):
        kept = [path for path in (generated / folder).rglob("*") if path.is_file()]
        assert kept and all(path.is_symlink() for path in kept)
        assert all(path.read_bytes() == (street_root / path.relative_to(generated)).read_bytes() for path in kept)


def test_killed_and_started_again_it_gives_the_same_bytes(street_root, tiny_model, generated, tmp_path, monkeypatch):
    out = tmp_path / "again"
    whole, calls = generate.SampleMaker.__call__, []

    def dies(self, frame):
        calls.append(frame.token)
        if len(calls) == 2:  # in the middle of a sample: its views are there, its record is not
            monkeypatch.setattr(self.outputs, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        return whole(self, frame)

    monkeypatch.setattr(generate.SampleMaker, "__call__", dies)
    assert exit_status(run, job(street_root, tiny_model, out)) == 130
    assert not (out / "v1.0-trainval").exists() and len(list((out / "generated" / "records").iterdir())) == 1
    monkeypatch.undo()
    assert exit_status(run, job(street_root, tiny_model, out)) == 0
    assert len(calls) == 2
    assert files(out) == files(generated)
    # once more: nothing is made, nothing changes
    assert exit_status(run, job(street_root, tiny_model, out)) == 0
    assert files(out) == files(generated)


def test_a_sample_that_fails_is_left_out_of_the_tables(street_root, tiny_model, tmp_path, capsys):
    """Labels of another frame, in a copy of the tree; the job goes on, and the chain skips the sample."""
    root = tmp_path / "nuscenes"
    shutil.copytree(street_root, root)
    frames = read_nuscenes(root)
    paths = [root / "gts" / frame.scene / frame.token / "labels.npz" for frame in frames]
    shutil.copy(paths[2], paths[1])
    given = {"occ_kind": "occ3d", "unchanged": "copy", "width": 48, "height": 32}
    assert exit_status(run, job(root, tiny_model, tmp_path / "out", **given)) == 1
    assert f"do not belong to sample {frames[1].token}" in capsys.readouterr().out
    kept = read_nuscenes(tmp_path / "out")
    assert [f.token for f in kept] == [frames[0].token, frames[2].token]
    assert kept[0].next == kept[1].token and kept[1].prev == kept[0].token
    assert list(read_json(tmp_path / "out" / "generated" / "failed.json")) == [frames[1].token]
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_edits_are_in_labels_and_annotations(street_root, tiny_model, tmp_path, capsys):
    """A bus for the nearest car in every frame in which it is: in each label format, in the boxes, in the manifest."""
    from syntheocc.occupancy import OCC3D_NUSCENES
    from syntheocc.occupancy.data.occ3d import read_occ3d

    frames = read_nuscenes(street_root)
    box = next(i for i in range(len(frames[0].boxes)) if frames[0].boxes.names[i] == "car"
               and int(frames[0].boxes.num_lidar_points[i]) > 50)  # fmt: skip
    place = [round(float(value), 2) for value in frames[0].boxes.centers[box][:2]]
    recipe = tmp_path / "recipe.json"
    edit = {"edit": "repaint", "object": {"class": "car", "near": place}, "to": "bus"}
    recipe.write_text(json.dumps({"version": 1, "name": "a bus", "frame": frames[0].token, "edits": [edit]}))
    out = tmp_path / "out"
    given = {"occ_kind": "occ3d", "edit": recipe, "width": 48, "height": 32}
    # The recipe is for one frame: the others are reported and left out.
    assert exit_status(run, job(street_root, tiny_model, out, **given)) == 1
    assert f"it is for frame {frames[0].token}" in capsys.readouterr().out
    (frame,) = read_nuscenes(out)
    assert frame.token == frames[0].token and frame.boxes.names.count("bus") == frames[0].boxes.names.count("bus") + 1
    kept = [i for i, token in enumerate(frames[0].boxes.instance_tokens) if token in frame.boxes.instance_tokens]
    assert len(kept) >= len(frames[0].boxes) - 1
    label = f"gts/{frame.scene}/{frame.token}/labels.npz"
    before, after = (read_occ3d(root / label) for root in (street_root, out))
    changed = before.grid.labels != after.grid.labels
    assert changed.any() and (after.grid.labels[changed] == OCC3D_NUSCENES.taxonomy.id_of("bus")).all()
    assert not (out / label).is_symlink() and (out / label.replace("gts", "occ3d_panoptic")).is_file()
    assert (street_root / label).read_bytes() != (out / label).read_bytes()
    record = json.loads((out / "generated" / "manifest.jsonl").read_text())
    assert edited_samples(out) == {record["token"]: "a bus"}
    assert record["recipe"]["name"] == "a bus" and len(record["recipe"]["sha256"]) == 64
    infos = read_infos(out / info_file("mmdet3d_v1.1", "train"), out)
    assert infos[0].boxes.names.count("bus") == frame.boxes.names.count("bus")


def test_infos_without_tables_become_a_data_root(tiny_dataset, tiny_model, tmp_path):
    given = {"info_path": (str(tiny_dataset.info),), "occ_kind": "syntheocc_coarse"}
    assert exit_status(run, job(tiny_dataset.root, tiny_model, tmp_path / "out", **given)) == 0
    frames = read_nuscenes(tmp_path / "out")
    assert [frame.token for frame in frames] == ["token0", "token1", "token2"]
    for frame, original in zip(frames, tiny_dataset.frames, strict=True):
        frame.check_files()
        assert np.allclose(frame.cameras.cam2ego, original.cameras.cam2ego, atol=1e-9)
        assert frame.boxes.names == original.boxes.names
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"version": 1, "edits": []}')
    with pytest.raises(ValueError, match="no nuScenes tables .* that hold the samples; with --edit"):
        run(job(tiny_dataset.root, tiny_model, tmp_path / "no", edit=recipe, **given))
    (tmp_path / "out" / "infos_tiny.pkl").symlink_to(tmp_path / "out" / "nuscenes_infos_train.pkl")
    assert replace(tiny_dataset, root=tmp_path / "out").label_path(1).is_file()


@pytest.mark.parametrize(("name", "split"), [("tiny_infos_val.pkl", "val"), ("of_training.pkl", "train")])
def test_info_files_say_their_split_in_their_names(tiny_dataset, tiny_model, tmp_path, name, split):
    shutil.copy(tiny_dataset.info, tmp_path / name)
    given = {"info_path": (str(tmp_path / name),), "occ_kind": "syntheocc_coarse", "max_samples": 1}
    assert exit_status(run, job(tiny_dataset.root, tiny_model, tmp_path / "out", **given)) == 0
    written = {path.name for path in (tmp_path / "out").glob("*.pkl")}
    assert info_file("mmdet3d_v1.0", split) in written
    assert all(split in file for file in written)


def test_what_is_refused(street_root, tiny_model, tiny_dataset, tmp_path, capsys):
    assert exit_status(run, job(street_root, tiny_model, street_root)) == 2
    assert "is the data root itself" in capsys.readouterr().err
    # the pictures of another rig
    for path in tiny_dataset.frames[0].image_paths.values():
        Image.new("RGB", (800, 450)).save(path)
    given = {"info_path": (str(tiny_dataset.info),), "occ_kind": "syntheocc_coarse"}
    assert exit_status(run, job(tiny_dataset.root, tiny_model, tmp_path / "out", **given)) == 1
    assert "the pictures are not this rig's (CAM_FRONT_LEFT 800x450, calibrated" in capsys.readouterr().out


def test_weights_are_known_by_their_bytes(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "copy")
    assert weights_digest(str(tmp_path / "copy")) == weights_digest(str(tiny_model))
    path = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_digest(str(tmp_path / "copy")) != weights_digest(str(tiny_model))
    assert weights_digest("someone/a-hub-id") is None
