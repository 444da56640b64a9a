"""A small scene for tests of ray labels: a car that drives, cameras that fire before its lidar, things that move."""

import math

import torch

from syntheocc.occupancy.grids import GridSpec
from syntheocc.occupancy.perception.ray_frames import PlacedBoxes, RayFrame
from syntheocc.occupancy.transforms import rotation_z

SPEC = GridSpec((-20.0, -20.0, -1.0), 0.4, (100, 100, 16))
HEIGHT, WIDTH = 90, 160
K = torch.tensor([[100.0, 0, 81.6], [0, 100.0, 49.2], [0, 0, 1]], dtype=torch.float64)


def pose(x=0.0, y=0.0, z=0.0, yaw=0.0):
    matrix = rotation_z(yaw)
    matrix[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


def ego_at(t):
    """A drive along a curve, 3 m a frame."""
    return pose(3.0 * t, 0.2 * t * t, 0.02 * t, 0.05 * t)


def camera2ego(yaw, x=1.0):
    """A level camera that looks along `yaw`."""
    c, s = math.cos(yaw), math.sin(yaw)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor([[s, 0, c], [-c, 0, s], [0, -1, 0]], dtype=torch.float64)
    matrix[:3, 3] = torch.tensor([x * c, x * s, 1.5])
    return matrix


def car_at(t):
    """box2global of the moving car."""
    return pose(8 + 2.5 * t, 3 + 0.4 * t, 0.6, 0.1 * t)


def walker_at(t):
    """box2global of someone who crosses the street."""
    return pose(9.0, -4 + 0.7 * t, 0.7)


def boxes_at(t, without=()):
    """The objects of frame t: a car, a walker, a parked truck, and a barrier, which is of no flow class."""
    rows = {
        "car": (car_at(t), (4.6, 1.9, 1.7), 4),
        "walker": (walker_at(t), (0.7, 0.7, 1.8), 7),
        "truck": (pose(-7, 5, 1.2, 0.3), (7.0, 2.4, 3.0), 10),
        "barrier": (pose(4, -6, 0.4), (2.0, 0.4, 1.0), 1),
    }
    rows = {name: row for name, row in rows.items() if name not in without}
    return PlacedBoxes(
        torch.stack([row[0] for row in rows.values()]),
        torch.tensor([row[1] for row in rows.values()], dtype=torch.float64),
        torch.tensor([row[2] for row in rows.values()]),
        tuple(rows),
        torch.full((len(rows),), 10),
    )


def frame_at(t, number=1500, views=3, without=(), missing=(), seed=0, skew=0.02):
    """Frame t: points all around and on the car, most with a class; cameras that fired `skew` frames earlier."""
    g = torch.Generator().manual_seed(100 * seed + t + 50)
    own = ego_at(t)
    points = (torch.rand(number, 3, generator=g, dtype=torch.float64) - 0.5) * torch.tensor([60.0, 60.0, 9.0])
    points[:, 2] += 2
    labels = torch.randint(0, 17, (number,), generator=g).to(torch.uint8)
    labels[::11] = 255
    half = torch.tensor([2.3, 0.95, 0.85], dtype=torch.float64)
    on_car = car_at(t)[:3, :3] @ ((torch.rand(60, 3, generator=g, dtype=torch.float64) * 2 - 1) * half).T
    on_car = on_car.T + car_at(t)[:3, 3]
    inverse = torch.linalg.inv(own)
    points[:60] = on_car @ inverse[:3, :3].T + inverse[:3, 3]
    labels[:60] = 4
    intrinsics = K.repeat(views, 1, 1)
    intrinsics[list(missing)] = 0
    cameras = [ego_at(t - skew) @ camera2ego(2 * math.pi * v / views) for v in range(views)]
    return RayFrame(
        points=points.float(),
        labels=labels,
        frame2global=own,
        lidar_origin=torch.tensor([0.9, 0.0, 1.8], dtype=torch.float64),
        intrinsics=intrinsics,
        cam2global=torch.stack(cameras),
        sizes=torch.tensor([[HEIGHT, WIDTH]] * views, dtype=torch.float64),
        boxes=boxes_at(t, without),
    )
