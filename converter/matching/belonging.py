"""Whether a checkpoint is one of the torch network that is matched."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import ConversionError, printable
from converter.naming import fold, listed
from converter.pairs.dialects import unwrapped
from converter.torch_side.answers import Held

_SHOWN = 4


@dataclass
class Belonging:
    """What is known of a checkpoint beside the network.

    Attributes:
        notes: what it lacks of the network's tensors, or holds in other shapes.
        names: name of a tensor -> its name in the checkpoint, of those that have another there.
    """

    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)


def belonging(path: str | os.PathLike, held: Mapping[str, Held]) -> Belonging:
    """Hold the checkpoint against the network's tensors.

    Raises:
        ConversionError: it holds less than half of them: it is another network's.
    """
    wanted = [one for one in held.values() if "float" in one.dtype and one.same_as is None]
    with Checkpoint(path) as source:
        best: tuple[int, list[Held], list[Held]] | None = None
        names: dict[str, str] = {}
        for state in source.states.values():
            shapes = {unwrapped(name): entry.shape for name, entry in state.items()}
            for prefix in _prefixes(shapes, wanted):
                found = {one.name: _found(shapes, prefix, one) for one in wanted}
                lacking = [one for one in wanted if found[one.name] is None]
                other = [one for one in wanted if (name := found[one.name]) is not None and shapes[name] != one.shape]
                right = len(wanted) - len(lacking) - len(other)
                if best is None or right > best[0]:
                    best = right, lacking, other
                    names = {one: name for one, name in found.items() if name is not None and name != one}
    place = printable(str(path), 160)
    if best is None or 2 * best[0] < len(wanted):
        first = printable(wanted[0].name, 80) if wanted else ""
        right = best[0] if best else 0
        raise ConversionError(
            f"{place} is a checkpoint of another network: of the {len(wanted)} tensors of --torch it holds {right} by "
            f"their names and shapes; the first of the network is {first}"
        )
    notes = []
    for told, some in (("lacks", best[1]), ("holds in other shapes", best[2])):
        if some:
            shown = listed([printable(one, 100) for one in fold(x.name for x in some)], _SHOWN)
            notes.append(f"the checkpoint {told} {shown}")
    return Belonging(notes, names)


def _prefixes(names: Mapping[str, object], wanted: list[Held]) -> list[str]:
    """What may stand before every name: before the first of the network's that the checkpoint has."""
    for one in wanted:
        for mine in (one.name, one.saved_as):
            found = [name[: -len(mine)] for name in names if mine and (name == mine or name.endswith(f".{mine}"))]
            if found:
                return found
    return []


def _found(names: Mapping[str, object], prefix: str, one: Held) -> str | None:
    """The tensor's name in the checkpoint."""
    return next((prefix + name for name in (one.name, one.saved_as) if name and prefix + name in names), None)
