"""Configurations of a torch module and a Keras layer side by side: what is the same thing under two names."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.torch_side.answers import Module

_EPSILON = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps", "_epsilon", "_eps")
_SCALES = ("scale", "scaling", "_scale", "scale_factor")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads", "_num_heads", "nhead", "n_head")


@dataclass(frozen=True)
class Setting:
    """Something that is configured otherwise.

    Attributes:
        name: what.
        theirs, ours: torch's and Keras's, in words.
        hidden: a difference can stand without any result showing it in inference.
    """

    name: str
    theirs: str
    ours: str
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.ours}, torch {self.theirs}"


def settings_of(layer: Any) -> dict[str, Any]:
    """What a Keras layer is configured with: what its `get_config` says, and its attributes, which it computes with."""
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # a layer of someone's that has none
        found.update(layer.get_config())
    for name, value in vars(layer).items():
        if isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("__"):
            found[name] = value
    return found


def of_unit(module: Module, layer: Any) -> Iterator[Setting]:
    """Where a module and the layer that it is filled into are configured otherwise; paddings apart."""
    theirs, ours = module.settings, settings_of(layer)
    one, other = _number(theirs, _EPSILON), _number(ours, _EPSILON)
    if one is not None and other is not None and abs(one - other) > 1e-6 * max(one, other):
        yield Setting("epsilon", f"{one:g}", f"{other:g}", hidden=True)
    kind = module.kind.rpartition(".")[2]
    if "BatchNorm" in kind or "running_var" in module.buffers:
        one, other = _number(theirs, ("momentum",)), _number(ours, ("momentum",))
        if one is not None and other is not None and abs(1 - one - other) > 1e-6:
            yield Setting("momentum", f"{one:g}, which is {1 - one:g} of Keras's", f"{other:g}", hidden=True)
    if kind.startswith("Conv") and "strides" in ours and "kernel_size" in theirs:
        rank = len(_several(theirs["kernel_size"], 1))
        for name, word in (("stride", "strides"), ("dilation", "dilation_rate")):
            pair = _several(theirs.get(name, 1), rank), _several(ours.get(word, 1), rank)
            if pair[0] != pair[1]:
                yield Setting(name, _short(pair[0]), _short(pair[1]))
        groups = theirs.get("groups", 1), ours.get("groups", 1)
        if groups[0] != groups[1] and "Depthwise" not in type(layer).__name__:
            yield Setting("groups", str(groups[0]), str(groups[1]))


def of_parts(modules: Sequence[Module], layer: Any) -> Iterator[Setting]:
    """Where torch's modules between two units and a Keras layer there are configured otherwise."""
    ours = settings_of(layer)
    for name, words in (("scale", _SCALES), ("heads", _HEADS)):
        mine = _number(ours, words)
        every = [one for module in modules if (one := _number(module.settings, words)) is not None]
        if mine is not None and every and all(abs(one - mine) > 1e-4 * abs(one) for one in every):
            yield Setting(name, f"{every[0]:g}", f"{mine:g}")


def paddings(module: Module, layer: Any, size: Sequence[int], explicit: Sequence[tuple[int, int]]) -> Setting | None:
    """Whether a convolution pads otherwise.

    Args:
        size: of Keras's input in space, as the layer is given it.
        explicit: (before, after) of each axis in space, of what is padded before the layer.
    """
    theirs, ours = module.settings, settings_of(layer)
    rank = len(size)
    if "padding" not in theirs or "padding" not in ours or "kernel_size" not in ours:
        return None
    kernel = _several(ours["kernel_size"], rank)
    strides, rates = _several(ours.get("strides", 1), rank), _several(ours.get("dilation_rate", 1), rank)
    mine = [tuple(one) for one in explicit] or [(0, 0)] * rank
    if str(ours["padding"]).lower() == "same":
        for axis, length in enumerate(size):
            total = max(
                (-(-length // strides[axis]) - 1) * strides[axis] + (kernel[axis] - 1) * rates[axis] + 1 - length, 0
            )
            mine[axis] = (mine[axis][0] + total // 2, mine[axis][1] + total - total // 2)
    padding = theirs["padding"]
    if isinstance(padding, str):
        totals = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, rates, strict=True)]
        wanted = [(total // 2, total - total // 2) for total in totals]
    else:
        wanted = [(one, one) for one in _several(padding, rank)]
    if wanted != mine:
        return Setting("padding", _short(wanted), _short(mine))
    return None


def _number(settings: Mapping[str, Any], names: Sequence[str]) -> float | None:
    for name in names:
        value = settings.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def _several(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


def _short(values: Sequence[Any]) -> str:
    """One value where all axes have the same."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))
