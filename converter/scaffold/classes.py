"""The tree of modules as classes: modules of the same form are one class, and the sizes that differ its arguments."""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoints.tensors import FLOATS
from converter.errors import ConversionError, printable, shorten
from converter.naming import fold, listed
from converter.scaffold import layers
from converter.scaffold.code import Call, Code, call, mapped, written
from converter.scaffold.code import listed as as_list
from converter.scaffold.guesses import NUM_HEADS, Guess
from converter.scaffold.tree import ROOT, Module

NETWORK = "Network"
PARTS = "Parts"  # the Keras layer that holds a list or dict of layers within another
_LONGEST_REPEATED = 90  # characters of a list that is written as "for _ in range(n)"
# Names that a class is not to have, beyond those of Python.
_NOT_CLASSES = ("None", "True", "False", "Conv1D", NETWORK, PARTS)


@dataclass(frozen=True)
class Tensor:
    """A tensor that stands for itself; `dtype` is None of those that Keras has too, the floats."""

    shape: tuple[int, ...]
    dtype: str | None = None


@dataclass
class Group:
    """A module that holds others: `items` are (torch's name, Keras's name, what it is)."""

    path: str
    form: str
    items: "list[tuple[str, str, Piece]]"

    @property
    def in_keras(self) -> bool:
        """Whether anything of it is on the Keras side."""
        return any(_in_keras(piece) for _, _, piece in self.items)


Piece = Tensor | Guess | Group


def pieces(root: Module, found: dict[str, Guess | None]) -> Group:
    """The tree with each module's guess, by its path, in its place.

    Raises:
        ConversionError: parameters in a list are no floats.
    """

    def made(module: Module) -> Piece:
        guess = found[module.path]
        if guess is not None:
            return guess
        form, items = module.form, list[tuple[str, str, Piece]]()
        for name, entry in module.tensors.items():
            if form == "parameters" and entry.dtype not in FLOATS:
                raise ConversionError(f"tensor {printable(entry.name)} is a parameter of dtype {entry.dtype}")
            tensor = Tensor(entry.shape, None if entry.dtype in FLOATS else entry.dtype)
            items.append((name, module.keras_names[name], tensor))
        items += [(name, module.keras_names[name], made(part)) for name, part in module.parts.items()]
        if form in ("list", "parameters"):
            items.sort(key=lambda item: int(item[0]))
        return Group(module.path, form, items)

    group = made(root)
    assert isinstance(group, Group)
    return group


def _in_keras(piece: Piece) -> bool:
    if isinstance(piece, Group):
        return piece.in_keras
    return isinstance(piece, Guess) or piece.dtype is None


def _of_layers(group: Group) -> bool:
    """Whether a list or dict holds no variables: those are of the class around it, and saved with it."""
    inner = [piece for _, _, piece in group.items if isinstance(piece, Group) and piece.form != "class"]
    return group.form != "parameters" and all(map(_of_layers, inner))


@dataclass
class Class:
    """Modules of one form.

    Attributes:
        members: the modules.
        texts: what stands for each of their sizes in turn: a number, or an argument's name.
        arguments: argument -> the place among the sizes where it is told.
    """

    name: str
    members: list[Group]
    texts: list[str] = field(default_factory=list)
    arguments: dict[str, int] = field(default_factory=dict)

    @property
    def attends(self) -> bool:
        """Whether something in it is told how many heads there are."""
        return NUM_HEADS in self.texts

    @property
    def signature(self) -> list[str]:
        """The line of its `__init__`, or the lines."""
        heads = [NUM_HEADS] if self.attends else []
        return written("def ", Call("__init__", ("self", *heads, *self.arguments)), ":", 1)

    @property
    def shown(self) -> str:
        """Which modules are of it."""
        return shorten(listed(fold(member.path for member in self.members), 3), 100)


class Classes:
    """Every class of a network, those within others first; the network itself is the last.

    Attributes:
        ordered: the classes.
    """

    def __init__(self, root: Group):
        self._by_form: dict[int, Class] = {}
        self._names: set[str] = {NETWORK.lower(), *map(str.lower, _NOT_CLASSES)}
        self._forms: dict[int, int] = {}  # of the piece with that id
        self._numbers: dict[Any, int] = {}
        self._collect(root)
        for one in self._by_form.values():
            _name_sizes(one)
        self.ordered = list(self._by_form.values())
        self.network = self._of(root)

    def _of(self, group: Group) -> Class:
        return self._by_form[self._form(group)]

    def _collect(self, group: Group) -> None:
        for _, _, piece in group.items:
            if isinstance(piece, Group):
                self._collect(piece)
        if group.form != "class" and group.path:
            return
        form = self._form(group)
        if form not in self._by_form:
            self._by_form[form] = Class(self._name(group.path), [])
        self._by_form[form].members.append(group)

    def _name(self, path: str) -> str:
        """`decoder.cross_blocks.0` -> CrossBlock."""
        if not path:
            return NETWORK
        several, words = path.rpartition(".")[2].isdigit(), [word for word in path.split(".") if not word.isdigit()]
        word = words[-1] if words else "part"
        name = "".join(part[:1].upper() + part[1:] for part in word.split("_"))
        if several and re.search("[^su]s$", name):
            name = name[:-1]
        if not name[:1].isalpha():
            name = f"Part{name}"
        count, free = 1, name
        while free.lower() in self._names:
            count += 1
            free = f"{name}{'_' if name[-1].isdigit() else ''}{count}"
        self._names.add(free.lower())
        return free

    def _form(self, piece: Piece) -> int:
        """What is the same of modules of one class: all but sizes."""
        if id(piece) not in self._forms:
            if isinstance(piece, Guess):
                form: Any = piece.rule, piece.flags, tuple(role for role, _ in piece.sizes)
            elif isinstance(piece, Tensor):
                form = "tensor", piece.dtype
            else:
                inner = tuple((name, keras, self._form(one)) for name, keras, one in piece.items)
                form = piece.form, inner, not piece.path
            # A number stands for a form, so that forms within forms are not compared again and again.
            self._forms[id(piece)] = self._numbers.setdefault(form, len(self._numbers))
        return self._forms[id(piece)]

    @staticmethod
    def torch_base(network: Group) -> str:
        """The class that a network which is a list is of in torch."""
        return {"list": "nn.ModuleList", "dict": "nn.ModuleDict", "parameters": "nn.ParameterList"}[network.form]

    def torch(self, one: Class) -> list[str]:
        """The body of the class's `__init__` in torch."""
        return self._body(one, True)

    def keras(self, one: Class) -> list[str]:
        """The same in Keras."""
        return self._body(one, False)

    def _body(self, one: Class, torch: bool) -> list[str]:
        group, texts = one.members[0], iter(one.texts)
        if group.form != "class":  # the network itself is a list
            parts = self._code(group, texts, torch, "")
            if not torch:
                return written(f"self.{ROOT} = ", parts, "", 2)
            assert isinstance(parts, Call)
            return written("", Call("super().__init__", parts.parts), "", 2)
        lines = ["        super().__init__()"] if torch else []
        for name, keras, piece in group.items:
            if isinstance(piece, Tensor) and torch:
                before, code = layers.torch_tensor(name, next(texts), piece.dtype)
                lines += written(before, code, "", 2)
                continue
            code = self._code(piece, texts, torch, keras)
            if torch or _in_keras(piece):
                lines += written(f"self.{name if torch else keras} = ", code, "", 2)
        return lines

    def _code(self, piece: Piece, texts: Iterator[str], torch: bool, name: str, within: bool = False) -> Code:
        """What makes the module, layer or variable; `texts` are taken for its sizes.

        `within` tells that it stands in a list or dict.
        """
        if isinstance(piece, Tensor):
            return layers.keras_tensor(name, next(texts))
        if isinstance(piece, Guess):
            sizes = {role: next(texts) for role, _ in piece.sizes}
            return layers.torch_layer(piece, sizes) if torch else layers.keras_layer(piece, sizes)
        if piece.form == "class":
            mine = [next(texts) for _ in _sizes(piece)]
            one = self._of(piece)
            heads = [NUM_HEADS] if one.attends else []
            return call(one.name, *heads, *(mine[place] for place in one.arguments.values()))
        if piece.form == "parameters" and torch:
            return layers.parameters([next(texts) for _ in piece.items])
        codes: dict[str, Code] = {}
        for word, keras, inner in piece.items:
            code = self._code(inner, texts, torch, f"{name}_{keras}" if name else f"p{keras}", within=True)
            codes[word if torch else keras] = code if torch or _in_keras(inner) else "None"
        parts = mapped(**codes) if piece.form == "dict" else _repeated(codes)
        if torch:
            return call("nn.ModuleDict" if piece.form == "dict" else "nn.ModuleList", parts)
        return call(PARTS, parts) if within and _of_layers(piece) else parts


def _repeated(codes: dict[str, Code]) -> Code:
    """A list of them by index; of one and the same, how often."""
    length = max(map(int, codes)) + 1
    every = [codes.get(str(index), "None") for index in range(length)]
    if len(every) > 2 and len(set(map(str, every))) == 1 and every[0] != "None":
        line = f"[{every[0]} for _ in range({length})]"
        if len(line) <= _LONGEST_REPEATED:
            return line
    return as_list(*every)


def _sizes(piece: Piece) -> list[tuple[tuple[str, ...], Any]]:
    """(path and role, size) of every size in it, in the order in which its code takes them."""
    if isinstance(piece, Guess):
        return [((role,), size) for role, size in piece.sizes]
    if isinstance(piece, Tensor):
        return [(("shape",), piece.shape)]
    return [((name, *role), size) for name, _, inner in piece.items for role, size in _sizes(inner)]


def _name_sizes(one: Class) -> None:
    """Tell the sizes that all members share, and name the others: those that always agree by one name."""
    members = [_sizes(member) for member in one.members]
    names: dict[tuple[Any, ...], str] = {}
    for place, (role, size) in enumerate(members[0]):
        column = tuple(sizes[place][1] for sizes in members)
        if len(set(column)) == 1:
            one.texts.append(str(size))
            continue
        if column not in names:
            name = _argument(role, one.arguments)
            names[column] = name
            one.arguments[name] = place
        one.texts.append(names[column])


def _argument(path: tuple[str, ...], taken: Container[str]) -> str:
    """`("blocks", "0", "attn", "qkv", "units")` -> qkv_units, with more of its words where that is another's name."""
    words = [word.strip("_") for word in path]
    shortest = next((count for count in range(2, len(words)) if not words[-count].isdigit()), len(words))
    for count in range(shortest, len(words) + 1):
        name = "_".join(words[-count:])
        name = f"n{name}" if name[0].isdigit() else name
        if name not in taken:
            return name
    while name in taken:
        name += "_"
    return name
