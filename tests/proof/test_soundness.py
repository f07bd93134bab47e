"""Of the networks and faults by which `python -m benchmarks.soundness` shows both error rates, one in a few."""

import pytest

from benchmarks.soundness.faults import FAULTS
from benchmarks.soundness.networks import NETWORKS
from benchmarks.soundness.proving import in_process, prove, rightly_named
from benchmarks.soundness.shipped import SHIPPED
from converter import Mapping

QUICK = ("lenet", "keras_style", "generator")
SMALL = [name for name, network in NETWORKS.items() if not network.real]
PLANTED = {fault.name: fault for fault in FAULTS}


def slow_but(name, quick):
    return name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [slow_but(name, QUICK) for name in SMALL])
def test_a_right_network_passes(name):
    network = NETWORKS[name]
    with in_process():
        passed, text, *_ = prove(network.pair(size=1), network.seeded_state(7), {}, "full")
    assert passed, text


@pytest.mark.parametrize("name", [slow_but(name, [*PLANTED][::40]) for name in [*PLANTED][::5]])
def test_a_fault_is_caught_and_its_place_named(name):
    fault = PLANTED[name]
    network = NETWORKS[fault.network]
    verify = "train" if fault.seen_by == "train" else "full"
    with in_process():
        passed, text, *_ = prove(fault.pair("soundness_fault"), network.seeded_state(1), {}, verify)
    assert not passed
    known = [path for path, _, _ in Mapping(network.rows).modules() if path]
    assert rightly_named(text, fault.places, [*dict.fromkeys(known), *network.outputs, "outputs"]), text


def test_a_picture_that_is_sampled_mostly_outside():
    """Four numbers in all are not zero in what reaches a layer, and hang on one coordinate: one draw says little."""
    one = SHIPPED["deformable_attention_2d"]
    with in_process():
        passed, text, *_ = prove(one.pair("sampled", None), one.seeded_state(6100020), one.options, "full", 6100020)
    assert passed, text
