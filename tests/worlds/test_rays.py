"""Ray labels of the procedural world: from its written tree, from memory, and cast into its exact occupancy."""

from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.data.infos import read_infos
from syntheocc.occupancy.data.lidarseg import LIDARSEG_NAMES, LidarReader, lidarseg_names
from syntheocc.occupancy.data.nuscenes import read_tables
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes
from syntheocc.occupancy.data.split_infos import info_file
from syntheocc.occupancy.grids import OCC3D_NUSCENES
from syntheocc.occupancy.perception.cached import CachedFrames, FrameStore, store_frames
from syntheocc.occupancy.perception.dataset import OccupancyFrames, Sampling, collate
from syntheocc.occupancy.perception.ray_config import FLOW_CLASSES, RayConfig
from syntheocc.occupancy.perception.ray_labels import build_rays
from syntheocc.occupancy.perception.ray_reference import reference_rays
from syntheocc.occupancy.perception.ray_store import RayReader
from syntheocc.occupancy.perception.transforms import ImageAugmentation
from syntheocc.occupancy.rendering.motion import warp_points
from syntheocc.occupancy.rendering.raycast import cast_rays
from syntheocc.worlds.drives import drive_of
from syntheocc.worlds.scene import make_scene
from syntheocc.worlds.tree import finish_tree, write_scene

SPEC, FREE = OCC3D_NUSCENES.spec, OCC3D_NUSCENES.taxonomy.free
RAYS = RayConfig(frame_offsets=(-1, 0, 1))
IMAGE = ImageAugmentation(height=32, width=80, flip=True)


@pytest.fixture(scope="module")
def scene():
    return make_scene(6, image_size=(80, 45), key_frames=3)


@pytest.fixture(scope="module")
def store(scene):
    return drive_of(scene, lidar=True)


@pytest.fixture(scope="module")
def root(scene, tmp_path_factory):
    root = tmp_path_factory.mktemp("rays") / "nuscenes"
    write_scene(scene, root)
    finish_tree(root)
    return root


@pytest.fixture(scope="module")
def frames(root):
    return read_nuscenes(root)


def sampling(**options):
    return Sampling(num_frames=1, image=IMAGE, draft=False, **options)


def dataset(frames, root, config=RAYS, reader=None, **options):
    lidar = reader or LidarReader(root)
    return OccupancyFrames(frames, sampling(**options), SPEC, rays=RayReader(config, lidar))


def cached(store, config=RAYS, **options):
    return CachedFrames(store, sampling(**options), SPEC, rays=config)


def assert_alike(one, other, tolerance=0.0):
    """The same rays; with a tolerance but for a share of them (points next to an edge) and coordinates."""
    assert abs(len(one) - len(other)) <= tolerance * len(one)
    if not tolerance:
        for name in ("origins", "directions", "distance", "depth", "labels", "frames", "cameras", "pixels"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-5)
        return
    for frame in range(len(one.frame_offsets)):
        a, b = (rays.select(rays.frames == frame) for rays in (one, other))
        nearest = torch.cdist(a.points[:300].double(), b.points.double()).min(1)  # in float32 it is off by centimetres
        assert float((nearest.values < 2e-3).float().mean()) > 1 - 2 * tolerance
        same = (a.labels[:300] == b.labels[nearest.indices]).float().mean()
        assert float(same) > 1 - 2 * tolerance


def test_both_label_files_say_the_same(root, frames):
    assert lidarseg_names(read_tables(root)) == LIDARSEG_NAMES
    one, other = LidarReader(root)(frames[1]), LidarReader(root, "panoptic", "v1.0-trainval")(frames[1])
    assert torch.equal(one.labels, other.labels) and torch.equal(one.points, other.points) and len(one.points) > 10_000
    counts = torch.bincount(one.labels.long(), minlength=256)
    assert counts[[4, 11, 15, 16]].min() > 50 and int(counts[17:255].sum()) == 0


def test_files_tables_infos_and_memory_give_the_same_rays(root, frames, store):
    from_tables = dataset(frames, root)
    batch = from_tables.sample(frames[1])
    batch.rays.check()
    batch.motion.check()
    assert torch.bincount(batch.rays.frames).min() > 3000 and len(batch.motion) > 20
    infos = read_infos(root / info_file("bevdet", "train"), root)
    from_infos = dataset([replace(frame, scene=frames[0].scene) for frame in infos], root).sample(infos[1])
    # These infos hold boxes that lidar points hit, in another precision.
    assert_alike(batch.rays, from_infos.rays, 0.02)
    kept = store_frames(from_tables)
    assert_alike(batch.rays, cached(kept)[1].rays)
    torch.testing.assert_close(batch.motion.target2ego, cached(kept)[1].motion.target2ego)
    # Drives that never were files know the poses to more digits than stamps of whole microseconds.
    assert_alike(batch.rays, cached(store)[1].rays, 0.01)


def test_training_samples_of_files_and_memory(root, frames):
    config = replace(RAYS, num_rays=500)
    from_files = dataset(frames, root, config, training=True, photometric=False, max_yaw=0.0)
    one, other = (
        from_files[1],
        cached(store_frames(from_files), config, training=True, photometric=False, max_yaw=0.0)[1],
    )
    assert len(one.rays) == 500
    assert_alike(one.rays, other.rays)
    assert not torch.equal(one.rays.pixels, from_files[2].rays.pixels[:500])


def test_the_grid_is_augmented_and_rays_are_not(store):
    """Augmentation turns the labels, the projections and `grid_transforms`; rays are in the key frame's ego."""
    config = replace(RAYS, crop_to_input=False)
    plain, turned = cached(store, config)[1], cached(store, config, training=True, photometric=False)
    mirrored = [turned.sample(1, torch.Generator().manual_seed(seed)) for seed in range(3)]
    for sample in mirrored:
        assert_alike(plain.rays, sample.rays)
        points = torch.cat([sample.rays.points, torch.ones(len(sample.rays), 1)], 1) @ sample.grid_transforms[0].T
        place = sample.ego2img[0, 0][sample.rays.cameras] @ points[..., None]
        u, v = (place[:, i, 0] / place[:, 2, 0] for i in (0, 1))
        a = sample.image_transforms[0, 0][sample.rays.cameras]
        expected = (a[:, :2, :2] @ sample.rays.pixels[..., None])[..., 0] + a[:, :2, 2]
        key = sample.rays.is_key
        torch.testing.assert_close(torch.stack([u, v], 1)[key], expected[key], atol=2e-2, rtol=1e-3)


def test_a_batch_of_samples(store):
    samples = [cached(store)[row] for row in range(3)]
    # At the scene's ends a neighbour is absent.
    assert [s.rays.offsets.unique().tolist() for s in samples] == [[0, 1], [-1, 0, 1], [-1, 0]]
    batch = collate(samples).to("cpu")
    assert batch.rays.samples.unique().tolist() == batch.motion.samples.unique().tolist() == [0, 1, 2]
    torch.testing.assert_close(batch.rays.of_sample(2).points, samples[2].rays.points)
    again = cached(FrameStore.cat([store, store]))
    assert [again.neighbour(row, 1) for row in range(6)] == [1, 2, None, 4, 5, None]
    assert_alike(again[4].rays, samples[1].rays)
    with pytest.raises(ValueError, match="have no rays"):
        collate([samples[0], replace(samples[1], rays=None)])


def test_frames_without_lidar(root, frames):
    blind = [replace(frames[0], lidar_path=None), frames[1], frames[2]]
    sample = dataset(blind, root).sample(blind[1])
    assert sample.rays.offsets.unique().tolist() == [0, 1] and set(sample.motion.frames.tolist()) == {0, 2}
    gone = [replace(frame, lidar_path=root / "gone.bin") for frame in frames]
    with pytest.raises(ValueError, match="gone.bin"):
        dataset(gone, root).sample(gone[1])
    allowed = dataset(gone, root, reader=LidarReader(root, allow_missing_files=True)).sample(gone[1])
    assert len(allowed.rays) == 0 and len(allowed.motion) > 0
    unannotated = [replace(frame, boxes=None) for frame in frames]
    with pytest.raises(ValueError, match=f"{frames[1].token}.*boxes"):
        dataset(unannotated, root).sample(unannotated[1])
    assert len(dataset(unannotated, root, replace(RAYS, dynamics="filter")).sample(unannotated[1]).rays) > 3000
    with pytest.raises(ValueError, match="store has none"):
        cached(replace(store_frames(dataset(frames[:1], root)), lidar=None))


def ray_frames(store):
    return [store.lidar.frame(r, store.grid2global[r], store.intrinsics[r], store.cam2global[r]) for r in range(3)]


def test_the_fast_path_on_whole_sweeps(store):
    for config in (RAYS, replace(RAYS, ray_origin="lidar")):
        fast, slow = build_rays(ray_frames(store), config, SPEC).rays, reference_rays(ray_frames(store), config, SPEC)
        # float32 and float64 may differ about points on an edge.
        assert abs(len(fast) - len(slow)) <= 2 and len(fast) > 20_000
        if len(fast) == len(slow):
            assert torch.equal(fast.labels, slow.labels)
            torch.testing.assert_close(fast.distance.double(), slow.distance, atol=1e-4, rtol=0)


def to_voxel(points, index):
    """Metres from points to the voxels of these indices."""
    lower = torch.tensor(SPEC.lower) + 0.4 * index
    return torch.maximum(lower - points, points - lower - 0.4).clamp_min(0).norm(dim=-1)


def test_rays_end_where_the_exact_occupancy_is(store):
    """Acceptance test 5: the chain of poses, the intrinsics and the grid's place, all at once."""
    labels = store.semantics[1]
    for origin in ("camera", "lidar"):
        rays = build_rays(ray_frames(store), replace(RAYS, ray_origin=origin), SPEC).rays
        rays = rays.select(rays.is_key)
        reach, index, hit = cast_rays(labels != FREE, rays.origins, rays.directions, SPEC, distance="entry")
        found = labels[index.unbind(-1)].long()
        off = to_voxel(rays.points, index)
        ground = (rays.labels >= 11) & (rays.labels <= 14)
        assert float(hit.float().mean()) > 0.98
        assert float((found == rays.labels).float().mean()) > 0.85
        # The road lies in the middle of its voxels, 0.2 m below their upper faces: a ray that grazes it enters one a
        # metre before it reaches the road. What stands has no such excuse.
        assert float(off[~ground].median()) < 0.05 and float(off.median()) < 0.5
        assert float((reach - rays.distance).abs()[~ground].median()) < 0.3
        height = rays.origins[:, 2] - rays.points[:, 2]
        early = 0.45 * rays.distance / height.clamp_min(0.5)  # more than 0.2 m and a sloping road explain
        assert float((off < early)[ground].float().mean()) > 0.85
        # The same with rays half a metre beside their own: the figures do tell.
        wrong = cast_rays(labels != FREE, rays.origins + torch.tensor([0.0, 0.5, 0.3]), rays.directions, SPEC)
        assert float(to_voxel(rays.points, wrong[1])[~ground].median()) > 2 * float(off[~ground].median()) + 0.05


def test_boxes_explain_what_moved(store):
    """Acceptance test 6: rays of neighbours through the key frame's occupancy, with boxes moved and as it stands."""
    labels = store.semantics[1]
    rays, motion, _, _ = build_rays(ray_frames(store), RAYS, SPEC)
    rays = rays.select(~rays.is_key & torch.isin(rays.labels, torch.tensor(FLOW_CLASSES)))
    way = (motion.source2ego - motion.target2ego)[:, :3, 3].norm(dim=-1)
    movers = motion.select(way > 1.0)
    _, moved, _ = warp_points(rays.points, rays.frames, rays.samples, movers)
    assert int(moved.sum()) > 100, "nothing moves in this scene: take another"
    rays = rays.select(moved.nonzero()[:, 0][:: max(1, int(moved.sum()) // 150)])

    def first_hits(boxes):
        """Distance and class of the first occupied place along each ray, in steps of 10 cm."""
        steps = torch.arange(0.5, 40.0, 0.1)
        points = (rays.origins[:, None] + rays.directions[:, None] * steps[:, None]).flatten(0, 1)
        frame, sample = (value.repeat_interleave(len(steps)) for value in (rays.frames, rays.samples))
        at, there, left = warp_points(points, frame, sample, boxes)
        index, inside = SPEC.index_of(at)
        found = torch.where(inside, labels[index.unbind(-1)], FREE).long()
        found = torch.where(left & ~there, FREE, found).view(len(rays), -1)
        first = (found != FREE).int().argmax(1)
        return steps[first], found.gather(1, first[:, None])[:, 0]

    results = {}
    for name, boxes in (
        ("moved", motion),
        ("as it stands", motion.select(torch.zeros(len(motion), dtype=torch.bool))),
    ):
        distance, found = first_hits(boxes)
        error = (distance - rays.distance).abs()
        results[name] = float(error.median()), float((found == rays.labels).float().mean())
    assert results["moved"][0] < 0.4 < results["as it stands"][0], results
    assert results["moved"][1] > 0.7 > results["as it stands"][1], results


@pytest.mark.gpu
def test_memory_on_a_gpu(scene, store):
    there = cached(drive_of(scene, device="cuda", lidar=True))
    one, other = cached(store)[1], there[1]
    assert other.rays.device.type == "cuda"
    assert_alike(one.rays, other.rays.to("cpu"), 0.01)
