"""Merging queries into labels and objects, and putting them into the grid."""

from dataclasses import replace

import pytest
import torch

from syntheocc.occupancy.perception.sparseocc.inference import merge_panoptic, merge_semantics, predict_grids, scatter
from syntheocc.occupancy.perception.sparseocc.presets import preset

CONFIG = preset("r50_704x256_8f_pano").model


@pytest.fixture
def merge(vectors):
    """The specification's five queries over ten voxels."""
    classes = torch.full((5, 17), 0.01)
    for query, label, score in ((0, 4, 0.9), (1, 4, 0.6), (2, 11, 0.8), (3, 11, 0.7), (4, 7, 0.25)):
        classes[query, label] = score
    return classes, torch.tensor(vectors["L_merge"]["mask_prob"])


def test_semantics_of_the_specification(merge, vectors):
    classes, masks = merge
    assert merge_semantics(classes[None], masks[None], CONFIG)[0].tolist() == vectors["L_merge"]["sem"]


def test_objects_of_the_specification_with_the_second_stuff_query_repaired(merge, vectors):
    labels, ids = merge_panoptic(*merge, CONFIG)
    assert ids.tolist() == vectors["L_merge"]["pano_inst"]
    # The published code left the second query of class 11 free although it had joined segment 3.
    assert vectors["L_merge"]["pano_sem"][6:8] == [17, 17]
    assert labels.tolist() == [4, 4, 4, 4, 11, 11, 11, 11, 4, 17]


def test_a_query_that_loses_most_of_its_mask_is_dropped():
    """The second query wins 1 of the 4 voxels of its mask: 1/4 < 0.8."""
    classes = torch.zeros(2, 17)
    classes[0, 4], classes[1, 7] = 0.9, 0.8
    masks = torch.tensor([[0.9, 0.9, 0.9, 0.0], [0.6, 0.6, 0.6, 0.6]])
    labels, ids = merge_panoptic(classes, masks, CONFIG)
    assert labels.tolist() == [4, 4, 4, 17] and ids.tolist() == [1, 1, 1, 0]


def test_without_a_confident_query_everything_is_free():
    classes, masks = torch.full((3, 17), 0.2), torch.ones(3, 6)
    assert merge_semantics(classes[None], masks[None], CONFIG)[0].tolist() == [17] * 6
    labels, ids = merge_panoptic(classes, masks, CONFIG)
    assert labels.tolist() == [17] * 6 and not ids.any()


def test_labels_are_those_of_a_taxonomy_whose_free_class_comes_first():
    from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY

    config = replace(preset("tiny").model, taxonomy=SYNTHEOCC_TAXONOMY, class_frequencies=None)
    classes = torch.zeros(1, 1, 16)
    classes[0, 0, 2] = 0.9
    assert merge_semantics(classes, torch.tensor([[[0.9, 0.0]]]), config)[0].tolist() == [3, 0]


def test_scatter_fills_the_grid_and_drops_what_lies_beyond():
    corners = torch.tensor([[[0, 0, 0], [1, 1, 0], [2, 0, 0]]])
    grid = scatter(torch.tensor([[5, 6, 7]], dtype=torch.uint8), corners, (2, 2, 1), 17)
    assert grid.dtype == torch.uint8 and grid[0, :, :, 0].tolist() == [[5, 17], [17, 6]]


def test_predicted_grids_of_both_kinds():
    corners = torch.tensor([[[0, 0, 0], [3, 4, 5]]]).expand(2, -1, -1)
    logits = torch.full((2, 1, 17), -9.0)
    logits[:, 0, 4] = 3
    masks = torch.tensor([[[9.0, -9.0]], [[9.0, 9.0]]])
    for config in (CONFIG, preset("r50_704x256_8f").model):
        grids = predict_grids(logits, masks, corners, config)
        assert grids.semantics.shape == (2, 200, 200, 16)
        assert (grids.semantics != 17).sum((1, 2, 3)).tolist() == [1, 2]
        assert grids.grid(1).labels[3, 4, 5] == 4 and grids.grid(0).occupied().sum() == 1
        assert (grids.instances is None) != config.panoptic
        if config.panoptic:
            assert grids.instances.max() == 1
