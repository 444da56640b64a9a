"""Saved predictions in OccFlowNet's layout."""

import numpy as np
import pytest
import torch

from syntheocc.occupancy.data.prediction_files import (
    free_space,
    prediction_paths,
    read_scene_predictions,
    with_free,
    write_scene_predictions,
)


def test_predictions_round_trip_and_decode(tmp_path):
    density = torch.tensor([[[0.1, 0.3, 0.4]]])
    classes = torch.tensor([[[4, 11, 16]]])
    layers = free_space(density, (0.05, 0.35))
    assert layers.tolist() == [[[[False, False, False]]], [[[True, True, False]]]]
    paths = write_scene_predictions({"abc": classes}, {"abc": layers}, tmp_path, "flow_2d", "scene-0003")
    assert paths == prediction_paths(tmp_path, "flow_2d", "scene-0003")
    assert paths[0] == tmp_path / "flow_2d" / "occupancy" / "scene-0003.npz"
    with np.load(paths[0]) as file:
        assert file["abc"].dtype == np.uint8
    found, free = read_scene_predictions(tmp_path, "flow_2d", "scene-0003")["abc"]
    assert torch.equal(found, classes.to(torch.uint8)) and torch.equal(free, layers)
    assert with_free(found, free[1]).tolist() == [[[17, 17, 16]]]


def test_predictions_that_do_not_fit_together_are_refused(tmp_path):
    classes, layers = torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="free space only"):
        write_scene_predictions({"a": classes}, {"b": layers}, tmp_path, "c", "s")
    with pytest.raises(ValueError, match=r"bool \[thresholds"):
        write_scene_predictions({"a": classes}, {"a": layers[:, 1:]}, tmp_path, "c", "s")
    with pytest.raises(ValueError, match="0 to 255"):
        write_scene_predictions({"a": classes.int() - 1}, {"a": layers}, tmp_path, "c", "s")
    paths = write_scene_predictions({"a": classes}, {"a": layers}, tmp_path, "c", "s")
    np.savez(paths[1], a=np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="does not fit"):
        read_scene_predictions(tmp_path, "c", "s")
    np.savez(paths[1], b=layers.numpy())
    with pytest.raises(ValueError, match="different samples"):
        read_scene_predictions(tmp_path, "c", "s")
