"""The judge of `match` and `audit` on public ports, on matches and findings that are made up: no port is built."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.ports import __main__ as command
from benchmarks.ports import page, tables
from benchmarks.ports.faults import FAULTS, Fault, judge
from benchmarks.ports.pairs import PORTS
from benchmarks.ports.port import KINDS
from benchmarks.ports.scoring import score
from benchmarks.ports.truth import nearest
from converter.matching.rows import Fill, Link

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((3, 3)),
    "a.bias": RNG.standard_normal(3),
    "b.weight": RNG.standard_normal((3, 3)),
    "b.bias": RNG.standard_normal(3),
}
TRUTH = {
    "x.kernel": TENSORS["a.weight"].T,
    "x.bias": TENSORS["a.bias"],
    "y.kernel": TENSORS["b.weight"].T,
    "y.bias": TENSORS["b.bias"],
}
BUILT = {**{path: np.ones_like(value) for path, value in TRUTH.items()}, "table": np.arange(4.0)}
DENSE = (Fill(("weight",), ("kernel",), "o i -> i o"), Fill(("bias",), ("bias",), "o -> o"))


def link(torch, keras, status="proven", fills=DENSE):
    return Link(torch, keras, fills, status, "flow")


def scored(*links, truth=TRUTH):
    return score(links, TENSORS, BUILT, truth)


def test_a_match_that_is_right():
    found = scored(link("{a,b}", "{x,y}"))
    assert (found.whole, found.written, found.wrong, found.variables) == (True, 4, 0, 4)
    assert found.examples == found.beyond == []


def test_layers_exchanged_are_wrong():
    found = scored(link("{b,a}", "{x,y}"))
    assert (found.whole, found.written, found.wrong) == (False, 0, 4)


def test_a_square_kernel_that_is_not_turned_is_wrong():
    found = scored(link("a", "x", fills=(Fill(("weight",), ("kernel",), "o i -> o i"), DENSE[1])), link("b", "y"))
    assert (found.written, found.wrong) == (3, 1)
    assert found.examples == ["proven, wrong: x.kernel: a.weight [o i -> o i] flow"]


def test_what_is_not_proven_is_not_written():
    found = scored(link("{b,a}", "{x,y}", "proposed"))
    assert (found.written, found.wrong, found.counts["proposed"]) == (0, 0, {"right": 0, "wrong": 4, "refused": 0})


def test_variables_without_a_row_and_rows_that_say_nothing_are_refused():
    nothing = tuple(Fill((), (name,), "") for name in ("kernel", "bias"))
    found = scored(link("", "x", "ambiguous", nothing))
    assert found.counts["ambiguous"]["refused"] == found.counts["unmatched"]["refused"] == 2
    assert "unmatched, refused: y.kernel: has no row" in found.examples


def test_a_fill_that_cannot_be_done_is_refused_with_its_error():
    found = scored(
        link("a", "x", fills=(Fill(("weight",), ("bias",), "o i -> i o"), Fill(("no",), ("kernel",), "o -> o")))
    )
    assert found.counts["proven"]["refused"] == 2
    assert any("ValueError" in line for line in found.examples)
    assert any("KeyError 'a.no'" in line for line in found.examples)


def test_values_that_are_equal_by_bits_alone_are_right():
    truth = {"x.kernel": TRUTH["x.kernel"] + 1e-12}
    assert scored(link("a", "x", fills=DENSE[:1]), truth=truth).wrong == 1
    twins = {"x.bias": np.zeros(3), "y.bias": np.ones(3)}
    constant = link("", "x", fills=(Fill((), ("bias",), "= 0"),))
    as_built = link("", "y", fills=(Fill((), ("bias",), "= built"),))
    assert scored(constant, as_built, truth=twins).whole


def test_a_variable_that_the_truth_leaves_alone():
    assert scored(link("", "", fills=(Fill((), ("table",), "= built"),))).beyond == []
    assert scored(link("", "", fills=(Fill((), ("table",), "= 0"),))).beyond == ["table"]


def test_several_tensors_in_one_variable():
    built = {"qkv": np.zeros((3, 6))}
    truth = {"qkv": np.concatenate((TENSORS["a.weight"], TENSORS["b.weight"])).T}
    packed = link("", "", fills=(Fill(("a.weight", "b.weight"), ("qkv",), "q i, k i -> i (q + k)"),))
    assert score([packed], TENSORS, built, truth).whole
    turned = link("", "", fills=(Fill(("b.weight", "a.weight"), ("qkv",), "q i, k i -> i (q + k)"),))
    assert score([turned], TENSORS, built, truth).wrong == 1


FAULT = Fault("epsilon", "z_bert", ("norm", "encoder.0.LayerNorm"), "epsilon", lambda model: None)


def finding(layer, what="", cause=""):
    return SimpleNamespace(layer=layer, what=what, cause=cause, size=1.0)


def test_a_fault_that_is_named():
    for layer in ("norm", "encoder.0.LayerNorm", "encoder.0.LayerNorm | norm", "norm.gamma"):
        said = judge(FAULT, [finding(layer, cause="Epsilon 1e-3 for 1e-12")])
        assert (said.place, said.cause, said.others) == (True, True, [])


def test_a_fault_that_is_named_elsewhere_or_with_another_cause():
    said = judge(FAULT, [finding("norm2", cause="epsilon"), finding("norm", cause="a bias")], ["norm3: : "])
    assert (said.place, said.cause, said.others) == (True, False, ["norm2: : epsilon"])
    said = judge(FAULT, [finding("norm2"), finding("norm3")], ["norm3: : "])
    assert (said.place, said.cause, said.others) == (False, False, ["norm2: : "])


def test_the_faults_are_as_many_as_they_are_to_be():
    assert len(FAULTS) >= 40
    assert len({fault.kind for fault in FAULTS.values()}) >= 10
    assert len({fault.port for fault in FAULTS.values()}) == 4
    assert all(PORTS[fault.port].kind == "equal" and not PORTS[fault.port].heldout for fault in FAULTS.values())


def test_every_pair_that_is_not_equal_has_its_reason():
    assert all(port.kind in KINDS and bool(port.reason) == (port.kind != "equal") for port in PORTS.values())
    assert sum(not port.heldout for port in PORTS.values()) == 53


def test_outputs_are_compared_in_the_layout_that_is_nearest():
    theirs = RNG.standard_normal((1, 3, 4, 5))
    assert nearest([theirs + 5, theirs], np.moveaxis(theirs, 1, -1)) == 0
    assert nearest([theirs], theirs[..., :2]) is None
    mask = np.array([[1, 1, 0]])
    ours = np.where(mask[..., None], theirs.reshape(1, 3, 20), 9.0)
    assert nearest([theirs.reshape(1, 3, 20)], ours, mask) == 0
    assert nearest([theirs.reshape(1, 3, 20)], ours) > 0.1


def outcome(name, *links):
    found = scored(*links)
    return {
        "name": name,
        "counts": found.counts,
        "beyond": found.beyond,
        "examples": found.examples,
        "notes": [],
        "match_seconds": 1.0,
        "memory": {"parent": 2**20, "child": 2**20},
        "models": 2**20,
        "seconds": 1.0,
    }


def test_the_table_sums_pairs_that_are_alike():
    found = [
        outcome("z_bert", link("{a,b}", "{x,y}")),
        outcome("z_vit_t", link("{b,a}", "{x,y}")),
        {"name": "z_t5", "failed": "ValueError: no", "seconds": 1.0},
        outcome("tv_resnet50", link("a", "x")),
    ]
    text = tables.match(found)
    assert "| z_bert | equal | 4 of 4 | 0 |  |  | 0 | 1 | 2 (1) |  |" in text
    assert "| z_t5 | equal |  |  |  |  |  |  |  | ValueError: no |" in text
    # kind, pairs, fully mapped, variables, proven right, wrong, proposed right
    assert "| equal | 3 | 1 | 8 | 4 (50.0%) | 4 | 0 (0.0%) |" in text
    assert "z_vit_t:\n  proven, wrong: " in text


def test_the_table_of_an_audit():
    fault = next(iter(FAULTS.values()))
    usual = {"layer": "all", "what": "momentum", "cause": "0.999", "size": "0"}
    named = {"layer": fault.places[0], "what": "", "cause": "epsilon", "size": "1"}
    text = tables.audit(
        [
            {"name": fault.port, "findings": [usual], "seconds": 1.0},
            {"name": fault.name, "findings": [usual, named], "seconds": 1.0},
        ]
    )
    assert f"| {fault.port} | {fault.kind} | {fault.places[0]} | yes | yes | 0 |  |" in text
    assert "1 faults: 1 named at their layer, 1 with their cause" in text
    assert f"| {fault.port} | all: momentum: 0.999 |" in text


def test_a_run_goes_on_where_it_ended(monkeypatch, tmp_path):
    asked = []

    def alone(task, name):
        asked.append(name)
        return {"name": name, "seconds": 0.0}

    monkeypatch.setattr(command, "alone", alone)
    given = argparse.Namespace(task="truth", only=["=z_bert", "z_gpt"], held_out="without", json=tmp_path / "found")
    given.json.write_text(json.dumps({"name": "z_bert", "error": 1}) + "\n")
    assert [one["name"] for one in command.run(given)] == ["z_bert", "z_gpt2"]
    assert asked == ["z_gpt2"]
    assert command.run(given)[1]["name"] == "z_gpt2"
    assert asked == ["z_gpt2"]


@pytest.mark.parametrize(("held_out", "count"), [("without", 53), ("alone", len(PORTS) - 53), ("with", len(PORTS))])
def test_what_is_held_out_can_be_left_out(held_out, count):
    given = argparse.Namespace(task="match", only=None, held_out=held_out, json=None)
    assert len([*command.chosen(given)]) == count


def test_the_page_of_ports_counts_and_folds():
    finding = {"what": "result", "cause": "epsilon 0.001, torch 1e-05", "size": 2e-4}
    right = {"name": "z_a", "torch": "timm A", "keras": "z A", "versions": {"keras": "3.1"}, "judged": 4, "units": 5}
    found = [
        {**right, "findings": [], "outputs": [{"error": 1e-6, "own": None}]},
        {
            **right,
            "name": "z_b",
            "outputs": [],
            "findings": [
                {**finding, "layer": "bn1"},
                {**finding, "layer": "bn2", "size": None},
                {**finding, "layer": "bn3", "what": "configuration"},
            ],
        },
        {"name": "z_c", "failed": "no such file"},
    ]
    said = page.page(found)
    assert "with keras 3.1;" in said
    assert "| z_a | timm A | z A | 4 of 5 | 1e-06 |  |  |  |" in said
    assert "| z_b | timm A | z A | 4 of 5 |  |  | 2 | 1 |" in said
    assert "| z_c |  |  |  |  |  | no such file |  |" in said
    assert "- epsilon 0.001, torch 1e-05: 2 layers (`bn{1-2}`), results of another size" in said
    assert "- epsilon 0.001, torch 1e-05: 1 layer (`bn3`), in no result" in said
