"""Tensors that the user has passed over, by patterns of their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import UsageError, printable
from converter.naming import nearest


def ignore(checkpoint: Checkpoint, patterns: Sequence[str], key: str | None = None) -> None:
    """Take tensors whose names fit a pattern (`*`, `?`) out of the state dicts, or out of the one at `key`.

    Raises:
        UsageError: a pattern is the name of none.
    """
    states = {at: state for at, state in checkpoint.states.items() if key in (None, at)}
    names = [name for state in states.values() for name in state]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = next((name for name in names if name.endswith(f".{pattern}")), None) or nearest(pattern, names)
            meant = f"; did you mean {printable(near)}?" if near else ""
            raise UsageError(f"--ignore {printable(pattern)} is the name of no tensor of the file{meant}")
    for at, state in states.items():
        passed = [name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for name in passed:
            del state[name]
        checkpoint.ignored[at] = passed
    if names and not any(states.values()):
        raise UsageError("--ignore passes over every tensor of the file")
