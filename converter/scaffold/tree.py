"""The modules that a checkpoint's names tell of, as a tree; names that cannot be a program's are refused."""

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from converter.checkpoints.tensors import FLOATS, NUMBERS, Entry
from converter.errors import ConversionError, printable
from converter.scaffold.reserved import KERAS_LAYER, KERAS_MODEL, TORCH_DICT, TORCH_MODULE

_INDEX = re.compile("0|[1-9][0-9]{0,8}")
_WORD = re.compile("[A-Za-z_][A-Za-z0-9_]*|[0-9]{1,9}")
ROOT = "parts"  # the attribute in Keras of a network that is a list, which in torch has no name
_DEEPEST = 32
_GAPS = 16  # missing indices beyond which a list is written as a dict


@dataclass
class Module:
    """A torch module as its tensors' names show it.

    Attributes:
        path: its name in the network, "" for the network itself.
        keras: the path of the Keras layer, where names are taken on that side.
        tensors: the names and entries of its own tensors, in the file's order.
        parts: the modules below it.
    """

    path: str = ""
    keras: str = ""
    tensors: dict[str, Entry] = field(default_factory=dict)
    parts: dict[str, "Module"] = field(default_factory=dict)
    keras_names: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last word of its path that is no number, or ""."""
        words = [word for word in self.path.split(".") if not word.isdigit()]
        return words[-1] if words else ""

    @property
    def form(self) -> str:
        """How it holds its parts: "class" by attributes, "list" by indices, "dict" by keys, "parameters" as a list."""
        words = [*self.parts, *self.tensors]
        if not any(word.isdigit() for word in words):
            return "class"
        indices = [int(word) for word in words if _INDEX.fullmatch(word)]
        close = len(indices) == len(words) and max(indices) < 2 * len(indices) + _GAPS
        if not self.tensors:
            return "list" if close else "dict"
        if not self.parts and sorted(indices) == list(range(len(words))):
            return "parameters"
        raise ConversionError(f"tensor {printable(next(iter(self.tensors.values())).name)} is beside others by number")

    def below(self) -> Iterator["Module"]:
        """Itself and every module below it, in the file's order."""
        yield self
        for part in self.parts.values():
            yield from part.below()

    def joined(self, name: str) -> str:
        """The path of what it calls `name`."""
        return f"{self.path}.{name}" if self.path else name

    def keras_joined(self, name: str) -> str:
        """The same on the Keras side."""
        mine = self.keras_names.get(name, name)
        return f"{self.keras}.{mine}" if self.keras else mine


def grown(entries: Mapping[str, Entry]) -> Module:
    """The tree of tensors by their names.

    Raises:
        ConversionError: a name cannot be an attribute's, a tensor is also a module, or its dtype cannot be converted.
    """
    root = Module()
    for name, entry in entries.items():
        *path, last = words = name.split(".")
        if len(words) > _DEEPEST:
            raise ConversionError(f"tensor {printable(name)} is {len(words)} names deep; at most {_DEEPEST} are read")
        for word in words:
            _check(name, word)
        if entry.dtype not in NUMBERS:
            told = f"is of dtype {printable(entry.dtype, 20)}; convertible are {', '.join(FLOATS)}"
            raise ConversionError(f"tensor {printable(name)} {told}")
        module = root
        for word in path:
            module = module.parts.setdefault(word, Module(module.joined(word)))
        module.tensors[last] = entry
    for module in root.below():
        for word in module.tensors:
            if word in module.parts:
                raise ConversionError(f"{printable(module.joined(word))} is a tensor, and others have names below it")
        for word in module.parts:
            if word in TORCH_DICT and module.form == "dict":
                raise ConversionError(f"{printable(module.joined(word))} cannot stand beside modules that are numbered")
    return root


def _check(name: str, word: str) -> None:
    """
    Raises:
        ConversionError: `word` of the tensor's name is neither a Python identifier that may be an attribute nor digits.
    """
    if not _WORD.fullmatch(word) or keyword.iskeyword(word) or word.startswith("__") or not word.strip("_"):
        raise ConversionError(f"tensor {printable(name)}: {printable(word, 40) or 'nothing'} cannot name an attribute")
    if word in TORCH_MODULE:
        raise ConversionError(f"tensor {printable(name)}: {word} is the name of something that every torch module has")


def place_in_keras(root: Module) -> None:
    """Give every module its path on the Keras side: the same, but for names that Keras has for itself."""
    root.keras = "" if root.form == "class" else ROOT
    for module in root.below():
        taken = KERAS_LAYER if module.path else KERAS_LAYER | KERAS_MODEL
        used: set[str] = set()
        # Plain names first: those that must change give way.
        for word in sorted([*module.parts, *module.tensors], key=lambda word: _free(word, taken) != word):
            free = _free(word, taken)
            while free in used:
                free += "_"
            used.add(free)
            module.keras_names[word] = free
        for word, part in module.parts.items():
            part.keras = module.keras_joined(word)


def _free(word: str, taken: frozenset[str]) -> str:
    """The name for Keras: one that starts with an underscore is not found by its path, one that is taken gets one."""
    if word.startswith("_"):
        word = word.lstrip("_")
        word = f"n{word}" if word[0].isdigit() else word
    return f"{word}_" if word in taken or keyword.iskeyword(word) else word
