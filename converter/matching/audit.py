"""An audit: what a filled Keras model computes otherwise than the torch network with the checkpoint that it came from,
layer by layer, and why."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from converter.errors import ConversionError, aligned, printable
from converter.matching.builders import Builder, Place
from converter.naming import counted, fold, fold_pairs, listed
from converter.progress import Progress, Silent

CONFIGURATION = "configuration"  # of a finding: what no result shows in inference


@dataclass(frozen=True)
class Finding:
    """Something that is not as in torch.

    Attributes:
        layer: path of Keras's layer; "" is the model.
        what: what differs: names of variables, "result", "output NAME", or "configuration".
        cause: why, in words; "" where nothing is known.
        size: how far the layer's result is off on torch's own input, over its largest value; of a configuration that no
            result shows what it is on torch's input all the same; infinite where the results are not of one size.
        torch: path of torch's module.
    """

    layer: str
    what: str
    cause: str
    size: float
    torch: str = ""

    @property
    def shown(self) -> bool:
        """Results show it."""
        return self.what != CONFIGURATION


@dataclass(frozen=True)
class Output:
    """An output of both networks.

    Attributes:
        torch, keras: paths in the results.
        error: of Keras's, over the largest value of torch's.
        own: torch's own in float32 against float64, or None where it does not run so.
    """

    torch: str
    keras: str
    error: float
    own: float | None


@dataclass
class Audit:
    """What an audit found. It is true where no result shows a difference, and as long as it has findings.

    Attributes:
        findings: in the order of the network.
        outputs: errors of whole results.
        units, judged: how many layers with parameters torch has, and of how many the results were compared one by one.
        variables, equal: how many of Keras's a tensor fills, and how many hold what the checkpoint gives them.
        notes: what a person should know of it.
    """

    torch: str
    keras: str
    findings: list[Finding] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    units: int = 0
    judged: int = 0
    variables: int = 0
    equal: int = 0
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not any(one.shown for one in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def failure(self) -> str:
        """What is wrong, in a few words; "" where no result shows anything."""
        shown = [one for one in self.findings if one.shown]
        layers = fold(dict.fromkeys(one.layer or "the model" for one in shown))
        differ = counted(len(shown), "difference")
        return f"{differ} ({listed([printable(one, 80) for one in layers], 3)})" if shown else ""

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON can hold it; a size that is infinite is None."""
        found = {**asdict(self), "right": bool(self)}
        for some, name in (("findings", "size"), ("outputs", "error")):
            for one in found[some]:
                one[name] = one[name] if isfinite(one[name]) else None
        return found

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of each line for a person: counts, outputs, then the findings in the order of the network."""
        shown = [one for one in self.findings if one.shown]
        rest = [one for one in self.findings if not one.shown]
        rows = [
            ("torch", printable(self.torch, 160)),
            ("keras", printable(self.keras, 160)),
            ("layers", f"{self.judged} of {self.units} compared on torch's own input"),
            ("variables", f"{self.equal} of {self.variables} hold what the checkpoint gives them"),
            ("findings", f"{counted(len(shown), 'difference')}, and {len(rest)} of configuration that no result shows"),
        ]
        for one in self.outputs:
            name = f"{one.keras}: " if one.keras else ""
            own = "" if one.own is None else f" (torch's own in float32 {_size(one.own)})"
            rows.append(("output", f"{printable(name, 80)}error {_size(one.error)}{own}"))
        rows += [("note", note) for note in self.notes]
        for heading, some in (("differs", shown), (CONFIGURATION, rest)):
            rows += [(heading, text) for text in _folded(some)]
        return rows

    def __str__(self) -> str:
        return "\n".join(aligned(self.lines()))


def _size(value: float) -> str:
    return f"{value:.1e}" if value < float("inf") else "of another shape"


def _folded(findings: list[Finding]) -> list[str]:
    """A line for those that say the same of layers of which only an index differs, aligned."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.what, one.cause), []).append(one)
    rows = []
    for (what, why), some in groups.items():
        for theirs, ours in fold_pairs((one.torch, one.layer) for one in some):
            largest = max(one.size for one in some)
            size = "" if what == CONFIGURATION else f"{'up to ' if len(some) > 1 else ''}{_size(largest)}"
            pair = f"{printable(ours or '.', 160)} ({printable(theirs or '.', 160)})"
            rows.append((pair, "" if what == CONFIGURATION else what, why or "no cause is known", size))
    widths = [min(max((len(row[place]) for row in rows), default=0), 80) for place in range(2)]
    return [
        "  ".join([row[0].ljust(widths[0]), *([row[1].ljust(widths[1])] if widths[1] else []), row[2], row[3]]).rstrip()
        for row in rows
    ]


def audit(
    torch_build: Place,
    keras_model: Any,
    inputs: Place,
    checkpoint: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Find where a filled Keras model is not the torch network with the values of the checkpoint.

    Each layer is given torch's own input, so that every one of them is judged apart. The model's weights are as before
    afterwards.

    Args:
        torch_build: builds the torch network: a function, or "module:function?argument=value".
        keras_model: the filled model, or what builds it.
        inputs: as `match` takes them.
        checkpoint: the torch weights that the model should hold.
        weights: a `.weights.h5` or `.keras` file to fill the model with first.

    Raises:
        UsageError: something is named that there is not.
        ConversionError: a builder or a side fails, the checkpoint is another network's, or the weights do not load.
    """
    torch, giving = Builder(torch_build, "--torch"), Builder(inputs, "--inputs")
    if isinstance(keras_model, str) or not hasattr(keras_model, "weights"):
        keras = Builder(keras_model, "--keras")
    else:
        keras = Builder(_itself(keras_model), "--keras")
    giving = giving.called()  # before anything imports TensorFlow
    from converter.matching.auditing.looking import look

    return look(torch, keras, giving, checkpoint, None if weights is None else Path(weights), progress or Silent())


def _itself(model: Any) -> Callable[[], Any]:
    def build() -> Any:
        return model

    build.__qualname__ = str(getattr(model, "name", type(model).__name__))
    return build


def load_weights(model: Any, path: Path) -> None:
    """Fill a built model.

    Raises:
        ConversionError: the file cannot be read, or is of another model.
    """
    try:
        model.load_weights(path)
    except OSError as error:
        raise ConversionError(f"{printable(str(path), 160)} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what Keras raises is of many sorts
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConversionError(
            f"{printable(str(path), 160)} does not load into the Keras model: {printable(lines[0], 300)}"
        ) from error
