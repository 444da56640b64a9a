import pytest
import torch

from syntheocc.occupancy import render_mpi
from syntheocc.occupancy.grids import SYNTHEOCC
from syntheocc.worlds.cache import FrameCache, build_cache, frame_times
from syntheocc.worlds.camera_images import render_shots
from syntheocc.worlds.labels import exact_grid
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.splits import scene_seed
from syntheocc.worlds.stream import rig_at, sweep_shots

SIZE = (40, 24)


@pytest.fixture(scope="module")
def cache():
    timings = {}
    made = build_cache("train", [3], 2, image_size=SIZE, with_spc4=True, with_geometry=True, timings=timings)
    assert set(timings) == {"scene", "render", "grids", "mpi", "total"}
    return made


def test_a_frame_is_what_the_world_renders_and_labels(cache):
    scene = make_scene(scene_seed(0, "train", 3), image_size=SIZE)
    t = frame_times(0, "train", 3, 2, scene.key_times)[1]
    assert cache.times[1] == t and cache.captions == [scene.caption] * 2
    views = render_shots(scene, sweep_shots(scene, [t]))
    assert torch.equal(cache.images[1], torch.stack([view.image for view in views]).movedim(-1, 1))
    assert torch.equal(cache.depth[1], torch.stack([view.depth for view in views]).half())
    mpi = render_mpi(exact_grid(scene, t, SYNTHEOCC), rig_at(scene, t), 3, 5)
    assert torch.equal(cache.mpi_labels[1], mpi.labels) and torch.equal(cache.nearest[1], mpi.nearest)
    assert torch.equal(cache.nearest_plane[1].long(), mpi.nearest_plane.long())
    again = render_mpi(exact_grid(scene, t, SYNTHEOCC), cache.rig(1), 3, 5)
    assert torch.equal(again.labels, mpi.labels), "the stored cameras are the scene's"


def test_pixels_and_conditions_agree(cache):
    # The class at the middle of a cell is, for most cells, the nearest class of the condition.
    middle = cache.semantics[..., 4::8, 4::8]
    known = (middle != 255) & (cache.nearest != 0)
    assert (middle == cache.nearest)[known].float().mean() > 0.6
    assert cache.mpi_labels_spc4.shape == cache.mpi_labels.shape
    assert cache.neighbors.tolist() == [[5, 1], [0, 2], [1, 3], [2, 4], [3, 5], [4, 0]]


def test_saved_joined_and_selected_caches_hold_the_same_frames(cache, tmp_path):
    cache.save(tmp_path)
    loaded = FrameCache.load(tmp_path)
    both = FrameCache.cat([cache, loaded])
    assert len(both) == 4 and both.scenes == [3] * 4
    picked = both.select([3])
    assert torch.equal(picked.images[0], cache.images[1]) and picked.times == cache.times[1:]
    assert torch.equal(picked.rig(0)["CAM_BACK"].cam2ego, cache.rig(1)["CAM_BACK"].cam2ego)


def test_workers_make_the_same_scenes_and_stop_in_time(cache, warm_workers):
    made = build_cache("train", range(3, 10_000), 2, image_size=SIZE, workers=1, seconds=0.0)
    assert made.scenes == [3, 3] and torch.equal(made.images, cache.images)


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 scenes"):
        build_cache("train", [])
    with pytest.raises(ValueError, match="multiples of 8"):
        build_cache("train", [0], image_size=(41, 24))
