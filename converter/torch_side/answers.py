"""What torch's process answers. Arrays are numpy's, in plain tuples, lists and dicts, with torch's axes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WIDE = 8.0  # times what layers give in a proof, to take functions between them past their bends, as ReLU6's
MOST_CALLS = 64  # of one layer that a proof records: a decoder may call its head on every level


@dataclass
class Module:
    """A module of the network.

    Attributes:
        path: torch's; "" is the network itself.
        kind: its class with its module, as "torch.nn.modules.linear.Linear".
        parameters, buffers: name -> (shape, dtype) of those of its own, buffers that are not saved left out.
        same_as: the path under which the same module came before, or None.
        settings: its public attributes that are numbers, flags or words, or tuples of these: `eps`, `stride`.
    """

    path: str
    kind: str
    parameters: dict[str, tuple[tuple[int, ...], str]]
    buffers: dict[str, tuple[tuple[int, ...], str]]
    same_as: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Step:
    """An operation of a run.

    Attributes:
        number: counted from 0.
        operation: torch's name without its namespace, as "convolution".
        module: path of the innermost module in whose forward it stands.
        reads: for each tensor that it takes the number of the step that gave it, "input NAME", or the name of a
            parameter or buffer; None for one that came about otherwise, as a constant in the code.
        shapes: of the tensors that it gives.
    """

    number: int
    operation: str
    module: str
    reads: tuple[int | str | None, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass
class Recorded:
    """A call of a module: what it took, as it was before the call, and what it gave.

    `index` counts the calls of the module.
    """

    path: str
    index: int
    args: tuple
    kwargs: dict[str, Any]
    result: Any


@dataclass
class Outputs:
    """What the network gave."""

    value: Any


@dataclass
class Held:
    """A tensor of the network's state dict.

    Attributes:
        owner: class of the module that it is a parameter or buffer of, as "Linear".
        same_as: the name under which the same tensor came before, or None.
        saved_as: its name in what the network's own library saves, where that is another.
        value: what it holds, where that does not come of its name alone (`converter.torch_side.seeding`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    owner: str
    same_as: str | None = None
    saved_as: str | None = None
    value: np.ndarray | None = None


@dataclass
class Value:
    """What the operation of this number gave first."""

    number: int
    value: np.ndarray


@dataclass
class Call:
    """One call of a layer alone.

    Attributes:
        args, kwargs: its inputs, in float32.
        result: torch's float32 result.
        truth: the result in float64, for the same inputs.
        moved: what roundings moved the truth by, run by run.
        padded: the first input as the layer pads it itself before it computes, or None where it does not.
        batch_second: its sequences have the time first.
    """

    path: str
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    truth: Any
    moved: list[Any]
    padded: Any = None
    batch_second: bool = False


@dataclass
class Entry:
    """What reached a layer in a run of the whole (or the part), in the order in which torch enters the layers.

    Attributes:
        index: which call of this layer.
        args, kwargs: in float64.
        near: what roundings move (args, kwargs) by, run by run, where every layer before gives its true result; empty
            where it was not entered then.
        far: the same where the layers before round too.
        wide: (args, kwargs) where every layer before gives WIDE times its result, and `wide_near` what roundings move
            those by; None where that was not tried.
        result: what the layer gave, in float32; None for a stage.
        between: the operations since the layer before was left, by torch's names.
        padded, batch_second: as for `Call`.
    """

    path: str
    index: int
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    between: tuple[str, ...]
    padded: Any = None
    batch_second: bool = False
    near: list[Any] = field(default_factory=list)
    far: list[Any] = field(default_factory=list)
    wide: Any = None
    wide_near: list[Any] = field(default_factory=list)


@dataclass
class Whole:
    """One probe at its end, of the whole or of its part.

    Attributes:
        outputs: in float32.
        truth: in float64.
        moved: what roundings moved the truth by, run by run.
        near: the same where every layer gave its true result, so that only what lies after them rounds.
        between: the operations since the last layer was left.
        wide, wide_near: truth and `near` where every layer gave WIDE times its result; None where not tried.
    """

    outputs: Any
    truth: Any
    moved: list[Any]
    near: list[Any]
    between: tuple[str, ...] = ()
    wide: Any = None
    wide_near: list[Any] = field(default_factory=list)


@dataclass
class Seeded:
    """From here on these tensors (canonical names, torch's axes) have other values: they were constant."""

    values: dict[str, np.ndarray]


@dataclass
class Note:
    """A sentence for the report."""

    text: str


@dataclass
class Trained:
    """What training did to the reference, from the probe's inputs and the upstream gradients that are given.

    Attributes:
        probe: index of the probe.
        upstream: path of an output in the results -> a gradient for it.
        rates: canonical name -> learning rate.
        gradients: canonical name -> (torch's float32, truth, moved).
        buffers: the same for the statistics after one step in training mode.
        weights: the same for the parameters after the last step.
        steps: how many.
        batches: path of a batch normalisation -> how many values of a channel it saw, and its momentum.
        padding: canonical name -> the row of an embedding that looking it up does not train (torch's `padding_idx`).
    """

    probe: int
    upstream: dict[str, np.ndarray]
    rates: dict[str, float]
    gradients: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    buffers: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    weights: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    steps: int = 3
    batches: dict[str, tuple[int, float]] = field(default_factory=dict)
    padding: dict[str, int] = field(default_factory=dict)


@dataclass
class Failure:
    """What went wrong, in a line, and where, as Python tells it."""

    text: str
    trace: str


Answer = Module | Step | Recorded | Outputs | Held | Value | Call | Entry | Whole | Seeded | Note | Trained
Send = Callable[[Answer], None]
