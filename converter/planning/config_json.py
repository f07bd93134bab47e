"""The `config.json` that libraries write beside the weights: what shapes cannot tell, and what must agree with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.safetensors_file import json_object
from converter.errors import ConversionError, UsageError, printable
from converter.pairs.pair import Pair

NAME = "config.json"
_LARGEST = 10 << 20  # bytes; a configuration with all its labels has less than a tenth


@dataclass(frozen=True)
class Beside:
    """What stands in it (`said`), nothing where there is none; `problem` says why it cannot be read.

    A file of that name may be anything's: what cannot be read matters to those pairs alone that read it.
    """

    said: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Beside":
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
            ConversionError: a value that no such option takes.
        """
        found = {}
        for place, name in pair.config_json.sizes.items() if pair.config_json and self._means(pair) else ():
            value = _within(self.said, place)
            if name in pair.options and value is not None:
                try:
                    found[name] = pair.options[name].parse(name, value)
                except UsageError as error:
                    raise ConversionError(f"{NAME} beside the checkpoint, {place}: {error}") from None
        return found

    def check(self, pair: Pair, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """See that the configuration that was read off the checkpoint, with what the user has `given`, is what it says.

        Raises:
            UsageError: an option of the user's is another.
            ConversionError: the tensors are of another size, the network is none that the pair has, or nobody can
                read it.
        """
        if pair.config_json is None:
            return
        if self.problem:
            raise ConversionError(f"{NAME} beside the checkpoint cannot be read: {self.problem}")
        if not self._means(pair):
            return
        for place, name in pair.config_json.sizes.items():
            value, found = _within(self.said, place), _within(config, name)
            if value is None or found is None or value == found:
                continue
            told = f"{NAME} beside the checkpoint says {place} is {printable(value, 40)}"
            if name in given:
                raise UsageError(f"{told}, and --option {name} is {printable(given[name], 40)}")
            raise ConversionError(f"{told}, and its tensors are those of {printable(found, 40)}")
        for place, only in pair.config_json.fixed.items():
            value = _within(self.said, place)
            if value is not None and value != only:
                raise ConversionError(
                    f"{NAME} beside the checkpoint says {place} is {printable(value, 40)}; {pair.name} has {only} only"
                )

    def _means(self, pair: Pair) -> bool:
        assert pair.config_json is not None
        return self.said.get("model_type") in pair.config_json.model_types


def _within(table: Any, place: str) -> Any:
    """The value at a dotted path, or None."""
    for name in place.split("."):
        table = table.get(name) if isinstance(table, Mapping) else None
    return table
