"""What an exception says, and where: in one line, with the line of the user's code.

Builders and layers may be a person's own program. What they raise is told as that person wrote it, without what Keras
and TensorFlow put around it, and the place is the innermost line that is the person's own to change.
"""

import contextlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

_LONGEST = 240  # characters of what an exception says
_LONGEST_PLACE = 100
_FRAME = "Exception encountered when calling "  # Keras's, around what went wrong in a call
_GENERATED = "__autograph_generated_file"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NODE = re.compile(r"^\{\{function_node [^}]*\}\} *| \[Op:\w+\](?: name: *)?$")  # TensorFlow's, around an op's words
_TRACED = re.compile(r'^\s*File "(.+)", line (\d+), in ', re.M)  # TensorFlow's, of a traced call
_INTERACTIVE = ("<stdin>", "<string>", "<ipython-input")
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(f"{_ROOT / name}{os.sep}" for name in ("converter", "tf_models", "torch_refs"))
_STANDARD = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})


def where_and_what(error: BaseException) -> str:
    """`my_tf.py:31: ValueError: what it says`, printable and short; without the place where no line is the user's."""
    place = where(error)
    return f"{place}: {what(error)}" if place else what(error)


def where(error: BaseException) -> str:
    """`my_tf.py:31`, the innermost line of the user's code that the error went through, or ""."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        for file, line in _places(error):
            if _is_users(file):
                return f"{_short(_named(file), _LONGEST_PLACE)}:{line}"
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return ""


def begins(function: Callable) -> str:
    """`my_tf.py:31`, where a function of the user's begins, or ""."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not _is_users(code.co_filename):
        return ""
    return f"{_short(_named(code.co_filename), _LONGEST_PLACE)}:{code.co_firstlineno}"


def what(error: BaseException) -> str:
    """`ValueError: what it says`: the type, and the first line that tells something."""
    original = error.__cause__ or error.__context__
    if original is not None and _text(error).startswith(_FRAME):
        error = original  # Keras replaced it, and perhaps its type, to add the call's arguments
    name = type(error).__name__
    lines = [line.strip() for line in _COLOUR.sub("", _text(error)).splitlines()]
    lines = [line for line in lines if line]
    if len(lines) > 1 and lines[0].startswith(_FRAME):
        lines = lines[1:]
    if len(lines) > 1 and lines[0] == "in user code:":  # a traced call: its own error is what stands last
        traced = lines[1:]
        found = [i for i, line in enumerate(traced) if re.match(r"[A-Za-z_][\w.]*: ", line)]
        lines = traced[found[-1] :] if found else traced[-1:]
        return _short(lines[0], _LONGEST)
    said = lines[0] if lines else ""
    if said.endswith(":") and len(lines) > 1:
        said = f"{said} {lines[1]}"
    said = _NODE.sub("", _NODE.sub("", said))
    return _short(f"{name}: {said}" if said else name, _LONGEST)


def _places(error: BaseException) -> Iterator[tuple[str, int]]:
    """(file, line) of the error's frames, the innermost first."""
    if isinstance(error, SyntaxError) and error.filename:  # it has not come to run
        yield error.filename, error.lineno or 0
    # TensorFlow runs a rewritten copy of a traced function; where the original stands is in the text.
    yield from ((file, int(line)) for file, line in reversed(_TRACED.findall(_text(error))))
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    # What dataclasses generate has the file "<string>" as well, and no line that a person wrote.
    for code, line in reversed(frames):
        qualified = getattr(code, "co_qualname", "")  # which Python 3.10 does not have
        if "__create_fn__" not in qualified:
            yield code.co_filename, line


def _short(text: str, limit: int) -> str:
    """`text` with what does not simply print escaped, cut to `limit` characters."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's class may fail at that as well
        return ""


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return file.startswith(_INTERACTIVE)
    path = os.path.abspath(file)
    if {"site-packages", "dist-packages"} & set(Path(path).parts) or _GENERATED in path:
        return False
    return not path.startswith((*_OURS, *_STANDARD)) and path != str(_ROOT / "cli.py")


def _named(file: str) -> str:
    """The file as its writer knows it: from the current folder, else from where Python found it."""
    if file.startswith("<"):
        return file
    path = os.path.abspath(file)
    with contextlib.suppress(OSError):  # the current folder may be gone
        if path.startswith(os.getcwd() + os.sep):
            return os.path.relpath(path)
    roots = [os.path.abspath(root) for root in sys.path if root]
    root = max((root for root in roots if path.startswith(root + os.sep)), key=len, default=os.path.dirname(path))
    return os.path.relpath(path, root)
