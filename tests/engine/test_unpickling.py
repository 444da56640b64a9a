import collections
import copy
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from syntheocc.engine.unpickling import safe_load


class Attack:
    """Pickles to a call of whatever it is given."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def dump(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    value = {
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "names": np.array(["car", "bus"]),
        "objects": np.array(["car", None], dtype=object),
        "empty": np.zeros((0, 7)),
        "scalars": [np.float32(1.5), np.bool_(True), np.str_("x")],
        "containers": (1, [2], {3}, frozenset([4]), b"\xff", bytearray(b"a"), 1j, None),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, {"a": [1]}),
    }
    read = safe_load(dump(tmp_path / "a.pkl", value, protocol))
    for name in ("array", "fortran", "names", "objects", "empty"):
        assert np.array_equal(read[name], value[name]) and read[name].dtype == value[name].dtype
    for name in ("scalars", "containers", "ordered", "default"):
        assert read[name] == value[name]
    read["array"] += 1  # arrays are writable, whatever the protocol


def test_what_was_read_is_pickled_as_plain_arrays(tmp_path):
    read = safe_load(dump(tmp_path / "a.pkl", [np.arange(3), np.array(["a", None], dtype=object)]))
    again = pickle.dumps(copy.deepcopy(read))
    assert b"syntheocc" not in again and type(pickle.loads(again)[0]) is np.ndarray


@pytest.mark.parametrize("dtype", [">f4", ">i8", "<u2", ">U3", "S2", "?", "c16"])
def test_byte_orders_and_widths_are_kept(tmp_path, dtype):
    array = np.array(["1", "0"] if "U" in dtype or "S" in dtype else [1, 0]).astype(dtype)
    for protocol in (2, 5):
        read = safe_load(dump(tmp_path / "a.pkl", [array, array[0]], protocol))
        # older protocols swap to the machine's own order as they read
        assert read[0].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        assert read[0].tolist() == array.tolist() and read[1] == array[0]


def test_numpy_1_module_names_are_known(tmp_path):
    raw = pickle.dumps({"a": np.arange(3), "b": np.float64(2)}, protocol=2)
    assert b"numpy._core" in raw or b"numpy.core" in raw
    for spelling in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        path = tmp_path / "a.pkl"
        path.write_bytes(
            raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(
                b"numpy.core.multiarray", spelling
            )
        )
        read = safe_load(path)
        assert read["a"].tolist() == [0, 1, 2] and read["b"] == 2


@pytest.mark.parametrize(
    "value, wanted",
    [
        (Attack(os.system, "touch PWNED"), "system"),
        (Attack(eval, "1"), "eval"),
        (Attack(getattr, "x", "y"), "getattr"),
        (Attack(np.load, "x.npy"), "load"),
        (torch.nn.Linear(1, 1), "(torch|copy_reg)"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_by_name(tmp_path, monkeypatch, value, wanted, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"evil.pkl.*wants the global.*{wanted}.*save it again"):
        safe_load(dump(tmp_path / "evil.pkl", [value], protocol))
    assert not (tmp_path / "PWNED").exists()


def test_codec_tricks_are_refused(tmp_path):
    import _codecs

    with pytest.raises(ValueError, match="rot13"):
        safe_load(dump(tmp_path / "a.pkl", Attack(_codecs.encode, "abc", "rot13")))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


# Opcodes by hand: a dtype of objects whose state denies it (flags 0), so that numpy would take bytes for pointers.
POINTERS = b"B" + struct.pack("<I", 16) + struct.pack("<QQ", 0x4141, 0x4141)
LIAR = _global("numpy", "dtype") + b"(" + _text("O8") + b"\x89\x88tR(K\x03" + _text("|") + b"NNNJ\xff\xff\xff\xff"
LIAR += b"J\xff\xff\xff\xffK\x00tb"
EMPTY = _global("numpy.core.multiarray", "_reconstruct") + b"(" + _global("numpy", "ndarray") + b"(K\x00tC\x01btR"


@pytest.mark.parametrize(
    "opcodes",
    [
        EMPTY + b"(K\x01(K\x02t" + LIAR + b"\x89" + POINTERS + b"tb",
        _global("numpy.core.multiarray", "scalar") + b"(" + LIAR + POINTERS + b"tR",
        _global("numpy.core.numeric", "_frombuffer") + b"(" + POINTERS + LIAR + b"K\x02\x85" + _text("C") + b"tR",
        # the class itself, called with a buffer
        _global("numpy", "ndarray") + b"(K\x02\x85" + LIAR + POINTERS + b"tR",
        # fewer objects than the shape says
        EMPTY + b"(K\x01(K\x02t" + LIAR + b"\x89]tb",
        # records may hide objects
        _global("numpy", "dtype") + b"(" + _text("V8") + b"\x89\x88tR",
        # filled twice
        EMPTY + 2 * (b"(K\x01(K\x01t" + LIAR + b"\x89]Natb"),
    ],
    ids=["array", "scalar", "frombuffer", "class", "short list", "record", "twice"],
)
def test_arrays_that_would_turn_bytes_into_pointers_are_refused(tmp_path, opcodes):
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x03" + opcodes + b".")
    with pytest.raises(ValueError, match="evil.pkl: cannot be read as a pickle of plain data"):
        safe_load(path)


@pytest.mark.parametrize("raw", [b"", b"hello", pickle.dumps(list(range(1000)))[:-50]])
def test_damaged_pickles_are_named(tmp_path, raw):
    (tmp_path / "cut.pkl").write_bytes(raw)
    with pytest.raises(ValueError, match="cut.pkl: cannot be read"):
        safe_load(tmp_path / "cut.pkl")


def test_a_missing_pickle_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.pkl: no such file"):
        safe_load(tmp_path / "nothing.pkl")
    with pytest.raises(ValueError, match=f"{tmp_path.name}: is a directory"):
        safe_load(tmp_path)


@pytest.mark.real_data
def test_the_real_info_pickle_is_read(real_data):
    document = safe_load(real_data / "nuscenes_scene0061" / "info_mmdet3d_v1.1.pkl")
    assert len(document["data_list"][0]["instances"]) == 69
