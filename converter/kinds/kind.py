"""What a kind is: the tensors of a sort of module, the Keras variables that hold them, and their axes.

A kind lists the leaves of a torch module (`weight`, `running_mean`, ...) and, for each, the Keras variables it
becomes and with which axes: `"o i kh kw -> kh kw i o"` (`converter.kinds.axes` has the notation). A pattern is read in
both directions, so every kind is invertible, but for a declared `Fold`. A kind also says how the module's
activations are laid out, for the proof that feeds torch's recorded inputs to the Keras layer at the same path.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np

from converter.errors import ConversionError
from converter.kinds.activations import IMAGES, SEQUENCES, Axes, arrange
from converter.kinds.axes import Pattern, pattern
from converter.kinds.constant import Constant
from converter.kinds.folds import Fold


@dataclass(frozen=True)
class Leaf:
    """Tensors of a torch module and the Keras variables that hold the same values, by their names below the module.

    Attributes:
        torch, keras: the names; usually one of each. Without tensors the variable holds a constant.
        pattern: the axes of each tensor -> those of each variable.
        optional: all of it may be absent on both sides (a bias); present on one side only, it is a problem like any
            other.
        sizes: lengths of axes that the shapes of the variables do not tell.
        fold: what becomes of the tensors before that.
        alternatives: leaves of other tensors for the same variables, one of which a checkpoint may hold instead.
        constant: what the variable holds where there are no tensors.
    """

    torch: tuple[str, ...]
    keras: tuple[str, ...]
    pattern: Pattern
    optional: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    fold: Fold | None = None
    alternatives: tuple["Leaf", ...] = field(default=(), compare=False)
    constant: Constant | None = None

    @property
    def computed(self) -> bool:
        """The variables do not hold the tensors' own bits."""
        return self.fold is not None or self.constant is not None

    @property
    def axes(self) -> str:
        """How the tensors lie in the variables, for a person."""
        return self.pattern.text if self.constant is None else str(self.constant)

    def sized(self, sizes: Mapping[str, int]) -> "Leaf":
        """The leaf that knows these lengths, of axes that it has."""
        mine = {name: length for name, length in sizes.items() if name in axes_in(self.pattern.text)}
        alternatives = tuple(other.sized(sizes) for other in self.alternatives)
        return replace(self, sizes=tuple({**dict(self.sizes), **mine}.items()), alternatives=alternatives)

    def torch_shapes(self, keras_shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shapes of the tensors that fill variables of these shapes.

        Raises:
            ValueError: the variables do not have the axes.
        """
        if self.constant is not None:
            return []
        shapes = list(self.pattern.shapes(keras_shapes, dict(self.sizes)))
        return shapes if self.fold is None else self.fold.shapes(shapes)

    def to_keras(self, tensors: Sequence[np.ndarray], keras_shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The variables' values: views where numpy can make them.

        Raises:
            ValueError: a constant that does not fit the variable.
        """
        if self.constant is not None:
            return [self.constant.values(shape) for shape in keras_shapes]
        arrays = list(tensors) if self.fold is None else self.fold.forward(list(tensors))
        return self.pattern.apply(arrays, keras_shapes, dict(self.sizes))

    def to_torch(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tensors out of the variables' values: `to_keras` undone.

        Raises:
            ValueError: a fold that cannot be undone.
        """
        if self.constant is not None:
            return []
        shapes = self.pattern.shapes([value.shape for value in values], dict(self.sizes))
        arrays = self.pattern.reversed().apply(values, shapes, dict(self.sizes))
        if self.fold is None:
            return arrays
        if self.fold.back is None:
            raise ValueError(self.fold.cost)
        return self.fold.back(arrays)


def leaf(
    torch: str | tuple[str, ...],
    keras: str | tuple[str, ...],
    axes: str,
    optional: bool = False,
    fold: Fold | None = None,
    alternatives: tuple[Leaf, ...] = (),
    sizes: Mapping[str, int] | None = None,
) -> Leaf:
    """A leaf of one tensor and one variable, or of several.

    Raises:
        ValueError: `axes` is no pattern, or `sizes` are no lengths of its axes.
    """
    _check_lengths(f"the pattern {axes!r}", axes_in(axes), sizes or {})
    names = [(one,) if isinstance(one, str) else one for one in (torch, keras)]
    return Leaf(names[0], names[1], pattern(axes), optional, tuple((sizes or {}).items()), fold, alternatives)


def constant(variable: str, value: float | np.ndarray | Callable[[tuple[int, ...]], Any], text: str = "") -> Leaf:
    """A leaf of a variable that no tensor fills: it holds the value.

    Args:
        value: a number for all of it, an array of its shape, or a function of its shape that gives either.
        text: the value for a person; by default the number, or "computed".

    Raises:
        ValueError: an array of what are no numbers, or NaN.
    """
    if not callable(value):
        given = np.asarray(value)
        if given.dtype.kind not in "iuf" or not np.isfinite(given).all():
            raise ValueError(f"the constant of {variable} is a finite number, or several, not {value!r}")
        text = text or (f"{given:g}" if given.ndim == 0 else "")
    return Leaf((), (variable,), pattern("... -> ..."), constant=Constant(text or "computed", value))


def _check_lengths(owner: str, known: set[str], sizes: Mapping[str, int]) -> None:
    for name, length in sizes.items():
        if name not in known:
            raise ValueError(f"{owner} has no axis {name}")
        if not isinstance(length, Integral) or isinstance(length, bool) or length < 1:
            raise ValueError(f"the length of the axis {name} of {owner} is a whole number from 1, not {length!r}")


def axes_in(text: str) -> set[str]:
    """The names of axes in a pattern."""
    return set(re.findall(r"[A-Za-z_]\w*", text))


@dataclass(frozen=True)
class Kind:
    """A sort of module.

    Attributes:
        leaves: the tensors it owns.
        ignored: torch leaf -> why TensorFlow does not need it.
        inputs, results: axes of the arguments, and of what the module returns, where they are not the same on both
            sides: path -> pattern (`converter.kinds.activations`).
        sequences: paths among the arguments, and among the results, of arrays that have the time first where the
            module's `batch_first` is off; Keras has the batch first.
        probe_scales: factors by which recorded inputs are multiplied for the proof; a small one makes epsilon visible.
        call: calls the Keras layer with the positional inputs and keyword inputs that torch's module received.
        callable_alone: the module is called as a layer (False: its tensors are used directly by their owner).
        of: the kind that torch has there, where this one is another library's layout of it.
        stage: the module is a part of the network with layers of its own.
        suspects: what is usually wrong where the two sides differ, for the error message.
        returns: which of torch's results the Keras layer has, by place, or a function that takes them out of all (it
            must be linear, because it is given differences too); None: all of them, one to one.
        may_lack: paths among the results that a Keras layer may not give; those that it gives are compared.
        activated: the Keras layer may apply an `activation` that torch has apart; the proof takes it off.
        without_effect: Keras variables on which no result ever depends, whatever their values.
        sizes: lengths of axes of `inputs` and `results` that the arrays do not tell.
        fitted: (this kind, path below the row's -> Keras layer) -> the kind as that layer has it, where there are
            several layouts. That one knows the tensors that this one does, or fewer.

            Raises:
                ValueError: they are none that the kind knows.
        parts: paths below the row's of the Keras layers that are one module in torch, where they are several.
    """

    name: str
    leaves: tuple[Leaf, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    inputs: Axes = field(default_factory=dict)
    results: Axes = field(default_factory=dict)
    sequences: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    probe_scales: tuple[float, ...] = (1.0,)
    call: Callable[..., Any] | None = None
    callable_alone: bool = True
    of: "Kind | None" = None
    stage: bool = False
    suspects: str = ""
    returns: tuple[int, ...] | Callable[[Any], Any] | None = None
    activated: bool = False
    without_effect: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    may_lack: tuple[str, ...] = ()
    fitted: "Callable[[Kind, dict[str, Any]], Kind] | None" = None
    parts: tuple[str, ...] = ()

    def relaid(self) -> Iterator[tuple[str, str]]:
        """(leaf, "these axes -> torch's axes") of every tensor that is laid out otherwise than in the kind `of`.

        Raises:
            ValueError: the two kinds do not fill the same variables, or name the axes of one differently.
        """
        if self.of is None:
            raise ValueError(f"{self} is torch's own layout, not another library's")
        torch_leaves = {leaf.torch: leaf for leaf in self.of.leaves}
        if set(torch_leaves) != {leaf.torch for leaf in self.leaves}:
            raise ValueError(f"{self} and {self.of} do not have the same tensors")
        for theirs in self.leaves:
            ours = torch_leaves[theirs.torch]
            if theirs == ours:
                continue
            if len(theirs.torch) != 1 or theirs.keras != ours.keras:
                raise ValueError(f"{self} and {self.of} do not fill the same variables with {theirs.torch[0]} alone")
            (their_axes, their_keras), (our_axes, our_keras) = theirs.pattern.sides, ours.pattern.sides
            if their_keras != our_keras:
                raise ValueError(f"{self} and {self.of} name the axes of {theirs.keras[0]} differently")
            yield theirs.torch[0], f"{their_axes} -> {our_axes}"

    def sized(self, **sizes: int) -> "Kind":
        """The kind where its axes have these lengths, which no shape tells: `FLATTENED.sized(h=7, w=7)`.

        Raises:
            ValueError: no pattern of the kind has such an axis, or it is no length.
        """
        texts = [part.pattern.text for part in self.leaves] + [*self.inputs.values(), *self.results.values()]
        known = {name for text in texts for name in axes_in(text)}
        _check_lengths(str(self), known, sizes)
        leaves = tuple(part.sized(sizes) for part in self.leaves)
        return replace(self, leaves=leaves, sizes={**self.sizes, **sizes})

    def with_constants(self, *constants: Leaf) -> "Kind":
        """The kind of a module without tensors for variables that the Keras layer has: `kinds.constant("bias", 0)`.

        Raises:
            ValueError: what is given is none, or a tensor fills its variable along with others.
        """
        given = {name for one in constants for name in one.keras}
        for part in (*constants, *self.leaves):
            if part in constants and part.constant is None:
                raise ValueError(f"{part.keras[0]} has tensors: {part.torch[0]}")
            if given & set(part.keras) and not given >= set(part.keras):
                raise ValueError(f"{part.torch[0]} of the kind {self} fills several variables, not one alone")
        leaves = (*(part for part in self.leaves if not given & set(part.keras)), *constants)
        return replace(self, leaves=leaves)

    def holding(self, has: Callable[[str], bool]) -> "Kind":
        """The kind with the leaves whose tensors the checkpoint `has`, where it holds others in place of some."""
        leaves = tuple(
            next((one for one in (part, *part.alternatives) if all(map(has, one.torch))), part) for part in self.leaves
        )
        return self if leaves == self.leaves else replace(self, leaves=leaves)

    def given(self, args: tuple, kwargs: dict[str, Any], batch_second: bool = False) -> tuple[tuple, dict[str, Any]]:
        """What torch's module was called with, as the Keras layer has it."""
        axes = {**self.inputs, **dict.fromkeys(self.sequences[0] if batch_second else (), SEQUENCES)}
        return arrange(args, axes, self.sizes), arrange(kwargs, axes, self.sizes)

    def returned(self, value: Any, batch_second: bool = False) -> Any:
        """Torch's results, as the Keras layer has them, and of them those that it has.

        Raises:
            ConversionError: torch does not return what `returns` names.
        """
        axes = {**self.results, **dict.fromkeys(self.sequences[1] if batch_second else (), SEQUENCES)}
        return self.kept(arrange(value, axes, self.sizes))

    def kept(self, value: Any) -> Any:
        """Of torch's results those that the Keras layer has.

        Raises:
            ConversionError: torch does not return what `returns` names.
        """
        if self.returns is None:
            return value
        if callable(self.returns):
            return self.returns(value)
        several = value if isinstance(value, (tuple, list)) else (value,)
        if max(self.returns) >= len(several):
            raise ConversionError(
                f"`returns` of the kind {self} names result {max(self.returns)}, but torch's module returns "
                f"{len(several)}"
            )
        found = tuple(several[place] for place in self.returns)
        return found[0] if len(found) == 1 else found

    def __repr__(self) -> str:
        return self.name


IMAGE: Axes = {"": IMAGES}
IMAGE_2D = {"": "n c h w -> n h w c"}
