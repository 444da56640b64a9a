"""The shared trunk: sizes of the published network, what trains, what moves with the grid."""

from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.grids import OCC3D_NUSCENES, GridSpec
from syntheocc.occupancy.perception.image_encoders import StereoImageEncoder, Swin
from syntheocc.occupancy.perception.transforms import GridTransform
from syntheocc.occupancy.perception.trunk import OccupancyTrunk, TrunkConfig
from syntheocc.occupancy.perception.view_transform import DepthBins, LiftCameras
from syntheocc.occupancy.perception.volume_encoder import VolumeEncoder

TINY = TrunkConfig(
    grid=GridSpec((-8.0, -8.0, -1.0), 1.0, (16, 16, 4)),
    image_size=(64, 96),
    backbone="tiny",
    neck_channels=16,
    depth=DepthBins(1.0, 9.0, 1.0),
    depth_channels=16,
    aspp_channels=8,
    context_channels=8,
    encoder_channels=(8, 8),
    encoder_blocks=(1, 1),
    out_channels=8,
)


def number_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OccupancyTrunk(TINY)


def rig(ring_at, batch=2, frames=3):
    """Cameras at the network's own size, each older frame 0.8 m further back."""
    ego2img = torch.stack([ring_at(shift) for shift in (0.0, -0.8, -1.6)[:frames]])
    ego2img = ego2img.expand(batch, -1, -1, -1, -1).clone()
    k = torch.tensor([[48.0, 0, 48], [0, 48, 32], [0, 0, 1]]).expand(*ego2img.shape[:3], 3, 3)
    eye = torch.eye(4)
    return LiftCameras(ego2img, k, eye.expand(*ego2img.shape[:3], 4, 4), eye.expand(batch, 4, 4))


@pytest.fixture
def inputs(camera_at):
    def ring_at(shift):
        matrices = []
        for yaw in (0, 120, 240):
            camera = camera_at(yaw, focal=48.0, height=64, width=96)
            k = torch.eye(4, dtype=torch.float64)
            k[:3, :3] = camera.intrinsics
            pose = camera.cam2ego.clone()
            pose[0, 3] += shift
            matrices.append(k @ torch.linalg.inv(pose))
        return torch.stack(matrices).float()

    return torch.randn(2, 3, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1)), rig(ring_at)


@pytest.fixture(scope="module")
def published():
    """The published trunk on a device without memory."""
    with torch.device("meta"):
        return OccupancyTrunk(TrunkConfig(grid=OCC3D_NUSCENES.spec))


def test_swin_base_has_the_published_size_and_maps(published):
    """86.9 million parameters, counted by hand from the paper's sizes."""
    network = published.image_encoder.backbone
    assert isinstance(network, Swin)
    maps = network(torch.empty(1, 3, 512, 1408, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 128, 352), (256, 64, 176), (512, 32, 88), (1024, 16, 44)]
    table = (2 * 12 - 1) ** 2
    blocks = 0
    for width, depth, heads in ((128, 2, 4), (256, 2, 8), (512, 18, 16), (1024, 2, 32)):
        attention = 4 * width**2 + 4 * width + table * heads
        blocks += depth * (attention + 8 * width**2 + 5 * width + 4 * width)
    merging = sum(8 * width**2 + 8 * width for width in (128, 256, 512))
    stem = 3 * 16 * 128 + 128 + 2 * 128
    assert number_of(network) == stem + blocks + merging + 2 * 512 + 2 * 1024
    assert number_of(network) == 86_879_608


def test_the_stereo_map_is_not_normed_and_the_lifted_ones_are():
    network = Swin("swin_nano", (64, 96)).eval()
    network.embeddings.norm.bias.data.fill_(1.0)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    first, _, third, fourth = network(images)
    assert torch.equal(network(images, num_stages=1)[0], first)
    for normed in (third, fourth):
        torch.testing.assert_close(normed.mean(1), torch.zeros_like(normed[:, 0]), atol=1e-5, rtol=0)
    assert first.mean(1).min() > 0.5


def test_a_swin_agrees_with_the_backbone_of_transformers():
    from transformers import AutoBackbone, SwinConfig

    config = SwinConfig(
        image_size=(64, 96), embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=4,
        out_features=["stage3", "stage4"],
    )  # fmt: skip
    theirs, ours = AutoBackbone.from_config(config).eval(), Swin("swin_nano", (64, 96)).eval()
    state = {f"swin.{k}": v for k, v in ours.state_dict().items()}
    state |= {k.replace("swin.norms", "hidden_states_norms"): v for k, v in state.items() if "swin.norms" in k}
    missing = theirs.load_state_dict({k: v for k, v in state.items() if "swin.norms" not in k}, strict=False)
    assert set(missing.missing_keys) == {"swin.layernorm.weight", "swin.layernorm.bias"}
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for one, other in zip(theirs(images).feature_maps, ours(images)[2:], strict=True):
        torch.testing.assert_close(one, other)


def test_the_published_trunk(published):
    """Shapes of the specification (2.1, 2.2)."""
    trunk = published
    assert trunk.config.num_frames == 3 and trunk.stride == 16 and trunk.config.depth.number == 88
    shapes = {k: tuple(v.shape) for k, v in trunk.state_dict().items()}
    assert shapes["image_encoder.neck.layers.0.weight"] == (512, 1536, 3, 3)
    assert shapes["depth_net.context.weight"] == (32, 512, 1, 1)
    assert shapes["depth_net.depth_blocks.0.conv1.weight"] == (512, 600, 3, 3)
    assert shapes["depth_net.depth_blocks.0.shortcut.weight"] == (512, 600, 1, 1)
    assert shapes["depth_net.aspp.merge.0.weight"] == (512, 480, 1, 1)
    assert shapes["depth_net.stereo.layers.2.weight"] == (88, 88, 3, 3)
    assert shapes["depth_net.context_gate.mlp.0.weight"] == (512, 27)
    assert shapes["volume_encoder.levels.0.0.conv1.weight"] == (32, 64, 3, 3, 3)
    assert [len(level) for level in trunk.volume_encoder.levels] == [1, 2, 4]
    assert shapes["volume_encoder.merge.weight"] == (32, 224, 1, 1, 1)
    with torch.device("meta"):
        encoder = StereoImageEncoder("resnet50", (256, 704), 512)
        lifted, stereo = encoder(torch.empty(6, 3, 256, 704))
    assert lifted.shape == (6, 512, 16, 44) and stereo.shape == (6, 256, 64, 176)


def test_a_forward_pass_and_its_gradients(tiny, inputs):
    images, cameras = inputs
    out = tiny(images.requires_grad_(), cameras)
    assert out.volume.shape == (2, 8, 16, 16, 4) and out.depth_logits.shape == (2, 3, 8, 4, 6)
    (out.volume.square().mean() + out.depth_logits.square().mean()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tiny.parameters())
    # Only the current frame trains.
    assert images.grad[:, 0].any() and not images.grad[:, 1:].any()


def test_every_frame_is_seen(tiny, inputs):
    images, cameras = inputs
    tiny.eval()
    plain = tiny(images, cameras)
    for t in range(3):
        changed = images.clone()
        changed[:, t] += 1
        got = tiny(changed, cameras)
        assert not torch.equal(got.volume, plain.volume)
        # The oldest image takes part in the depth of the one after it alone; the current depth knows nothing of it.
        assert torch.equal(got.depth_logits, plain.depth_logits) == (t == 2)


def test_checkpointing_changes_no_gradient(tiny, inputs):
    tiny.train()
    tiny.depth_net.aspp.dropout = 0.0

    def gradients():
        tiny.zero_grad()
        with torch.random.fork_rng():
            tiny(*inputs).volume.square().mean().backward()
        return [p.grad.clone() for p in tiny.parameters() if p.grad is not None]

    expected = gradients()
    tiny.gradient_checkpointing_enable()
    for one, other in zip(expected, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_levels_are_reduced_before_they_are_enlarged():
    """The sum of convolved and enlarged levels is the convolution of the enlarged and joined ones."""
    import torch.nn.functional as F

    g = torch.Generator().manual_seed(0)
    encoder = VolumeEncoder(4, (3, 5, 6), (1, 1, 1), 7).eval()
    volume = torch.randn(1, 4, 10, 8, 4, generator=g)
    maps, x = [], volume
    for level in encoder.levels:
        x = level(x)
        maps.append(F.interpolate(x, size=volume.shape[2:], mode="trilinear", align_corners=True))
    assert [m.shape[1] for m in maps] == [3, 5, 6]
    expected = F.relu(encoder.merge_norm(encoder.merge(torch.cat(maps, 1))))
    torch.testing.assert_close(encoder(volume), expected, atol=1e-5, rtol=1e-4)


def test_without_stereo_and_with_one_frame(inputs):
    images, cameras = inputs
    trunk = OccupancyTrunk(replace(TINY, bev_frames=1, stereo=False))
    cameras = LiftCameras(
        cameras.ego2img[:, :1], cameras.intrinsics[:, :1], cameras.image_transforms[:, :1], cameras.grid_transforms
    )
    assert trunk(images[:, :1], cameras).volume.shape == (2, 8, 16, 16, 4)


def test_what_does_not_fit_is_refused(tiny, inputs):
    images, cameras = inputs
    with pytest.raises(ValueError, match=r"images of these cameras must be \[2, 3, \d, 3, 64, 96\]"):
        tiny(images[:, :2], cameras)
    older = replace(
        cameras, **{name: getattr(cameras, name)[:, :2] for name in ("ego2img", "intrinsics", "image_transforms")}
    )
    with pytest.raises(ValueError, match=r"ego2img must be \[B, 3, V, 4, 4\], got \(2, 2,"):
        tiny(images, older)
    with pytest.raises(ValueError, match="multiples of 32"):
        replace(TINY, image_size=(60, 96))
    with pytest.raises(ValueError, match="need one number a level"):
        replace(TINY, encoder_blocks=(1,))
    with pytest.raises(ValueError, match="no backbone 'vgg'"):
        OccupancyTrunk(replace(TINY, backbone="vgg"))
    with pytest.raises(ValueError, match="two of the stages"):
        OccupancyTrunk(replace(TINY, neck_stages=(3, 2)))


def test_the_published_geometry_is_another_volume(tiny, inputs):
    """Truncated voxels and pixels from edge to edge: the same weights give another answer, with gradients."""
    images, cameras = inputs
    legacy = OccupancyTrunk(replace(TINY, legacy=True))
    legacy.load_state_dict(tiny.state_dict())
    tiny.eval(), legacy.eval()
    assert not torch.allclose(legacy(images, cameras).volume, tiny(images, cameras).volume)
    legacy(images, cameras).volume.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in legacy.parameters() if p.grad is not None)


def test_a_mirrored_grid_has_the_mirrored_features(tiny, inputs):
    """Up to the 3D network, which is no more symmetric than any: what is lifted is mirrored with the grid."""
    images, cameras = inputs
    turn = GridTransform(flip_x=True, flip_y=True).matrix().float()
    # The cameras stand aside, so that no point lies on a voxel's face, which belongs to one side alone.
    aside = torch.eye(4)
    aside[:2, 3] = torch.tensor([0.137, 0.071])
    cameras = replace(cameras, ego2img=cameras.ego2img @ aside)
    ego2img = cameras.ego2img @ torch.linalg.inv(turn)
    mirrored = replace(cameras, ego2img=ego2img, grid_transforms=turn.expand(2, 4, 4))
    tiny.eval()
    lifted = []
    for rig in (cameras, mirrored):
        found = {}
        handle = tiny.pre_process.register_forward_pre_hook(lambda _, inputs, found=found: found.update(x=inputs[0]))
        vectors = cameras.vectors()  # the same for both: the depth network may know of the mirror
        tiny._frame(images[:, 0], tiny.geometry(rig)._replace(vectors=vectors), 0, None)
        handle.remove()
        lifted.append(found["x"])
    torch.testing.assert_close(lifted[1].flip((2, 3)), lifted[0], atol=1e-5, rtol=1e-4)
