"""Drives held in memory: the frames of the written tree, without the tree."""

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, SYNTHEOCC
from syntheocc.occupancy.perception.cached import CachedFrames
from syntheocc.occupancy.perception.dataset import SPARSEOCC_CAMERAS, Sampling
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.transforms import invert_rigid
from syntheocc.worlds.drives import drive_of, drives_of
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.splits import scene_seed
from syntheocc.worlds.timeline import key_frame


@pytest.fixture(scope="module")
def scene():
    return make_scene(scene_seed(0, "train", 0), image_size=(48, 27), key_frames=2)


@pytest.fixture(scope="module")
def store(scene):
    return drive_of(scene)


def test_poses_are_those_of_the_written_frames(scene, store):
    """The tree's global frame is shifted, so what counts is where the cameras stand in the first ego frame."""
    frames = [key_frame(scene, i) for i in range(2)]
    assert store.tokens == [f.token for f in frames] and store.previous.tolist() == [0, 0]
    global2ego, stored2ego = invert_rigid(frames[0].ego2global), invert_rigid(store.grid2global[0])
    for i, frame in enumerate(frames):
        for v, name in enumerate(SPARSEOCC_CAMERAS):
            camera = frame.cameras[name]
            expected = global2ego @ frame.ego2global @ camera.cam2ego
            # Time stamps of files are whole microseconds.
            torch.testing.assert_close(stored2ego @ store.cam2global[i, v], expected, rtol=0, atol=1e-4)
            assert torch.equal(store.intrinsics[i, v], camera.intrinsics)


def test_labels_and_images_are_the_scenes(scene, store):
    assert tuple(store.images.shape) == (2, 6, 27, 48, 3) and float(store.images.float().std()) > 5
    assert torch.equal(store.semantics[1], exact_grid(scene, scene.key_times[1], OCC3D_NUSCENES).labels)
    things = torch.tensor([2, 3, 4, 5, 6, 7, 9, 10])
    named = store.instances[0][torch.isin(store.semantics[0].long(), things)]
    assert len(named) and float((named > 0).float().mean()) > 0.9


def test_a_sample_of_several_drives(scene, store):
    both = drives_of([scene, scene])
    assert len(drives_of(iter([scene, scene]), seconds=0)) == 2
    with pytest.raises(ValueError, match="no stores"):
        drives_of([])
    assert both.previous.tolist() == [0, 0, 2, 2] and torch.equal(both.semantics[2:], store.semantics)
    sampling = Sampling(num_frames=2, image=ImageAugmentation(height=16, width=48), training=True)
    sample = CachedFrames(both, sampling, OCC3D_NUSCENES.spec)[3]
    assert sample.instances.dtype == torch.int32 and int(sample.instances.max()) > 0
    assert tuple(sample.images.shape) == (1, 2, 6, 3, 16, 48) and sample.shots == [[store.tokens[1], store.tokens[0]]]


def test_accumulated_labels_are_sparser(scene, store):
    rough = drive_of(scene, labels="accumulated")
    free = OCC3D_NUSCENES.taxonomy.free
    assert 0 < int((rough.semantics != free).sum()) < int((store.semantics != free).sum())


def test_what_does_not_fit_is_named(scene):
    with pytest.raises(ValueError, match="lidar frame"):
        drive_of(scene, SYNTHEOCC)
    with pytest.raises(ValueError, match="no camera CAM_ROOF"):
        drive_of(scene, cameras=["CAM_ROOF"])
