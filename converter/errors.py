"""Errors meant for users, and how untrusted text is made fit to print."""

from collections.abc import Sequence

SAVE = "save the weights alone: torch.save(model.state_dict(), path)"  # what helps of many a file
_LONGEST = 480  # characters of a message


class ConversionError(Exception):
    """Base of every error meant for a user: one printable line that says what is wrong, where, and what to do.

    `exit_code` is that of a command that ends with it.
    """

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(shorten(one_line(message), _LONGEST))


class UsageError(ConversionError):
    """The request itself is wrong (an unknown model, option or value), whatever the files hold."""

    exit_code = 2


class PlanError(ConversionError):
    """Checkpoint, mapping and model do not match one to one. `problems` holds every reason, one line each."""

    def __init__(self, headline: str, problems: list[str]):
        self.problems = problems
        super().__init__(f"{headline}: {'; '.join(problems)}")


class ProofError(ConversionError):
    """The converted weights do not compute what the checkpoint computes. `report` holds the measurements."""

    def __init__(self, message: str, report: object = None):
        self.report = report
        super().__init__(message)


def one_line(text: str) -> str:
    """`text` with everything that does not simply print (line ends, control characters, reversed text) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """(heading, text) of each line, as lines that print, one below the other."""
    width = max(9, *(len(heading) for heading, _ in rows))
    return [f"{heading:<{width}} {one_line(text)}" for heading, text in rows]


def shorten(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters, saying how much was cut."""
    if len(text) <= limit:
        return text
    note = " ... ({} more characters)"
    room = limit - len(note) - 8
    return text[:room] + note.format(len(text) - room)


def printable(name: object, limit: int = 100) -> str:
    """`name` from an untrusted file, fit for a message: ASCII, control characters escaped, the middle cut out."""
    text = name if isinstance(name, str) else repr(name)
    text = text[: 4 * limit].encode("unicode_escape").decode("ascii") + ("" if len(text) <= 4 * limit else "...")
    if len(text) > limit:
        half = (limit - 3) // 2
        text = text[:half] + "..." + text[-half:]
    return text
