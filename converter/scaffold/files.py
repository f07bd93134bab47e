"""The files of a new pair, as text.

What stands in them of the checkpoint are numbers, and names that were found to be identifiers.
"""

import re
from dataclasses import dataclass

from converter.scaffold.classes import PARTS, Class, Classes, Group
from converter.scaffold.code import call, written
from converter.scaffold.guesses import NUM_HEADS, Guess
from converter.scaffold.rows import Line

_BUILT = '''\
def built(layer, *shapes):
    """The layer with its variables, for inputs of these shapes."""
    layer.build(*shapes)
    return layer
'''
_PARTS = f'''\
class {PARTS}(keras.layers.Layer):
    """A list or dict of layers within another: Keras before 3.15 saves them there only if a layer holds them."""

    def __init__(self, parts):
        super().__init__()
        for key, part in parts.items() if isinstance(parts, dict) else enumerate(parts):
            setattr(self, str(key), part)
        self.built = True

    def __getitem__(self, key):
        if not hasattr(self, str(key)):
            raise IndexError(key)
        return getattr(self, str(key))
'''
_IN_OUT = '''\
class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2's."""

    def __init__(self, inputs, units):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, units))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, x):
        return x @ self.weight + self.bias
'''
_TORCH_HEAD = '''\
"""The torch side of {name}: the modules that the checkpoint's names and shapes tell of.

What no tensor shows is as torch has it by default and may be wrong: strides, paddings, groups, epsilons, what happens
between the modules. If you have the network's own class, import it here and have `build` return it: it knows all that.
"""
'''
_KERAS_HEAD = '''\
"""The Keras side of {name}: a layer at the attribute path of every torch module.

What no tensor shows is as torch has it by default and may be wrong: strides, paddings, groups, epsilons. Tensors are
channels last. None stands where torch has a module without tensors.
"""
'''


@dataclass(frozen=True)
class Input:
    """An array to try the network with.

    Attributes:
        code: makes it, of a generator `rng`.
        channels_first: its channels are axis 1 in torch.
        why: by which module it is so.
    """

    code: str
    channels_first: bool
    why: str


def first_input(guesses: list[tuple[str, Guess]]) -> Input:
    """What the first module that looks like one takes, of (path, guess) in the file's order."""
    for path, found in guesses:
        flags, sizes = dict(found.flags), dict(found.sizes)
        why = f"{path.rpartition('.')[2] if len(path) > 60 else path} looks like the first layer"
        if found.rule in ("convolution", "depthwise", "transposed"):
            channels = sizes.get("inputs", sizes.get("channels"))
            lengths = {1: (40,), 2: (32, 48), 3: (8, 12, 16)}[flags["axes"]]
            return Input(_normal(2, channels, *lengths), True, why)
        if found.rule == "embedding" and "pos" not in path.rpartition(".")[2]:
            return Input(f"rng.integers(0, {sizes['rows']}, (2, 7))", False, why)
        if found.rule in ("linear", "linear_in_out"):
            return Input(_normal(5, sizes["inputs"]), False, why)
        if found.rule == "recurrent":
            return Input(_normal(2, 7, sizes["inputs"]), False, why)
        if found.rule == "attention":
            return Input(_normal(2, 7, sizes["width"]), False, why)
    return Input(_normal(2, 3), False, "no layer tells")


def _normal(*shape: object) -> str:
    return f"rng.standard_normal(({', '.join(map(str, shape))}), dtype=np.float32)"


def init(name: str) -> str:
    """`__init__.py`"""
    return f'"""The pair {name}: `pair.py` has the mapping, `torch_side.py` and `keras_side.py` the two networks."""\n'


def pair(name: str, lines: list[Line], given: Input, heads: int) -> str:
    """`pair.py`"""
    drops = "Drop, " if any(not line.kind for line in lines) else ""
    options = "Option, " if heads else ""
    rows = [text for line in lines for text in line.lines(3)]
    fields = [f'name="{name}"', 'build_tf=f"{__package__}.keras_side:build"']
    fields += ['build_torch=f"{__package__}.torch_side:build"', "mapping=mapping", "probes=probes"]
    if given.channels_first:
        fields.append('channels_first=frozenset({"x"})')
    if heads:
        fields.append(f'options={{"{NUM_HEADS}": Option({heads}, "heads of every attention; no tensor shows it")}}')
    return "\n".join(
        [
            f'"""The pair {name}: which torch module is which Keras layer, and what both are tried with."""',
            "",
            "import numpy as np",
            "",
            f"from converter import {drops}Mapping, {options}Pair, Probe, Row, kinds",
            "",
            "",
            "def mapping(config):",
            "    return Mapping(",
            "        [",
            *rows,
            "        ]",
            "    )",
            "",
            "",
            "def probes(config, rng):",
            f"    # a guess: because {given.why}.",
            "    # Name each input as `forward` does, in torch's layout, with lengths that all differ.",
            *written("x = ", given.code, "", 1),
            '    return [Probe({"x": x})]',
            "",
            "",
            "PAIR = Pair(",
            *(f"    {field}," for field in fields),
            ")",
            "",
        ]
    )


def torch_side(name: str, classes: Classes, heads: int) -> str:
    """`torch_side.py`"""
    text = "\n\n\n".join(_torch_class(one, classes, name) for one in classes.ordered)
    if re.search(r"[ (\[]Conv1D\(", text):
        text = f"{_IN_OUT}\n\n{text}"
    imports = ["import torch", "from torch import nn"] if "torch." in text else ["from torch import nn"]
    return _side(_TORCH_HEAD.format(name=name), imports, text, classes, heads)


def _side(head: str, imports: list[str], text: str, classes: Classes, heads: int) -> str:
    """A file with these classes, and the builder of the network."""
    told = f"{NUM_HEADS}={heads}" if heads else ""
    used = NUM_HEADS if classes.network.attends else ""
    return "\n".join([head, *imports, "", "", text, "", "", f"def build({told}):", f"    return Network({used})", ""])


def _torch_class(one: Class, classes: Classes, name: str) -> str:
    root: Group = one.members[0]
    base = "nn.Module" if root.form == "class" else classes.torch_base(root)
    return "\n".join(
        [
            f"class {one.name}({base}):",
            f'    """{_described(one)}"""',
            "",
            *one.signature,
            *classes.torch(one),
            "",
            "    def forward(self, x):",
            *_unwritten(one, name, "torch_side.py", "forward", "; or have `build` return your own network"),
        ]
    )


def keras_side(name: str, classes: Classes, heads: int) -> str:
    """`keras_side.py`"""
    shown = [one for one in classes.ordered if one is classes.network or one.members[0].in_keras]
    text = "\n\n\n".join(_keras_class(one, classes, name) for one in shown)
    if f"{PARTS}(" in text:
        text = f"{_PARTS}\n\n{text}"
    if re.search(r"\bbuilt\(", text):
        text = f"{_BUILT}\n\n{text}"
    ours = ["", "from tf_models import layers"] if re.search(r"[ (]layers\.", text) else []
    return _side(_KERAS_HEAD.format(name=name), ["import keras", *ours], text, classes, heads)


def _keras_class(one: Class, classes: Classes, name: str) -> str:
    base = "keras.Model" if one is classes.network else "keras.layers.Layer"
    return "\n".join(
        [
            f"class {one.name}({base}):",
            f'    """{_described(one)}"""',
            "",
            *one.signature,
            "        super().__init__()",
            *classes.keras(one),
            "        self.built = True",
            "",
            "    def call(self, x):",
            *_unwritten(one, name, "keras_side.py", "call", ""),
        ]
    )


def _described(one: Class) -> str:
    return "The network." if not one.members[0].path else f"What stands at {one.shown}."


def _unwritten(one: Class, name: str, file: str, function: str, more: str) -> list[str]:
    told = f'"write {one.name}.{function} in {name}/{file}{more if not one.members[0].path else ""}"'
    return written("raise ", call("NotImplementedError", told), "", 2)
