"""How a network is named: a callable, or `module:name?argument=value&argument=value`. Nothing is evaluated."""

import ast
import copy
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from converter.blame import begins, where, where_and_what
from converter.errors import ConversionError, UsageError, printable
from converter.naming import nearest

Place = str | Callable[..., Any]


class Builder:
    """Builds a network, or gives whatever else a function of a user's gives.

    Attributes:
        text: as it is named; of a callable its own name.
        named: it can be found again by its text.
    """

    def __init__(self, place: Place, role: str):
        """`role` is what it is for, for messages: "--torch", "--keras", "--inputs".

        Raises:
            UsageError: the text names nothing.
        """
        self._role = role
        self.named = isinstance(place, str)
        self._arguments: dict[str, Any] = {}
        self._function: Callable[..., Any] | None = None
        self._begins = ""
        if not isinstance(place, str):
            if not callable(place):
                raise UsageError(f"{role} is a function, or MODULE:FUNCTION, not a {type(place).__name__}")
            self._function = place
            self._begins = begins(place)  # a function that is sent to another process forgets its file
            self.text = getattr(place, "__qualname__", type(place).__name__)
            return
        self.text = place
        name, _, arguments = place.partition("?")
        self._module, colon, self._attribute = name.partition(":")
        if not (colon and self._module and self._attribute):
            raise UsageError(
                f"{role} {printable(place, 100)}: name it as MODULE:FUNCTION, as in torchvision.models:resnet50"
            )
        for word in arguments.split("&") if arguments else ():
            key, equals, value = word.partition("=")
            if not equals or not key.isidentifier():
                raise UsageError(f"{role} {printable(place, 100)}: {printable(word, 60)!r} is not ARGUMENT=VALUE")
            self._arguments[key] = _literal(value)

    def __call__(self) -> Any:
        """What it builds.

        Raises:
            ConversionError: it cannot be found, or fails; the message has its own error and line.
        """
        function = self._function or self._found()
        try:
            return function(**self._arguments)
        except (Exception, SystemExit) as error:  # the user's own program
            place = f" (in the function at {self._begins})" if self._begins and not where(error) else ""
            raise ConversionError(
                f"{self._role} {printable(self.text, 100)} failed: {where_and_what(error)}{place}"
            ) from error

    def takes(self, name: str) -> bool:
        """Whether it has an argument of that name, or takes any.

        Raises:
            ConversionError: it cannot be found.
        """
        try:
            parameters = inspect.signature(self._function or self._found()).parameters.values()
        except (TypeError, ValueError):  # as of functions that are not Python's
            return True
        return any(
            one.kind is one.VAR_KEYWORD
            or (one.name == name and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
            for one in parameters
        )

    def given(self, arguments: Mapping[str, Any]) -> "Builder":
        """The builder that is called with these arguments too, and is named so. Text is read as behind the `?`.

        Raises:
            UsageError: a name or value cannot stand there.
        """
        found = copy.copy(self)
        found._arguments = dict(self._arguments)
        for key, value in arguments.items():
            text = value if isinstance(value, str) else repr(value)
            if not key.isidentifier() or "&" in text:
                raise UsageError(f"{printable(f'{key}={text}', 100)!r} is not ARGUMENT=VALUE")
            found._arguments[key] = _literal(value) if isinstance(value, str) else value
            found.text += f"{'&' if '?' in found.text else '?'}{key}={text}"
        return found

    def called(self) -> "Builder":
        """The builder that gives what this one gives now, whenever it is called.

        Raises:
            ConversionError: it cannot be found, or fails.
        """
        found = copy.copy(self)
        value = self()
        found._function, found._arguments = lambda: value, {}
        return found

    def _found(self) -> Callable[..., Any]:
        place = f"{self._role} {printable(self.text, 100)}"
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found = import_module(self._module)
        except SystemExit as error:
            raise ConversionError(
                f"{place}: importing {printable(self._module, 60)} ends the program; what runs there belongs under "
                '`if __name__ == "__main__":`'
            ) from error
        except Exception as error:
            raise ConversionError(f"{place} cannot be imported: {where_and_what(error)}") from error
        for word in self._attribute.split("."):
            if not hasattr(found, word):
                near = nearest(word, [name for name in dir(found) if not name.startswith("_")])
                meant = f"; did you mean {near}?" if near else ""
                raise UsageError(f"{place}: {printable(self._module, 60)} has no {printable(word, 60)}{meant}")
            found = getattr(found, word)
        if not callable(found):
            raise UsageError(f"{place} is a {type(found).__name__}, not a function that builds one")
        return found


def _literal(text: str) -> Any:
    """A number, None, a tuple and so on as Python writes it; whatever is none of these is a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
