import numpy as np
import pytest
import torch

from syntheocc.occupancy import OCC3D_NUSCENES, GridSpec, OccupancyGrid
from syntheocc.occupancy.pictures import (
    ERROR_COLORS,
    InstanceTracks,
    class_colors,
    class_legend,
    error_colors,
    instance_color,
    legend,
    panoptic_colors,
    with_legend,
)
from syntheocc.occupancy.taxonomy import taxonomy_named
from syntheocc.occupancy.transforms import rotation_z

TAXONOMY = taxonomy_named("syntheocc")
CAR, PERSON, ROAD = 1, TAXONOMY.id_of("pedestrian"), 11


def grid_of(labels, size=1.0):
    labels = np.asarray(labels, np.uint8)
    return OccupancyGrid(labels, GridSpec((0.0, 0.0, 0.0), (size,) * 3, labels.shape), TAXONOMY)


def test_classes_have_the_palettes_colours():
    colors = class_colors(grid_of([[[CAR, ROAD, 0, 255]]]))
    assert colors.drawn[0, 0].tolist() == [True, True, False, False]
    assert colors.colors[0, 0, :2].tolist() == [[255, 158, 0], [0, 207, 191]]
    assert class_colors(grid_of([[[CAR, ROAD, 0, 255]]]), unknown=True).drawn[0, 0].tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_an_instance_has_its_colour_in_every_frame_whatever_else_is_there():
    first = panoptic_colors(grid_of([[[CAR, CAR, ROAD, CAR]]]), np.array([[[7, 3, 9, 0]]]))
    later = panoptic_colors(grid_of([[[CAR, ROAD, CAR, CAR]]]), torch.tensor([[[50, 0, 7, 7]]]))
    assert first.colors[0, 0, 0].tolist() == list(instance_color(7)) == later.colors[0, 0, 2].tolist()
    assert later.colors[0, 0, 3].tolist() == list(instance_color(7))
    # Stuff and objects without a number keep the hue of their class, paler; numbers on stuff are not looked at.
    for color, plain in ((first.colors[0, 0, 2], (0, 207, 191)), (first.colors[0, 0, 3], (255, 158, 0))):
        assert np.abs(color - (0.45 * np.array(plain) + 0.55 * 205)).max() <= 1


def test_instances_near_in_number_are_told_apart():
    colors = np.array([instance_color(number) for number in range(1, 201)]).astype(int)
    assert len(np.unique(colors, axis=0)) == 200
    for away in range(1, 9):
        assert np.abs(colors[away:] - colors[:-away]).sum(1).min() > 60
    with pytest.raises(ValueError, match="from 1"):
        instance_color(0)
    with pytest.raises(ValueError, match="from 1"):
        panoptic_colors(grid_of([[[CAR]]]), np.array([[[-2]]]))
    with pytest.raises(ValueError, match="X, Y, Z"):
        panoptic_colors(grid_of([[[CAR]]]), np.zeros((1, 1, 2), int))


def test_errors_are_agree_other_missed_invented_and_not_judged():
    truth = grid_of([[[CAR, CAR, CAR, 0, 0, 255, CAR]]])
    guess = grid_of([[[CAR, ROAD, 0, ROAD, 0, ROAD, 255]]])
    errors = error_colors(guess, truth)
    assert errors.drawn[0, 0].tolist() == [True, True, True, True, False, False, True]
    names = {color: name for name, color in ERROR_COLORS.items()}
    found = [names[tuple(color)] for color in errors.colors[0, 0][errors.drawn[0, 0]].tolist()]
    assert found == ["agree", "other class", "missed", "invented", "missed"]
    masked = error_colors(guess, truth, known=np.array([[[1, 0, 0, 1, 1, 1, 0]]]))
    assert masked.drawn[0, 0].tolist() == [True, False, False, True, False, False, False]
    with pytest.raises(ValueError, match="mask"):
        error_colors(guess, truth, known=np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="truth's grid"):
        error_colors(grid_of([[[CAR]]]), truth)


def test_a_prediction_of_another_table_is_mapped_first():
    spec = OCC3D_NUSCENES.spec
    truth = np.full(spec.shape, OCC3D_NUSCENES.taxonomy.free, np.uint8)
    truth[3, 4, 5] = OCC3D_NUSCENES.taxonomy.id_of("car")
    guess = np.zeros(spec.shape, np.uint8)
    guess[3, 4, 5] = CAR
    errors = error_colors(OccupancyGrid(guess, spec, TAXONOMY), OccupancyGrid(truth, *OCC3D_NUSCENES))
    assert np.argwhere(errors.drawn).tolist() == [[3, 4, 5]]
    assert errors.colors[3, 4, 5].tolist() == list(ERROR_COLORS["agree"])


def test_a_legend_names_what_occurs_in_the_tables_order():
    entries = class_legend(TAXONOMY, grid_of([[[ROAD, 0, 255]]]), grid_of([[[CAR]]]))
    assert list(entries.items()) == [("car", (255, 158, 0)), ("driveable_surface", (0, 207, 191))]
    assert list(class_legend(TAXONOMY)) == list(TAXONOMY.classes[1:])
    with pytest.raises(ValueError, match="occ3d"):
        class_legend(taxonomy_named("occ3d"), grid_of([[[CAR]]]))
    line = legend(entries, 400, size=16)
    assert line.shape == (27, 400, 3)
    for color in entries.values():
        assert (line == color).all(-1).sum() > 100
    assert (line < 60).all(-1).sum() > 100, "no text"
    assert legend(entries, 120, size=16).shape == (54, 120, 3)
    assert with_legend(np.zeros((10, 400, 3), np.uint8), entries, size=16).shape == (37, 400, 3)


def drive(numbers, positions, ego2global):
    """A frame 40 m long with one-voxel objects of these numbers at these global x, seen from the ego's pose."""
    labels, instances = np.zeros((40, 4, 1), np.uint8), np.zeros((40, 4, 1), np.int32)
    for number, (label, x, y) in zip(numbers, positions, strict=True):
        place = (torch.linalg.inv(ego2global) @ torch.tensor([x, y, 0.5, 1.0], dtype=torch.float64)).tolist()
        cell = int(np.floor(place[0])), int(np.floor(place[1])), 0
        labels[cell], instances[cell] = label, number
    return grid_of(labels), instances


def test_objects_keep_their_number_over_a_drive():
    """The ego goes 2 m a frame, one car stands, one drives away at 1 m a frame, the model numbers them as it likes."""
    tracks, seen = InstanceTracks(), []
    for frame, numbers in enumerate(([4, 9, 5], [1, 2, 3], [9, 4, 1], [2, 1, 7])):
        ego2global = torch.eye(4, dtype=torch.float64)
        ego2global[0, 3] = 2.0 * frame
        places = [(CAR, 20.5, 0.5), (CAR, 14.5 + frame, 2.5), (PERSON, 20.5, 1.5)]
        grid, instances = drive(numbers, places, ego2global)
        tracked = tracks.update(grid, instances, ego2global)
        assert np.array_equal(tracked > 0, instances > 0)
        seen.append([int(tracked[instances == number][0]) for number in numbers])
    assert seen[0] == seen[1] == seen[2] == seen[3] and len(set(seen[0])) == 3


def test_a_new_object_gets_a_new_number_and_a_lost_one_comes_back():
    tracks, still = InstanceTracks(patience=1), torch.eye(4, dtype=torch.float64)
    numbers = []
    for places in ([5.5], [], [5.5, 30.5], [5.5, 30.5]):
        grid, instances = drive(range(1, len(places) + 1), [(CAR, x, 0.5) for x in places], still)
        numbers.append([int(n) for n in np.unique(tracks.update(grid, instances)) if n])
    assert numbers == [[1], [], [1, 2], [1, 2]]
    turned = rotation_z(0.3)
    grid, instances = drive([1, 2], [(CAR, 5.5, 0.5), (CAR, 20.5, 1.5)], still)
    road = np.where(instances == 0, 5, instances)
    assert np.array_equal(tracks.update(grid, road, turned) > 0, instances > 0), "free space is numbered"
