"""Fixtures shared by all tests: the real sample files, and a hand-made six-camera rig."""

import fcntl
import math
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch
from warm_start import warm_context

from syntheocc.occupancy.cameras import NUSCENES_CAMERAS, Camera, CameraRig

# The suite runs one worker a core; torch's own threads would fight over them (27 s instead of 1 s for one test here).
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of research-licensed sample files; skips the test when the machine has none."""
    root = Path(os.environ.get("SYNTHEOCC_REAL_DATA", ROOT.parent / "shared" / "real"))
    if not root.is_dir():
        pytest.skip(f"no real sample files at {root} (set SYNTHEOCC_REAL_DATA)")
    return root


def pytest_collection_modifyitems(items):
    """Files with slow tests come first; tests marked `gpu` skip with a reason where there is no CUDA device."""
    # A worker takes whole files: a long one at the end would run alone while the other workers wait.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _camera_at(yaw_deg: float, focal: float = 1266.0, position=(0.0, 0.0, 1.5), height: int = 900, width: int = 1600):
    """A level pinhole camera looking along `yaw_deg` (0 = forward, 90 = left) in the ego frame."""
    cos, sin = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    cam2ego = torch.eye(4, dtype=torch.float64)
    cam2ego[:3, :3] = torch.tensor([[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]], dtype=torch.float64)
    cam2ego[:3, 3] = torch.tensor(position, dtype=torch.float64)
    center = [[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1]]
    return Camera(center, cam2ego, height, width)


@pytest.fixture(scope="session")
def camera_at():
    """A function that makes level pinhole cameras from their yaw."""
    return _camera_at


@pytest.fixture(scope="session")
def six_cameras() -> CameraRig:
    """A level rig with the nominal yaws and focal lengths of the nuScenes cars."""
    yaws = (55, 0, -55, -110, 180, 110)
    return CameraRig(
        {
            name: _camera_at(yaw, focal=809.0 if name == "CAM_BACK" else 1266.0)
            for name, yaw in zip(NUSCENES_CAMERAS, yaws, strict=True)
        }
    )


@pytest.fixture(scope="session")
def street_root(tmp_path_factory) -> Path:
    """A data root of one street scene: three key frames of small pictures, all tables, labels and infos.

    Nobody writes into it: it takes seconds, and is made once for the workers of all processes (pytest-xdist).
    """
    from syntheocc.worlds.scene import make_scene
    from syntheocc.worlds.tree import finish_tree, write_scene

    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root = folder / "street" / "nuscenes"
    with open(folder / "street.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := root.parent / "done").is_file():
            write_scene(make_scene(11, key_frames=3, image_size=(96, 56)), root)
            finish_tree(root)
            done.touch()
    return root


@pytest.fixture
def warm_workers(monkeypatch):
    """Workers that a job would spawn are forked from the warm process: they do the same, and need no import."""
    if not os.environ.get("COLD_START"):
        context = warm_context()
        monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)


@pytest.fixture(autouse=True)
def own_attention_backend():
    """Puts diffusers' attention back-end back: choosing one for a model chooses it for the whole process."""
    yield
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatch is not None:
        dispatch._AttentionBackendRegistry.set_active_backend(dispatch.AttentionBackendName.NATIVE)
