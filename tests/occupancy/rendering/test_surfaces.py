"""Where a ray may be stopped when surfaces are voxels, and that the losses then prefer the true occupancy."""

from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.occflownet.model import OccFlowNet
from syntheocc.occupancy.perception.occflownet.step import OccFlowNetStep
from syntheocc.occupancy.perception.splattingocc.model import RenderOcc, SplattingOcc
from syntheocc.occupancy.perception.splattingocc.presets import SPLATTINGOCC_PRESETS
from syntheocc.occupancy.perception.splattingocc.step import RenderOccStep, SplattingOccStep
from syntheocc.occupancy.perception.volume_model import VolumeOutput
from syntheocc.occupancy.rendering.dvgo import DvgoSettings
from syntheocc.occupancy.rendering.gaussian import SplatSettings
from syntheocc.occupancy.rendering.rays import RayLabels
from syntheocc.occupancy.rendering.surfaces import front_limits, surface_stretch

SPEC = GridSpec((-40.0, -40.0, -1.0), 0.4, (200, 200, 16))
ROAD, SIDEWALK, CAR = 11, 13, 4
PUBLISHED = {"occflownet": {"legacy": True}, "renderocc": {"render": DvgoSettings(legacy=True)}}
MODELS = {
    "occflownet": (OccFlowNet, OccFlowNetStep, "occflownet_2d_tiny"),
    "splattingocc": (SplattingOcc, SplattingOccStep, "splattingocc_tiny"),
    "renderocc": (RenderOcc, RenderOccStep, "renderocc_7frame_tiny"),
}


def rays_to(points, origin, labels) -> RayLabels:
    points, origin = torch.as_tensor(points).float(), torch.tensor(origin)
    distance = (points - origin).norm(dim=1)
    none = torch.zeros(len(points), dtype=torch.long)
    return RayLabels(
        origins=origin.expand(len(points), 3), directions=(points - origin) / distance[:, None], distance=distance,
        depth=distance, labels=torch.as_tensor(labels), weights=torch.ones(len(points)), frames=none, cameras=none,
        pixels=torch.zeros(len(points), 2), samples=none, frame_offsets=(0,),
    )  # fmt: skip


def test_stretches_by_hand():
    """To the road at z = 0 in the layer from -0.2 to 0.2 from 2 m up, 20.1 m ahead; to a car; beyond the grid."""
    rays = rays_to([[20.1, 0.1, 0.0], [20.1, 0.1, 0.0], [60.0, 0.0, 0.0]], (0.0, 0.1, 2.0), [ROAD, CAR, ROAD])
    enter, leave = surface_stretch(rays, SPEC, flat=(ROAD,))
    length = float(rays.distance[0])
    # The road's layer begins where 1.8 of the 2 m are fallen; the voxel, 20.0 to 20.4 m, where it is 20 m ahead.
    assert float(enter[0]) == pytest.approx(0.9 * length, rel=1e-5)
    assert float(enter[1]) == pytest.approx(20.0 / 20.1 * length, rel=1e-5)
    assert float(leave[0]) == float(leave[1]) == pytest.approx(20.4 / 20.1 * length, rel=1e-5)
    assert float(enter[2]) == float(leave[2]) == float(rays.distance[2])
    limits = front_limits(rays, SPEC, flat=(ROAD,), margin=0.8, height=0.1)
    assert float(limits[0]) == pytest.approx(0.85 * length, rel=1e-5)  # 0.3 m above the road
    torch.testing.assert_close(limits[1:], enter[1:] - 0.8)
    steep = rays_to([[0.0, 0.1, 0.0]], (0.0, 0.1, 2.0), [ROAD])
    # Straight down: the margin along the ray is the longer one; x and y do not change.
    assert float(front_limits(steep, SPEC, (ROAD,), 0.8, 0.1)[0]) == pytest.approx(1.0)
    along = rays_to([[30.0, 0.1, 0.0]], (0.0, 0.1, 0.1), [ROAD])
    assert float(surface_stretch(along, SPEC, (ROAD,))[0][0]) == pytest.approx(0.5 * float(along.distance[0]))


def test_a_point_on_a_face_is_of_the_voxel_behind_it():
    rays = rays_to([[20.0, 0.1, 0.5]], (0.0, 0.1, 0.5), [CAR])
    enter, leave = surface_stretch(rays, SPEC)
    assert (float(enter[0]), float(leave[0])) == pytest.approx((20.0, 20.4))


def street(spec: GridSpec) -> tuple[torch.Tensor, RayLabels]:
    """A road with a sidewalk, level in the middle of the second layer, a wall behind; rays from 1.8 m above."""
    labels = torch.full(spec.shape, 17)
    labels[..., 1] = ROAD
    labels[:, 25:, 1] = SIDEWALK
    labels[36:, :, 1:5] = 15
    level = spec.lower[2] + 1.5 * spec.voxel_size[2]
    g = torch.Generator().manual_seed(0)
    ground = torch.rand(500, 3, generator=g) * torch.tensor([26.0, 28.0, 0.0]) + torch.tensor([-14.0, -14.0, level])
    high = torch.rand(200, 3, generator=g) * torch.tensor([0.0, 26.0, 2.0])
    wall = high + torch.tensor([spec.lower[0] + 36.5 * spec.voxel_size[0], -13.0, level])
    points = torch.cat([ground, wall])
    index, inside = spec.index_of(points)
    assert inside.all()
    return labels, rays_to(points, (-13.0, 0.0, level + 1.8), labels[index.unbind(-1)])


def terms(name: str, labels: torch.Tensor, rays: RayLabels, **changes) -> dict[str, float]:
    """Losses of a model that says just this."""
    model_class, step_class, preset = MODELS[name]
    model = model_class.from_preset(preset, **changes)
    opacity = torch.where(labels == 17, 0.002, 0.95)
    # RenderOcc's two samples a voxel: 1 - opacity = (1 + exp(raw - 13.8155))^-0.5, twice.
    raw = (1 / (1 - opacity) - 1).log() + 13.8155 if name == "renderocc" else torch.logit(opacity)
    logits = 6.0 * torch.nn.functional.one_hot(labels.clamp(max=16), 17).float()
    output = VolumeOutput(raw[None], logits[None], torch.zeros(0))
    found = step_class(model).ray_losses(output, None, rays, None, [torch.Generator().manual_seed(0)])
    return {term: float(value) for term, value in found.items()}


def losses(name: str, labels: torch.Tensor, rays: RayLabels, **changes) -> float:
    return sum(terms(name, labels, rays, **changes).values())


@pytest.mark.parametrize("name", MODELS)
def test_the_truth_is_preferred(name):
    """To the same scene one voxel lower."""
    grid = MODELS[name][0].from_preset(MODELS[name][2]).config.grid
    labels, rays = street(grid)
    lower = labels.roll(-1, -1)
    lower[..., -1] = 17
    assert losses(name, labels, rays) < 0.9 * losses(name, lower, rays)


def test_wide_gaussians_that_end_at_points_prefer_lower_ground():
    """Why neither is the default: scales of 0.5 voxels as in 4.2, free space up to 0.8 m before the point."""
    grid = MODELS["splattingocc"][0].from_preset("splattingocc_tiny").config.grid
    labels, rays = street(grid)
    lower = labels.roll(-1, -1)
    lower[..., -1] = 17
    wide = {"voxel_surfaces": False, "splats": SplatSettings(scale=0.4, scale_range=(0.1, 0.6))}
    assert losses("splattingocc", lower, rays, **wide) < losses("splattingocc", labels, rays, **wide)


def test_the_true_street_is_where_rays_may_end():
    """Depths and free space of the truth: with surfaces that are voxels little is wrong about them."""
    labels, rays = street(MODELS["splattingocc"][0].from_preset("splattingocc_tiny").config.grid)
    voxels, points = (terms("splattingocc", labels, rays, voxel_surfaces=flag) for flag in (True, False))
    assert voxels["depth"] < 0.4 * points["depth"] and voxels["free"] < 0.2 * points["free"]
    assert {k for k in voxels if voxels[k] != points[k]} == {"depth", "free"}


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_depths_end_in_voxels_unless_they_are_the_published_ones(name, published):
    labels, rays = street(MODELS[name][0].from_preset(MODELS[name][2]).config.grid)
    for changes, same in (({}, False), (published, True)):
        voxels, points = (terms(name, labels, rays, voxel_surfaces=flag, **changes) for flag in (True, False))
        assert {k for k in voxels if voxels[k] != points[k]} == (set() if same else {"depth"})


def test_targets_of_depths_by_hand():
    """Before, in and behind the stretch of a road, which is flat ground, and of a car; targets have no gradient."""
    step = OccFlowNetStep(OccFlowNet.from_preset("occflownet_2d_tiny"))
    # Voxels of 0.8 m, the layer from -0.2 to 0.6: the ray falls 1 m in 10, to the layer 14 m ahead, the voxel at 15.2.
    rays = rays_to([[15.3, 0.1, 0.47]] * 6, (0.0, 0.1, 2.0), [ROAD] * 3 + [CAR] * 3)
    length = float(rays.distance[0]) / 15.3
    rendered = torch.tensor([12.0, 14.1, 16.5] * 2, dtype=torch.float64, requires_grad=True)
    target = step.depth_target(rendered * length, rays)
    expected = torch.tensor([14.0, 14.1, 16.0, 15.2, 15.2, 16.0]) * length
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=0.0)
    assert not target.requires_grad


def test_how_far_gaussians_stand_out_of_the_ground():
    """Gaussians of 0.12 m in voxels of 0.4 m are met up to 0.3 m above their centres; smaller ones stay inside."""
    config = SPLATTINGOCC_PRESETS["splattingocc"]().model
    assert config.splats.scale == pytest.approx(0.12) and config.reach == pytest.approx(0.1)
    assert replace(config, splats=SplatSettings(scale=0.05, scale_range=(0.02, 0.3))).reach == 0.0


def test_nothing_hit_gives_nothing():
    rays = rays_to([[1.0, 0.0, 0.0]], (0.0, 0.0, 2.0), [ROAD]).select(torch.zeros(1, dtype=torch.bool))
    enter, leave = surface_stretch(rays, SPEC, (ROAD,))
    assert enter.shape == leave.shape == (0,)
