"""Flow files of a small drive: which frames they tell of, and that an export goes on where it stopped."""

from dataclasses import replace

import torch
from small_drives import write_drives

from syntheocc.occupancy.data.flow_files import read_flow
from syntheocc.occupancy.data.nuscenes_frames import write_nuscenes
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.export_flow import ExportFlowConfig, export_flow, main

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)


def test_flow_files_of_a_drive(tmp_path, camera_at, capsys):
    frames = write_drives(tmp_path, camera_at, scenes=1, key_frames=3)
    infos = f"--info_path={tmp_path / 'named.pkl'}"
    assert main([infos, f"--dataroot={tmp_path}", f"--output_dir={tmp_path / 'flow'}"]) == 1
    assert "no instance tokens" in capsys.readouterr().err
    seen = {"instance_tokens": ("still", "drives"), "num_lidar_points": torch.tensor([9, 9])}
    named = [replace(frame, boxes=replace(frame.boxes, **seen)) for frame in frames]
    write_nuscenes(tmp_path, "v1.0-mini", named)
    config = ExportFlowConfig(dataroot=tmp_path, output_dir=tmp_path / "flow")
    assert export_flow(config) == 3 and export_flow(config) == 0
    files = sorted((tmp_path / "flow" / frames[0].scene).glob("*.npz"))
    assert len(files) == 3
    # The middle frame has one neighbour on each side, and both cars in both.
    by_frames = {}
    for path in files:
        rows = read_flow(path, OFFSETS)
        assert rows.labels.unique().tolist() == [4] and len(rows.source2target) == 4
        by_frames[tuple(OFFSETS[f] for f in rows.frames.unique().tolist())] = rows
    assert set(by_frames) == {(1, 2), (-1, 1), (-2, -1)}
    # A car that keeps its place beside the ego has driven the ego's 3 m ahead, the other one a metre to the left too.
    rows = by_frames[-1, 1]
    ahead = rows.source2target[rows.motions[rows.frames == OFFSETS.index(1)]]
    assert set(ahead[:, 0, 3].tolist()) == {3.0} and {round(y, 4) for y in ahead[:, 1, 3].tolist()} == {0.0, 1.0}
    moved = (rows.target - rows.source)[rows.frames == OFFSETS.index(1)]
    assert set(moved[:, 0].tolist()) <= {7, 8} and bool((rows.source >= 0).all())
    assert bool((rows.target < torch.tensor(OCC3D_NUSCENES.spec.shape)).all())
    files[0].unlink()
    assert main([f"--dataroot={tmp_path}", f"--out-dir={tmp_path / 'flow'}"]) == 0
    assert "1 files written" in capsys.readouterr().out and files[0].is_file()
