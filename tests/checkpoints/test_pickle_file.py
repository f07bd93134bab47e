"""Pickles of numpy arrays, as Detectron2 and PaddlePaddle write them: read as numpy reads them, and never run."""

import pickle
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch

import converter
from converter.checkpoints.checkpoint import Checkpoint
from tests.support.checkpoint_bytes import P

RNG = np.random.default_rng(0)
ARRAYS = {
    "dense": RNG.standard_normal((3, 4)).astype(np.float32),
    "long": RNG.standard_normal((300, 70)).astype(np.float32),  # longer than what is read at once
    "fortran": np.asfortranarray(RNG.standard_normal((3, 4, 5)).astype(np.float32)),
    "long fortran": np.asfortranarray(RNG.standard_normal((300, 70))),
    "moved axes": RNG.standard_normal((3, 4, 5)).astype(np.float32).transpose(1, 0, 2),
    "view": RNG.standard_normal((6, 8)).astype(np.float32)[::2, 1::3],
    "half": RNG.standard_normal(5).astype(np.float16),
    "bfloat16": RNG.standard_normal(5).astype(ml_dtypes.bfloat16),
    "big endian": RNG.standard_normal((2, 3)).astype(">f8"),
    "number": np.array(1.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "count": np.arange(3),
}


def written(tree: object, path, protocol: int = 4):
    path.write_bytes(pickle.dumps(tree, protocol))
    return path


def refused(path, *words: str) -> None:
    def read() -> None:
        with Checkpoint(path) as checkpoint:
            for entry in checkpoint.entries():
                checkpoint.read(entry)

    with pytest.raises(converter.ConversionError) as caught:
        read()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_as_numpy_reads_them(protocol, tmp_path):
    path = written({"model": ARRAYS, "__author__": "x", "matching_heuristics": True}, tmp_path / "r50.pkl", protocol)
    with Checkpoint(path) as checkpoint:
        assert (checkpoint.container, list(checkpoint.states)) == ("numpy pickle", ["model"])
        assert list(checkpoint.states["model"]) == list(ARRAYS)
        for name, entry in checkpoint.states["model"].items():
            expected = ARRAYS[name]
            values = checkpoint.read(entry)
            assert (entry.shape, entry.dtype) == (expected.shape, expected.dtype.newbyteorder("=").name), name
            assert values.dtype.isnative
            assert values.flags.c_contiguous
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_old_and_new_names_of_numpy(core, tmp_path):
    data = pickle.dumps({"w": ARRAYS["dense"]}, 3)
    ours = b"numpy._core." if b"numpy._core." in data else b"numpy.core."
    assert ours in data
    (tmp_path / "x.pkl").write_bytes(data.replace(ours, core.encode() + b"."))
    with Checkpoint(tmp_path / "x.pkl") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read(checkpoint.states[""]["w"]), ARRAYS["dense"])


def python_2(values: np.ndarray) -> bytes:
    """An array as cPickle of Python 2 writes it: its bytes are what that calls a string."""

    def string(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<I", len(data)) + data

    kind = (
        b"cnumpy\ndtype\n("
        + string(b"f4")
        + b"K\0K\1tR(K\3"
        + string(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    shape = b"(" + b"".join(b"M" + struct.pack("<H", n) for n in values.shape) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + string(b"b") + b"tR"
    return array + b"(K\1" + shape + kind + b"\x89" + string(values.tobytes()) + b"tb"


def test_pickles_of_python_2(tmp_path):
    state = {"conv1_w": ARRAYS["dense"], "fc_w": ARRAYS["long"], "ascii": np.zeros(4, np.float32)}
    state["utf-8"] = np.frombuffer("ähnlich.".encode()[:8], "<f4")
    rows = b"".join(b"U" + bytes([len(name)]) + name.encode() + python_2(values) for name, values in state.items())
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}U\x05blobs}(" + rows + b"us.")
    assert pickle.loads((tmp_path / "R-50.pkl").read_bytes(), encoding="latin1")["blobs"].keys() == state.keys()
    with Checkpoint(tmp_path / "R-50.pkl") as checkpoint:
        assert list(checkpoint.states["blobs"]) == list(state)
        for name, values in state.items():
            np.testing.assert_array_equal(checkpoint.read(checkpoint.states["blobs"][name]), values)


class Tensor:
    """As paddle pickles a tensor that stands in something else than a state dict."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def __reduce__(self):
        return tuple, ((self.name, self.values),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_parameters_of_paddle(protocol, tmp_path):
    state = OrderedDict(ARRAYS, **{"StructuredToParameterName@@": {"dense": "linear_0.w_0"}})
    nested = {"model": {"w": Tensor("linear_0.w_0", ARRAYS["dense"])}, "epoch": 3}
    for tree, key, name, values in ((state, "", "dense", ARRAYS["dense"]), (nested, "model", "w", ARRAYS["dense"])):
        with Checkpoint(written(tree, tmp_path / "x.pdparams", protocol)) as checkpoint:
            assert list(checkpoint.states) == [key]
            np.testing.assert_array_equal(checkpoint.read(checkpoint.states[key][name]), values)


def cut(name: str, values: np.ndarray, length: int) -> dict:
    """A parameter as paddle cuts it for protocol 2."""
    flat = values.reshape(-1)
    parts = {f"{name}@@.{i}": flat[start : start + length] for i, start in enumerate(range(0, flat.size, length))}
    return {**parts, "UnpackBigParamInfor@@": {name: {"OriginShape": values.shape, "slices": [*parts]}}}


def test_a_parameter_that_was_cut_is_whole_again(tmp_path):
    tree = {"b": np.ones(3, np.float32), **cut("w", ARRAYS["long"], 8000)}
    with Checkpoint(written(tree, tmp_path / "x.pdparams", 2)) as checkpoint:
        entry = checkpoint.states[""]["w"]
        assert list(checkpoint.states[""]) == ["b", "w"]
        assert (entry.shape, entry.dtype, entry.nbytes) == ((300, 70), "float32", 84000)
        np.testing.assert_array_equal(checkpoint.read(entry), ARRAYS["long"])
    del tree["w@@.1"]
    refused(written(tree, tmp_path / "x.pdparams", 2), "the parts of w are not all there")


def test_inspect_lists_them(tmp_path):
    path = written(
        {"model": {"w": np.zeros((2, 3), np.float16)}, "__author__": "me", "stats": [np.zeros(2)]}, tmp_path / "x.pkl"
    )
    held = converter.inspect(path)
    assert (held.container, [(row.name, row.shape, row.dtype) for row in held]) == (
        "numpy pickle",
        [("w", (2, 3), "float16")],
    )
    assert held.notes == (
        "not listed: stats, a list with 1 tensor (2)",
        "not listed: in the file itself, what is no tensor: __author__",
    )


def test_what_stands_beside_is_passed_over_and_what_runs_is_refused(tmp_path):
    import subprocess

    class Hostile:
        def __reduce__(self):
            return subprocess.call, (["touch", str(tmp_path / "ran")],)

    objects = np.array([1, "x"], object)
    with Checkpoint(
        written({"w": np.zeros(2), "names": objects, "n": np.float32(2)}, tmp_path / "x.pkl")
    ) as checkpoint:
        assert list(checkpoint.states[""]) == ["w"]
    for protocol in (2, 4):
        for thing in (Hostile(), np.array([Hostile()], object)):
            refused(
                written({"w": np.zeros(2), "h": thing}, tmp_path / "x.pkl", protocol), ".call, which could run code"
            )
    assert not (tmp_path / "ran").exists()


def array(shape: bytes, data: bytes, code: str = "f4") -> bytes:
    kind = P.call("numpy.dtype", P.text(code), P.number(0), P.number(1))
    made = P.call("numpy.core.multiarray._reconstruct", P.named("numpy.ndarray"), P.row(P.number(0)), P.text("b"))
    return made + P.row(P.number(1), shape, kind, b"\x89", data) + b"b"


LONG = b"B" + struct.pack("<I", 1 << 17) + bytes(1 << 17)


@pytest.mark.parametrize(
    ("shape", "data", "code", "words"),
    [
        (P.numbers((5,)), b"C\x10" + bytes(16), "f4", ("not as many as its shape needs", "damaged")),
        (P.numbers((1 << 14, 3)), LONG, "f4", ("not as many as its shape needs",)),
        (P.numbers((1 << 62,)), LONG, "f4", ("not as many as its shape needs",)),
        (P.numbers((1 << 62, 4)), LONG, "f4", ("more values than torch can count",)),
        (P.numbers((-4,)), LONG, "f4", ("not a whole number",)),
        (P.numbers((1,) * 65), LONG, "f4", ("at most 64",)),
        (P.numbers((4,)), P.NONE, "f4", ("not as many as its shape needs",)),
        (P.numbers((4,)), b"C\x10" + bytes(16), "x4", ("its dtype x4 is not known",)),
        (P.numbers((4,)), b"B" + struct.pack("<I", 1 << 31) + b"x", "f4", ("longer than the file",)),
        (P.numbers((2,)), b"\x8e" + struct.pack("<Q", 1 << 60), "f4", ("longer than the file",)),
    ],
)
def test_what_claims_other_values_than_it_holds_is_refused(shape, data, code, words, tmp_path):
    (tmp_path / "x.pkl").write_bytes(P.whole(P.table(("w", array(shape, data, code)))))
    refused(tmp_path / "x.pkl", *words)


def test_bytes_as_text_that_are_not_as_many(tmp_path):
    data = pickle.dumps({"w": ARRAYS["long"]}, 2)
    start = data.index(b"X", data.index(b"NNNJ")) + 5
    for place, byte in ((start + 500, b"\xff"), (data.index(b"M,\x01") + 1, b"+")):
        (tmp_path / "x.pkl").write_bytes(data[:place] + byte + data[place + 1 :])
        refused(tmp_path / "x.pkl", "its bytes are not as many as its shape needs")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_wherever_it_is_cut_it_is_refused(protocol, tmp_path):
    data = pickle.dumps({"w": ARRAYS["dense"], "v": ARRAYS["fortran"]}, protocol)
    for length in range(2, len(data), 7):
        (tmp_path / "x.pkl").write_bytes(data[:length])
        refused(tmp_path / "x.pkl")


def test_pickles_that_are_none_of_weights(tmp_path):
    refused(written({"a": 1}, tmp_path / "x.pkl"), "holds no named tensors")
    refused(written("text", tmp_path / "x.pkl"), "holds a str, not a state dict")
    refused(written(7, tmp_path / "x.pkl"), "not one that torch.save wrote")
    refused(written([np.zeros(2), np.zeros(3)], tmp_path / "x.pkl"), "a list of 2 bare tensors")
    refused(
        written({"w": torch.zeros(2)}, tmp_path / "x.pkl"), "pickled by pickle.dump", "torch.save(model.state_dict()"
    )
    refused(written({"w": np.zeros(2)}, tmp_path / "x.pkl", 0), "protocol 0", "pickle.dump(state, file, 4)")
