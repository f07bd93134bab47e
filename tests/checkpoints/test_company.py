"""What training programs write beside the weights: noted by class, never built; and what no weights are among them."""

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import io
import pathlib
import pickle
import types

import numpy as np
import pytest
import torch
from torch import nn

import converter
import torch_refs
from converter.checkpoints.checkpoint import Checkpoint


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    lr: float = 1e-3
    path: pathlib.Path = pathlib.Path("/x")


class History(list):
    """As mmengine's HistoryBuffer: with arrays among its attributes."""

    def __init__(self):
        super().__init__([1.0, 2.0])
        self.values = np.arange(3.0)


class Made:
    """Of keyword arguments, and with items of its own."""

    def __new__(cls, *args, key=None):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (1,), {"key": 2}


COMPANY = {
    "enum": Color.RED,
    "dataclass": Config(),
    "namespace": argparse.Namespace(a=Color.RED, b=[Config()]),
    "simple": types.SimpleNamespace(a=1),
    "history": History(),
    "made": Made(),
    "partial": functools.partial(int, base=2),
    "path": pathlib.PurePosixPath("/x"),
    "delta": datetime.timedelta(1),
    "date": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "default": collections.defaultdict(int, {"a": 1}),
    "of lists": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("ab"),
    "deque": collections.deque([1, 2], 3),
    "complex": 1j,
    "slice": slice(1, 2),
    "range": range(3),
    "bytearray": bytearray(b"x" * 300),
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "extra state": io.BytesIO(b"ab"),
    "scalar": np.float64(0.5),
    "array": np.arange(4),
    "dtype": torch.float16,
    "text": "x" * 300,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", COMPANY)
def test_it_stands_aside(name, protocol, tmp_path):
    weights = nn.Linear(3, 2).state_dict()
    path = tmp_path / "ckpt.pth"
    protocol = max(protocol, 4) if name == "made" else protocol  # below, Python asks for `getattr`
    torch.save({"state_dict": weights, "company": {"x": [COMPANY[name]]}, "more": COMPANY[name]}, path,
               pickle_protocol=protocol)  # fmt: skip
    with Checkpoint(path) as checkpoint:
        assert list(checkpoint.states) == ["state_dict"]
        for key, tensor in weights.items():
            np.testing.assert_array_equal(checkpoint.read(checkpoint.states["state_dict"][key]), tensor)
        own = [note for note in checkpoint.notes if "classes" in note]
    assert bool(own) == (type(COMPANY[name]).__module__ == __name__ or name == "namespace")
    assert all(f"{__name__}." in note and "nothing of it run" in note for note in own)


def test_nothing_of_it_is_run(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(Made, "__new__", lambda *_, **__: called.append("new"))
    monkeypatch.setattr(Config, "__setstate__", lambda *_: called.append("set"), raising=False)
    torch.save({"w": torch.zeros(2), "cfg": Config()}, tmp_path / "ckpt.pth")
    converter.inspect(tmp_path / "ckpt.pth")
    assert not called


def test_a_whole_model_is_no_state_dict(tmp_path):
    torch.save(Config(), tmp_path / "ckpt.pth")
    told = r"it holds a .*Config, not a state dict of named tensors; save the weights alone: torch\.save\("
    with pytest.raises(converter.ConversionError, match=told):
        converter.inspect(tmp_path / "ckpt.pth")


@pytest.mark.parametrize(
    "wrong", ["os.system", "builtins.eval", "builtins.getattr", "subprocess.Popen", "numpy.load", "torch.load"]
)
def test_what_python_and_torch_have_and_weights_do_not_need_is_refused(wrong, tmp_path):
    module, _, name = wrong.rpartition(".")

    class Hostile:
        def __reduce__(self):
            return getattr(__import__(module, fromlist=[name]), name), ("touch /tmp/x",)

    torch.save({"w": torch.zeros(2), "cfg": Hostile()}, tmp_path / "ckpt.pth")
    with pytest.raises(converter.ConversionError, match="which could run code"):
        converter.inspect(tmp_path / "ckpt.pth")


def test_a_value_that_claims_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "ckpt.pth"
    torch.save({"w": torch.zeros(2), "b": bytearray(b"y" * 300)}, path, pickle_protocol=5,
               _use_new_zipfile_serialization=False)  # fmt: skip
    data = path.read_bytes()
    at = data.index(pickle.BYTEARRAY8 + (300).to_bytes(8, "little"))
    path.write_bytes(data[: at + 1] + (1 << 40).to_bytes(8, "little") + data[at + 9 :])
    with pytest.raises(converter.ConversionError, match="longer than the file"):
        converter.inspect(path)


@pytest.mark.parametrize("model", ["auto", "sam_decoder"])
def test_placeholders_of_a_run_in_parts_are_told_how_to_be_joined(model, tmp_path):
    state = {name: torch.zeros(0) for name in torch_refs.create("sam_decoder").state_dict()}
    torch.save({"module": state, "ds_version": "0.15"}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(converter.ConversionError, match=r"hold no values, .*python zero_to_fp32\.py \. one\.pth"):
        converter.plan(model, tmp_path / "mp_rank_00_model_states.pt")


class Sharded:
    """As torch pickles a DTensor."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        made = (Sharded, self.tensor.dtype, self.tensor.shape, self.tensor.stride(), 0, torch.strided,
                torch.device("cpu"), False)  # fmt: skip
        state = {"_local_tensor": self.tensor, "_spec": None}
        return torch._tensor._rebuild_from_type_v2, (torch._utils._rebuild_wrapper_subclass, Sharded, made, state)


def test_a_distributed_tensor_is_told_how_to_be_gathered(tmp_path):
    torch.save({"l.weight": Sharded(torch.zeros(4, 3)), "l.bias": torch.zeros(4)}, tmp_path / "ckpt.pth")
    with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
        entry = checkpoint.states[""]["l.weight"]
        assert (entry.shape, entry.dtype) == ((4, 3), "float32")
        with pytest.raises(converter.ConversionError, match=r"a part of a DTensor.*full_state_dict=True"):
            checkpoint.read(entry)
