"""A plan as a file: how it reads, what of it survives a rewrite, and how wrong edits are refused."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter import ConversionError
from converter.matching.fill_text import fill_text, read_fill
from converter.matching.folding import folded
from converter.matching.match import Match
from converter.matching.plan_reading import Held
from converter.matching.rows import Fill, Link
from tests.support.checkpoints import save
from tests.support.matches import (
    AMBIGUOUS,
    CONSTANT,
    HEADS,
    HELD,
    KERNEL,
    PROPOSED,
    PROVEN,
    UNMATCHED,
    a_match,
    all_proven,
    outcome,
    units,
)

PLAN = """\
# 17 units with 30 variables: 13 proven, 1 proposed, 2 ambiguous, 1 unmatched; 3 torch tensors left over
# To do: the rows that come first are open. Mend what is wrong in them; `accepted = true` takes what is right.
# `convert --plan THIS_FILE CHECKPOINT` converts by it once each row is proven or accepted.
# A row that is edited is proven no longer: accept it, or match again; comments and accepted rows stay.

format = 1
torch = "nets:torch_net"
keras = "nets:keras_net?size=3"
inputs = "nets:give"
checkpoint = {file = "net.pth", tensors = 31, digest = "0123456789ab"}
variables = 30
outputs = [". -> .: n c -> n c", "aux -> 1"]
notes = ["the Keras model has an activation that torch has not"]

[[row]]
torch = "attn.{q,k}"
keras = "mha.{query,key}"
fills = ["weight -> kernel: (h d) i -> i h d (h=4)"]
status = "ambiguous"
evidence = "symmetric"

[[row]]
keras = "extra"
fills = ["? -> w"]
status = "unmatched"
evidence = "no counterpart in torch"

[[row]]
torch = "head"
keras = "head"
fills = ["weight, bias -> k, b: o i, o -> i o, o"]
status = "proposed"
evidence = "by name"

[[row]]
torch = "layer{1-2}.{0-2}.conv{1-2}"
keras = "conv{2-3}_block{1-3}_{1-2}_conv"
fills = ["weight -> kernel: o i kh kw -> kh kw i o", "bias -> bias: o -> o"]
kind = "CONV_2D"
status = "proven"
evidence = "agrees on torch's input: error 2.2e-07, 2 calls"
seal = SEAL

[[row]]
keras = "norm"
fills = ["beta = 0"]
status = "proven"
evidence = "torch adds nothing there"
seal = SEAL

[[left]]
torch = "bn{1-2}.num_batches_tracked"
reason = "a counter"

[[left]]
torch = "aux.weight"
reason = ""
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "plan.toml"
    a_match().save(path)
    return path


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, text.count(old)
    path.write_text(text.replace(old, new))


def refused(path):
    with pytest.raises(ConversionError) as caught:
        Match.load(path)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_plan_reads_as_it_should(path):
    assert re.sub(r'"[0-9a-f]{8}"', "SEAL", path.read_text()) == PLAN


def test_what_was_saved_is_loaded(path):
    made, read = a_match(), Match.load(path)
    assert read.links == made.links
    assert units(read.links) == units(outcome().links)
    assert (read.left, read.outputs, read.notes) == (made.left, made.outputs, made.notes)
    assert [one.text for one in (read.torch, read.keras, read.inputs)] == [
        "nets:torch_net", "nets:keras_net?size=3", "nets:give",
    ]  # fmt: skip
    assert read.checkpoint == HELD
    assert read.rows == made.rows


def test_a_plan_that_is_written_again_is_the_same(path):
    before = path.read_text()
    Match.load(path).save(path)
    assert path.read_text() == before
    a_match().save(path)
    assert path.read_text() == before


def test_only_links_that_are_alike_are_folded():
    other = [replace(PROVEN[0], evidence="agrees on torch's input: error 1.0e-07, 3 calls")]
    assert len(folded([*PROVEN, CONSTANT])) == 2
    assert len(folded([*PROVEN[1:], *other])) > 2, "a count is no measured number"
    for change in ({"kind": ""}, {"fills": (KERNEL,)}, {"status": "proposed"}, {"accepted": True}):
        assert units(folded([replace(PROVEN[0], **change), *PROVEN[1:]]))[PROVEN[0].torch, PROVEN[0].keras] == replace(
            PROVEN[0], torch="", keras="", evidence="", **change
        )


def test_open_rows_come_first_and_accepted_ones_next():
    accepted = replace(AMBIGUOUS[0], accepted=True)
    said = [link.status for link in folded([CONSTANT, accepted, PROPOSED, UNMATCHED, AMBIGUOUS[1]])]
    assert said == ["ambiguous", "unmatched", "proposed", "ambiguous", "proven"]


def test_units_at_the_root_of_torch_are_not_folded_into_one():
    token = Fill(("cls",), ("token",), "... -> ...")
    links = [Link("", f"side{i}", (token,), "ambiguous", "") for i in (0, 1)]
    assert [link.keras for link in folded(links)] == ["side0", "side1"]


@pytest.mark.parametrize(
    ("fill", "text"),
    [
        (KERNEL, "weight -> kernel: o i kh kw -> kh kw i o"),
        (HEADS, "weight -> kernel: (h d) i -> i h d (h=4)"),
        (
            Fill(("w",), ("a", "b"), "(a + b) i -> i a, i b", (("a", 2), ("b", 3))),
            "w -> a, b: (a + b) i -> i a, i b (a=2, b=3)",
        ),
        (Fill((), ("gamma", "beta"), "= 0"), "gamma, beta = 0"),
        (Fill((), ("table",), "= built"), "table = built"),
        (Fill((), ("",), "= built"), ". = built"),
        (Fill((), ("scale",), "= -1.5e-05"), "scale = -1.5e-05"),
        (Fill((), ("scale",), "= 1e+06"), "scale = 1e+06"),
        (Fill((), ("w",), ""), "? -> w"),
        (Fill(("w",), ("k",), ""), "w -> k: ?"),
        (Fill(("",), ("layer.kernel",), "... -> ..."), ". -> layer.kernel: ... -> ..."),
    ],
)
def test_fills_as_text(fill, text):
    assert fill_text(fill) == text
    assert read_fill(text) == fill
    assert read_fill(text.replace(" ", "  ")) == replace(
        fill, axes=fill.axes.replace(" ", "  ") if fill.tensors else fill.axes
    )


NAMES = st.lists(st.from_regex(r"[a-z_][a-z0-9_.-]{0,6}[a-z0-9]", fullmatch=True), min_size=1, max_size=3, unique=True)


@given(NAMES, NAMES)
def test_any_names_are_read_back(tensors, variables):
    axes = ", ".join(f"a{i}" for i in range(len(tensors)))
    one = Fill(tuple(tensors), tuple(tensors), f"{axes} -> {axes}", (("a0", 3),))
    assert read_fill(fill_text(one)) == one
    constant = Fill((), tuple(variables), "= 0.5")
    assert read_fill(fill_text(constant)) == constant


def test_a_name_that_a_plan_cannot_hold_is_refused(tmp_path):
    link = replace(PROPOSED, fills=(Fill(("a, b",), ("k",), "o -> o"),))
    with pytest.raises(ConversionError, match=r"^'a, b' cannot stand in a plan: a name has no blanks, commas"):
        a_match(outcome(link)).save(tmp_path / "plan.toml")
    assert not (tmp_path / "plan.toml").exists()


WRONG = [
    # Of TOML itself, and of the head.
    ('status = "ambiguous"', 'status = "ambiguous', 19, "it is not TOML: a text lacks its closing quote"),
    (
        "format = 1",
        "format = 2",
        6,
        "it was written by a later Weightbridge (format 2, this one reads 1): bring this one up",
    ),
    ("format = 1", "format = 0", 6, "there is no format 0"),
    ("variables = 30", 'variables = "many"', 11, "`variables` is a whole number"),
    ("variables = 30", "variabels = 30", 11, "`variabels` is nothing that a plan has; did you mean `variables`?"),
    (
        "variables = 30",
        "variables = 31",
        11,
        "the model has 31 variables, but the rows fill 30; match again where a row was",
    ),
    ("tensors = 31", 'tensors = "31"', 10, "`tensors` is a whole number"),
    (", tensors = 31", "", 10, "`checkpoint` lacks `tensors`"),
    ("aux -> 1", "aux: n -> n", 12, "'aux: n -> n': an output is `torch's path -> Keras's path: axes -> axes`"),
    ("n c -> n c", "n c -> n", 12, "'. -> .: n c -> n': the two sides of 'n c -> n' do not hold the same axes"),
    # Of a row.
    (
        'evidence = "symmetric"',
        'evidense = "symmetric"',
        20,
        "`evidense` is nothing that a plan has; did you mean `evidence`?",
    ),
    (
        'status = "ambiguous"',
        'status = "prooven"',
        19,
        "'prooven' is no status: proven, proposed, ambiguous, unmatched; did you mean proven?",
    ),
    ('status = "ambiguous"', "status = 3", 19, "`status` is a text"),
    ('kind = "CONV_2D"', 'kind = "conv_2d"', 39, "no kind is named conv_2d; did you mean CONV_2D?"),
    ('kind = "CONV_2D"', 'kind = "Kind"', 39, "no kind is named Kind; docs/add_a_pair.md lists them"),
    ("attn.{q,k}", "attn.{q,k", 16, "unmatched brace in 'attn.{q,k'"),
    ("attn.{q,k}", "attn.{q,}", 16, "bad choice '' in 'attn.{q,}'"),
    ("attn.{q,k}", "attn.{q,k,v}", 17, "'attn.{q,k,v}' names 3 units, 'mha.{query,key}' 2"),
    ('torch = "attn.{q,k}"\n', "", 15, "the row has no `torch`, below whose path its tensors are"),
    ('keras = "extra"\n', "", 22, "the row has no `keras`"),
    ('fills = ["? -> w"]\n', "", 22, "the row has no `fills`"),
    ('fills = ["? -> w"]', "fills = []", 22, "the row has no `fills`"),
    ('fills = ["? -> w"]', 'fills = "? -> w"', 24, "`fills` is a list of texts"),
    ('status = "unmatched"\n', "", 22, "the row has no `status`"),
    (
        "? -> w",
        "a -> w",
        24,
        "'a -> w': the axes are missing: `tensors -> variables: axes -> axes`, as weight -> kernel: o i -> i o",
    ),
    ("? -> w", "w = nothing", 24, "'w = nothing': a variable is = a number, or = built, not = nothing"),
    ("? -> w", "w", 24, "'w': a fill is `tensors -> variables: axes -> axes`, or `variable = 0`"),
    ("? -> w", "a, -> w: o -> o", 24, "'' is no name"),
    ("(h d) i -> i h d (h=4)", "(h d i -> i h d (h=4)", 18, "parentheses in '(h d i -> i h d' hold names"),
    (
        "(h d) i -> i h d (h=4)",
        "(h d) i -> i h d (x=4)",
        18,
        "(x=4): a size is a length from 1 of an axis that stands in the pattern",
    ),
    ("(h d) i -> i h d (h=4)", "h d i, x -> x, i h d", 18, "1 tensor, but axes of 2"),
    ("o i, o -> i o, o", "o i, o -> i o", 31, "the two sides of 'o i, o -> i o' do not hold the same axes"),
    (
        'status = "unmatched"',
        'status = "unmatched"\naccepted = true',
        26,
        "nothing can be accepted while it is open how a variable is filled (`?`)",
    ),
    ('status = "unmatched"', 'status = "unmatched"\naccepted = "yes"', 26, "`accepted` is true or false"),
    ("weight, bias -> k, b", "weight, bias -> k, k", 28, "the variable head.k is filled by the same row too"),
    (
        'torch = "head"',
        'torch = "layer1.0.conv1"',
        35,
        "the tensor layer1.0.conv1.weight is taken by the row of line 28 too; where",
    ),
    # What only a match can say.
    (
        'status = "proposed"',
        'status = "proven"',
        32,
        "only a match proves, and this row (or what stands above all rows) was written by hand; add",
    ),
    (
        'keras = "norm"',
        'keras = "other"',
        47,
        "only a match proves, and this row (or what stands above all rows) was edited since it was proven",
    ),
    ("beta = 0", "beta = 1", 47, "only a match proves"),
    ("nets:torch_net", "nets:another", 40, "only a match proves"),
    # Of what is left.
    ('torch = "aux.weight"', 'torch = "bn1.num_batches_tracked"', 56, "bn1.num_batches_tracked is left twice"),
    ('torch = "aux.weight"', 'torch = "layer1.0.conv1.bias"', 56, "layer1.0.conv1.bias is left, but a row takes it"),
    ('torch = "aux.weight"\n', "", 55, "`torch`, which tensor is left, is missing"),
    ('reason = ""', 'reasons = ""', 57, "`reasons` is nothing that a plan has; did you mean `reason`?"),
]


@pytest.mark.parametrize(("old", "new", "line", "told"), WRONG, ids=lambda one: str(one)[:30])
def test_a_wrong_edit_is_refused_with_its_line(path, old, new, line, told):
    edit(path, old, new)
    message = refused(path)
    assert message.startswith(f", line {line}: ")
    assert told in message


def test_a_variable_that_two_rows_fill_is_refused(path):
    text = path.read_text()
    path.write_text(text + '\n[[row]]\nkeras = "extra"\nfills = ["w = 0"]\nstatus = "proposed"\n')
    assert (
        refused(path) == f", line {text.count(chr(10)) + 2}: the variable extra.w is filled by the row of line 22 too"
    )


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    path = tmp_path / "plan.toml"
    with pytest.raises(ConversionError, match=r"^the plan .*plan.toml cannot be read: No such file"):
        Match.load(path)
    path.write_text("")
    assert refused(path) == " is no plan: it lacks `format` or `keras`; `weightbridge match` writes one"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConversionError, match=r"it is no text$"):
        Match.load(path)


def test_a_row_that_is_written_in_another_way_is_refused(path):
    edit(path, '[[row]]\nkeras = "extra"', 'row = 3\n[[row]]\nkeras = "extra"')
    assert ", line " in refused(path)
    path.write_text('format = 1\nkeras = "a:b"\nrow = [{keras = "x", fills = ["w = 0"], status = "proposed"}]\n')
    assert refused(path) == ": every row is written under a line of its own, [[row]] or [[left]]"


def test_an_edited_row_that_is_accepted_is_taken_but_is_proven_no_longer(path):
    edit(path, 'fills = ["beta = 0"]', 'fills = ["beta = 1"]\naccepted = true')
    [link] = [link for link in Match.load(path).links if link.keras == "norm"]
    assert (link.status, link.accepted, link.taken) == ("proposed", True, True)
    assert link.evidence == "edited since it was proven; before: torch adds nothing there"


def test_an_edited_row_is_mended_by_another_match(path):
    before = path.read_text()
    edit(path, "beta = 0", "beta = 1")
    a_match().save(path)
    assert path.read_text() == before


def test_tied_tensors_are_declared_and_read(tmp_path):
    path = tmp_path / "plan.toml"
    link = Link("embed", "tokens", (Fill(("weight",), ("table",), "v d -> v d"),), "proven", "")
    head = Link("embed", "logits", (Fill(("weight",), ("kernel",), "v d -> d v"),), "proven", "")
    a_match(outcome(link, head)).save(path)
    assert 'tied = ["embed.weight"]' in path.read_text()
    assert Match.load(path).tied == ["embed.weight"]
    edit(path, 'tied = ["embed.weight"]\n', "")
    assert "the tensor embed.weight is taken by" in refused(path)


def commented(path):
    edit(path, "format = 1", "# Of my own network.\nformat = 1")
    edit(path, '[[row]]\nkeras = "norm"', '# Looked up in the paper.\n[[row]]  # sure\nkeras = "norm"')
    edit(path, 'fills = ["beta = 0"]', 'fills = ["beta = 0"]  # no shift')
    edit(path, 'reason = ""', 'reason = "for training alone"  # ask Ann')
    edit(path, 'status = "proposed"', 'status = "proposed"\n# I compared them.\naccepted = true')
    path.write_text(path.read_text() + "\n# The end.\n")


COMMENTS = (
    "# Of my own network.", "# Looked up in the paper.", "# sure", "# no shift", "# ask Ann", "# I compared them.",
    "# The end.",
)  # fmt: skip


def test_comments_accepted_rows_and_reasons_survive(path):
    commented(path)
    a_match().save(path)
    text = path.read_text()
    assert '# Looked up in the paper.\n[[row]]  # sure\nkeras = "norm"\nfills = ["beta = 0"]  # no shift\n' in text
    assert 'reason = "for training alone"  # ask Ann' in text
    assert text.startswith(
        "# 17 units with 30 variables: 13 proven, 1 proposed, 2 ambiguous, 1 unmatched (1 of them accepted)"
    )
    for comment in COMMENTS:
        assert text.count(comment) == 1
    read = Match.load(path)
    assert [link.accepted for link in read.links if link.keras == "head"] == [True]
    assert read.left["aux.weight"] == "for training alone"
    a_match().save(path)
    assert path.read_text() == text


def test_rows_that_changed_are_updated_and_keep_their_comments(path):
    commented(path)
    links = [replace(link, evidence="another", fills=(KERNEL,)) if link in PROVEN[:1] else link for link in PROVEN]
    found = a_match(outcome(*links, replace(CONSTANT, evidence="it is zero"), replace(PROPOSED, status="proven")))
    found.save(path)
    text = path.read_text()
    for comment in COMMENTS:
        assert text.count(comment) == 1, comment
    assert 'evidence = "it is zero"' in text
    assert "attn" not in text
    read = Match.load(path)
    assert read.links == found.links
    assert [link.status for link in read.links if link.keras == "head"] == ["proven"]


def test_a_row_that_was_accepted_with_other_fills_stays_until_it_is_proven_otherwise(path):
    edit(path, 'fills = ["? -> w"]\nstatus = "unmatched"', 'fills = ["w = 0"]\nstatus = "unmatched"\naccepted = true')
    found = a_match()
    found.save(path)
    [link] = [link for link in found.links if link.keras == "extra"]
    assert (link.fills, link.accepted) == ((Fill((), ("w",), "= 0"),), True)
    assert Match.load(path).links == found.links
    proven = replace(UNMATCHED, torch="more", fills=(Fill(("x",), ("w",), "o -> o"),), status="proven")
    found = a_match(outcome(*PROVEN, CONSTANT, *AMBIGUOUS, PROPOSED, proven))
    found.save(path)
    assert [link.status for link in Match.load(path).links if link.keras == "extra"] == ["proven"]


def test_comments_in_a_list_that_changed_stay(path):
    edit(path, 'fills = ["beta = 0"]', 'fills = [\n    # a shift of nothing\n    "beta = 0",\n]')
    a_match(outcome(*PROVEN, replace(CONSTANT, fills=(Fill((), ("beta",), "= 1"),)))).save(path)
    assert "# a shift of nothing\n[[row]]" in path.read_text()


def test_a_plan_of_another_pair_is_not_replaced(path):
    before = path.read_text()
    with pytest.raises(ConversionError) as caught:
        a_match(torch="nets:other").save(path)
    assert str(caught.value) == (
        f"{path}, line 7: it is the plan of another pair, with torch = 'nets:torch_net', not 'nets:other'; name "
        "another output, or --overwrite replaces it"
    )
    with pytest.raises(ConversionError, match="line 8: it is the plan of another pair, with keras = 'nets:keras_net"):
        a_match(keras="nets:keras_net?size=4").save(path)
    with pytest.raises(ConversionError, match="line 10: it is the plan of a checkpoint of other tensors"):
        a_match(held=replace(HELD, digest="ba9876543210")).save(path)
    assert path.read_text() == before
    a_match(all_proven(), torch="nets:other").save(path, overwrite=True)
    assert Match.load(path).torch.text == "nets:other"


def test_what_is_no_plan_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text("a = 1\n")
    with pytest.raises(ConversionError, match="is no plan"):
        a_match().save(path)
    a_match().save(path, overwrite=True)
    assert Match.load(path).links == a_match().links
    with pytest.raises(ConversionError, match=r"must end in \.toml$"):
        a_match().save(tmp_path / "plan.txt")


def test_a_checkpoint_is_known_by_names_and_shapes(tmp_path):
    torch = pytest.importorskip("torch")
    made = [
        Held.of(save(state, folder))
        for state, folder in (
            ({"a": torch.zeros(2, 3), "b": torch.ones(1)}, tmp_path / "one"),
            ({"b": torch.zeros(1), "a": torch.ones(2, 3)}, tmp_path / "two"),
            ({"a": torch.zeros(3, 2), "b": torch.ones(1)}, tmp_path / "three"),
        )
        if folder.mkdir() is None
    ]
    assert made[0] == made[1] == Held("ckpt.pth", 2, made[0].digest)
    assert made[2].digest != made[0].digest


def test_the_head_says_what_is_to_do(tmp_path):
    path = tmp_path / "plan.toml"
    a_match(all_proven()).save(path)
    assert path.read_text().split("\n")[:2] == [
        "# 13 units with 25 variables: 13 proven; 1 torch tensor left over",
        "# To do: nothing, all rows are proven or accepted.",
    ]
    a_match(outcome(*PROVEN, left={"aux.weight": ""})).save(path)
    assert "# To do: say why the tensors that are left fill nothing" in path.read_text()
    assert "# To do: nothing" not in path.read_text()
