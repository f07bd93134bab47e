"""Matches made by hand, as a search would have found them. Neither framework is imported."""

from dataclasses import replace

from converter.matching.builders import Builder
from converter.matching.match import Match
from converter.matching.plan_reading import Held
from converter.matching.rows import Fill, Link, Outcome

KERNEL = Fill(("weight",), ("kernel",), "o i kh kw -> kh kw i o")
BIAS = Fill(("bias",), ("bias",), "o -> o")
HEADS = Fill(("weight",), ("kernel",), "(h d) i -> i h d", (("h", 4),))
HELD = Held("net.pth", 31, "0123456789ab")

PROVEN = [
    Link(
        f"layer{i}.{j}.conv{c}", f"conv{i + 1}_block{j + 1}_{c}_conv", (KERNEL, BIAS), "proven",
        f"agrees on torch's input: error {i}.{j}e-07, 2 calls", "CONV_2D",
    )
    for i in (1, 2) for j in range(3) for c in (1, 2)
]  # fmt: skip
AMBIGUOUS = [
    Link(f"attn.{a}", f"mha.{b}", (HEADS,), "ambiguous", "symmetric") for a, b in (("q", "query"), ("k", "key"))
]
UNMATCHED = Link("", "extra", (Fill((), ("w",), ""),), "unmatched", "no counterpart in torch")
CONSTANT = Link("", "norm", (Fill((), ("beta",), "= 0"),), "proven", "torch adds nothing there")
PROPOSED = Link("head", "head", (Fill(("weight", "bias"), ("k", "b"), "o i, o -> i o, o"),), "proposed", "by name")
LEFT = {"bn1.num_batches_tracked": "a counter", "bn2.num_batches_tracked": "a counter", "aux.weight": ""}


def outcome(*links, left=LEFT):
    return Outcome(
        list(links) or [*PROVEN, CONSTANT, *AMBIGUOUS, UNMATCHED, PROPOSED],
        dict(left),
        [("", "", "n c -> n c"), ("aux", "1", "")],
        ["the Keras model has an activation that torch has not"],
    )


def all_proven():
    return outcome(*PROVEN, CONSTANT, left={"bn1.num_batches_tracked": "a counter"})


def a_match(found=None, torch="nets:torch_net", keras="nets:keras_net?size=3", held=HELD):
    builders = [
        Builder(text, name) for text, name in ((torch, "--torch"), (keras, "--keras"), ("nets:give", "--inputs"))
    ]
    return Match(found or outcome(), builders[0], builders[1], builders[2], held)


def units(links):
    """Every unit as a link of its own, without measured numbers' differences."""
    return {
        (theirs, ours): replace(link, torch="", keras="", evidence="")
        for link in links
        for theirs, ours in link.units()
    }
