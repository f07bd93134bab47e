"""What the numerical proof asks of torch: seeded probes, the layers to record, and what that will cost."""

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from converter import nested
from converter.blame import blaming
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.lora import Merge
from converter.checkpoints.tensors import Entry
from converter.errors import ConversionError, printable
from converter.naming import listed
from converter.pairs.pair import Probe
from converter.planning.reading import mapping_of
from converter.report import size
from converter.torch_side.questions import Proof, Reference, Source

if TYPE_CHECKING:
    from converter.planning.plan import Plan

SEED = 20_240_229
BIG = 50_000_000  # values of a model whose proof is announced with its cost
# For each value: 4 bytes in TensorFlow, 4 in torch and 8 in torch's float64, and what activations and copies take.
_BYTES_COPIED, _BYTES_SINGLE, _BYTES_SPARE = 18, 10, 1 << 30


def question_for(plan: "Plan", checkpoint: Checkpoint, dtype: str, level: str = "full") -> Proof:
    """What the torch side must do to prove `plan`: seeded probe inputs, and the layers to record.

    "full-size" adds probes of the size the model is meant for, where a pair has smaller ones; "train" adds training.
    """
    files = {path.name: str(path.resolve()) for path in checkpoint.files}
    pair, mapping = plan.pair, mapping_of(plan.pair, plan.config)
    sources = {
        name: _source(entry, plan.dialect.axes(name), files)
        for name, entry in plan.entries.items()
        if not entry.problem
    }
    untrained = [step.name for step in plan.steps if step.leaf.fold and not step.leaf.fold.trains]
    if level == "train" and untrained:
        names = listed([*map(printable, untrained)], 4)
        raise ConversionError(
            f"{names} is folded with what torch computes anew in training: there is no training to compare "
            "(--verify full proves the rest)"
        )
    called = {path: kind for path, _, kind in mapping.modules() if kind.callable_alone}
    with blaming(pair.name, "probes"):
        probes = list(pair.probes(plan.config, np.random.default_rng(SEED)))
        if not all(isinstance(probe, Probe) for probe in probes):
            raise TypeError("it gives something other than a list of Probe(inputs)")
    stages = {path for path, _, kind in mapping.modules() if kind.stage}
    for probe in probes:
        _check_probe(pair.name, probe, stages)
    if level == "full-size" and pair.full_size_probes is not None:
        with blaming(pair.name, "full_size_probes"):
            probes += pair.full_size_probes(plan.config, np.random.default_rng(SEED))
    return Proof(
        reference=Reference(pair.name, pair.build_torch, plan.config, sources, dtype, set(mapping.ignored())),
        modules={path: kind.probe_scales for path, kind in called.items()},
        stages=frozenset(path for path, kind in called.items() if kind.stage),
        probes=[replace(probe, inputs=nested.each(_single, probe.inputs)) for probe in probes],
        copied=available_memory() > plan.values * _BYTES_COPIED + _BYTES_SPARE,
        train=level == "train",
        folded=frozenset(one.canonical for step in plan.steps if step.leaf.fold for one in step.sources),
        shared=mapping.shared(),
    )


def _source(entry: Entry, axes: str | None, files: dict[str, str]) -> Source:
    """Where torch finds the tensor, and what it must add to it itself."""
    made = entry.made
    if made is None or not isinstance(made.how, Merge):
        return Source(files[entry.file], entry.key, entry.name, axes)
    kernel, *factors = (_source(one, None, files) for one in made.of)
    return replace(kernel, axes=axes, added=tuple(zip(factors[::2], factors[1::2], made.how.parts, strict=True)))


def _check_probe(name: str, probe: Probe, stages: set[str]) -> None:
    """
    Raises:
        ConversionError: its inputs are not arrays of numbers by name, or its part is no stage.
    """
    if not isinstance(probe.inputs, dict) or not all(isinstance(key, str) for key in probe.inputs):
        raise ConversionError(
            f"`probes` of {name}: the inputs of a Probe are a dict of arrays by torch's parameter names"
        )
    for path, value in nested.flat(probe.inputs):
        if np.asarray(value).dtype.kind not in "iubfc":
            raise ConversionError(f"`probes` of {name}: the input {printable(path)} is no array of numbers")
    if probe.part and probe.part not in stages:
        raise ConversionError(
            f"`probes` of {name}: the part {printable(probe.part)} is no stage of its mapping; stages are "
            f"{listed(sorted(map(printable, stages)), 6) or 'none'}"
        )


def _single(value: Any) -> Any:
    """Probe inputs in the precision of the models, for numpy draws in float64."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


def cost(plan: "Plan", question: Proof) -> str:
    """What the numerical proof of `plan` will take, for a person to know beforehand."""
    memory = plan.values * (_BYTES_COPIED if question.copied else _BYTES_SINGLE)
    return (
        f"numerical proof of {plan.values / 1e6:.0f} million values: {count(question)} results of layers and stages,"
        f" about {size(memory)} of memory (--verify lossless leaves it out)"
    )


def count(question: Proof) -> int:
    """How many calls of layers are compared."""
    return sum(len(factors) for probe in question.probes for factors in question.alone(probe).values())


def available_memory() -> float:
    """Bytes that can be had without swapping, or infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            found = re.search(r"MemAvailable:\s*(\d+) kB", file.read())
    except OSError:
        return math.inf
    return int(found[1]) * 1024 if found else math.inf
