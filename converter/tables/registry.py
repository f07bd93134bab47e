"""The pairs that can be converted, by name. Importing this names the builders but imports neither framework."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

import tf_models
import torch_refs
from converter.errors import UsageError, printable
from converter.kinds.activations import IMAGES, Axes
from converter.tables.dialects import Dialect
from converter.tables.mapping import Mapping as Table

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Option:
    """Something about a model that its state dict cannot reveal, with the value it usually has.

    `default` also gives the type: an int, float, bool, str, or a tuple of ints; `kind` gives it where the default is
    None, which says that something else decides. `choices` are the only values there are.
    """

    default: Any
    help: str
    kind: type | None = None
    choices: tuple[Any, ...] = ()

    def parse(self, name: str, value: Any) -> Any:
        """`value` (text from a command line, or already of the type) as the type of the default.

        Raises:
            UsageError: it is not one.
        """
        parsed = self._parsed(name, value)
        if self.choices and parsed not in self.choices:
            raise UsageError(
                f"option {name} is one of {', '.join(map(str, self.choices))}, not {printable(parsed, 60)}"
            )
        return parsed

    def _parsed(self, name: str, value: Any) -> Any:
        if value is None and self.default is None:
            return None
        kind: Any = self.kind or type(self.default)
        try:
            if isinstance(value, str) and kind is bool:
                return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
            if isinstance(value, str) and kind is tuple:
                return tuple(int(part) for part in value.replace("x", ",").split(","))
            if kind is tuple:
                return (value,) if isinstance(value, int) else tuple(int(part) for part in value)
            if isinstance(value, str):
                return kind(value)
            if type(value) is kind or (kind is float and type(value) is int):
                return kind(value)
        except (ValueError, TypeError, KeyError):
            pass
        raise UsageError(f"option {name} takes {_spelled(kind)}, not {printable(value, 60)}")


def _spelled(kind: type) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers, as 2,3"}
    return words.get(kind, "a word")


@dataclass(frozen=True)
class Probe:
    """One set of inputs to prove a model, or a part of it, with.

    Attributes:
        inputs: arrays in torch's layout, tuples of them, or None, by torch's parameter name.
        options: passed to both sides as they are.
        part: path of the stage (a row of the mapping) to call; "" is the model.
        stages_only: record the stages and not every layer, whose inputs would fill the memory.
        config: what the configuration is in place of the checkpoint's for this probe, as a smaller image; the same
            weights fill it.
    """

    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    stages_only: bool = False
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A TensorFlow model and a torch reference of the same network, and what links them.

    Attributes:
        name: what `--model` takes.
        summary: a line for the list of models.
        tensors: how many tensors of the usual checkpoint it takes, where the table's optional ones are not all there.
        mapping: configuration -> the table of rows.
        probes: (configuration, seeded generator) -> sets of probe inputs; lengths of all axes should differ.
        full_size_probes: the same at the size the model is meant for, where `probes` are smaller.
        outputs: names of the outputs, in the order both sides return them.
        channels_first: the inputs and outputs that have the channels at axis 1 in torch and last in Keras.
        axes: the axes of other inputs and outputs, where they are not the same on both sides: name -> pattern
            (`converter.kinds.activations`), as "t n c -> n t c".
        build_tf, build_torch: callables, or where to find them ("module:callable"), that take the configuration and
            return a built keras.Model and a torch.nn.Module; None: the models registered under `name`.
        configure: (shapes by canonical name, options) -> configuration; raises KeyError or ValueError when the
            shapes are not of this network. By default the options are the configuration.
        fallback: a configuration to report problems against when the sizes cannot be read.
        options: what the state dict cannot reveal.
        scopes: prefixes under which a checkpoint may hold the model; tensors outside are out of scope. "" is a
            checkpoint of the model alone.
        dialects: other spellings of its names.
    """

    name: str
    mapping: Callable[[dict[str, Any]], Table]
    probes: Callable[[dict[str, Any], np.random.Generator], list[Probe]]
    outputs: tuple[str, ...] = ("output",)
    channels_first: frozenset[str] = frozenset()
    axes: Mapping[str, str] = field(default_factory=dict)
    build_tf: str | Callable[..., Any] | None = None
    build_torch: str | Callable[..., Any] | None = None
    configure: Callable[[Shapes, dict[str, Any]], dict[str, Any]] = lambda shapes, options: dict(options)
    fallback: dict[str, Any] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    full_size_probes: Callable[[dict[str, Any], np.random.Generator], list[Probe]] | None = None
    scopes: tuple[str, ...] = ("",)
    dialects: tuple[Dialect, ...] = ()
    summary: str = ""
    tensors: int | None = None

    def __post_init__(self) -> None:
        for name in ("outputs", "scopes"):
            value = getattr(self, name)
            if isinstance(value, str) or len(set(value)) < len(tuple(value)):
                raise ValueError(f"`{name}` of the pair {self.name} is a tuple of different names, not {value!r}")

    @property
    def activations(self) -> Axes:
        """The axes of every input and output that is laid out otherwise on the other side."""
        return {**dict.fromkeys(self.channels_first, IMAGES), **self.axes}

    def tensor_count(self) -> int | None:
        """How many tensors a checkpoint of the usual sizes has, or None where there are no usual sizes."""
        if self.tensors is not None:
            return self.tensors
        config = self.fallback or {name: option.default for name, option in self.options.items()}
        try:
            return sum(1 for _ in self.mapping(config).tensors())
        except Exception:  # a pair that is someone's own, at sizes that are a guess
            return None

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of what is given, what the state dict cannot reveal."""
        return {name: value for name, value in given.items() if name in self.options}

    def check_determined(self, given: Mapping[str, Any], config: Mapping[str, Any] | None) -> None:
        """See that what is given besides the options is what the checkpoint says.

        Raises:
            UsageError: it is something else, or no size of the model at all.
        """
        for name, value in given.items():
            found = None if name in self.options else (config or {}).get(name)
            if found is None or isinstance(found, dict):
                self.parse_options({name: value})
                continue
            wanted = tuple(found) if isinstance(found, list) else found
            if Option(wanted, "").parse(name, value) != wanted:
                told = f"the checkpoint is of a {self.name} with {name} {found}"
                raise UsageError(f"option {name} is {printable(value, 60)}, but {told}")

    def parse_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option's value: as given, else its default.

        Raises:
            UsageError: an unknown option (the known are listed), or a value of the wrong type.
        """
        for name in given:
            if name not in self.options:
                known = ", ".join(f"{key} ({option.help})" for key, option in self.options.items()) or "none"
                raise UsageError(f"model {self.name} has no option {printable(name)}; known: {known}")
        return {
            name: option.parse(name, given[name]) if name in given else option.default
            for name, option in self.options.items()
        }


_BUILTIN = {
    "dcn_v2": "converter.families.deform_conv:DCN_V2",
    "deform_conv2d": "converter.families.deform_conv:DEFORM_CONV2D",
    "ms_deform_attn": "converter.families.ms_deform_attn:MS_DEFORM_ATTN",
    "deformable_attention_1d": "converter.families.deformable_attention:DEFORMABLE_ATTENTION_1D",
    "deformable_attention_2d": "converter.families.deformable_attention:DEFORMABLE_ATTENTION_2D",
    "deformable_attention_3d": "converter.families.deformable_attention:DEFORMABLE_ATTENTION_3D",
    "mobile_sam": "converter.families.mobile_sam:MOBILE_SAM",
    "sam_decoder": "converter.families.sam_decoder:SAM_DECODER",
    "sam_image_encoder": "converter.families.sam_image_encoder:SAM_IMAGE_ENCODER",
    "sam_prompt_encoder": "converter.families.sam_prompt_encoder:SAM_PROMPT_ENCODER",
    "sam_vit_b": "converter.families.sam:SAM_VIT_B",
    "sam_vit_h": "converter.families.sam:SAM_VIT_H",
    "sam_vit_l": "converter.families.sam:SAM_VIT_L",
}
# Names that a user may well ask for, and why there is nothing to convert.
_WITHOUT_WEIGHTS = {
    "paste_masks": "paste_masks is an op without weights: there is nothing to convert; "
    "call tf_models.ops.paste_masks(masks, boxes, image_shape)",
}
_registered: dict[str, Pair] = {}


def register(pair: Pair) -> Pair:
    """Make a pair known by its name, to `convert` as to `tf_models.load` and `create`.

    Raises:
        UsageError: the name is a built-in one's.
    """
    if pair.name in _BUILTIN:
        raise UsageError(f"{printable(pair.name)} is the name of a built-in model; choose another")
    if pair.build_tf is not None:
        tf_models.register(pair.name, pair.build_tf)
    if pair.build_torch is not None:
        torch_refs.register(pair.name, pair.build_torch)
    _registered[pair.name] = pair
    return pair


def names() -> list[str]:
    """Names of all pairs, sorted."""
    return sorted({*_BUILTIN, *_registered})


def get(name: str) -> Pair:
    """The pair of that name.

    Raises:
        UsageError: there is none; the known are listed.
    """
    if name in _registered:
        return _registered[name]
    if name in _WITHOUT_WEIGHTS:
        raise UsageError(_WITHOUT_WEIGHTS[name])
    if name not in _BUILTIN:
        raise UsageError(f"no model is named {printable(name)}; known: {', '.join(names())}")
    return locate(_BUILTIN[name])


def pairs() -> Iterator[Pair]:
    """Every pair, in the order of the names."""
    for name in names():
        yield get(name)


def locate(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
