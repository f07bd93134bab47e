"""A checkpoint as the values of a torch network: which of its tensors are the network's, whatever their names."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import Entry
from converter.errors import ConversionError, printable
from converter.naming import fold, listed
from converter.pairs.dialects import unwrapped
from converter.torch_side.answers import Held
from converter.torch_side.questions import Source

_SHOWN = 4


class Weights:
    """The network's tensors in a checkpoint.

    Attributes:
        sources: name in the network -> where torch's process finds the tensor.
        absent: names in the network that the checkpoint does not hold, and need not.
    """

    def __init__(self, checkpoint: Checkpoint, held: Mapping[str, Held]):
        """
        Raises:
            ConversionError: the checkpoint lacks tensors of the network, or has them in other shapes.
        """
        files = {path.name: str(path.resolve()) for path in checkpoint.files}
        self._checkpoint = checkpoint
        self._held = held
        entries = _best(checkpoint, held)
        self._entries: dict[str, Entry] = {}
        for name, one in held.items():
            entry = next((entries[alias] for alias in _aliases(one, held) if alias in entries), None)
            if entry is not None and tuple(entry.shape) == one.shape:
                self._entries[name] = entry
        self._check(entries)
        self.sources = {
            name: Source(files[entry.file], entry.key, entry.name, None) for name, entry in self._entries.items()
        }
        self.absent = set(held) - set(self.sources)
        self._values: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a tensor, in float32."""
        if name not in self._values:
            self._values[name] = np.asarray(self._checkpoint.read(self._entries[name])).astype(np.float32)
        return self._values[name]

    def _check(self, entries: Mapping[str, Entry]) -> None:
        missing, other = [], []
        for name, one in self._held.items():
            if name not in self._entries and "float" in one.dtype and one.same_as is None:
                entry = next((entries[alias] for alias in _aliases(one, self._held) if alias in entries), None)
                if entry is None:
                    missing.append(name)
                else:
                    other.append(
                        f"{printable(name)} {_spelled(entry.shape)}, where the network has {_spelled(one.shape)}"
                    )
        where = printable(self._checkpoint.shown(), 160)
        if other:
            raise ConversionError(f"{where} is of another network than --torch builds: {listed(other, 2, '; ')}")
        if missing:
            names = listed([printable(one) for one in fold(missing)], _SHOWN)
            raise ConversionError(
                f"{where} is of another network than --torch builds: it has no {names} ({len(missing)} tensors)"
            )


def _aliases(one: Held, held: Mapping[str, Held]) -> Iterator[str]:
    """Names under which the tensor may stand: its own, that of a file, and those of whatever is the same tensor."""
    first = one.same_as or one.name
    for other in (one, held[first], *(each for each in held.values() if each.same_as == first)):
        yield other.name
        if other.saved_as:
            yield other.saved_as


def _best(checkpoint: Checkpoint, held: Mapping[str, Held]) -> dict[str, Entry]:
    """Name -> entry of the state dict, and below the prefix in it, that holds most of the network."""
    aliases = {alias for one in held.values() if "float" in one.dtype for alias in _aliases(one, held)}
    best: dict[str, Entry] = {}
    most = -1
    for state in checkpoint.states.values():
        plain = {unwrapped(name): entry for name, entry in state.items()}
        for prefix in _prefixes(plain, aliases):
            below = {name[len(prefix) :]: entry for name, entry in plain.items() if name.startswith(prefix)}
            count = len(aliases & below.keys())
            if count > most:
                best, most = below, count
    return best


def _prefixes(names: Iterable[str], aliases: set[str]) -> list[str]:
    found = {"": None}
    for alias in list(aliases)[:20]:
        found.update({name[: -len(alias)]: None for name in names if name.endswith(f".{alias}")})
    return list(found)


def _spelled(shape: Iterable[int]) -> str:
    return f"({', '.join(map(str, shape))})"
