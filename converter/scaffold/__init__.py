"""A pair to start from: rows guessed from a checkpoint's names and shapes, and both networks' layers.

Nothing of the checkpoint is run, and no value is read. What stands in the written program of its names are identifiers
and numbers; any other name is refused.
"""

import keyword
import os
import shlex
import sys
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import Entry
from converter.errors import ConversionError, UsageError, printable
from converter.files.atomic import NewFolder
from converter.naming import listed
from converter.pairs import registry
from converter.pairs.dialects import unwrapped
from converter.scaffold import files
from converter.scaffold.classes import Classes, pieces
from converter.scaffold.guesses import NUM_HEADS, Guess, guesses
from converter.scaffold.readme import readme
from converter.scaffold.rows import Line, mapping
from converter.scaffold.tree import grown, place_in_keras

MARK = "pair.py"  # the file by which a folder is known as one that was written here
_MOST_TENSORS = 10_000
# What training puts before all names of a network, and no network has itself.
_WRAPPERS = ("module.", "state_dict.")
# Folders of these names would stand in the way of what their files import.
_TAKEN = {"cli", "converter", "keras", "numpy", "tensorflow", "tf_models", "torch", "torch_refs", "torchvision"}


@dataclass(frozen=True)
class NewPair:
    """What `new_pair` wrote.

    Attributes:
        name: the pair's.
        output: its folder.
        checkpoint: what it was made of: a path, or an address on the hub.
        key: which state dict of it, where that was told.
        tensors: how many there are.
        rows: of the mapping.
        certain: how many of these names and shapes leave no choice of.
        guessed: each other one, as "path: kind, because ...".
    """

    name: str
    output: Path
    checkpoint: Path | str
    key: str | None
    tensors: int
    rows: int
    certain: int
    guessed: tuple[str, ...]

    @property
    def command(self) -> str:
        """What converts the checkpoint without a proof that needs the networks to compute, in the folder above."""
        return command(self.name, self.checkpoint, self.key, self.output, "--verify lossless")

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of what a user wants to know, and does next."""
        place = printable(shlex.quote(str(self.output.parent)), 160)
        here = "" if self.output.parent == Path(".") else f"in {place}: "
        guessed = f", {len(self.guessed)} guessed, with reasons in README.md" if self.guessed else ""
        return [
            ("written", f"{printable(str(self.output), 160)}: pair.py, torch_side.py, keras_side.py, README.md"),
            ("tensors", str(self.tensors)),
            ("rows", f"{self.rows}: {self.certain} certain{guessed}"),
            ("next", f"{here}{self.command}"),
            (
                "then",
                "write `call` in keras_side.py, and `forward` in torch_side.py or have it return your own network",
            ),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {
            "name": self.name,
            "output": str(self.output),
            "tensors": self.tensors,
            "rows": self.rows,
            "certain": self.certain,
            "guessed": list(self.guessed),
            "command": self.command,
        }


def command(name: str, checkpoint: Path | str, key: str | None, output: Path, *more: str) -> str:
    """The command that converts the checkpoint with the pair, to be given in the folder that holds the pair's."""
    place = checkpoint if isinstance(checkpoint, str) or output.parent == Path(".") else checkpoint.absolute()
    keyed = ["--key", printable(shlex.quote(key))] if key else []
    return " ".join(["convert", "--pair", f"{name}.pair:PAIR", *more, *keyed, printable(shlex.quote(str(place)), 200)])


def new_pair(
    checkpoint: str | os.PathLike, output: str | os.PathLike, *, key: str | None = None, overwrite: bool = False
) -> NewPair:
    """Write a pair of one's own for a checkpoint, to start from: `convert --verify lossless` runs at once.

    The folder becomes a package of the mapping (`pair.py`), a torch module and a Keras model with the layers that names
    and shapes tell of, all built, and what is certain and what a guess (`README.md`). What they compute is to be
    written.

    Args:
        checkpoint: a `.pth`, `.pt`, `.bin` or `.safetensors` file, a shard index, or a folder that holds one.
        output: the folder; its name is the pair's, and a Python identifier.
        key: which state dict of the file, where it holds several.
        overwrite: replace the folder, with all that is in it, if it is one that was written here.

    Raises:
        UsageError: the folder's name cannot be a pair's, or the file has no such state dict, or several.
        ConversionError: the checkpoint cannot be read or has a name that cannot be an attribute's, or the folder
            exists or cannot be written. Nothing was written.
    """
    output = Path(output).expanduser()
    _check_name(output.name)
    new = NewFolder(output, overwrite, MARK)
    with Checkpoint(checkpoint) as source:
        named = source.address or Path(checkpoint)
        root = grown(_entries(source, key))
        place_in_keras(root)
        found = list(guesses(root))
        tensors = sum(len(module.tensors) for module in root.below())
    classes = Classes(pieces(root, {module.path: guess for module, guess in found}))
    lines = mapping(found)
    if not any(line.kind for line in lines):
        raise ConversionError(f"{printable(str(named), 160)}: none of its tensors is of floats, as weights are")
    guessed = tuple(f"{line.path}: {line.kind or 'dropped'}, because {line.why}" for line in lines if not line.certain)
    report = NewPair(output.name, output, named, key, tensors, len(lines), len(lines) - len(guessed), guessed)
    texts = _texts(report, classes, lines, [(module.path, one) for module, one in found if one is not None])
    with new.written() as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return report


def _texts(report: NewPair, classes: Classes, lines: list[Line], found: list[tuple[str, Guess]]) -> dict[str, str]:
    """File name -> text."""
    name, heads = report.name, _heads([guess for _, guess in found])
    given = files.first_input(found)
    full = command(name, report.checkpoint, report.key, report.output)
    return {
        "__init__.py": files.init(name),
        "pair.py": files.pair(name, lines, given, heads),
        "torch_side.py": files.torch_side(name, classes, heads),
        "keras_side.py": files.keras_side(name, classes, heads),
        "README.md": readme(name, lines, report.tensors, report.command, full, heads),
    }


def _check_name(name: str) -> None:
    """
    Raises:
        UsageError: a folder of this name is no package, or one that hides another.
    """
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise UsageError(f"the folder's name is the pair's, so a Python identifier, not {printable(name) or 'nothing'}")
    if name in _TAKEN or name in registry.names():
        raise UsageError(f"{printable(name)} is the name of something else already; name the folder otherwise")


def _entries(source: Checkpoint, key: str | None) -> dict[str, Entry]:
    """The tensors of one state dict by the names that the network gives them.

    Raises:
        UsageError: there is none at `key`, or several and none is chosen.
        ConversionError: there are too many, or two of one name.
    """
    known = listed([printable(name or "(the file itself)") for name in source.states], 8)
    if key is not None and key not in source.states:
        raise UsageError(f"the file has no state dict at {printable(key)}; it has: {known}")
    keys = [key] if key is not None else [one for one in source.states if not one.startswith("optim")]
    if len(keys) != 1:
        raise UsageError(f"the file holds several state dicts: {known}; choose one with --key")
    state = source.states[keys[0]]
    if len(state) > _MOST_TENSORS:
        raise ConversionError(f"it names {len(state)} tensors; at most {_MOST_TENSORS} make a pair")
    names = {name: unwrapped(name) for name in state}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in names.values()):
            names = {name: short.removeprefix(wrapper) for name, short in names.items()}
    found: dict[str, Entry] = {}
    for name, short in names.items():
        if short in found:
            raise ConversionError(f"{printable(name)} and {printable(found[short].name)} are one tensor's names")
        found[short] = state[name]
    return found


def _heads(found: list[Guess]) -> int:
    """How many heads all attentions may have, or 0 where there are none: those of 64 channels each if that divides."""
    widths = [dict(guess.sizes)["width"] for guess in found if NUM_HEADS in dict(guess.sizes).values()]
    width = gcd(*widths)
    return width // 64 if width and width % 64 == 0 else gcd(width, 8) if width else 0
