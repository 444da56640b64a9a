import pickle

import numpy as np
import pytest

from syntheocc.commands import exit_status
from syntheocc.commands.mpi import SETTINGS_FILE, MPIConfig, run
from syntheocc.engine.files import read_json
from syntheocc.engine.flags import parse_flags
from syntheocc.engine.unpickling import safe_load
from syntheocc.occupancy import NUSCENES_CAMERAS, PlaneSpec, render_mpi, taxonomy_named
from syntheocc.occupancy.data.mpi_files import read_mpi_files

SCRIPT = "utils/gen_mtp.py"
ENDINGS = ("_mtp256.npz", "_mtp96.npz", "_fuseweight.png", "_depthmap.png", "_occrgb.png")


def flags(dataset, **more):
    given = {"dataroot_path": dataset.root, "info_path": dataset.info, "occ_kind": "syntheocc_coarse"} | more
    return [f"--{name}={value}" for name, value in given.items()]


def config(dataset, **more):
    return MPIConfig(dataroot_path=dataset.root, info_path=(str(dataset.info),), occ_kind="syntheocc_coarse", **more)


def written(dataset, folder="samples_syntheocc_surocc"):
    return sorted(path for path in (dataset.root / folder).rglob("*") if path.is_file() and path.name != SETTINGS_FILE)


def expected(dataset, samples, folder="samples_syntheocc_surocc"):
    return sorted(
        dataset.root / folder / name / (dataset.frames[i].image_paths[name].stem + ending)
        for i in samples
        for name in NUSCENES_CAMERAS
        for ending in ENDINGS
    )


def test_two_ranks_write_every_sample_once_and_one_goes_on_where_they_stopped(tiny_dataset, launch, capsys):
    label = tiny_dataset.label_path(1)
    whole = label.read_bytes()
    label.write_bytes(whole[: len(whole) // 2])

    first = launch(SCRIPT, *flags(tiny_dataset), ranks=2)
    assert first.returncode != 0, "a sample is missing, and the exit status must say so"
    assert f"wrote the MPI files of 2 samples to {tiny_dataset.root / 'samples_syntheocc_surocc'}" in first.stdout
    assert "failed: token1" in first.stdout and label.name in first.stdout
    assert written(tiny_dataset) == expected(tiny_dataset, [0, 2])

    label.write_bytes(whole)
    before = {path: path.stat().st_mtime_ns for path in written(tiny_dataset)}
    assert run(config(tiny_dataset)) == 0
    said = capsys.readouterr().out
    assert "of 1 sample to" in said and "2 were there already" in said
    assert written(tiny_dataset) == expected(tiny_dataset, [0, 1, 2])
    assert all(path.stat().st_mtime_ns == before[path] for path in before), "a finished sample was made again"


def test_a_sample_with_a_damaged_camera_is_listed_and_the_rest_is_written(tiny_dataset, capsys):
    infos = safe_load(tiny_dataset.info)
    infos["data_list"][1]["images"]["CAM_BACK"]["cam2img"][0][0] = np.nan
    tiny_dataset.info.write_bytes(pickle.dumps(infos))
    assert run(config(tiny_dataset)) == 1
    said = capsys.readouterr().out
    assert "of 2 samples to" in said and "1 failed" in said
    assert f"failed: token1: {tiny_dataset.info}, sample 1 (token1): CAM_BACK: camera intrinsics hold NaN" in said
    assert written(tiny_dataset) == expected(tiny_dataset, [0, 2])
    infos["data_list"] = infos["data_list"][1:2]
    tiny_dataset.info.write_bytes(pickle.dumps(infos))
    with pytest.raises(ValueError, match="no samples in it; .*CAM_BACK: camera intrinsics hold NaN"):
        run(config(tiny_dataset))


def test_files_hold_what_render_mpi_gives(tiny_dataset):
    assert run(config(tiny_dataset, max_samples=1)) == 0
    frame = tiny_dataset.frames[0]
    stems = {
        n: tiny_dataset.root / "samples_syntheocc_surocc" / n / frame.image_paths[n].stem for n in NUSCENES_CAMERAS
    }
    grid = config(tiny_dataset).read_grid(frame, "syntheocc_coarse")
    for planes in (PlaneSpec(), PlaneSpec(groups=96)):
        read = read_mpi_files(stems, planes)
        made = render_mpi(grid, frame.cameras, 56, 100, planes, "corner", taxonomy=taxonomy_named("syntheocc"))
        assert np.array_equal(read.labels.numpy(), made.labels.numpy())
        assert np.array_equal(read.nearest_plane.numpy(), made.nearest_plane.numpy())
    # the only object is a car 11 m ahead
    assert (read.nearest[1] == 1).any() and not (read.nearest[4] == 1).any()


def test_a_folder_made_with_other_settings_is_not_mixed(tiny_dataset, capsys):
    assert run(config(tiny_dataset, max_samples=1, num_planes=(96,))) == 0
    assert exit_status(run, config(tiny_dataset, max_samples=1, pixel_origin="center")) == 2
    message = capsys.readouterr().err
    assert "pixel_origin: 'corner' there, 'center' now" in message and "--mtp_path" in message
    settings = tiny_dataset.root / "samples_syntheocc_surocc" / SETTINGS_FILE
    assert read_json(settings)["pixel_origin"] == "corner"
    settings.unlink()  # a folder of the original script: corner, 56x100, whatever its labels were
    assert exit_status(run, config(tiny_dataset, max_samples=1, num_planes=(96,), pixel_origin="center")) == 2
    assert "pixel_origin: 'corner' there, 'center' now" in capsys.readouterr().err
    assert exit_status(run, config(tiny_dataset, max_samples=1, num_planes=(96,))) == 0
    assert "1 were there already" in capsys.readouterr().out


def test_the_published_command_and_the_environment_name_the_folder(tiny_dataset, launch, capsys):
    tiny_dataset.info.rename(tiny_dataset.root / "nuscenes_occ_infos_val.pkl")
    given = [
        f"--dataroot_path={tiny_dataset.root}",
        "--occ_kind=syntheocc_coarse",
        "--num_planes=96",
        "--max_samples=1",
    ]
    done = launch(SCRIPT, *given, DATA_USED="mine", TRAIN_OR_VAL="val")
    assert done.returncode == 0, done.stderr
    assert len(written(tiny_dataset, "mine")) == 6 * 4

    both = parse_flags(MPIConfig, given, environ={})
    assert exit_status(run, both) == 2, "train and val by default, and there is no train"
    said = capsys.readouterr().err
    assert "nuscenes_occ_infos_train.pkl" in said and "--info_path" in said
    with pytest.raises(SystemExit):
        parse_flags(MPIConfig, ["--occ_knd=occ3d"], environ={})
    assert "unrecognized arguments: --occ_knd=occ3d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_planes": (128,)}, "256, 96"),
        ({"samples_per_cell": 3}, "square"),
        ({"height": 0}, "0x100"),
        ({"max_samples": 0}, "max_samples"),
    ],
)
def test_bad_settings_are_refused_before_work(settings, message):
    with pytest.raises(ValueError, match=message):
        MPIConfig(**settings)


def test_a_missing_label_folder_is_named(tiny_dataset):
    with pytest.raises(ValueError, match="--occ_path"):
        run(MPIConfig(dataroot_path=tiny_dataset.root, info_path=(str(tiny_dataset.info),), occ_kind="occ3d"))
