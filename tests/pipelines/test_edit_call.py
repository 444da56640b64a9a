"""`pipe(..., edit=recipe)`: the same pictures as of the grid that the recipe makes, for one sample or several."""

import pytest
import torch

from syntheocc.occupancy import Recipe

BLOCK = {"edit": "insert", "asset": "box", "class": "car", "size": [8, 8, 3], "at": [10, 0], "z": 0}
RECIPE = Recipe((BLOCK | {"allow": ["collision", "floating"]},))


def test_an_edit_is_made_before_anything_is_rendered(pipe, call, grid, other_grid, rig, tmp_path):
    plain = call(pipe, occupancy=grid, cameras=rig).images
    made = call(pipe, occupancy=RECIPE.apply(grid), cameras=rig).images
    assert not torch.allclose(made, plain, atol=1e-3), "the block is not seen"
    assert torch.equal(call(pipe, occupancy=grid, cameras=rig, edit=RECIPE).images, made)
    path = RECIPE.save(tmp_path / "recipe.json")
    assert torch.equal(call(pipe, occupancy=grid, cameras=rig, edit=path).images, made)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    several = call(
        pipe, ["a", "a"], occupancy=[grid, other_grid], cameras=rig, edit=[None, str(path)], generator=generators
    ).mpi
    wanted = call(pipe, ["a", "a"], occupancy=[grid, RECIPE.apply(other_grid)], cameras=rig, generator=None).mpi
    assert torch.equal(several.labels, wanted.labels)
    video = call(pipe, occupancy=[[grid, other_grid]], cameras=rig, edit=RECIPE).mpi
    assert torch.equal(video[0].labels[1], several.labels[1])


def test_bad_edits_are_said_before_any_work(pipe, call, grid, rig, tmp_path):
    mpi = call(pipe, occupancy=grid, cameras=rig).mpi
    far = Recipe((BLOCK | {"at": [400, 0], "name": "far"},))
    for given, message in (
        ({"mpi": mpi[0], "edit": RECIPE}, "there is none"),
        ({"occupancy": grid, "cameras": rig, "edit": 3}, "a Recipe or the path"),
        ({"occupancy": grid, "cameras": rig, "edit": tmp_path / "none.json"}, "none.json: no such file"),
        ({"occupancy": [grid, grid], "cameras": rig, "edit": [RECIPE]}, "1 edits for 2 samples"),
        ({"occupancy": grid, "cameras": rig, "edit": far}, r"edit 1 \(insert\): far .* reaches out"),
        ({"occupancy": "grid", "cameras": rig, "edit": RECIPE}, "`occupancy` must be a OccupancyGrid"),
    ):
        with pytest.raises(ValueError, match=message):
            call(pipe, **given)
