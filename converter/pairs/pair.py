"""What a pair is: a TensorFlow model and a torch reference of the same network, and what links them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from converter.errors import UsageError, printable
from converter.kinds.activations import IMAGES, Axes, one_each
from converter.naming import nearest
from converter.pairs.dialects import Dialect
from converter.pairs.mapping import Mapping as Rows

Shapes = Mapping[str, tuple[int, ...]]


class OptionError(UsageError):
    """A value that an option does not take; `option` is its name."""

    def __init__(self, option: str, told: str):
        self.option = option
        super().__init__(f"option {option} {told}")


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
            OptionError: it is not one.
        """
        parsed = self._parsed(name, value)
        if self.choices and parsed not in self.choices:
            raise OptionError(name, f"is one of {', '.join(map(str, self.choices))}, not {printable(parsed, 60)}")
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
        raise OptionError(name, f"takes {_spelled(kind)}, not {printable(value, 60)}")

    @classmethod
    def same(cls, value: Any, found: Any) -> bool:
        """Whether `value`, which may be text as on a command line, is `found`, by the type of that."""
        if type(value) is type(found) and value == found:
            return True
        found = tuple(found) if isinstance(found, list) else found
        try:
            return cls(found, "").parse("", value) == found
        except OptionError:
            return False


def _spelled(kind: type) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", tuple: "whole numbers, as 2,3"}
    return words.get(kind, "a word")


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted path -> value, of all that the configuration says."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found.update(flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value})
    return {path: value for path, value in found.items() if value is not None}


@dataclass(frozen=True)
class Probe:
    """One set of inputs to prove a model, or a part of it, with.

    Attributes:
        inputs: arrays in torch's layout, tuples of them, or None, by torch's parameter name, or by their place where it
            is a positional one ("0").
        options: passed to both sides as they are.
        part: path of the stage (a row of the mapping) to call; "" is the model.
        stages_only: record the stages and not every layer, whose inputs would fill the memory.
        config: what the configuration is in place of the checkpoint's for this probe, as a smaller image; the same
            weights fill it.
        keras: the (positional, named) arguments of the Keras model, in its own layout, where they are not torch's; the
            options are torch's alone then.
        outputs: (path in torch's results, path in Keras's, pattern of the axes or "") of the outputs that are the same,
            where not all are, in their order. Paths are those of `converter.nested.flat`.
    """

    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    stages_only: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    keras: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    outputs: tuple[tuple[str, str, str], ...] | None = None

    def __post_init__(self) -> None:
        for _, _, axes in self.outputs or ():
            if axes:
                one_each(axes)


@dataclass(frozen=True)
class Variant:
    """A published size of a family.

    Attributes:
        name: what `--model` takes.
        config: the part of the configuration that tells it from the others; nested as that is.
        summary, tensors: as a pair's, where they are not the family's.
    """

    name: str
    config: Mapping[str, Any]
    summary: str = ""
    tensors: int | None = None


@dataclass(frozen=True)
class ConfigJson:
    """What a `config.json` beside the weights says of a family, in the words of the program that wrote it.

    Attributes:
        model_types: values of its `model_type` that mean this family.
        sizes: dotted path in it -> dotted path in the configuration, or what must stand there as a function of (dotted
            path -> value); None where anything may.
        fixed: dotted path in it -> the only value that this family has.
    """

    model_types: tuple[str, ...]
    sizes: Mapping[str, str | Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A TensorFlow model and a torch reference of the same network, and what links them.

    Attributes:
        name: what `--model` takes.
        summary: a line for the list of models.
        tensors: how many tensors of the usual checkpoint it takes, where optional ones are not all there.
        mapping: configuration -> the rows.
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
        not_at: (regular expression of a path, what stands there) of other networks' modules with names like its own.
        dialects: how other libraries spell its names.
        variants: published sizes, each with a name to convert by; other sizes go by the family's.
        config_json: what a `config.json` beside the weights says of it.
        family: of a variant, the name of its family.
        built_by: what builds the Keras model in the user's own program, which loads the weights itself; "" where that
            is for `tf_models.load`.
    """

    name: str
    mapping: Callable[[dict[str, Any]], Rows]
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
    not_at: tuple[tuple[str, str], ...] = ()
    dialects: tuple[Dialect, ...] = ()
    summary: str = ""
    tensors: int | None = None
    variants: tuple[Variant, ...] = ()
    config_json: ConfigJson | None = None
    family: str = ""
    built_by: str = ""

    def __post_init__(self) -> None:
        for name in ("outputs", "scopes"):
            value = getattr(self, name)
            if isinstance(value, str) or len(set(value)) < len(tuple(value)):
                raise ValueError(f"`{name}` of the pair {self.name} is a tuple of different names, not {value!r}")
        if isinstance(self.channels_first, str):
            raise ValueError(f"`channels_first` of the pair {self.name} is a set of names, not {self.channels_first!r}")
        for name, axes in self.axes.items():
            try:
                one_each(axes)
            except ValueError as error:
                raise ValueError(f"`axes` of the pair {self.name}, {name}: {error}") from None
        if not isinstance(self.variants, tuple) or not all(isinstance(one, Variant) for one in self.variants):
            raise ValueError(
                f"`variants` of the pair {self.name} is a tuple of Variant(name, config), not {self.variants!r}"
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ValueError(f"`variants` of the pair {self.name}: {twice[0]} is a name twice; each has its own")

    @property
    def activations(self) -> Axes:
        """The axes of every input and output that is laid out otherwise on the other side."""
        return {**dict.fromkeys(self.channels_first, IMAGES), **self.axes}

    def published(self, config: Mapping[str, Any]) -> str | None:
        """Name of the variant that has these sizes."""
        return next((one.name for one in self.variants if _holds(config, one.config)), None)

    @property
    def names(self) -> list[str]:
        """Its own, and those of its variants."""
        return [self.name, *(one.name for one in self.variants)]

    def variant(self, one: Variant) -> "Pair":
        """The family under the name of one of its variants: sizes of another are not its own."""

        def configure(shapes: Shapes, options: dict[str, Any]) -> dict[str, Any]:
            config = self.configure(shapes, options)
            other = self.published(config)
            if other not in (None, one.name):
                raise ValueError(f"its sizes are those of {other}")
            return config

        return replace(
            self,
            name=one.name,
            family=self.name,
            variants=(),
            configure=configure,
            fallback=_merged(self.fallback or {}, one.config),
            summary=one.summary or self.summary,
            tensors=one.tensors,
        )

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with the usual sizes and options where it says none."""
        options = {name: option.default for name, option in self.options.items()}
        return _merged({**options, **(self.fallback or {})}, config)

    def tensor_count(self) -> int | None:
        """How many tensors a checkpoint of the usual sizes has, or None where there are no usual sizes.

        Of a family, each of its variants has a count of its own.
        """
        if self.tensors is not None or self.variants:
            return self.tensors
        config = self.fallback or {name: option.default for name, option in self.options.items()}
        try:
            return sum(1 for _ in self.mapping(config).tensors())
        except Exception:  # a pair that is someone's own, at sizes that are a guess
            return None

    def own_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of what is given, what the state dict cannot reveal."""
        return {name: value for name, value in given.items() if name in self.options}

    def named(self, given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        """What is given by the names of options and of sizes: a size by its dotted path in the configuration, where
        its last word is enough if no other has it.

        Raises:
            UsageError: a name is no option and no size of the model, or several sizes'.
        """
        return {self._size_named(name, config): value for name, value in given.items()}

    def _size_named(self, name: str, config: Mapping[str, Any]) -> str:
        sizes = flat(config)
        if name in self.options or name in sizes:
            return name
        found = [path for path in sizes if path.endswith(f".{name}")]
        if not found:
            raise self._no_option(name)
        if len(found) > 1:
            raise UsageError(f"{printable(name)} is several sizes of {self.name}; name one: {', '.join(found)}")
        return found[0]

    def check_determined(self, given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """See that what is given besides the options is what the checkpoint says.

        Raises:
            UsageError: it is something else, or no size of the model at all.
        """
        sizes = flat(config)
        for name, value in self.named(given, config).items():
            if name in self.options or Option.same(value, sizes[name]):
                continue
            told = f"the checkpoint is of a {self.name} with {name} {sizes[name]}"
            raise UsageError(f"option {name} is {printable(value, 60)}, but {told}")

    def parse_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option's value: as given, else its default.

        Raises:
            UsageError: an unknown option (the known are listed), or a value of the wrong type.
        """
        for name in given:
            if name not in self.options:
                raise self._no_option(name)
        return {
            name: option.parse(name, given[name]) if name in given else option.default
            for name, option in self.options.items()
        }

    def _no_option(self, name: str) -> UsageError:
        known = ", ".join(f"{key} ({option.help})" for key, option in self.options.items()) or "none"
        near = nearest(name, self.options)
        meant = f"; did you mean {near}?" if near else ""
        return UsageError(f"model {self.name} has no option {printable(name)}{meant or f'; known: {known}'}")

    def misspelled(self, given: Mapping[str, Any]) -> UsageError | None:
        """That something is given by nearly the name of an option, where there is no size of that name."""
        sizes = flat(self.fallback or {})
        strange = [name for name in given if name not in self.options and not _is_size(name, sizes)]
        return next((self._no_option(name) for name in strange if nearest(name, self.options)), None)


def _is_size(name: str, sizes: Mapping[str, Any]) -> bool:
    return name in sizes or any(path.endswith(f".{name}") for path in sizes)


def _holds(config: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether the configuration has all these values, at whatever depth."""
    return all(
        name in config and (_holds(config[name], value) if isinstance(value, Mapping) else config[name] == value)
        for name, value in part.items()
    )


def _merged(config: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with these values in place of its own, at whatever depth."""
    return {
        **config,
        **{
            name: _merged(config.get(name, {}), value) if isinstance(value, Mapping) else value
            for name, value in part.items()
        },
    }
