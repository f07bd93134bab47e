"""What stands among a network's tensors and is none. Beside the weights it is passed over; among them it refuses."""

from collections.abc import Iterator

from converter.checkpoints.checkpoint import Checkpoint, is_extra
from converter.errors import SAVE, ConversionError, printable
from converter.pairs.dialects import unwrapped
from converter.planning.reading import Reading


def refuse_intruders(checkpoint: Checkpoint, reading: Reading) -> None:
    """
    Raises:
        ConversionError: an object stands among the tensors in scope, or anything under the name of one.
    """
    known = {name for name, _ in reading.mapping.tensors()} if reading.config is not None else set()
    for name, what in checkpoint.objects.get(reading.key, {}).items():
        plain = unwrapped(name)
        if is_extra(name) or not plain.startswith(reading.prefix):
            continue
        rest = plain.removeprefix(reading.prefix)
        if reading.dialect.canonical(rest) in known or _is_among(rest, what):
            raise ConversionError(told(name, what))


def intruders(checkpoint: Checkpoint) -> Iterator[str]:
    """What stands among tensors, in words: every object, and whatever has such a name as a tensor beside it."""
    for key, table in checkpoint.objects.items():
        ends = {name.rpartition(".")[2] for name in checkpoint.states.get(key, ())}
        for name, what in table.items():
            named_so = "." in name and name.rpartition(".")[2] in ends
            if not is_extra(name) and (named_so or _is_among(name, what)):
                yield told(name, what)


def told(name: str, what: str) -> str:
    return f"{printable(name)} stands among the weights and is {what}, not a tensor; {SAVE}"


def _is_among(name: str, what: str) -> bool:
    """Whether an object has a name as tensors have them, of a module and its tensor."""
    return "." in name and what.startswith("an object")
