"""The `config.json` that libraries write beside the weights: what shapes cannot tell, and what must agree with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.safetensors_file import json_object
from converter.errors import ConversionError, UsageError, printable
from converter.pairs.pair import Option, OptionError, Pair, flat

NAME = "config.json"
_SAYS = f"{NAME} beside the checkpoint says"
_LARGEST = 10 << 20  # bytes; a configuration with all its labels has less than a tenth


class ConfigJsonError(ConversionError):
    """The `config.json` beside a checkpoint says what is not so."""


@dataclass(frozen=True)
class ConfigFile:
    """What stands in it (`said`), nothing where there is none; `problem` says why it cannot be read.

    A file of that name may be anything's: what cannot be read matters to those pairs alone that read it.
    """

    said: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ConfigFile":
        """The one in the folder of the checkpoint's first file."""
        path = checkpoint.files[0].parent / NAME
        if not path.is_file():
            return cls()
        try:
            with open(path, "rb") as file:
                text = file.read(_LARGEST)
            return cls(json_object(text, "it is no JSON object"))
        except OSError as error:
            return cls(problem=str(error.strerror))
        except ConversionError as error:
            return cls(problem=str(error))

    def options(self, pair: Pair) -> dict[str, Any]:
        """Of what it says, the pair's options.

        Raises:
            ConfigJsonError: a value that no such option takes.
        """
        found = {}
        for name, place in self._places(pair).items():
            value = self._at(place)
            if value is not None:
                try:
                    found[name] = pair.options[name].parse(name, value)
                except OptionError as error:
                    raise self.refused(pair, [name], error) from None
        return found

    def refused(self, pair: Pair, names: Iterable[str], error: ConversionError) -> ConfigJsonError:
        """That the network does not take these options, which it gave."""
        places = [self._places(pair)[name] for name in names]
        said = " and ".join(f"{place} is {printable(self._at(place), 40)}" for place in places)
        return ConfigJsonError(f"{_SAYS} {said}: {error}")

    def check(
        self, pair: Pair, config: Mapping[str, Any], given: Mapping[str, Any], recorded: Mapping[str, Any]
    ) -> None:
        """See that the configuration that was read off the checkpoint is what it says.

        `given` are options and sizes as the user gave them, `recorded` options as a weights file has them.

        Raises:
            UsageError: an option of the user's is another.
            ConfigJsonError: the tensors or the weights file are of another size, the network is none that the pair has,
                or nobody can read it.
        """
        if pair.config_json is None:
            return
        if self.problem:
            raise ConfigJsonError(f"{NAME} beside the checkpoint cannot be read: {self.problem}")
        if not self._means(pair):
            return
        sizes = flat(config)
        for place, size in pair.config_json.sizes.items():
            value, found = self._at(place), size(sizes) if callable(size) else sizes.get(size)
            if value is None or found is None or Option.same(value, found):
                continue
            if isinstance(size, str) and size in given:
                said, ours = _apart(value, given[size])
                raise UsageError(f"{_SAYS} {place} is {said}, and --option {size} is {ours}")
            said, ours = _apart(value, found)
            other = f"the weights file records {size}" if size in recorded else "its tensors are those of"
            raise ConfigJsonError(f"{_SAYS} {place} is {said}, and {other} {ours}")
        for place, only in pair.config_json.fixed.items():
            value = self._at(place)
            if value is not None and not Option.same(value, only):
                said, ours = _apart(value, only)
                raise ConfigJsonError(f"{_SAYS} {place} is {said}; {pair.name} has {ours} only")

    def _means(self, pair: Pair) -> bool:
        return pair.config_json is not None and self.said.get("model_type") in pair.config_json.model_types

    def _places(self, pair: Pair) -> dict[str, str]:
        """Option of the pair -> where in it that stands."""
        if pair.config_json is None or not self._means(pair):
            return {}
        return {
            size: place
            for place, size in pair.config_json.sizes.items()
            if isinstance(size, str) and size in pair.options
        }

    def _at(self, place: str) -> Any:
        """What it says at a dotted path, or None.

        Raises:
            ConfigJsonError: what should hold that is no object.
        """
        above, _, name = place.rpartition(".")
        table = self._at(above) if above else self.said
        if not isinstance(table, Mapping | None):
            raise ConfigJsonError(f"{_SAYS} {above} is {printable(table, 40)}, which is no object")
        return None if table is None else table.get(name)


def _apart(said: Any, ours: Any) -> tuple[str, str]:
    """Two values, so that a person sees how they differ: 24 and '24'."""
    shown = printable(said, 40), printable(ours, 40)
    return shown if shown[0] != shown[1] else (printable(repr(said), 40), printable(repr(ours), 40))
