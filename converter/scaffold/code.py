"""Python calls and lists as text, broken over lines as ruff's formatter breaks them."""

from dataclasses import dataclass

WIDTH = 120
_STEP = "    "


@dataclass(frozen=True)
class Call:
    """`head(a, name=b)`, or with `brackets` "[]" a list and "{}" a dict.

    A part is a text or another call, or one behind its name.
    """

    head: str
    parts: "tuple[str | Call | tuple[str, str | Call], ...]"
    brackets: str = "()"

    def __str__(self) -> str:
        return self.head + self.brackets[0] + ", ".join(self.flat()) + self.brackets[1]

    def flat(self) -> list[str]:
        """Its parts, a text each."""
        return [f"{self.named(name)}{value}" for name, value in map(_named, self.parts)]

    def named(self, name: str) -> str:
        """What stands before a part of that name."""
        return name and name + (": " if self.brackets == "{}" else "=")


Code = str | Call


def call(head: str, *parts: Code, **named: Code) -> Call:
    """`head(parts, named)`."""
    return Call(head, (*parts, *named.items()))


def listed(*parts: Code) -> Call:
    """`[parts]`."""
    return Call("", parts, "[]")


def mapped(**named: Code) -> Call:
    """`{"name": part}`."""
    return Call("", tuple((f'"{name}"', part) for name, part in named.items()), "{}")


def _named(part: Code | tuple[str, Code]) -> tuple[str, Code]:
    return part if isinstance(part, tuple) else ("", part)


def written(prefix: str, code: Code, suffix: str = "", depth: int = 0) -> list[str]:
    """The lines of `prefix code suffix` at so many steps of indentation."""
    indent = _STEP * depth
    whole = f"{indent}{prefix}{code}{suffix}"
    if len(whole) <= WIDTH or isinstance(code, str) or not code.parts:
        return [whole]
    inner = f"{indent}{_STEP}{', '.join(code.flat())}"
    # The parts of a call stay together where they fit in a line, those of a list never do.
    if code.brackets == "()" and len(inner) <= WIDTH:
        lines = [inner]
    else:
        lines = []
        comma = "" if code.brackets == "()" and len(code.parts) == 1 else ","
        for part in code.parts:
            name, value = _named(part)
            lines += written(code.named(name), value, comma, depth + 1)
    return [f"{indent}{prefix}{code.head}{code.brackets[0]}", *lines, f"{indent}{code.brackets[1]}{suffix}"]
