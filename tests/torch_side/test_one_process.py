"""Torch's side answers alike in a child of its own and in the process of the tests, and leaves the latter as it was."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter.torch_side.answers import Whole
from converter.torch_side.process import TorchProcess
from converter.torch_side.questions import Proof, Reference, Source
from tests.support import smallest_pair
from tests.support.checkpoints import save
from tests.support.one_process import OneProcess
from tests.support.pairs import registered
from tests.support.small_sam import OPTIONS, decoder_state

BOTH = pytest.mark.parametrize("process", [TorchProcess, OneProcess])


class Drawn(nn.Module):
    """Its parameters are drawn when it is built, and it says how torch is set while it runs."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))
        self.drawn = torch.randn(4)

    def forward(self, x):
        set_so = [torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()]
        return x * self.w + self.drawn.to(x.dtype), torch.tensor(set_so, dtype=x.dtype)


class Failing(Drawn):
    def forward(self, x):
        raise RuntimeError("not today\nand more\n")


class Leaving(Drawn):
    def forward(self, x):
        os._exit(3)


def question(folder, build, name="w"):
    torch.save({"w": torch.arange(4.0)}, folder / "c.pth")
    sources = {name: Source(str(folder / "c.pth"), "", "w", None)}
    probes = smallest_pair.PAIR.probes({}, np.random.default_rng(0))
    return Proof(Reference("vector", build, {}, sources), {}, probes)


def asked(process, asking):
    with process() as side:
        side.ask(asking)
        return list(side.answers())


def parts(message):
    return [getattr(message, field.name) for field in dataclasses.fields(message)]


def flat(value):
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (tuple, list)):
        return [part for each in value for part in flat(each)]
    return [value]


def test_both_answer_the_same(tmp_path):
    ours, theirs = (asked(process, question(tmp_path, Drawn)) for process in (OneProcess, TorchProcess))
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    for one, other in zip(flat([*map(parts, ours)]), flat([*map(parts, theirs)]), strict=True):
        np.testing.assert_array_equal(one, other)
    runs = [one for one in ours if isinstance(one, Whole)]
    assert len(runs) == 2, "once more with another value for the zero"
    assert not any(flat(run.outputs)[1].any() for run in runs), "neither gradients nor the fast path"


@BOTH
def test_a_failure_is_one_line(process, tmp_path):
    with pytest.raises(converter.ConversionError, match=r"not today|and more"):
        asked(process, question(tmp_path, Failing))
    told = "the torch reference and the mapping do not name the same tensors: w"
    with pytest.raises(converter.ConversionError, match=told):
        asked(process, question(tmp_path, Drawn, name="v"))


def test_a_process_that_ends_is_told(tmp_path):
    with pytest.raises(converter.ConversionError, match="the torch reference failed: exit code 3"):
        asked(TorchProcess, question(tmp_path, Leaving))


def test_torch_stays_as_the_test_has_set_it(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with OneProcess() as side:
        side.ask(question(tmp_path, Drawn))
        for message in side.answers():
            assert dataclasses.is_dataclass(message)
            assert torch.is_grad_enabled()
            assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.child
def test_a_conversion_with_the_child(tmp_path):
    """And then without it: the same report, but for the seconds, and the same file."""
    assert converter.api.TorchProcess is TorchProcess
    checkpoint = save(decoder_state(), tmp_path)
    reports = []
    for folder, process in (("child", TorchProcess), ("one", OneProcess)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("converter.api.TorchProcess", process)
            output = tmp_path / folder / "o.weights.h5"
            reports.append(converter.convert("sam_decoder", checkpoint, output, options=OPTIONS))
    assert reports[0].numerical
    assert repr(reports[0].numerical) == repr(reports[1].numerical)
    assert (tmp_path / "child" / "o.weights.h5").read_bytes() == (tmp_path / "one" / "o.weights.h5").read_bytes()


def test_pairs_are_known_for_as_long_as_they_are_needed():
    known = converter.pairs.registry.names()
    with registered(smallest_pair.PAIR) as pair:
        assert pair is smallest_pair.PAIR
        other = dataclasses.replace(smallest_pair.PAIR, summary="another")
        with registered(other):
            assert converter.pairs.registry.get("vector") is other
        assert converter.pairs.registry.get("vector") is smallest_pair.PAIR
    assert converter.pairs.registry.names() == known
