"""What training programs write beside the weights: noted by class, never built; and what no weights are among them."""

import argparse
import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import http
import io
import ipaddress
import itertools
import logging
import operator
import os
import pathlib
import pickle
import random
import re
import signal
import string
import time
import types
import typing
import urllib.parse
import uuid
import zoneinfo

import numpy as np
import pytest
import torch
from torch import nn

import converter
import torch_refs
from converter.checkpoints.checkpoint import Checkpoint

WEIGHTS = torch_refs.create("sam_decoder").state_dict()
Wide = typing.NamedTuple("Wide", [(f"f{i}", int) for i in range(40)])


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    lr: float = 1e-3
    path: pathlib.Path = pathlib.Path("/x")

    class Inner:
        pass

    class Mode(enum.Enum):
        TRAIN = 1


class History(list):
    """As mmengine's HistoryBuffer: with arrays among its attributes."""

    def __init__(self):
        super().__init__([1.0, 2.0])
        self.values = np.arange(3.0)


class SmallText(str):
    pass


class Whole(int):
    pass


class OwnDict(dict):
    pass


class OwnOrdered(collections.OrderedDict):
    pass


class Named(typing.NamedTuple):
    a: object
    b: object


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Color = Color.RED


def of_the_program():
    pass


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
    "strings": SmallText("x"),
    "an int": Whole(3),
    "named tuple": Named(1, Named(2, 3)),
    "of the program": OwnDict(a=OwnDict(b=1)),
    "ordered": OwnOrdered(a=1),
    "nested class": Config.Inner(),
    "enum within a class": Config.Mode.TRAIN,
    "frozen": Frozen(),
    "tuple of configurations": (Config(), Frozen(), argparse.Namespace(a=1)),
    "keys of all sorts": {0: 1, (1, 2): 3, Color.RED: 4, None: 5, b"x": 6},
    "function": of_the_program,
    "class": Config,
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 2),
    "uuid": uuid.UUID(int=1),
    "pattern": re.compile("x"),
    "zone": zoneinfo.ZoneInfo("UTC"),
    "typing": typing.ClassVar[int],
    "alias": list[int],
    "union": int | str,
    "ellipsis": ...,
    "address": ipaddress.ip_address("1.2.3.4"),
    "numbers": array.array("f", [1, 2]),
    "chain": collections.ChainMap({"a": 1}),
    "user dict": collections.UserDict(a=1),
    "template": string.Template("x"),
    "when": time.gmtime(0),
    "logger": logging.getLogger("x"),
    "getter": operator.itemgetter(1),
    "whole numbers": 10**400,
    "text of a day": np.datetime64("2020-01-01"),
    "structures": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "objects": np.array([1, "x", None], object),
    "numpy type": np.float32,
    "numpy generator": np.random.default_rng(0),
    "numpy state": np.random.RandomState(0).get_state(),
    "random state": random.Random(0).getstate(),
    "size": torch.Size([1, 2]),
    "device": torch.device("cpu"),
    "version": torch.__version__,
    "partial of a layer": functools.partial(nn.LayerNorm, eps=1e-6),
    "activation": torch.nn.functional.gelu,
    "operation": torch.relu,
    "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1),
    "scaler": torch.amp.GradScaler("cpu").state_dict(),
}
# What is told of by its class, as are those of the program: it is not usual, and may be anything.
RARE = {
    "exception": (lambda: ValueError("x"), "ValueError"),
    "status": (lambda: http.HTTPStatus.OK, "http.HTTPStatus"),
    "flags": (lambda: re.IGNORECASE, "re.RegexFlag"),
    "signal": (lambda: signal.SIGTERM, "signal.Signals"),
    "partial of print": (lambda: functools.partial(print), "print"),
    "built in": (lambda: max, "max"),
    "counting": (lambda: itertools.count(3), "itertools.count"),
    "address": (lambda: urllib.parse.urlparse("http://a"), "ParseResult"),
    "of a file": (lambda: os.stat("/"), "os.stat_result"),
    "masked": (lambda: np.ma.array([1, 2], mask=[0, 1]), "numpy.ma"),
    "matrix": (lambda: np.matrix([1]), "numpy.matrix"),
    "records": (lambda: np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "numpy.rec"),
    "context": (lambda: decimal.Context(), "decimal.DivisionByZero"),
    "distribution": (lambda: torch.distributions.Normal(0.0, 1.0), "torch.distributions.normal.Normal"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2)]), "torch._utils._rebuild_nested_tensor"),
    "loss": (lambda: nn.CrossEntropyLoss(), "torch.nn.modules.loss.CrossEntropyLoss"),
    "many fields": (lambda: Wide(*range(40)), "Wide"),
}


@pytest.mark.filterwarnings(
    "ignore:.*nested tensors:UserWarning", "ignore:the matrix subclass:PendingDeprecationWarning"
)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", RARE)
def test_what_is_rare_stands_aside_and_is_named(name, protocol, tmp_path):
    make, called = RARE[name]
    torch.save({"model": WEIGHTS, "x": [make()]}, tmp_path / "ckpt.pth", pickle_protocol=protocol)
    with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
        assert list(checkpoint.states) == ["model"]
        assert any(note.startswith("not read, and nothing of it run: ") and called in note for note in checkpoint.notes)
    assert converter.plan("auto", tmp_path / "ckpt.pth").tensors == len(WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_parameters_of_a_module_are_no_tensors_of_the_file(protocol, tmp_path):
    company = {"model": WEIGHTS, "criterion": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))}
    torch.save(company, tmp_path / "ckpt.pth", pickle_protocol=protocol)
    with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
        assert {name: [*state] for name, state in checkpoint.states.items()} == {"model": [*WEIGHTS]}
        told = (
            "not read: tensors inside objects that are not built: "
            "5 in torch.nn.modules.batchnorm.BatchNorm1d, 2 in torch.nn.modules.linear.Linear"
        )
        assert told in checkpoint.notes
    with pytest.raises(converter.ConversionError, match=r"l\.0 stands among the weights and is an object of class"):
        planned({**WEIGHTS, "l.0": nn.Linear(2, 2)}, tmp_path / "ckpt.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_refused(zipped, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "ckpt.pth", _use_new_zipfile_serialization=zipped)
    told = r"class torch\.nn\.modules\.linear\.Linear, which could run code; save the weights alone"
    with pytest.raises(converter.ConversionError, match=told):
        converter.inspect(tmp_path / "ckpt.pth")


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
    data = pickle.dumps(COMPANY[name], protocol)
    assert bool(own) == (__name__.encode() in data and name not in ("of the program", "ordered"))
    assert all(f"{__name__}." in note and "nothing of it run" in note for note in own)


def test_nothing_of_it_is_run(tmp_path, monkeypatch):
    called = []
    things = {"cfg": Config(), "made": Made()}
    torch.save({"w": torch.zeros(2), **things}, tmp_path / "ckpt.pth", pickle_protocol=4)
    monkeypatch.setattr(Made, "__new__", lambda *_, **__: called.append("new"))
    monkeypatch.setattr(Config, "__setstate__", lambda *_: called.append("set"), raising=False)
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
def test_what_python_and_torch_can_be_asked_to_do_is_refused_wherever_it_stands(wrong, tmp_path):
    module, _, name = wrong.rpartition(".")

    class Hostile:
        def __reduce__(self):
            return getattr(__import__(module, fromlist=[name]), name), (f"touch {tmp_path / 'run'}",)

    for held in ({"w": torch.zeros(2), "cfg": Hostile()}, {"w": torch.zeros(2), "l.w": Hostile()}, Hostile()):
        torch.save(held, tmp_path / "ckpt.pth")
        with pytest.raises(converter.ConversionError, match="which could run code; save the weights alone"):
            converter.inspect(tmp_path / "ckpt.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pth"]


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
        made = (type(self), self.tensor.dtype, self.tensor.shape, self.tensor.stride(), 0, torch.strided,
                torch.device("cpu"), False)  # fmt: skip
        state = {"_local_tensor": self.tensor, "_spec": None}
        return torch._tensor._rebuild_from_type_v2, (torch._utils._rebuild_wrapper_subclass, type(self), made, state)


class ShardedTensor(Sharded):
    pass


@pytest.mark.parametrize(("make", "kind"), [(Sharded, "DTensor"), (ShardedTensor, "ShardedTensor")])
def test_a_distributed_tensor_is_told_how_to_be_gathered(make, kind, tmp_path):
    torch.save({"l.weight": make(torch.zeros(4, 3)), "l.bias": torch.zeros(4)}, tmp_path / "ckpt.pth")
    with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
        entry = checkpoint.states[""]["l.weight"]
        assert (entry.shape, entry.dtype) == ((4, 3), "float32")
        with pytest.raises(converter.ConversionError, match=rf"a part of a {kind}: .*full_state_dict=True"):
            checkpoint.read(entry)


def planned(state, path, model="sam_decoder"):
    torch.save(state, path)
    return converter.plan(model, path)


@pytest.mark.parametrize("model", ["auto", "sam_decoder"])
@pytest.mark.parametrize("name", ["mask_tokens.weight", "transformer.history"])
@pytest.mark.parametrize("thing", ["history", "enum", "dataclass", "namespace", "partial", "path", "delta", "numbers"])
def test_among_the_weights_it_is_refused(thing, name, model, tmp_path):
    told = re.escape(f"{name} stands among the weights and is an object of class ")
    with pytest.raises(converter.ConversionError, match=f"{told}.*, not a tensor; save the weights alone"):
        planned({**WEIGHTS, name: COMPANY[thing]}, tmp_path / "ckpt.pth", model)


@pytest.mark.parametrize("model", ["auto", "sam_decoder"])
@pytest.mark.parametrize(
    ("thing", "what"),
    [(np.zeros(3), "a numpy array"), ([1.0], "a list"), (3, "an int"), (None, "None"), ("x", "a str"), ((), "a tuple"),
     ({"a": torch.zeros(2)}, "a dict"), (OwnDict(a=1), "a dict"), (argparse.Namespace(), "an object of class")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_nothing_else_stands_under_the_name_of_a_tensor(thing, what, model, tmp_path):
    told = rf"mask_tokens\.weight stands among the weights and is {what}.*, not a tensor; save the weights alone"
    with pytest.raises(converter.ConversionError, match=told):
        planned({**WEIGHTS, "mask_tokens.weight": thing, "run.name": "x"}, tmp_path / "ckpt.pth", model)


def test_an_optional_tensor_that_is_none_is_no_tensor_left_out(tmp_path):
    state = torch_refs.create("deform_conv2d", in_channels=6, out_channels=8).state_dict()
    with pytest.raises(converter.ConversionError, match="bias stands among the weights and is an object of class"):
        planned({**state, "bias": Config()}, tmp_path / "ckpt.pth", "deform_conv2d")


def test_beside_the_tensors_it_is_passed_over(tmp_path):
    plan = planned({**WEIGHTS, "cfg": Config(), "epoch": 3, "run.name": "x"}, tmp_path / "ckpt.pth")
    assert plan.tensors == len(WEIGHTS)
    other = {**{f"mask_decoder.{name}": tensor for name, tensor in WEIGHTS.items()}, "image_encoder.x": Config()}
    assert planned(other, tmp_path / "ckpt.pth").tensors == len(WEIGHTS)


def test_what_torch_keeps_besides_tensors_is_passed_over_and_noted(tmp_path):
    """As TransformerEngine fills it, in its releases: bytes, a buffer, a tensor of bytes, nothing."""
    extra = [b"x", io.BytesIO(b"x"), torch.zeros(5, dtype=torch.uint8), None, bytearray(b"x" * 300), Config()]
    state = {**WEIGHTS, **{f"transformer.layers.{i}._extra_state": one for i, one in enumerate(extra)}}
    assert planned(state, tmp_path / "ckpt.pth").tensors == len(WEIGHTS)
    held = converter.inspect(tmp_path / "ckpt.pth")
    assert len(held) == len(WEIGHTS)
    told = "passed over: transformer.layers.{0-5}._extra_state, where torch keeps what a module has besides tensors"
    assert told in held.notes


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "make",
    [OwnOrdered, OwnDict, collections.UserDict, lambda items: collections.defaultdict(int, items)],
    ids=["ordered", "own", "user", "default"],
)
def test_what_is_a_dict_is_read_as_one(make, protocol, tmp_path):
    for whole in ({"model": make(WEIGHTS), "epoch": 3}, make(WEIGHTS), make({"model": make(WEIGHTS)})):
        torch.save(whole, tmp_path / "ckpt.pth", pickle_protocol=protocol)
        with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
            [state] = checkpoint.states.values()
            assert [*state] == [*WEIGHTS]
            for name, entry in state.items():
                np.testing.assert_array_equal(checkpoint.read(entry), WEIGHTS[name])
            if make in (OwnOrdered, OwnDict):
                assert checkpoint.notes == [f"read as plain dicts: objects of {__name__}.{make.__name__}"]


def test_weights_inside_an_object_are_told_as_that(tmp_path):
    with pytest.raises(converter.ConversionError) as caught:
        planned({"state_dict": argparse.Namespace(**{"w": WEIGHTS})}, tmp_path / "ckpt.pth", "auto")
    inside = f"no named tensors, but tensors inside objects that are not built ({len(WEIGHTS)} in argparse.Namespace)"
    assert inside in str(caught.value)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)


def test_convert_tells_of_what_it_did_not_read(tmp_path):
    torch.save({"model": WEIGHTS, "ema": argparse.Namespace(shadow=WEIGHTS)}, tmp_path / "ckpt.pth")
    report = converter.convert("auto", tmp_path / "ckpt.pth", tmp_path / "o.weights.h5", "none")
    told = f"not read: tensors inside objects that are not built: {len(WEIGHTS)} in argparse.Namespace"
    assert told in report.notes


def test_inspect_tells_what_it_does_not_list(tmp_path):
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "state_dict": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5,
            "args": Config(),
            "ema": [torch.zeros(2, 3), torch.zeros(())], "stats": {"mean": np.zeros(3), "w": torch.zeros(1)},
        },
        tmp_path / "ckpt.pth",
    )  # fmt: skip
    held = converter.inspect(tmp_path / "ckpt.pth")
    assert [row.name for row in held] == ["state_dict.weight", "state_dict.bias", "stats.w"]
    assert [note.removeprefix("not listed: ") for note in held.notes if note.startswith("not listed: ")] == [
        "ema, a list with 2 tensors (2x3, a number)",
        "in the file itself, what is no tensor: epoch, best, args",
        "in optimizer, what is no tensor: param_groups",
        "in stats, numpy arrays: mean (3)",
        "in optimizer.state, 2 keys that are numbers (0, 1), with 6 tensors",
    ]


@pytest.mark.parametrize(
    ("tree", "rows", "told"),
    [
        (torch.zeros(2, 3), [("(the tensor)", (2, 3))], "one bare tensor"),
        ([torch.zeros(2), torch.zeros(1, 4)], [("0", (2,)), ("1", (1, 4))], "a list of 2 bare tensors"),
        ((torch.zeros(2),), [("0", (2,))], "a tuple of 1 bare tensor"),
        ({0: torch.zeros(2), 1: torch.zeros(3)}, [("0", (2,)), ("1", (3,))], "2 tensors without names"),
        ([{"w": torch.zeros(2)}], [("0.w", (2,))], "a list of 1 bare tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bare_tensors_are_listed_and_not_converted(tree, rows, told, tmp_path):
    torch.save(tree, tmp_path / "ckpt.pth")
    held = converter.inspect(tmp_path / "ckpt.pth")
    assert [(row.name, row.shape) for row in held] == rows
    with pytest.raises(converter.ConversionError, match=f"it holds {told}.*, not a state dict of named ones; save the"):
        converter.convert("sam_decoder", tmp_path / "ckpt.pth", tmp_path / "o.weights.h5")
