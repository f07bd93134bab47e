"""The pickle reader builds what a state dict is made of, and runs nothing."""

import argparse
import io
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from converter.checkpoints.unpickle import Inert, StorageRef, TensorRef, load
from converter.errors import ConversionError
from tests.support.checkpoint_bytes import P


def loads(body: bytes) -> object:
    data = P.whole(body)
    return load(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1, "b": [1.5, None, True, ("x", b"y")]}, [], (), "é", 10**40, -7, [[[]]], {"a": {"b": {}}}],
    ids=repr,
)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(value, protocol):
    data = pickle.dumps(value, protocol)
    assert load(io.BytesIO(data), len(data)) == value


def test_a_state_dict():
    state = loads(P.table(("w", P.tensor((2, 2), (2, 1)))))
    assert state == {"w": TensorRef((2, 2), "float32", StorageRef("0", "float32", 4), 0, (2, 1))}


def test_an_ordered_dict_as_python_2_wrote_it():
    pairs = b"](" + b"](" + P.text("a") + P.number(1) + b"e" + b"e"
    assert loads(P.call("collections.OrderedDict", pairs)) == OrderedDict(a=1)


def test_keys_that_are_no_text_are_left_out():
    assert loads(P.table((P.number(1), P.number(2)), ("a", P.number(3)), (P.row(), P.NONE))) == {"a": 3}


def test_company_of_weights_becomes_inert():
    whole = {
        "args": argparse.Namespace(lr=0.1),
        "scalar": np.float32(3),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "set": {1, 2},
    }
    tree = load(io.BytesIO(pickle.dumps(whole, 2)), 10_000)
    assert tree["size"] == (2, 3)
    assert {name: type(value) for name, value in tree.items() if name != "size"} == dict.fromkeys(
        [name for name in whole if name != "size"], Inert
    )
    assert tree["args"].name == "argparse.Namespace"


class Reduced:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [exec, eval, getattr, __import__, print, open, sys.exit, torch.load])
def test_no_function_is_called_or_imported(function, protocol, monkeypatch):
    # Were it looked up in its module, this would end the process.
    data = pickle.dumps({"w": Reduced(function, "touched")}, protocol)
    with pytest.raises(ConversionError):
        load(io.BytesIO(data), len(data))


def test_nothing_is_imported():
    before = set(sys.modules)
    with pytest.raises(ConversionError, match=r"class antigravity\.x"):
        loads(P.call("antigravity.x"))
    assert loads(P.call("einops.x", P.NONE)) == Inert("einops.x")
    assert {"antigravity", "einops"} & set(sys.modules) == {"einops"} & before
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (P.call("torch.nn.modules.conv.Conv2d"), "class torch.nn.modules.conv.Conv2d, which could run code"),
        (P.call("torch.Tensor._make_subclass"), "class torch.Tensor._make_subclass"),
        (P.call("builtins.getattr", P.tensor(), P.text("data")), "class builtins.getattr, which could run code"),
        (P.text("x") + P.row() + b"R", "calls something that is not a function"),
        (P.tensor((2**63,), (1,)), "not a whole number from 0 that torch can count to"),
        (P.tensor((2**32, 2**32), (0, 0)), "more values than torch can count"),
        (P.tensor((1,) * 65, (1,) * 65), "at most 64"),
        (P.tensor((-1,), (1,)), "not a whole number"),
        (P.tensor(storage=P.NONE), "no storage"),
        (P.row(P.text("module"), P.NONE) + b"Q", "not a storage"),
        (P.storage(kind="Size"), "type is not one"),
        (P.storage(key="k" * 101), "key or size"),
        (P.call("torch._utils._rebuild_tensor_v2"), "broken (TypeError)"),
        (P.call("torch._utils._rebuild_tensor_v2", *[P.NONE] * 17), "at most 16"),
        (P.call("torch._utils._rebuild_parameter", P.NONE), "not made of a tensor"),
        (P.call("torch._tensor._rebuild_from_type_v2", P.NONE, P.NONE, P.row()), "not built as tensors are"),
        (P.tensor() + P.EMPTY_DICT + b"b", "sets attributes on a tensor"),
        (P.table(("a", P.NONE), ("a", P.NONE)), "the key a stands twice"),
        (b"V touch\n", "an instruction that weights never need"),
        (b"\x82\x01", "an instruction that weights never need"),
        (b"", "broken"),
    ],
)
def test_what_is_refused_and_why(body, reason):
    with pytest.raises(ConversionError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        loads(body)


@pytest.mark.parametrize(
    "body",
    [
        P.call("torch._utils._rebuild_parameter", P.named("x.Own")),
        P.call("torch._tensor._rebuild_from_type_v2", P.named("x.rebuild"), P.named("x.Own"), P.row()),
        P.call("builtins.type", P.text("X")),
        P.call("x.Own", *[P.NONE] * 40),
    ],
)
def test_what_else_is_called_stays_a_name(body):
    assert isinstance(loads(body), Inert)


def test_a_name_within_a_name_within_a_name_does_not_grow():
    name = P.text("n" * 90)
    body = P.named("x.Own")
    for _ in range(50):
        body = P.named("builtins.getattr") + body + name + b"\x86R"
    assert loads(body) == Inert(("x.Own" + 50 * f".{90 * 'n'}")[:200])


def test_what_many_objects_share_is_looked_through_a_few_times_only():
    """A hundred thousand objects around one list of as many."""
    wide = P.keep(1, b"](" + b"N" * 100_000 + b"e")
    made = P.keep(2, P.named("x.Own"))
    tree = loads(wide + b"0" + made + b"0](" + b"h\2h\1\x85R" * 100_000 + b"e")
    assert len(tree) == 100_000


def test_a_subclass_is_built_as_its_function_says():
    parts = (P.number(0), P.numbers((4,)), P.numbers((1,)), b"\x89", P.call("collections.OrderedDict"))
    untyped = P.storage(count=16, kind="UntypedStorage").replace(b"ctorch\nUntyped", b"ctorch.storage\nUntyped")
    version_3 = P.row(untyped, *parts, P.named("torch.float32"))
    function = P.named("torch._utils._rebuild_tensor_v3")
    tensor = loads(P.call("torch._tensor._rebuild_from_type_v2", function, P.named("torch.Tensor"), version_3, P.NONE))
    assert tensor == TensorRef((4,), "float32", StorageRef("0", None, 16), 0, (1,))


@pytest.mark.parametrize("name", ["data", "real", "imag"])
def test_attributes_that_replace_the_values_are_a_problem(name):
    parts = (P.tensor(), P.TRUE, P.call("collections.OrderedDict"))
    harmless = P.table(("note", P.text("x")))
    replaced = P.row(P.table((name, P.tensor(offset=0))), P.NONE)
    rebuild = "torch._utils._rebuild_parameter_with_state"
    assert loads(P.call(rebuild, *parts, harmless)).problem is None  # type: ignore[attr-defined]
    assert "replaced" in loads(P.call(rebuild, *parts, replaced)).problem  # type: ignore[attr-defined]


def test_a_cut_pickle_is_refused_wherever_it_is_cut():
    whole = P.whole(P.table(("w", P.tensor())))
    for length in range(len(whole)):
        with pytest.raises(ConversionError):
            load(io.BytesIO(whole[:length]), length)
