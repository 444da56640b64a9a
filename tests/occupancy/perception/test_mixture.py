"""Training on several data roots: what is drawn, that roots which share all tokens stay apart, what is refused."""

import itertools
import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_scene import write_planes
from PIL import Image
from small_drives import CAR, FREE, ROAD, relabel, write_drives

from syntheocc.commands.occupancy import repeats_joined
from syntheocc.engine.batch import derive_batch
from syntheocc.engine.files import atomic_write_text
from syntheocc.engine.loading import BadSample, RankBatches
from syntheocc.engine.samplers import EpochSampler
from syntheocc.engine.trackers import read_log
from syntheocc.occupancy.data.generated import edited_samples, manifest_path
from syntheocc.occupancy.data.infos_writing import write_infos
from syntheocc.occupancy.data.nuscenes_frames import read_nuscenes, write_nuscenes
from syntheocc.occupancy.data.occ3d import occ3d_path
from syntheocc.occupancy.perception import predict, train
from syntheocc.occupancy.perception.mixture import Mixture, root_key, samples_per_epoch, training_mixture
from syntheocc.occupancy.perception.registry import model_entry
from syntheocc.occupancy.perception.settings import TrainConfig

BUS, MANMADE = 3, 15


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def real(tmp_path_factory, camera_at):
    root = tmp_path_factory.mktemp("real") / "nuscenes"
    write_drives(root, camera_at, scenes=1, key_frames=2)
    return root


def twin_of(real, root, brightness=255, wall=MANMADE):
    """A root like a generated one: the same tokens, scenes and file names; other pictures, other labels."""
    shutil.copytree(real, root)
    for frame in read_nuscenes(root):
        for path in frame.image_paths.values():
            Image.new("RGB", (96, 54), (brightness,) * 3).save(path)
        labels = torch.full((200, 200, 16), FREE, dtype=torch.uint8)
        labels[120:140, :, 3:6] = wall
        relabel(root, frame, labels)
    return root


@pytest.fixture(scope="module")
def twin(real, tmp_path_factory):
    return twin_of(real, tmp_path_factory.mktemp("generated") / "nuscenes")


def settings(real, *extra, **more):
    fixed = {"preset": "tiny", "max_train_steps": 2, "global_batch_size": 2, "lr_warmup_steps": 1}
    return TrainConfig(**(fixed | {"dataroot": real, "extra_dataroot": extra, "label_mask": "none"} | more))


def mixture(real, *extra, model="sparseocc", **more):
    config = settings(real, *extra, **more)
    entry = model_entry(model)
    model_config, recipe = entry.preset(config.preset)
    return training_mixture(entry, entry.fit(model_config, config), recipe, config)


class Numbers:
    """A dataset of numbered frames whose rounds are shuffled, as those of the trainers."""

    def __init__(self, name, frames, rounds=3):
        self.name, self.rounds = name, rounds
        self.frames = [type("F", (), {"token": f"t{i}", "image_paths": {}})() for i in range(frames)]

    def __len__(self):
        return len(self.frames) * self.rounds

    def order(self, epoch):
        shuffled = np.random.default_rng(epoch).permutation(len(self.frames))
        return [int(i) + epoch % self.rounds * len(self.frames) for i in shuffled]


def numbers(sizes, tmp_path, **ratio):
    data = [Numbers(str(i), n) for i, n in enumerate(sizes)]
    return Mixture(data, [tmp_path / d.name for d in data], samples_per_epoch(sizes, **ratio), seed=5)


class TestRatio:
    def test_samples_of_an_epoch(self):
        assert samples_per_epoch([10, 4]) == [10, 4]
        assert samples_per_epoch([10, 4, 6], repeat=[0.5]) == [10, 2, 3]
        assert samples_per_epoch([10, 4, 6], repeat=[3, 0.5]) == [10, 12, 3]
        # 0.2 and 0.3 of all samples leave half of them to the ten frames of the first root
        assert samples_per_epoch([10, 4, 999], share=[0.2, 0.3]) == [10, 4, 6]
        assert samples_per_epoch([9, 1], share=[0.3]) == [9, Fraction(27, 7)]
        with pytest.raises(ValueError, match="extra_dataroot 1: 0.5 samples an epoch of 10 .*larger extra_repeat"):
            samples_per_epoch([10, 2], repeat=[0.25])
        # Before an order is made of it, which would fill the memory.
        with pytest.raises(ValueError, match="extra_dataroot 2: 4e.12 samples an epoch of 10 .*smaller extra_repeat"):
            samples_per_epoch([10, 2, 4], repeat=[1, 1e12])
        with pytest.raises(ValueError, match="smaller extra_share"):
            samples_per_epoch([10, 2], share=[0.9999999])
        assert samples_per_epoch([10, 20_000_000]) == [10, 20_000_000]

    @pytest.mark.parametrize(
        "ratio", [{}, {"repeat": [0.4]}, {"repeat": [2.5, 1]}, {"share": [0.3, 0.21]}, {"share": [0.9, 0.05]}]
    )
    def test_frames_of_a_root_are_seen_equally_often(self, ratio, tmp_path):
        sizes = [7, 5, 11]
        mixed = numbers(sizes, tmp_path, **ratio)
        seen = Counter()
        for epoch in range(8):
            order = mixed.order(epoch)
            assert order == mixed.order(epoch)  # of the number alone
            of_root = Counter(mixed.source_of(i) for i in order)
            assert of_root[0] == 7
            for root, wanted in enumerate(mixed.per_epoch):
                assert abs(of_root[root] - wanted) < 1
            for i in order:
                root = mixed.source_of(i)
                seen[root, (i - mixed._starts[root]) % sizes[root]] += 1
        for root, size in enumerate(sizes):
            counts = [seen[root, frame] for frame in range(size)]
            assert max(counts) - min(counts) <= 1
            assert abs(sum(counts) - 8 * mixed.per_epoch[root]) < 1
        assert mixed.order(0) != mixed.order(1)
        # Roots are mixed throughout, not one after the other.
        assert len({mixed.source_of(i) for i in mixed.order(0)[:7]}) > 1

    def test_a_frame_that_comes_twice_is_drawn_anew(self, tmp_path):
        order = numbers([2, 3], tmp_path, repeat=[3]).order(0)
        assert len(order) == len(set(order)) == 2 + 9

    @pytest.mark.parametrize("world", [2, 4])
    def test_ranks_share_the_order_and_a_resumed_run_goes_on_with_it(self, world, tmp_path):
        def steps(ranks, done=0, count=6):
            found = []
            for rank in range(ranks):
                mixed = numbers([7, 5, 11], tmp_path, share=[0.3, 0.21])
                sampler = EpochSampler(len(mixed), 1, mixed.order, mixed.names, mixed.sources)
                sampler.advance(8 * done)
                resumed = EpochSampler(len(mixed), 1, mixed.order, mixed.names, mixed.sources)
                resumed.load_state_dict(sampler.state_dict())
                assert resumed.fingerprint() == sampler.fingerprint()
                found.append(list(itertools.islice(RankBatches(resumed, derive_batch(8, ranks), rank), count)))
            return [sum(parts, []) for parts in zip(*found, strict=True)]

        alone = steps(1, count=9)
        assert steps(world) == alone[:6]
        assert steps(world, done=3) == alone[3:]


class TestRootsStayApart:
    def test_pictures_history_and_labels_are_of_ones_own_root(self, real, twin):
        data = mixture(real, twin, frames_per_sample=2)
        assert [frame.token for frame in data.frames] == ["s0f0", "s0f1"] * 2
        for index in data.order(0) + data.order(1):
            sample = data[index]
            # Both images of a sample, the older one too, are bright in the twin and noise in the original.
            spread = [float(image.float().std()) for image in sample.images[0]]
            assert len(spread) == 2
            found = set(sample.semantics.unique().tolist())
            if data.source_of(index):
                assert max(spread) < 1 and MANMADE in found and not found & {CAR, ROAD}
                assert sample.tokens[0].startswith(f"{twin}:s0f")
            else:
                assert min(spread) > 10 and MANMADE not in found and ROAD in found
                assert sample.tokens[0] in ("s0f0", "s0f1")
        # A twin is not mirrored and turned as its original is.
        turns = [data[i].grid_transforms for i in (0, data._starts[1])]
        assert not torch.equal(*turns)

    def test_the_first_root_alone_is_as_ever(self, real, twin, tmp_path, monkeypatch):
        """Nothing of a run without extra roots has changed: names, order, sources."""
        from syntheocc.occupancy.perception import train as module

        made = []
        monkeypatch.setattr(module, "run_loop", lambda config, **given: made.append(given))
        train.train(settings(real, output_dir=tmp_path))
        (given,) = made
        assert given["sampler"].sources == {} and given["sampler"]._names == ["s0f0", "s0f1"]
        assert not isinstance(given["dataset"], Mixture)

    def test_a_bad_sample_is_named_with_its_root(self, real, twin, tmp_path):
        broken = shutil.copytree(twin, tmp_path / "broken")
        frame = read_nuscenes(broken)[1]
        occ3d_path(broken / "gts", frame).write_bytes(b"none")
        data = mixture(real, broken)
        bad = [data[i] for i in data.order(0) if isinstance(data[i], BadSample)]
        assert [sample.token for sample in bad] == [f"{broken}:s0f1"] and str(broken) in bad[0].reason

    def test_a_picture_that_gives_an_error_is_no_reason_to_stop(self, real, tmp_path, monkeypatch):
        frames, read = read_nuscenes(real), Path.read_bytes
        whole, bad = root_key(real, frames), next(iter(frames[0].image_paths.values()))

        def failing(path):
            if path == bad:
                raise OSError(5, "Input/output error", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", failing)
        assert root_key(real, frames) != whole

    def test_infos_and_labels_of_each_root(self, real, twin, tmp_path):
        # The file that chooses frames of the first root chooses those of the other by its name there.
        for root in (real, twin):
            write_infos(root / "part.pkl", read_nuscenes(root)[:1], data_root=root)
        data = mixture(real, twin, info_path=(str(real / "part.pkl"),))
        assert [frame.token for frame in data.frames] == ["s0f0", "s0f0"]
        assert all(p.is_relative_to(twin) for p in data.frames[1].image_paths.values())
        # A pickle whose paths are relative serves both.
        data = mixture(real, twin, extra_info_path=(str(real / "part.pkl"),))
        assert [frame.token for frame in data.frames] == ["s0f0", "s0f1", "s0f0"]
        assert all(p.is_relative_to(twin) for p in data.frames[2].image_paths.values())
        labels = shutil.move(shutil.copytree(twin / "gts", tmp_path / "copied"), tmp_path / "elsewhere")
        given = {"extra_info_path": (str(twin / "named.pkl"),), "extra_labels_root": (labels,)}
        data = mixture(real, twin, info_path=(str(real / "part.pkl"),), **given)
        assert [frame.token for frame in data.frames] == ["s0f0", "s0f0", "s0f1"]
        assert str(data.datasets[1].labels.root) == str(labels)

    @pytest.mark.parametrize("given", ["tables", "infos"])
    def test_the_folder_one_works_in_is_one_of_the_roots(self, real, twin, given, monkeypatch):
        """Both name their pictures `samples/...`, which is there too where the work is done."""
        infos = {} if given == "tables" else {"info_path": (str(real / "named.pkl"),)}
        for here, other in ((real, twin), (twin, real)):
            monkeypatch.chdir(here)
            for roots in ((Path("."), other), (other, Path("."))):
                data = mixture(*roots, **infos)
                for root, one in zip(roots, data.datasets, strict=True):
                    paths = [path for frame in one.frames for path in frame.image_paths.values()]
                    assert paths and all(path.resolve().is_relative_to(root.resolve()) for path in paths)

    def test_the_same_folder_with_other_samples(self, real):
        for name, part in (("a", slice(0, 1)), ("b", slice(1, 2))):
            write_infos(real / f"{name}.pkl", read_nuscenes(real)[part], data_root=real)
        data = mixture(real, real, info_path=(str(real / "a.pkl"),), extra_info_path=(str(real / "b.pkl"),))
        assert [frame.token for frame in data.frames] == ["s0f0", "s0f1"]


def said(real, *extra, **more):
    with pytest.raises(ValueError) as caught:
        mixture(real, *extra, **more)
    return str(caught.value)


class TestRefusals:
    def test_folders(self, real, twin, tmp_path):
        nowhere = tmp_path / "nowhere"
        assert said(real, nowhere) == (
            f"--extra_dataroot {nowhere}: no such folder; give the one that holds samples/ (several: one flag each)"
        )
        nowhere.mkdir()
        assert "holds no folder with nuScenes tables" in said(real, twin, nowhere)
        write_nuscenes(nowhere, "v1.0-mini", [])
        assert "no frames" in said(real, twin, nowhere) and str(nowhere) in said(real, twin, nowhere)
        for twice in ((twin, twin), (real,), (twin, twin / ".." / twin.name)):
            assert f"--extra_dataroot {twice[-1]}: 2 samples of this folder are given twice, such as s0f0" in said(
                real, *twice
            )
        assert "part_10.pkl: no such info pickle; --info_path=" in said(
            real, twin, info_path=(str(shutil.copy(real / "named.pkl", tmp_path / "part_10.pkl")),)
        )

    def test_the_infos_of_the_original(self, real, twin, tmp_path):
        """They name the photographs by paths that exist: the generated pictures would never be seen."""
        paths = tmp_path / "absolute.pkl"
        write_infos(paths, read_nuscenes(real))
        assert "which is none of this root's" in said(real, twin, extra_info_path=(str(paths),))

    def test_labels(self, real, twin, tmp_path):
        bare = shutil.copytree(twin, tmp_path / "bare")
        shutil.move(bare / "gts", bare / "openocc_v2")
        text = said(real, bare)
        assert f"--extra_dataroot {bare}: holds no occ3d labels of its own (looked for {bare / 'gts'})" in text
        assert "it holds openocc_v2. All roots" in text
        shutil.rmtree(bare / "openocc_v2")
        (bare / "gts").mkdir()
        assert "none of 2 frames that were tried can be read; the last one, s0f1" in said(real, bare)
        assert "is not a folder" in said(real, bare, extra_labels_root=(tmp_path / "none",))
        # Another class table in a file that looks the same: what is free there is vegetation here.
        other = shutil.copytree(twin, tmp_path / "other")
        for frame in read_nuscenes(other):
            relabel(other, frame, torch.full((200, 200, 16), FREE - 1, dtype=torch.uint8))
        assert "no voxel of its labels is free (id 17 of occ3d" in said(real, other).lower()

    def test_another_grid(self, real, twin, tmp_path):
        coarse = shutil.copytree(twin, tmp_path / "coarse")
        for frame in read_nuscenes(coarse):
            path = occ3d_path(coarse / "gts", frame)
            with np.load(path) as arrays:
                half = {name: arrays[name][::2, ::2, ::2] for name in arrays.files}
            np.savez(path, **half)
        assert "has shape [100, 100, 8], want [200, 200, 16]" in said(real, coarse)

    def test_another_rig(self, real, twin, tmp_path):
        root = shutil.copytree(twin, tmp_path / "five")
        five = [f.select_cameras(f.cameras.names[:5]) for f in read_nuscenes(root)]
        write_infos(root / "named.pkl", five, data_root=root)
        text = said(real, root, info_path=(str(real / "named.pkl"),))
        assert "has the cameras CAM_FRONT" in text and "CAM_BACK_RIGHT, --dataroot" not in text
        small = twin_of(real, tmp_path / "small")
        for path in (small / "samples").glob("CAM_*/*.png"):
            Image.new("RGB", (48, 27)).save(path)
        assert "the picture has 27 x 48 pixels (height x width), its calibration is for 54 x 96" in said(real, small)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"extra_share": (0.5,)}, "extra_share has 1 values (0.5) for 2 extra_dataroot"),
            ({"extra_dataroot": ("a", "b", "c"), "extra_share": (0.7, 0.2, 0.1)}, "below 1 in all"),
            ({"extra_share": (0.5, 1.5)}, "below 1 in all"),
            ({"extra_share": (0.5, float("nan"))}, "extra_share is above 0"),
            ({"extra_share": (0.5, 0.0)}, "extra_share is above 0"),
            ({"extra_repeat": (0.0,)}, "extra_repeat is above 0"),
            ({"extra_repeat": (1.0,), "extra_share": (0.2, 0.2)}, "give one of them"),
            ({"extra_info_path": ("a",)}, "extra_info_path has 1 values (a) for 2"),
            ({"extra_dataroot": (), "extra_repeat": (2.0,)}, "for 0 extra_dataroot"),
        ],
    )
    def test_flags(self, real, given, message):
        with pytest.raises(ValueError) as caught:
            settings(real, **({"extra_dataroot": ("a", "b")} | given))
        assert message in str(caught.value)


class TestLidarTaughtModels:
    """Their labels are classified lidar points; the small drives have none."""

    @staticmethod
    def mixture(real, twin, **more):
        model = {"model": "occflownet", "preset": "occflownet_2d_flow_tiny", "lr_warmup_steps": 1}
        config = model_entry("occflownet").train_settings(
            dataroot=real, extra_dataroot=(twin,), max_train_steps=1, global_batch_size=1, **(model | more)
        )
        entry = model_entry("occflownet")
        model_config, recipe = entry.preset(config.preset)
        return training_mixture(entry, entry.fit(model_config, config), recipe, config)

    @pytest.fixture
    def lidar(self, real, tmp_path):
        """The drives with a sweep and its classes."""
        root = shutil.copytree(real, tmp_path / "lidar")
        for frame in read_nuscenes(root):
            points = np.tile(np.array([[0.0, 10.0, -1.0, 0.0, 0.0]], np.float32), (50, 1))
            points.tofile(frame.lidar_path)
            path = root / "lidarseg" / "v1.0-mini" / f"{frame.extras['lidar_token']}_lidarseg.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.full(50, 24, np.uint8).tofile(path)
        return root

    def test_a_root_with_lidar(self, lidar, tmp_path):
        twin = shutil.copytree(lidar, tmp_path / "twin")
        data = self.mixture(lidar, twin)
        assert all(data[i].rays is not None and len(data[i].rays.depth) for i in data.order(0))
        assert str(data.datasets[1].rays.lidar.root) == str(twin)

    def test_a_root_without_lidar_is_refused(self, lidar, twin):
        for allowed in (False, True):
            with pytest.raises(ValueError, match=f"--extra_dataroot {twin}: .*(lidar|LIDAR).*"):
                self.mixture(lidar, twin, allow_missing_lidar=allowed)

    def test_an_edited_set_is_refused(self, lidar, tmp_path):
        twin = shutil.copytree(lidar, tmp_path / "twin")
        line = '{"token": "s0f1", "recipe": {"name": "bus", "sha256": "0"}}\n'
        atomic_write_text(manifest_path(twin), '{"token": "s0f0", "recipe": null}\n' + line)
        assert edited_samples(twin) == {"s0f1": "bus"}
        for roots in ((lidar, twin), (twin, lidar)):  # an edited root is no better as the first one
            with pytest.raises(ValueError, match=f"1 samples of {twin} were generated from edited occupancy.* s0f1"):
                self.mixture(*roots)
        atomic_write_text(manifest_path(twin), "no json\n")
        with pytest.raises(ValueError, match="is no manifest of a generated data set"):
            self.mixture(lidar, twin)


def test_trees_of_scene_completion_are_mixed_too(tmp_path):
    roots = [tmp_path / name for name in "ab"]
    for root in roots:
        write_planes(root, "00", depth=True)
    shutil.rmtree(roots[1] / "sequences/00/image_3")
    given = {"model": "occdepth", "preset": "tiny", "max_train_steps": 1, "global_batch_size": 1}
    entry = model_entry("occdepth")
    config = entry.train_settings(dataroot=roots[0], extra_dataroot=(roots[1],), **given)
    with pytest.raises(ValueError, match=f"--extra_dataroot {roots[1]}: .*image_3"):
        training_mixture(entry, *entry.preset("tiny"), config)
    shutil.copytree(roots[0] / "sequences/00/image_3", roots[1] / "sequences/00/image_3")
    config = entry.train_settings(dataroot=roots[0], extra_dataroot=(roots[1],), **given)
    data = training_mixture(entry, *entry.preset("tiny"), config)
    batch = entry.collate([data[i] for i in sorted(data.order(0))])
    assert batch.tokens[2:] == [f"{roots[1]}:{token}" for token in batch.tokens[:2]] and len(batch) == 4


def test_a_model_is_trained_on_both_and_resumed_on_the_same_alone(real, twin, tmp_path, capsys):
    out = tmp_path / "out"
    given = [f"--dataroot={real}", f"--extra_dataroot={twin}", "--extra_share=0.5", "--label_mask=none"]
    given += ["--preset=tiny", "--global_batch_size=2", "--lr_warmup_steps=1", "--checkpointing_steps=1"]
    given += [f"--validation_info_path={real / 'named.pkl'}", "--validation_steps=2", "--validation_samples=1"]
    assert train.main([*given, f"--output_dir={out}", "--max_train_steps=1"]) == 0
    assert f"2 of 2 held-out frames are in {twin}" in capsys.readouterr().err
    assert len(read_log(out / "log.jsonl")) == 1 and (out / "model.safetensors").is_file()

    other = twin_of(real, tmp_path / "other" / "nuscenes", brightness=120)
    on = ["--resume_from_checkpoint=latest", f"--output_dir={out}", "--max_train_steps=2"]
    wrong = {
        "extra_dataroot 1: ": [given[0], f"--extra_dataroot={other}", *given[2:]],
        "extra_dataroot 2: None -> ": [*given[:2], f"--extra_dataroot={other}", "--extra_share=0.25", *given[2:]],
        "1 samples an epoch": [*given[:2], "--extra_repeat=0.5", *given[3:]],
        "extra_dataroot 1: 2 frames, 2 samples an epoch, key ": [given[0], *given[3:]],
    }
    for message, flags in wrong.items():
        assert train.main([*flags, *on]) == 1
        text = capsys.readouterr().err
        assert "was trained on samples of other sources" in text and message in text
    moved = shutil.copytree(twin, tmp_path / "moved")  # where it lies does not matter
    assert train.main([given[0], f"--extra_dataroot={moved}", *given[2:-3], *on]) == 0
    assert len(read_log(out / "log.jsonl")) == 2


def test_predictions_of_a_generated_set_are_not_taken_for_the_originals(real, twin, tmp_path, capsys):
    from syntheocc.occupancy.perception.sparseocc import SparseOcc

    generated = shutil.copytree(twin, tmp_path / "generated")
    atomic_write_text(manifest_path(generated), '{"token": "s0f0"}\n')
    SparseOcc.from_preset("tiny").save_pretrained(tmp_path / "model")
    flags = [f"--weights={tmp_path / 'model'}", f"--output_dir={tmp_path / 'out'}", "--device=cpu", "--max_samples=1"]
    assert predict.main([f"--dataroot={real}", *flags]) == 0
    assert predict.main([f"--dataroot={generated}", *flags]) == 1
    assert "another generated data set; give another output_dir" in capsys.readouterr().err


def test_a_flag_may_come_several_times():
    joined = repeats_joined(TrainConfig, ["--extra-dataroot", "a", "--seed", "1", "--extra_dataroot=b", "--draft"])
    assert joined == ["--extra-dataroot", "a", "b", "--seed", "1", "--draft"]
    # of all others the last one counts, as scripts that pass "$@" behind their defaults expect
    for name in ("seed", "info_path"):
        assert repeats_joined(TrainConfig, [f"--{name}=1", f"--{name}=2"]) == [f"--{name}=1", f"--{name}=2"]
    flags = ["--extra_dataroot=a,b", "--extra_dataroot=c", "--info_path=a", "--info_path=b"]
    config = train.parse_flags(TrainConfig, flags, {})
    assert config.info_path == ("b",)
    assert [str(root) for root in config.extra_dataroot] == ["a", "b", "c"]
    assert replace(config, extra_repeat=(2.0,)).extra_repeat == (2.0,)


def test_an_extra_root_without_a_value_is_no_training_without_it(capsys):
    """So looks a variable of the shell that is not set."""
    for flags in (
        ["--extra-dataroot"],
        ["--extra-dataroot="],
        ["--extra-dataroot", ""],
        ["--extra-dataroot", "a", ""],
    ):
        with pytest.raises(ValueError, match="--extra-dataroot has no value"):
            repeats_joined(TrainConfig, ["--dataroot", "a", *flags, "--seed", "1"])
    for flags in (["--extra_dataroot="], ["--extra_dataroot=a", "--extra_dataroot", ""]):
        with pytest.raises(SystemExit):
            train.parse_flags(TrainConfig, flags, {})
        assert "--extra_dataroot: has no value; give one" in capsys.readouterr().err
