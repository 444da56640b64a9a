"""`syntheocc infos` as its users run it: which files appear, what is made again, what is refused."""

import json
import os
import pickle

import pytest
from drive_tables import edit_table, token, write_drive

from syntheocc.commands import main
from syntheocc.commands.infos import ALL_STYLES, InfosConfig, run
from syntheocc.occupancy.data.infos import STYLES, read_infos
from syntheocc.occupancy.data.split_infos import info_file


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.pkl")}


def test_all_styles_of_both_splits_appear_beside_the_tables(tmp_path, capsys):
    write_drive(tmp_path)
    assert main(["infos", "--dataroot-path", str(tmp_path)]) == 0
    assert set(files(tmp_path)) == {info_file(style, split) for style in STYLES for split in ("train", "val")}
    assert set(ALL_STYLES) == set(STYLES)
    assert "nuscenes_infos_train.pkl: 3 samples of 1 scene" in capsys.readouterr().out
    for style in STYLES:
        frames = read_infos(tmp_path / info_file(style, "val"), tmp_path)
        assert [f.scene for f in frames] == ["scene-0103"] * 3 and frames[0].extras["style"] == style
    (info, *_) = pickle.loads((tmp_path / "bevdetv2-nuscenes_infos_train.pkl").read_bytes())["infos"]
    assert info["occ_path"] == f"gts/scene-0061/{token('scene-0061', 0)}" and info["frame_idx"] == 0


def test_what_is_there_is_not_made_again_and_the_bytes_do_not_depend_on_when(tmp_path, capsys):
    write_drive(tmp_path)
    config = InfosConfig(dataroot_path=tmp_path)
    run(config)
    before = files(tmp_path)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    (tmp_path / "nuscenes_infos_val_sweep.pkl").unlink()  # as after an interruption
    capsys.readouterr()
    assert run(config) == 0
    assert files(tmp_path) == before
    assert [n for n in before if (tmp_path / n).stat().st_mtime_ns != stamps[n]] == ["nuscenes_infos_val_sweep.pkl"]
    assert capsys.readouterr().out.count("was there already") == 9


def test_other_settings_and_other_tables_are_made_anew(tmp_path):
    folder = write_drive(tmp_path)
    run(InfosConfig(dataroot_path=tmp_path, styles=("bevdet",)))
    before = files(tmp_path)
    run(InfosConfig(dataroot_path=tmp_path, styles=("bevdet",), prefix="./data/nuscenes/"))
    after = files(tmp_path)
    info = pickle.loads(after["bevdetv2-nuscenes_infos_val.pkl"])["infos"][1]
    assert before != after and info["lidar_path"].startswith("./data/nuscenes/samples/LIDAR_TOP/scene-0103")
    assert info["occ_path"].startswith("./data/nuscenes/gts/scene-0103/") and len(info["sweeps"]) == 2
    run(InfosConfig(dataroot_path=tmp_path, styles=("bevdet",), lidar_sweeps=1))
    assert len(pickle.loads(files(tmp_path)["bevdetv2-nuscenes_infos_val.pkl"])["infos"][1]["sweeps"]) == 1
    edit_table(folder, "sample_annotation", lambda rows: rows[0].update(num_lidar_pts=77))
    os.utime(folder / "sample_annotation.json", ns=(1, 1))
    run(InfosConfig(dataroot_path=tmp_path, styles=("bevdet",)))
    assert pickle.loads(files(tmp_path)["bevdetv2-nuscenes_infos_train.pkl"])["infos"][0]["num_lidar_pts"] == [77]


def test_files_of_others_are_not_overwritten(tmp_path, capsys):
    write_drive(tmp_path)
    (tmp_path / "nuscenes_infos_train.pkl").write_bytes(b"downloaded")
    assert main(["infos", "--dataroot-path", str(tmp_path)]) == 2
    assert (
        "has nuscenes_infos_train.pkl, which this command did not make; give another --out" in capsys.readouterr().err
    )
    assert list(files(tmp_path)) == ["nuscenes_infos_train.pkl"]
    assert main(["infos", "--dataroot-path", str(tmp_path), "--tag=-mini", "--styles", "mmdet3d_v1.0"]) == 0
    assert set(files(tmp_path)) == {"nuscenes_infos_train.pkl"} | {
        f"nuscenes-mini_infos_{s}.pkl" for s in ("train", "val")
    }
    assert main(["infos", "--dataroot-path", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "nuscenes_infos_train.pkl").read_bytes() != b"downloaded"


def test_a_bad_sample_is_left_out_listed_and_told_by_the_exit_status(tmp_path, capsys):
    folder = write_drive(tmp_path)
    wanted = token("scene-0061", "CAM_BACK", 4)
    edit_table(
        folder, "ego_pose", lambda rows: next(r for r in rows if r["token"] == wanted).update(rotation=[9, 9, 9, 9])
    )
    for _ in range(2):  # the second time all files are there, and the loss is still told
        assert main(["infos", "--dataroot-path", str(tmp_path), "--styles", "mmdet3d_v1.0", "bevdet"]) == 1
        out = capsys.readouterr().out
        assert (
            f"left out: {token('scene-0061', 2)}: " in out and f"ego_pose.json, row '{wanted}': a rotation must" in out
        )
        assert "nuscenes_infos_train.pkl: 2 samples" in out and "nuscenes_infos_val.pkl: 3 samples" in out


def test_a_damaged_table_stops_the_job_before_anything_is_written(tmp_path, capsys):
    folder = write_drive(tmp_path)
    text = (folder / "sample_data.json").read_text()
    (folder / "sample_data.json").write_text(text[: len(text) // 2])
    assert main(["infos", "--dataroot-path", str(tmp_path)]) == 2
    assert "sample_data.json: not a whole JSON table: after" in capsys.readouterr().err
    assert not files(tmp_path)


def test_a_folder_that_cannot_be_written_stops_the_job_before_anything_is_read(tmp_path, capsys):
    write_drive(tmp_path)
    (tmp_path / "taken").touch()
    config = InfosConfig(dataroot_path=tmp_path, out=tmp_path / "taken" / "infos")
    with pytest.raises(ValueError, match="taken.*nothing can be written.*--out"):
        run(config)
    assert "reading samples" not in capsys.readouterr().err


def test_missing_files_are_only_looked_for_when_asked(tmp_path, capsys):
    write_drive(tmp_path)
    assert main(["infos", "--dataroot-path", str(tmp_path), "--check-files", "--styles", "sweep"]) == 1
    out = capsys.readouterr().out
    assert "left out" in out and "CAM_FRONT_LEFT scene-0061__CAM_FRONT_LEFT__1600000000000000.x was not found" in out


def test_own_splits(tmp_path, capsys):
    write_drive(tmp_path, scenes=("drive-a", "drive-b", "drive-c"))
    arguments = ["infos", "--dataroot-path", str(tmp_path), "--styles", "mmdet3d_v1.0"]
    assert main(arguments) == 2
    assert "drive-a, drive-b, drive-c: no scene of nuScenes' official lists" in capsys.readouterr().err
    split_file = tmp_path / "splits.json"
    for document, words in (
        ([], "a split file is a JSON object"),
        ({"train": "drive-a"}, "'train' is no list"),
        ({"train": ["drive-x"]}, "names drive-x, a scene that the tables do not have"),
        ({"train": ["drive-a"], "val": ["drive-a"]}, "drive-a is in 'train' and in 'val'"),
        ({"../x": ["drive-a"]}, "part of file names"),
    ):
        split_file.write_text(json.dumps(document))
        assert main([*arguments, "--split-file", str(split_file)]) == 2
        assert words in capsys.readouterr().err
    split_file.write_text(json.dumps({"night": ["drive-c", "drive-a"], "day": ["drive-b"]}))
    assert main([*arguments, "--split-file", str(split_file), "--splits", "night"]) == 0
    assert list(files(tmp_path)) == ["nuscenes_infos_night.pkl"]
    assert len(read_infos(tmp_path / "nuscenes_infos_night.pkl")) == 6


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--splits", "test"], "no scene of split test; it has train, val"),
        (["--version", "v1.0-test"], "v1.0-test holds no sample.json"),
        (["--styles", "waymo"], "--styles are mmdet3d_v1.0"),
        (["--lidar-sweeps=-1"], "--lidar_sweeps cannot be negative"),
        (["--tag", "a/b"], "--tag is part of a file name"),
    ],
)
def test_bad_flags_are_told_before_work_starts(tmp_path, capsys, flags, words):
    write_drive(tmp_path)
    try:
        status = main(["infos", "--dataroot-path", str(tmp_path), *flags])
    except SystemExit as left:  # what the parser itself refuses
        status = left.code
    assert status == 2 and words in capsys.readouterr().err and not files(tmp_path)


def test_the_test_set_has_no_boxes(tmp_path):
    write_drive(tmp_path, version="v1.0-test", scenes=("scene-0077",), annotations=False)
    assert run(InfosConfig(dataroot_path=tmp_path)) == 0
    assert set(files(tmp_path)) == {info_file(style, "test") for style in STYLES}
    for style in STYLES:
        assert all(frame.boxes is None for frame in read_infos(tmp_path / info_file(style, "test"), tmp_path))
