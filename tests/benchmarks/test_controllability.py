"""The codes of the arms by hand, the helpers of the benchmark, and both of its modes at a tiny size."""

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    """A benchmark imports its neighbours as a script does: from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == BENCHMARKS:
            del sys.modules[name]


def one_pixel(**planes):
    """Labels [1, 256, 1, 2] with these planes of the first pixel; the second is empty."""
    labels = torch.zeros(1, 256, 1, 2, dtype=torch.uint8)
    for plane, label in planes.items():
        labels[0, int(plane[1:]), 0, 0] = label
    return labels


def test_dense_codes_by_hand():
    from condition_coding import first_hit, only_visible, rgb, rgb_depth, scalar

    labels = one_pixel(p63=1, p64=1, p100=15)
    assert rgb(labels)[0, :, 0].T.tolist() == [pytest.approx([1, 158 / 255, 0]), [0, 0, 0]]
    assert rgb_depth(labels)[0, 3, 0].tolist() == [64 / 256, 0]
    hot = first_hit(labels)
    assert hot.shape == (1, 18, 1, 2)
    assert hot[0, :, 0, 0].nonzero().flatten().tolist() == [1, 17] and hot[0, 17, 0, 0] == 0.25
    assert hot[0, :, 0, 1].nonzero().flatten().tolist() == [0]  # empty space is a class, at no depth
    numbers = scalar(labels)
    assert numbers.shape == (1, 257, 1, 2) and float(numbers.sum()) == 1 + 1 + 15 + 1
    seen = only_visible(labels)
    assert seen[0, 63, 0, 0] == 1 and int((seen != 0).sum()) == 1


def test_the_first_layers_of_all_arms_are_of_one_size_and_read_what_they_should():
    from condition_coding import ARMS, CodedEncoder

    near, far = one_pixel(p10=1, p50=15), one_pixel(p10=1, p50=16)
    moved = one_pixel(p11=1, p50=15)
    sizes = {}
    for arm in ARMS:
        torch.manual_seed(0)
        encoder = CodedEncoder(arm, 16)
        sizes[arm] = sum(p.numel() for p in encoder.parameters())
        outputs = [encoder(labels)[0, :, 0, 0] for labels in (near, far, moved)]
        assert outputs[0].shape == (16,)
        hidden_matters = not torch.allclose(outputs[0], outputs[1], atol=1e-6)
        depth_matters = not torch.allclose(outputs[0], outputs[2], atol=1e-6)
        assert hidden_matters == (arm in ("scalar", "categorical", "categorical_spc4")), arm
        assert depth_matters == (arm not in ("none", "rgb")), arm
        # The pipeline's null condition comes as one pixel with the nearest class behind the planes.
        null = encoder(torch.zeros(1, 257, 1, 1, dtype=torch.uint8))
        empty = encoder(torch.zeros(1, 256, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
        assert torch.equal(null, empty)
    assert max(sizes.values()) < 1.01 * min(sizes.values())
    wide = CodedEncoder("rgb", 16)
    assert wide.rate_of_wide_layer == 16 / wide.layers[2].in_channels < 0.01
    assert CodedEncoder("categorical", 16).rate_of_wide_layer == 1
    with pytest.raises(ValueError, match="no arm"):
        CodedEncoder("depth", 16)


def test_arms_of_one_seed_start_alike():
    from arms import networks
    from drawing import load_pipeline

    shared = load_pipeline("tiny", torch.device("cpu"), torch.float32)
    made = {arm: networks(arm, 3, shared, smoke=True) for arm in ("rgb", "categorical")}
    for a, b in zip(made["rgb"], made["categorical"], strict=True):
        ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
        common = [name for name in ours if not name.startswith("controlnet_cond_embedding")]
        assert common and all(torch.equal(ours[name], theirs[name]) for name in common)


def test_points_in_the_grid_by_hand(camera_at):
    from held_out import in_grid

    from syntheocc.occupancy.cameras import CameraRig

    # A level camera 1.5 m up looks forward (ego x); the grid's frame is the ego frame here: z from -5 to 3 m.
    camera = camera_at(0.0, focal=50.0, height=101, width=101)
    depth = torch.full((1, 101, 101), 10.0)
    depth[0, 50, 0] = 51.0  # beyond 50 m to the front
    depth[0, 50, 1] = torch.inf
    seen = in_grid(depth, CameraRig({"c": camera}), torch.eye(4, dtype=torch.float64))
    # Row r lies at height 1.5 - 10 (r - 50) / 50: below 3 m from r > 42.5 on, never below -5 m before r = 82.5.
    assert seen[0, :, 30].nonzero().flatten().tolist() == list(range(43, 83))
    assert seen[0, 50, :3].tolist() == [False, False, True]


def test_items_taken_ahead_keep_their_order_and_errors_arrive():
    from held_out import ahead

    assert list(ahead(iter(range(10)), limit=3)) == list(range(10))

    def broken():
        yield 1
        raise RuntimeError("no more")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="no more"):
        next(items)


def test_a_car_is_put_on_free_road_and_the_largest_vehicle_is_found():
    from edits import REPAINT, largest_vehicle, planned_edits
    from held_out import frames

    from syntheocc.occupancy.editing import Recipe
    from syntheocc.occupancy.taxonomy import SYNTHEOCC_TAXONOMY as TABLE
    from syntheocc.worlds.scene import make_scene

    scene = make_scene(5, image_size=(80, 48))
    frame = next(frames([(5, scene)], torch.device("cpu")))
    cells = (12, 20)
    edits = {edit.kind: edit for edit in planned_edits(frame, cells, frame.mpi(cells).nearest)}
    insert = edits["insert"]
    car = TABLE.id_of("car")
    added = (insert.grid.labels != frame.grid.labels).nonzero()
    assert insert.label == car and bool((insert.grid.labels[tuple(added.T)] == car).all())
    assert 0.6 < len(added) / (4.5 * 1.9 * 1.6 / 0.2**3) < 1.4
    assert bool(insert.target.any() and insert.rest.any()) and not bool((insert.target & insert.rest).any())
    replayed = Recipe.from_json(json.loads(json.dumps(insert.recipe.to_json()))).apply(frame.grid)
    assert torch.equal(replayed.labels, insert.grid.labels), "the recipe kept with the results is the edit"
    number, name = largest_vehicle(frame)
    label = TABLE.id_of(name)
    boxes = scene.boxes_at(frame.t, scene.ego.pose_at(frame.t))
    assert boxes.names[number] == name
    count = int((frame.grid.labels == label).sum())
    for kind in ("remove", "repaint"):
        assert int((edits[kind].grid.labels == label).sum()) < count
    assert edits["repaint"].other == TABLE.id_of(REPAINT[name])


@pytest.mark.slow
def test_all_modes_run_at_a_tiny_size(tmp_path):
    """Random weights in, reports with every table out; a second run of the arms redoes nothing."""
    import controllability

    tiny = ["--smoke", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    report = controllability.main(["evaluate", *tiny, "--output", str(tmp_path / "one")])
    written = json.loads((tmp_path / "one" / "report.json").read_text())
    assert written["scenes"] == 2 and written == report
    assert set(written["scores"]) == {"covered", "all"}
    assert set(written["doses"]["table"]) == {"no change", "shift 4 m", "other scene"} and set(
        written["kernel_distance"]
    ) == {
        "vae",
        "generated",
    }
    assert (tmp_path / "one" / "judge" / "model.safetensors").is_file()
    assert "headline" in (tmp_path / "one" / "report.md").read_text()

    judge = str(tmp_path / "one" / "judge")
    swept = controllability.main(["sweep", *tiny, "--judge", judge, "--output", str(tmp_path / "sweep")])
    assert [entry["mpi_guidance_scale"] for entry in swept["settings"]] == [1.0, 2.0]
    command = ["arms", *tiny, "--judge", judge, "--output", str(tmp_path / "two")]
    first = controllability.main(command)
    assert set(first["rows"]) == {"real", "vae", "rgb_depth (0)", "categorical_spc4 (0)"}
    result = tmp_path / "two" / "rgb_depth-seed0" / "result.json"
    before = result.stat().st_mtime_ns
    second = controllability.main(command)
    assert result.stat().st_mtime_ns == before and second["rows"] == first["rows"]
