"""What torch's process can be asked. Every question names the network; the process keeps the last one filled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.lora import Part
from converter.pairs.pair import Probe


@dataclass(frozen=True)
class Source:
    """Where a tensor is: file, dotted path of the state dict, name there, and how to lay it out as torch does.

    `added` are products that are added to it first, of LoRA: B @ A, and how they lie in it.
    """

    file: str
    key: str
    name: str
    axes: str | None
    added: tuple[tuple["Source", "Source", Part], ...] = ()


@dataclass
class Reference:
    """A torch network, and the values to fill it with.

    Attributes:
        model: its name, for messages.
        build: its builder, or where to find it; None: the one that torch_refs has under `model`.
        config: what the builder takes.
        sources: canonical name -> where the tensor is, of every tensor of the network that the checkpoint holds.
        dtype: what the values were written as; the reference computes with values rounded to it.
        ignored: canonical names that the mapping drops: the checkpoint or the reference may lack them.
        seeded: its values are made by `converter.torch_side.seeding`, whatever it was built with.
    """

    model: str
    build: str | Callable[..., Any] | None
    config: dict[str, Any]
    sources: dict[str, Source]
    dtype: str = "float32"
    ignored: set[str] = field(default_factory=set)
    seeded: bool = False


@dataclass
class Inventory:
    """Which modules and tensors the network has: a `Module` each, in the order of torch's `named_modules`."""

    reference: Reference


@dataclass
class Trace:
    """Which operations a run consists of, and how values flow between them: a `Step` each, in their order."""

    reference: Reference
    probe: Probe


@dataclass
class Record:
    """What modules take and give in a run: a `Recorded` for each call, in the order in which calls end.

    Attributes:
        paths: the modules; "" is the whole.
    """

    reference: Reference
    probe: Probe
    paths: frozenset[str]


@dataclass
class Run:
    """What the network, or the probe's part of it, gives: one `Outputs`; in float64, if it is to be exact."""

    reference: Reference
    probe: Probe
    exact: bool = False


@dataclass
class Dataflow:
    """What the network holds, and how values flow in a run: a `Held` for each tensor, a `Step` for each operation, and
    at the end its `Outputs`.

    Attributes:
        args, kwargs: what it is called with.
    """

    reference: Reference
    args: tuple
    kwargs: dict[str, Any]


@dataclass
class Fetch:
    """What operations of that run give: a `Value` for each of the steps, in their order."""

    reference: Reference
    args: tuple
    kwargs: dict[str, Any]
    steps: frozenset[int]


@dataclass
class Proof:
    """What the numerical proof needs of torch; answered by its `Call`s, `Entry`s and `Whole`s, probe by probe.

    Attributes:
        reference: the network.
        modules: torch path -> factors for the recorded inputs, of each layer to record.
        stages: those of them that are stages.
        probes: what to run.
        copied: a copy of the reference in float64 fits into memory; else each operation converts what it uses.
        train: also take steps of training.
        shared: canonical name -> the one whose values it has, of tensors that are one on the other side.
        folded: canonical names of tensors that are folded into others there: no change of one can be followed.
    """

    reference: Reference
    modules: dict[str, tuple[float, ...]]
    probes: list[Probe]
    stages: frozenset[str] = frozenset()
    copied: bool = True
    train: bool = False
    shared: dict[str, str] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()

    def recorded(self, probe: Probe) -> dict[str, tuple[float, ...]]:
        """The layers of the probe's part to record, with their factors."""
        return {
            path: factors
            for path, factors in self.modules.items()
            if (not probe.part or f"{path}.".startswith(f"{probe.part}."))
            and (path in self.stages or not probe.stages_only)
        }

    def alone(self, probe: Probe) -> dict[str, tuple[float, ...]]:
        """Those of them that are run on their own: of stages within one another the inner ones, where the run of the
        whole shows what joins them."""
        recorded = self.recorded(probe)
        outer = {
            path
            for path in recorded
            if path in self.stages and any(other.startswith(f"{path}.") for other in recorded if other in self.stages)
        }
        return {
            path: factors
            for path, factors in recorded.items()
            if path != probe.part and (probe.stages_only or path not in outer)
        }


Question = Inventory | Trace | Record | Run | Dataflow | Fetch | Proof
