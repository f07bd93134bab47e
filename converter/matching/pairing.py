"""What a match found, as a pair: the links are the rows of its mapping, so that all else is as of any other pair."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

from converter import kinds, nested
from converter.errors import ConversionError, printable
from converter.kinds import Kind, Leaf, leaf
from converter.kinds.folds import rows
from converter.matching.arguments import Arguments
from converter.matching.builders import Builder
from converter.matching.fill_text import ROWS
from converter.matching.rows import Fill, Link, rows_of
from converter.naming import fold, listed
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Drop, Row, join
from converter.pairs.mapping import Mapping as Rows
from converter.pairs.pair import Pair, Probe
from tf_models.runtime.abstract import TooLarge

# A reason of `left` that begins so names the tensor that stays: the two must be equal.
COPY = "a copy of "
_SHOWN = 3


def pair_of(
    name: str,
    torch: Builder,
    keras: Builder,
    arguments: Arguments,
    links: list[Link],
    left: dict[str, str],
    outputs: Sequence[tuple[str, str, str]],
    saved: Mapping[str, str] | None = None,
) -> Pair:
    """The pair of a match, to be converted, verified and restored as any other is.

    Whatever is open refuses, wherever the pair is used: a link that is neither proven nor accepted, and a tensor that
    is left without a reason.

    Args:
        name: what the pair is called.
        torch, keras: build the networks.
        arguments: what the networks are called with in the proof.
        links: every variable of the Keras model is in one.
        left: name of a torch tensor that fills nothing -> why that is right, or "". "a copy of NAME" is checked.
        outputs: (path in torch's results, path in Keras's, pattern of the axes) of the outputs that are the same.
        saved: name of a torch tensor -> its name in files, where the network's library gives it another there.

    Raises:
        ValueError: the links contradict one another, or `axes` is no pattern.
    """
    build = partial(_built, keras, arguments)
    refusal = _refusal(name, links, left)
    mapping = None if refusal else Rows([*_rows(links, _values(build)), *_drops(left)])
    probe = Probe(arguments.inputs, keras=(arguments.keras, arguments.keras_named), outputs=tuple(outputs))

    def mapped(_config: dict[str, Any]) -> Rows:
        if mapping is None:
            raise ConversionError(refusal)
        return mapping

    return Pair(
        name=name,
        mapping=mapped,
        probes=lambda _config, _rng: [probe],
        build_tf=build,
        build_torch=torch,
        outputs=_names(outputs),
        tensors=len({tensor for row in rows_of(links) for tensor in row.tensors}),
        summary=f"{torch.text} as {keras.text}",
        built_by=keras.text,
        dialects=(Dialect("saved", tuple((theirs, ours) for ours, theirs in saved.items())),) if saved else (),
    )


def _built(keras: Builder, arguments: Arguments) -> Any:
    """The model with its variables, which some models have from their first call on: it is called without values."""
    try:
        model = keras()
        if not model.built and (arguments.keras or arguments.keras_named):
            args, kwargs = nested.each(_symbol, (arguments.keras, arguments.keras_named))
            model(*args, **kwargs)
        return model
    except ConversionError as error:
        if isinstance(error.__cause__, TooLarge):  # no fault of the builder's: the checkpoint is another network's
            raise error.__cause__ from None
        raise


def _symbol(part: Any) -> Any:
    import keras

    return keras.KerasTensor(part.shape, part.dtype.name) if isinstance(part, np.ndarray) else part


def _values(build: Callable[[], Any]) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """What the variable at a path holds where the model was just built, for its shape."""

    @cache
    def values() -> dict[str, np.ndarray]:
        from converter.planning.variables import by_path, fresh_names

        with fresh_names():
            return {path: np.array(variable) for path, variable in by_path(build()).items()}

    def of(path: str, _shape: tuple[int, ...]) -> np.ndarray:
        if path not in values():
            raise ValueError(f"the Keras model has no variable {path} when it is built anew")
        return values()[path]

    return of


def _refusal(name: str, links: list[Link], left: dict[str, str]) -> str:
    """Why nothing may be converted by this match yet, in a line; "" where nothing is open."""
    rows = [join(ours, "") or theirs for link in links if not link.taken for theirs, ours in link.units()]
    tensors = [tensor for tensor, reason in left.items() if not reason]
    told = []
    if rows:
        told.append(f"{len(rows)} of its rows are not proven ({_first(rows)})")
    if tensors:
        told.append(f"{len(tensors)} tensors of torch's fill nothing, and no reason is known ({_first(tensors)})")
    if not told:
        return ""
    return (
        f"the match {printable(name, 60)} is open: {'; '.join(told)}; look at each, and take it with --accept ROW, or "
        "`accepted = true` in the plan"
    )


def _first(names: list[str]) -> str:
    return listed([printable(one, 100) for one in fold(names)], _SHOWN)


def _rows(links: list[Link], built: Callable[[str, tuple[int, ...]], np.ndarray]) -> Iterator[Row]:
    """A row for each unit. Tensors that two units share are called in the first, where they are a layer."""
    called: set[str] = set()
    others: dict[str, list[Leaf]] = {}  # torch path -> leaves by the whole paths of their variables
    for link in links:
        for theirs, ours in link.units():
            if link.kind and theirs not in called:
                called.add(theirs)
                leaves = tuple(part for fill in link.fills for part in _leaves(fill, ours, "", built))
                yield Row(theirs, _kind(link, leaves), keras=ours)
            else:
                leaves = tuple(part for fill in link.fills for part in _leaves(fill, ours, ours, built))
                others.setdefault(theirs, []).extend(leaves)
    for theirs, several in others.items():
        yield Row(theirs, Kind("MATCHED", tuple(several), callable_alone=False), keras="")


def _kind(link: Link, leaves: tuple[Leaf, ...]) -> Kind:
    """The named kind with the leaves that were found: its axes are what activations showed."""
    known = getattr(kinds, link.kind, None)
    if not isinstance(known, Kind):
        raise ValueError(f"{link.kind!r} is no kind of converter.kinds")
    return replace(known, leaves=leaves, fitted=None)


def _leaves(fill: Fill, owner: str, prefix: str, built: Callable[[str, tuple[int, ...]], np.ndarray]) -> Iterator[Leaf]:
    """The leaf of a fill, or one for each variable that holds a constant; variables are named with the prefix."""
    names = [join(prefix, variable) for variable in fill.variables]
    if fill.tensors:
        sizes = dict(fill.sizes)
        taken = [sizes.pop(name) for name in ROWS if name in sizes]
        yield leaf(fill.tensors, tuple(names), fill.axes, sizes=sizes, fold=rows(*taken) if taken else None)
        return
    text = fill.axes.removeprefix("=").strip()
    for variable, shown in zip(fill.variables, names, strict=True):
        if text == "built":
            yield kinds.constant(shown, partial(built, join(owner, variable)), "built")
        else:
            try:
                yield kinds.constant(shown, float(text))
            except ValueError:
                told = "a constant is a number, as `= 0`, or `= built`"
                raise ValueError(f"{join(owner, variable)}: {told}, not {printable(fill.axes, 60)!r}") from None


def _drops(left: dict[str, str]) -> Iterator[Drop]:
    """Tensors that fill nothing. Where one is a copy, the two must be equal; else no output may depend on it."""
    for name, reason in left.items():
        if reason:
            yield Drop(name, reason, equals=reason.removeprefix(COPY) if reason.startswith(COPY) else None)


def _names(outputs: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """A name for each output: torch's path, or its place where that says nothing."""
    if len(outputs) == 1 and outputs[0][0] == "":
        return ("output",)
    return tuple(f"output {i}" if not path or path.isdecimal() else path for i, (path, _, _) in enumerate(outputs))
