import json

import numpy as np
import pytest

from syntheocc.engine import files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "labels.npy"
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".npy"
        temporary.write_bytes(b"half a file")
        raise RuntimeError("the job died")
    assert list(target.parent.iterdir()) == []

    files.atomic_write_bytes(target, b"first")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the second")
        raise RuntimeError("the job died")
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


def test_writers_and_readers_agree(tmp_path):
    files.atomic_write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert files.read_json(tmp_path / "a.json") == {"x": [1, 2.5, None]}
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    files.atomic_write_npy(tmp_path / "a.npy", array)
    assert np.array_equal(files.read_npy(tmp_path / "a.npy"), array)
    files.atomic_write_npz(tmp_path / "a.npz", first=array, second=array.T)
    read = files.read_npz(tmp_path / "a.npz", ["first"])
    assert np.array_equal(read["second"], array.T)


def test_a_picture_is_written_in_the_format_of_its_suffix(tmp_path):
    from PIL import Image

    picture = np.zeros((2, 3, 3), np.uint8)
    picture[0, 2] = (255, 0, 128)
    files.atomic_write_image(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), picture)
    with pytest.raises(ValueError, match=r"float64 \[2, 3, 3\]"):
        files.atomic_write_image(tmp_path / "b.png", picture / 255)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"not numpy at all"]
)
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_numpy_files_are_named(tmp_path, damage, name):
    path = tmp_path / name
    if name == "a.npy":
        files.atomic_write_npy(path, np.arange(1000))
    else:
        files.atomic_write_npz(path, semantics=np.arange(1000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}.*truncated"):
        files.read_npy(path) if name == "a.npy" else files.read_npz(path, ["semantics"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a flipped dtype may be one that numpy gave up
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_flipped_bits_are_a_value_error_or_harmless(tmp_path, name):
    # zlib, zipfile, numpy's header parser and the allocator each complain in their own way
    path = tmp_path / name
    if name == "a.npy":
        files.atomic_write_npy(path, np.arange(40))
    else:
        files.atomic_write_npz(path, semantics=np.arange(1000) % 17)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            files.read_npy(path) if name == "a.npy" else files.read_npz(path, ["semantics"])
        except ValueError as error:
            refused += name in str(error)
    assert refused > 20


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    for read in (files.read_json, files.read_npy, lambda path: files.read_npz(path, [])):
        with pytest.raises(ValueError, match=f"{tmp_path.name}: is a directory"):
            read(tmp_path)


def test_readers_refuse_pickles_and_the_wrong_kind(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="o.npy"):
        files.read_npy(tmp_path / "o.npy")
    with pytest.raises(ValueError, match="Python objects"):
        files.atomic_write_npz(tmp_path / "o.npz", a=np.array([None]))
    files.atomic_write_npz(tmp_path / "a.npz", a=np.zeros(1))
    with pytest.raises(ValueError, match=r"lacks array\(s\) \['b'\], has \['a'\]"):
        files.read_npz(tmp_path / "a.npz", ["b"])
    with pytest.raises(ValueError, match="single .npy"):
        files.read_npy(tmp_path / "a.npz")
    files.atomic_write_npy(tmp_path / "a.npy", np.zeros(1))
    with pytest.raises(ValueError, match=".npz archive is expected"):
        files.read_npz(tmp_path / "a.npy", ["a"])


def test_missing_and_damaged_json_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.json: no such file"):
        files.read_json(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="nothing.npy: no such file"):
        files.read_npy(tmp_path / "nothing.npy")
    (tmp_path / "cut.json").write_text(json.dumps({"a": [1, 2, 3]})[:-4])
    with pytest.raises(ValueError, match="cut.json: not a JSON document"):
        files.read_json(tmp_path / "cut.json")
    with pytest.raises(ValueError, match="NaN"):
        files.atomic_write_json(tmp_path / "nan.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="nan.json.*not JSON serializable"):
        files.atomic_write_json(tmp_path / "nan.json", {"a": tmp_path})
    assert not (tmp_path / "nan.json").exists()
