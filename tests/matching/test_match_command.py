"""`weightbridge match` and `--plan`: what they ask of a search that is made by hand, print, write and refuse."""

import inspect
import json
import sys
from dataclasses import replace

import pytest
import torch

import converter
from converter import ConversionError, Match, UsageError
from converter.matching.builders import Builder
from converter.pages.match import match_page
from tests.support.checkpoints import save
from tests.support.matches import CONSTANT, PROVEN, a_match, all_proven, outcome
from tests.support.matching_commands import install
from tests.support.running import ROOT, run

NETS = """
def torch_net(width=1, **more):
    return "torch", width, more
def keras_net(size, classes=2):
    return "keras", size, classes
def plain():
    return "keras"
def give():
    return "inputs"
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with a module of builders and a checkpoint, in which one is."""
    (tmp_path / "nets.py").write_text(NETS)
    save({"w": torch.arange(4.0)}, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.fixture
def search(monkeypatch):
    """The search finds an outcome with open rows; the list of what it was called with."""
    for name in ("engine", "proposing", "arguments", "pairing"):
        monkeypatch.setitem(sys.modules, f"converter.matching.{name}", None)
    return install(outcome())


def command(*words, found="outcome", cwd):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.support.matching_commands import main; main()"
    return run("python", "-c", code, found, *words, cwd=cwd)


MATCH = ("match", "ckpt.pth", "--torch", "nets:torch_net", "--keras", "nets:plain", "--inputs", "nets:give")


def test_the_search_gets_builders_and_the_checkpoint(nets, search):
    found = converter.match("nets:torch_net", "nets:plain", "nets:give", "ckpt.pth", accept=["head"])
    [(theirs, ours, inputs, checkpoint, progress)] = search
    assert (theirs(), ours(), inputs()) == (("torch", 1, {}), "keras", "inputs")
    assert checkpoint == "ckpt.pth"
    assert inspect.ismethod(progress.start)
    assert (found.torch, found.keras, found.inputs) == (theirs, ours, inputs)
    assert (found.checkpoint.file, found.checkpoint.tensors) == ("ckpt.pth", 1)
    assert [link.keras for link in found.links if link.accepted] == ["head"]


def test_functions_are_builders_too_and_their_plan_is_read(nets, search, tmp_path):
    converter.match(lambda: 1, lambda: 2).save("plan.toml")
    read = Match.load("plan.toml")
    assert read.torch.text.endswith("<lambda>")
    with pytest.raises(
        ConversionError, match=r"`torch` in plan.toml is a function of the program that wrote it; write MODULE:"
    ):
        read.torch()


def test_options_are_arguments_of_the_builders_that_take_them(nets, search):
    found = converter.match(
        "nets:torch_net?depth=2", "nets:keras_net", "nets:give", options={"size": "(2, 3)", "classes": 5}
    )
    assert found.torch() == ("torch", 1, {"depth": 2, "size": (2, 3), "classes": 5})
    assert found.keras() == ("keras", (2, 3), 5)
    assert found.torch.text == "nets:torch_net?depth=2&size=(2, 3)&classes=5"
    assert Builder(found.keras.text, "--keras")() == found.keras(), "a plan says the same"
    with pytest.raises(UsageError, match=r"^option depth: neither builder takes an argument of that name$"):
        converter.match("nets:plain", "nets:keras_net", options={"size": 1, "depth": 2})
    with pytest.raises(UsageError, match="'size=a&b' is not ARGUMENT=VALUE"):
        converter.match("nets:plain", "nets:keras_net", options={"size": "a&b"})


def test_inputs_are_made_before_a_builder_is_looked_at(nets, search):
    order = []

    def give():
        order.append("inputs")
        return 3

    class Net:
        @property
        def __signature__(self):
            order.append("builder")
            return inspect.signature(lambda size: None)

        def __call__(self, size):
            return size

    found = converter.match(Net(), Net(), give, options={"size": 1})
    assert order[0] == "inputs"
    assert found.inputs() == 3
    assert order.count("inputs") == 1


def test_without_a_torch_network_rows_are_proposed(nets, search):
    found = converter.match(None, "nets:plain", checkpoint="ckpt.pth")
    [(ours, checkpoint, _)] = search
    assert (ours.text, checkpoint) == ("nets:plain", "ckpt.pth")
    assert {link.status for link in found.links} == {"proposed"}
    with pytest.raises(
        ConversionError, match=r"^plan.toml was not written: names, shapes and order prove nothing; accept"
    ):
        found.save("plan.toml")
    found.accept("layer1.*")
    found.save("plan.toml")
    read = Match.load("plan.toml")
    assert read.torch is None
    assert {ours[:5] for link in read.links if link.taken for _, ours in link.units()} == {"conv2"}
    assert found.lines()[0] == ("torch", "none, so nothing can be proven")


def test_what_cannot_be_matched_is_refused(nets, search):
    with pytest.raises(UsageError, match=r"^without a torch network there is nothing to match but a checkpoint"):
        converter.match(None, "nets:plain")
    with pytest.raises(UsageError, match=r"^inputs are for both networks: give --torch too"):
        converter.match(None, "nets:plain", "nets:give", "ckpt.pth")
    assert search == []


@pytest.mark.parametrize(
    ("row", "accepted"),
    [
        ("attn.q", ["mha.query"]),
        ("mha.key", ["mha.key"]),
        ("mha.key.kernel", ["mha.key"]),
        ("attn.{q,k}", ["mha.query", "mha.key"]),
        ("attn.{q,k} -> mha.{query,key}", ["mha.query", "mha.key"]),
        ("mha.*", ["mha.query", "mha.key"]),
        ("*", ["mha.query", "mha.key", "head"]),  # but not what is open
        ("layer1.0.conv1", []),  # proven as it is
    ],
)
def test_rows_are_accepted_by_any_of_their_names(row, accepted):
    found = a_match()
    found.accept(row)
    assert [ours for link in found.links if link.accepted for _, ours in link.units()] == accepted
    assert len(found.rows) == 30


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("attn.w", "--accept attn.w: no row, unit or variable is named so; did you mean attn.q?"),
        ("nothing", "--accept nothing: no row, unit or variable is named so; the plan and the report list them"),
        ("attn.q -> mha.key", "--accept attn.q -> mha.key: no row, unit or variable is named so; did you mean attn."),
        ("attn.{q", "--accept attn.{q: unmatched brace in 'attn.{q'"),
        (
            "extra.w",
            "--accept extra.w: it is open what fills extra; write its fills into the plan, and `accepted = true`",
        ),
    ],
)
def test_what_cannot_be_accepted_is_refused(row, told):
    found = a_match()
    with pytest.raises(UsageError) as caught:
        found.accept(row)
    assert str(caught.value).startswith(told)
    assert not any(link.accepted for link in found.links)


def test_a_row_whose_tensor_is_another_s_is_not_accepted():
    found = a_match(outcome(*PROVEN, replace(PROVEN[0], keras="other", status="ambiguous", kind="")))
    with pytest.raises(
        UsageError, match=r"^--accept other: the tensor layer1.0.conv1.weight is taken by the row layer1.0.conv1 -> "
    ):
        found.accept("other")


def test_the_report_says_counts_then_what_is_open_then_what_to_do():
    assert str(a_match()).splitlines() == [
        "torch     nets:torch_net",
        "keras     nets:keras_net?size=3",
        "units     17: 13 proven, 1 proposed, 2 ambiguous, 1 unmatched",
        "variables 30: 25 proven, 2 proposed, 2 ambiguous, 1 unmatched",
        "left      2 tensors: bn{1-2}.num_batches_tracked: a counter",
        "left      1 tensor: aux.weight: no reason is known",
        "note      the Keras model has an activation that torch has not",
        "ambiguous attn.{q,k} -> mha.{query,key}: symmetric",
        "unmatched extra: no counterpart in torch",
        "proposed  head -> head: by name",
        "next      write into the plan what fills the variables of open rows (?), and `accepted = true`",
        "next      accept rows that you know to be right: --accept ROW, or `accepted = true` in the plan",
        "next      write into the plan, as `reason`, why tensors that are left fill nothing",
    ]
    assert str(a_match(all_proven())).splitlines()[-1] == (
        "next      all rows are proven or accepted: convert --plan PLAN CHECKPOINT -o OUTPUT.weights.h5"
    )
    found = a_match()
    found.accept("head")
    assert "accepted  1 unit of those that are not proven" in str(found).splitlines()
    assert "proposed" not in [heading for heading, _ in found.lines()]


def test_many_classes_are_cut_short_in_the_report():
    links = [
        replace(PROVEN[0], torch=f"t{i}.{'x' * i}y", keras=f"k{i}.{'x' * i}y", status="ambiguous", evidence=f"{i}")
        for i in range(20)
    ]
    rows = [text for heading, text in a_match(outcome(*links)).lines() if heading == "ambiguous"]
    assert len(rows) == 13
    assert rows[-1] == "and 8 more, which the plan lists"


def test_the_pair_is_named_by_its_builders(nets, search):
    one, other = a_match(all_proven()), a_match(all_proven(), torch="nets:other")
    assert one.name.startswith("keras_net_")
    assert one.name != other.name
    assert one.pair.name == one.name


def test_the_page_shows_every_unit_and_escapes_what_it_shows():
    found = a_match(outcome(*PROVEN, CONSTANT, replace(PROVEN[0], torch="<b>", keras="<i>", status="ambiguous")))
    text = match_page(found)
    assert text.count('class="proven"') == 13
    assert text.count('class="ambiguous"') == 1
    assert "&lt;b&gt;" in text
    assert "<b>&" not in text
    assert "1 of 14 units are neither proven nor accepted" in text
    assert "Every unit is proven or accepted." in match_page(a_match(all_proven()))


def test_the_command_writes_a_plan_and_a_page(nets):
    done = command(*MATCH, "-o", "plan.toml", "--html", "plan.html", "--quiet", cwd=nets)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "ambiguous" in (nets / "plan.html").read_text()
    assert [link.status for link in Match.load(nets / "plan.toml").links].count("ambiguous") == 1
    done = command(*MATCH, "-o", "plan.toml", "--accept", "attn.{q,k}", cwd=nets)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "torch     nets:torch_net"
    assert lines[-1] == "written   plan.toml"
    assert sum(link.accepted for link in Match.load(nets / "plan.toml").links) == 1
    done = command(*MATCH, "--json", cwd=nets)
    said = json.loads(done.stdout)
    assert (said["units"], len(said["rows"])) == ({"proven": 13, "proposed": 1, "ambiguous": 2, "unmatched": 1}, 30)
    assert said["rows"][0]["variable"] == "mha.query.kernel"
    assert said["left"]["aux.weight"] == ""


def test_a_proposal_is_shown_but_not_written(nets):
    done = command("match", "ckpt.pth", "--keras", "nets:plain", "-o", "plan.toml", cwd=nets)
    assert done.returncode == 1
    assert done.stdout.startswith("torch     none, so nothing can be proven\n")
    assert done.stderr.startswith(
        "error: plan.toml was not written: names, shapes and order prove nothing; accept rows"
    )
    assert not (nets / "plan.toml").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((*MATCH, "--accept", "attn.w"), 2, "--accept attn.w: no row, unit or variable is named so; did you mean"),
        (
            ("match", "ckpt.pth", "--torch", "nets:plain", "--keras", "nets:plain", "--option", "x=1"),
            2,
            "option x: neither",
        ),
        (
            ("match", "ckpt.pth", "--torch", "nets", "--keras", "nets:plain"),
            2,
            "--torch nets: name it as MODULE:FUNCTION",
        ),
        (("match", "nothing.pth", "--torch", "nets:plain", "--keras", "nets:plain"), 1, "nothing.pth"),
        ((*MATCH, "-o", "plan.txt"), 1, "the output plan.txt must end in .toml"),
        ((*MATCH, "-o", "theirs.toml"), 1, "theirs.toml, line 2: it is the plan of another pair, with torch = 'a:b'"),
        ((*MATCH, "--html", "page.txt"), 1, "the output page.txt must end in .html or .htm"),
        (
            ("convert", "--plan", "theirs.toml", "--model", "sam", "ckpt.pth"),
            2,
            "--plan names both networks; leave --model",
        ),
        (("verify", "--plan", "theirs.toml", "--pair", "a:b", "ckpt.pth", "w"), 2, "--plan names both networks; leave"),
        (("convert", "--plan", "nothing.toml", "ckpt.pth"), 1, "the plan nothing.toml cannot be read: No such file"),
        (("restore", "--plan", "wrong.toml", "w.weights.h5", "-o", "c.pth"), 1, "wrong.toml, line 3: `row` is a list"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(nets, words, code, told):
    (nets / "theirs.toml").write_text('format = 1\ntorch = "a:b"\nkeras = "a:c"\n')
    (nets / "wrong.toml").write_text('format = 1\nkeras = "a:c"\nrow = 3\n')
    done = command(*words, cwd=nets)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 1


def test_a_plan_is_converted_verified_and_restored(nets):
    a_match(all_proven()).save(nets / "plan.toml")
    words = (
        "convert --plan plan.toml ckpt.pth -o w.weights.h5 --verify lossless + verify --plan plan.toml ckpt.pth "
        "w.weights.h5 --level lossless + restore --plan plan.toml w.weights.h5 -o back.pth"
    )
    done = command(*words.split(), found="all_proven", cwd=nets)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"model     {a_match().name}, 1 tensors") == 3
    assert torch.equal(torch.load(nets / "back.pth", weights_only=True)["w"], torch.arange(4.0))
