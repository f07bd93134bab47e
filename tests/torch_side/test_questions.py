"""One process of torch answers several questions about one network, and builds and fills it once."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from converter import ConversionError, Probe
from converter.torch_side.process import TorchProcess
from converter.torch_side.questions import Inventory, Proof, Record, Reference, Run, Source, Trace
from tests.support.one_process import OneProcess

BOTH = pytest.mark.parametrize("process", [TorchProcess, OneProcess])


class Network(nn.Module):
    """A layer that is called twice, an activation in place, a tensor of the network's own and a second result."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.again = self.first
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x, more=None):
        hidden = self.norm(self.first(x)).relu_()
        return {"sum": self.again(hidden[:, :3]) * self.scale + self.table, "rest": [hidden, more]}


def built(log):
    with open(log, "a") as file:
        file.write("built\n")
    return Network()


@pytest.fixture
def state():
    torch.manual_seed(3)
    values = Network().state_dict()
    drawn = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in values.items()}
    return {**drawn, "norm.bias": torch.zeros(4)}  # which a proof also tries with other values


@pytest.fixture
def reference(tmp_path, state):
    torch.save(state, tmp_path / "c.pth")
    sources = {name: Source(str(tmp_path / "c.pth"), "", name, None) for name in state}
    return Reference("network", functools.partial(built, str(tmp_path / "log")), {}, sources)


PROBE = Probe({"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)})


def torchs(state):
    network = Network().eval()
    network.load_state_dict(state)
    with torch.no_grad():
        return network, network(torch.from_numpy(PROBE.inputs["x"]))


@BOTH
def test_every_question_in_turn_of_one_process(process, reference, state, tmp_path):
    network, expected = torchs(state)
    with process() as side:

        def asked(question):
            side.ask(question)
            return list(side.answers())

        modules = asked(Inventory(reference))
        (outputs,) = asked(Run(reference, PROBE))
        records = asked(Record(reference, PROBE, frozenset({"", "first", "norm"})))
        steps = asked(Trace(reference, PROBE))
        proof = asked(Proof(reference, {"norm": (1.0,)}, [PROBE]))
        (after,) = asked(Run(reference, PROBE))
    assert len(proof) > 3
    assert (tmp_path / "log").read_text() == "built\n" * 3, "for all, for the proof's other values, and anew after it"

    assert [one.path for one in modules] == ["", "first", "norm", "again"]
    assert [one.same_as for one in modules] == [None, None, None, "first"]
    assert modules[1].kind == "torch.nn.modules.linear.Linear"
    assert modules[0].kind.endswith(".Network")
    assert modules[1].parameters == {"weight": ((4, 3), "float32"), "bias": ((4,), "float32")}
    assert modules[2].buffers["num_batches_tracked"] == ((), "int64")
    assert (list(modules[0].parameters), modules[0].buffers) == (["scale"], {})

    np.testing.assert_array_equal(outputs.value["sum"], expected["sum"])
    np.testing.assert_array_equal(after.value["sum"], outputs.value["sum"], "the proof leaves the weights as they were")
    assert outputs.value["rest"][1] is None

    assert [(one.path, one.index) for one in records] == [("first", 0), ("norm", 0), ("first", 1), ("", 0)]
    np.testing.assert_array_equal(records[0].args[0], PROBE.inputs["x"])
    normed = network.norm(torch.from_numpy(records[0].result)).detach()
    np.testing.assert_array_equal(records[1].result, normed, "as it was before the activation wrote into it")
    np.testing.assert_array_equal(records[2].args[0], normed.relu()[:, :3])
    np.testing.assert_array_equal(records[3].result["sum"], expected["sum"])

    assert [one.number for one in steps] == list(range(len(steps)))
    assert sum(one.operation == "addmm" for one in steps) == 2
    (first, second) = (one for one in steps if one.operation == "addmm")
    assert (first.module, second.module) == ("first", "first")
    assert first.reads[:2] == ("first.bias", "input x")
    (in_place,) = (one for one in steps if one.operation == "relu_")
    assert in_place.module == ""
    sliced = next(one for one in steps[in_place.number :] if in_place.number in one.reads)
    assert sliced.operation == "slice", "what reads the tensor later reads what was written into it"
    assert "scale" in {name for one in steps for name in one.reads}
    assert steps[-1].reads[1] == "table"
    assert steps[-1].shapes == ((2, 4),)


@BOTH
def test_a_failure_does_not_end_the_process(process, reference):
    wrong = Probe({"x": np.zeros((2, 5), np.float32)})
    with process() as side:
        for question in (Run(reference, wrong), Trace(reference, wrong), Record(reference, wrong, frozenset({"norm"}))):
            side.ask(question)
            with pytest.raises(ConversionError, match=r"the torch reference of network .* fails on its inputs, at .*"):
                list(side.answers())
        side.ask(Record(reference, PROBE, frozenset({"nowhere"})))
        with pytest.raises(ConversionError, match="the torch reference has no module nowhere"):
            list(side.answers())
        side.ask(Run(reference, PROBE))
        assert len(list(side.answers())) == 1


def test_another_network_takes_the_place(reference, tmp_path):
    other = Reference("network", functools.partial(built, str(tmp_path / "other")), {}, reference.sources)
    with OneProcess() as side:
        for one in (reference, other, reference):
            side.ask(Inventory(one))
            assert len(list(side.answers())) == 4
    assert (tmp_path / "log").read_text() == "built\n" * 2
