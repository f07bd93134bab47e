"""What kind a module is of, by its tensors' names and shapes, and whether these leave another one."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

from converter.checkpoints.tensors import FLOATS
from converter.kinds.recurrent import MOST_LAYERS
from converter.scaffold.tree import Module

Shape = tuple[int, ...]

_TABLE = re.compile("emb|tok|wte|wpe|pos|vocab|table|lookup", re.I)
_UPWARDS = re.compile("(^|_)up(?!d|p)|deconv|transp|convt|tconv|upscal", re.I)
_ACTIVATES = re.compile("act|relu", re.I)
_NORMALISES = re.compile("norm|ln|rms|bn|gn|layer_?norm", re.I)
NUM_HEADS = "num_heads"


@dataclass(frozen=True)
class Guess:
    """A module's kind, and the layer of it on both sides.

    Attributes:
        kind: the kind as the mapping names it, `kinds.CONV_2D`.
        why: what speaks for it.
        certain: names and shapes leave no other.
        rule: what `converter.scaffold.layers` writes.
        flags: what it is told besides sizes.
        sizes: role -> number, shape, or the name of an option.
    """

    kind: str
    why: str
    certain: bool
    rule: str
    flags: tuple[tuple[str, Any], ...] = ()
    sizes: tuple[tuple[str, Any], ...] = ()


@dataclass
class Evidence:
    """What the rest of the network says.

    Attributes:
        images: spatial axes of its convolutions, the most common.
        norms: path -> channels of the normalisation that comes behind a module in the file.
        before: path -> channels that the module before it in the file gives.
        linear_in_out: some module's matrix can only be (in, out).
        convolutional: paths of modules with convolutions and no matrices in them.
    """

    images: int = 0
    norms: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    linear_in_out: bool = False
    convolutional: set[str] = field(default_factory=set)


def evidence(root: Module) -> Evidence:
    """What the whole network says of each of its modules."""
    found = Evidence()
    last, given = "", 0
    ranks: list[int] = []
    for module in root.below():
        shapes, _ = _plain(module)
        weight, bias = shapes.get("weight", ()), shapes.get("bias")
        if len(weight) == 1:
            if last:
                found.norms[last] = weight[0]
            last = ""
        elif len(weight) > 1:
            found.before[module.path], last = given, module.path
            given = weight[0] if bias is None else bias[0] if bias else 0
            ranks += [len(weight) - 2] if len(weight) > 2 else []
            found.linear_in_out |= len(weight) == 2 and bias == (weight[1],) and weight[0] != weight[1]
        if module.parts:
            below = [_plain(part)[0].get("weight", ()) for part in module.below()]
            if max(map(len, below)) > 2 and not any(len(weight) == 2 for weight in below):
                found.convolutional.add(module.path)
    found.images = max(set(ranks), key=ranks.count) if ranks else 0
    return found


def guess(module: Module, known: Evidence) -> Guess | None:
    """The kind of the module and of all below it, or None where each tensor stands for itself."""
    if not module.path:
        return None
    for rule in (_attention, _recurrent, _normalised):
        found = rule(module, known)
        if found is not None:
            return found
    return None


def _floats(module: Module) -> dict[str, Shape]:
    return {name: entry.shape for name, entry in module.tensors.items() if entry.dtype in FLOATS}


def _plain(module: Module) -> tuple[dict[str, Shape], tuple[str, Any] | None]:
    """The shapes of a module without parts, with the kernel that its normalised parts make: and how they do."""
    shapes = _floats(module)
    if set(module.parts) == {"parametrizations"}:
        inner = module.parts["parametrizations"]
        weight = inner.parts.get("weight")
        if inner.tensors or weight is None or len(inner.parts) > 1:
            return {}, None
        parts = {f"weight.{name}": shape for name, shape in _floats(weight).items()}
        parts |= {f"weight.0.{name}": shape for name, shape in _floats(weight.parts.get("0", Module())).items()}
        spelled = {"weight.original0": "g", "weight.original1": "v"}
        if set(parts) == {"weight.original", "weight.0._u", "weight.0._v"}:
            spelled = {"weight.original": "orig", "weight.0._u": "u", "weight.0._v": "v"}
        made = _kernel({spelled.get(name, name): shape for name, shape in parts.items()}, "parametrizations.")
        return ({**shapes, "weight": made[0]}, made[1]) if made and "weight" not in shapes else ({}, None)
    if module.parts:
        return {}, None
    for names in (("g", "v"), ("orig", "u", "v")):
        if all(f"weight_{name}" in shapes for name in names) and "weight" not in shapes:
            made = _kernel({name: shapes[f"weight_{name}"] for name in names}, "")
            others = {name: shape for name, shape in shapes.items() if name[7:] not in names or name[:7] != "weight_"}
            return ({**others, "weight": made[0]}, made[1]) if made else ({}, None)
    return shapes, None


def _kernel(parts: Mapping[str, Shape], spelled: str) -> tuple[Shape, tuple[str, Any]] | None:
    """The shape of a kernel that torch makes of these, and by which function, along which axis."""
    if set(parts) == {"g", "v"}:
        length, kernel = parts["g"], parts["v"]
        for dim in range(len(kernel)):
            if length == tuple(n if axis == dim else 1 for axis, n in enumerate(kernel)):
                return kernel, (f"{spelled}weight_norm", dim)
        return (kernel, (f"{spelled}weight_norm", None)) if length == () else None
    if set(parts) == {"orig", "u", "v"} and len(parts["orig"]) > 1:
        for dim in (0, 1):
            rows = parts["orig"][dim]
            if rows and parts["u"] == (rows,) and parts["v"] == (prod(parts["orig"]) // rows,):
                return parts["orig"], (f"{spelled}spectral_norm", dim)
    return None


def _attention(module: Module, known: Evidence) -> Guess | None:
    """torch.nn.MultiheadAttention."""
    shapes, out = _floats(module), module.parts.get("out_proj")
    if out is None or len(module.parts) > 1 or out.parts or "weight" not in out.tensors:
        return None
    width = out.tensors["weight"].shape[0] if out.tensors["weight"].shape else 0
    wanted: dict[str, Shape] = {"in_proj_weight": (3 * width, width)}
    keys = values = width
    if "in_proj_weight" not in shapes:
        if any(len(shapes.get(f"{name}_proj_weight", ())) != 2 for name in "qkv"):
            return None
        keys, values = shapes["k_proj_weight"][1], shapes["v_proj_weight"][1]
        wanted = {f"{n}_proj_weight": (width, size) for n, size in (("q", width), ("k", keys), ("v", values))}
    bias, extra = "in_proj_bias" in shapes, "bias_k" in shapes
    if bias:
        wanted["in_proj_bias"] = (3 * width,)
    if extra:
        wanted |= {"bias_k": (1, 1, width), "bias_v": (1, 1, width)}
    last = {"weight": (width, width), **({"bias": (width,)} if bias else {})}
    if shapes != wanted or _floats(out) != last or len(module.tensors) != len(shapes) or not width:
        return None
    kind = "kinds.TORCH_MULTIHEAD_ATTENTION" if extra else "kinds.MULTIHEAD_ATTENTION"
    packed = "in_proj_weight" in shapes
    sizes: list[tuple[str, Any]] = [("width", width), ("heads", NUM_HEADS)]
    sizes += [] if packed else [("keys", keys), ("values", values)]
    flags = (("bias", bias), ("extra", extra), ("packed", packed))
    return Guess(kind, "the names of nn.MultiheadAttention, in its shapes", True, "attention", flags, tuple(sizes))


def _recurrent(module: Module, known: Evidence) -> Guess | None:
    """torch.nn.LSTM, GRU and RNN, and their cells."""
    shapes = _floats(module)
    if "weight_ih" in shapes:
        return _cell(module, shapes)
    first, again = shapes.get("weight_ih_l0", ()), shapes.get("weight_hh_l0", ())
    if len(first) != 2 or len(again) != 2 or module.parts or len(module.tensors) != len(shapes):
        return None
    projection: Shape = shapes.get("weight_hr_l0", (0, 0))
    units = projection[1] if "weight_hr_l0" in shapes and len(projection) == 2 else again[1]
    gates = first[0] // units if units else 0
    kind = {4: "LSTM", 3: "GRU", 1: "RNN"}.get(gates)
    both, bias = "weight_ih_l0_reverse" in shapes, "bias_ih_l0" in shapes
    layers = sum(1 for name in shapes if re.fullmatch("weight_ih_l[0-9]+", name))
    if kind is None or layers > MOST_LAYERS:
        return None
    wanted: dict[str, Shape] = {}
    width = projection[0] or units
    for layer in range(layers):
        for suffix in [f"l{layer}"] + ([f"l{layer}_reverse"] if both else []):
            given = first[1] if layer == 0 else width * (2 if both else 1)
            wanted[f"weight_ih_{suffix}"] = (gates * units, given)
            wanted[f"weight_hh_{suffix}"] = (gates * units, width)
            if bias:
                wanted |= {f"bias_ih_{suffix}": (gates * units,), f"bias_hh_{suffix}": (gates * units,)}
            if projection[0]:
                wanted[f"weight_hr_{suffix}"] = (projection[0], units)
    if shapes != wanted or (projection[0] and kind != "LSTM"):
        return None
    flags = (("kind", kind), ("layers", layers), ("both", both), ("bias", bias), ("projects", bool(projection[0])))
    sizes = (("inputs", first[1]), ("units", units), *([("projection", projection[0])] if projection[0] else []))
    why = f"weight_ih has {gates} times as many rows as there are units" if gates > 1 else "weight_ih has a row a unit"
    return Guess(f"kinds.{kind}", why, True, "recurrent", flags, sizes)


def _cell(module: Module, shapes: dict[str, Shape]) -> Guess | None:
    first, again, bias = shapes["weight_ih"], shapes.get("weight_hh", ()), "bias_ih" in shapes
    if len(first) != 2 or len(again) != 2 or not again[1] or module.parts or len(module.tensors) != len(shapes):
        return None
    gates, units = first[0] // again[1], again[1]
    kind = {4: "LSTM", 3: "GRU", 1: "RNN"}.get(gates)
    rows = gates * units
    wanted = {"weight_ih": (rows, first[1]), "weight_hh": (rows, units)}
    if kind is None or shapes != wanted | ({"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}):
        return None
    why = f"weight_ih has {gates} times as many rows as there are units" if gates > 1 else "weight_ih has a row a unit"
    sizes = (("inputs", first[1]), ("units", units))
    return Guess(f"kinds.{kind}_CELL", why, True, "cell", (("kind", kind), ("bias", bias)), sizes)


def _normalised(module: Module, known: Evidence) -> Guess | None:
    """A module with a weight, which may be one that torch normalises, or with statistics."""
    shapes, made = _plain(module)
    statistics = {"running_mean", "running_var"}
    others = {name for name, entry in module.tensors.items() if entry.dtype not in FLOATS}
    if statistics <= set(shapes):
        count = module.tensors.get("num_batches_tracked")
        right = count is None or (count.shape, count.dtype) == ((), "int64")
        return None if others - {"num_batches_tracked"} or made or not right else _batch_norm(shapes, known)
    if others or "weight" not in shapes or set(shapes) - {"weight", "bias"}:
        return None
    weight, bias = shapes["weight"], shapes.get("bias")
    if not weight or 0 in weight or bias in ((), (0,)):
        return None
    if made is None and (len(weight) == 1 or bias == weight):
        return _factors(module, weight, bias, known)
    if bias is not None and len(bias) != 1:
        return None
    if len(weight) == 2:
        found = _matrix(module, weight, bias, known)
    elif 3 <= len(weight) <= 5:
        found = _convolution(module, weight, bias, known)
    else:
        return None
    return found if found is None or made is None else _made(found, *made)


def _made(found: Guess, function: str, dim: int | None) -> Guess | None:
    """The same where torch normalises the kernel."""
    usual = int("TRANSPOSE" in found.kind and function.endswith("spectral_norm"))
    kind = found.kind
    if found.rule in ("embedding", "linear_in_out"):
        return None
    if dim != usual:
        words = f"dim={dim}" if function.endswith("weight_norm") else f"spectral={dim}"
        kind = f"kinds.weight_normed({found.kind}, {words})"
    flags = (*found.flags, ("made", (function, None if dim == usual else (dim,))))
    return Guess(kind, found.why, found.certain, found.rule, flags, found.sizes)


def _batch_norm(shapes: Mapping[str, Shape], known: Evidence) -> Guess | None:
    channels = shapes["running_mean"]
    factors = {"weight", "bias"} & set(shapes)
    if len(factors) == 1 or any(shape != channels for shape in shapes.values()) or len(channels) != 1:
        return None
    if set(shapes) - factors != {"running_mean", "running_var"} or not channels[0]:
        return None
    flags = (("axes", known.images or 1), ("affine", bool(factors)))
    why = "running_mean and running_var; it could be INSTANCE_NORM with statistics"
    return Guess("kinds.BATCH_NORM", why, False, "batch_norm", flags, (("channels", *channels),))


def _factors(module: Module, weight: Shape, bias: Shape | None, known: Evidence) -> Guess | None:
    """What has a factor for each channel, and perhaps something that it adds."""
    images = known.images or 1
    if bias == weight and len(weight) > 1:
        why = "weight and bias of one shape over several axes"
        return Guess(
            "kinds.LAYER_NORM", why, False, "layer_norm", (("axes", len(weight)), ("bias", True)), (("shape", weight),)
        )
    [channels] = weight
    if bias == weight:
        above = module.path.rpartition(".")[0]
        if re.search("gn|group", module.name, re.I) or (
            above in known.convolutional and not re.search("ln|layer", module.name, re.I)
        ):
            why = "weight and bias of a normalisation among convolutions; it could be LAYER_NORM"
            return Guess(
                "kinds.GROUP_NORM",
                why,
                False,
                "group_norm",
                (("axes", images),),
                (("groups", gcd(channels, 32)), ("channels", channels)),
            )
        why = "weight and bias of a normalisation; it could be GROUP_NORM"
        return Guess("kinds.LAYER_NORM", why, False, "layer_norm", (("axes", 1),), (("shape", channels),))
    if bias is not None:
        return None
    if channels == 1 or _ACTIVATES.search(module.name):
        why = "a factor for each channel, by its name or number an activation's"
        return Guess("kinds.PRELU", why, False, "prelu", (("axes", images),), (("channels", channels),))
    if not _NORMALISES.search(module.name):
        return None
    why = "a normalisation without a bias; it could be LAYER_NORM"
    return Guess("kinds.RMS_NORM", why, False, "rms_norm", (), (("channels", channels),))


def _matrix(module: Module, weight: Shape, bias: Shape | None, known: Evidence) -> Guess | None:
    """A linear layer or an embedding."""
    rows, columns = weight
    linear = (("bias", bias is not None),)
    if bias is None:
        if _TABLE.search(module.name):
            why = "a matrix without a bias and its name; it could be DENSE"
            return Guess("kinds.EMBEDDING", why, False, "embedding", (), (("rows", rows), ("features", columns)))
        why = "a matrix without a bias, whose name is no table's; it could be EMBEDDING"
        return Guess("kinds.DENSE", why, False, "linear", linear, (("inputs", columns), ("units", rows)))
    if bias == (columns,) and (rows != columns or (known.linear_in_out and module.name.startswith("c_"))):
        why = "the bias is as long as a row" if rows != columns else "square; others here are (in, out) too"
        sizes = (("inputs", rows), ("units", columns))
        return Guess("kinds.CONV1D_GPT2", why, rows != columns, "linear_in_out", (), sizes)
    if bias != (rows,):
        return None
    sizes = (("inputs", columns), ("units", rows))
    before = known.before.get(module.path, 0)
    if known.images and before and columns != before and columns % before == 0:
        why = "a matrix and a bias for each of its rows; behind a flatten of images it is DENSE_FLATTENED"
        return Guess("kinds.DENSE", why, False, "linear", linear, sizes)
    if rows == columns:
        told = ", as others here are" if known.linear_in_out else ": CONV1D_GPT2"
        return Guess("kinds.DENSE", f"square; it could be (in, out){told}", False, "linear", linear, sizes)
    return Guess("kinds.DENSE", "a matrix and a bias for each of its rows", True, "linear", linear, sizes)


def _convolution(module: Module, weight: Shape, bias: Shape | None, known: Evidence) -> Guess | None:
    """A convolution: plain, of each channel by itself, or transposed."""
    first, second, *kernel = weight
    axes = len(kernel)
    size = kernel[0] if len(set(kernel)) == 1 else tuple(kernel)
    flags = (("axes", axes), ("bias", bias is not None))
    upwards = bool(_UPWARDS.search(module.name)) or bool(_UPWARDS.search(module.path.rpartition(".")[0].split(".")[-1]))

    def plain(why: str, certain: bool = False) -> Guess:
        sizes = (("inputs", second), ("filters", first), ("kernel", size))
        return Guess(f"kinds.CONV_{axes}D", why, certain, "convolution", flags, sizes)

    def transposed(why: str, certain: bool = False, groups: int = 1) -> Guess:
        sizes = (("inputs", first), ("filters", second * groups), ("kernel", size))
        more = (*flags, ("groups", groups))
        return Guess(f"kinds.CONV_TRANSPOSE_{axes}D", why, certain, "transposed", more, sizes)

    told = bias[0] if bias is not None else None
    fits, turned = told in (None, first), told is None or told % second == 0
    if not fits and not turned:
        return None
    if not fits:
        groups = 1 if told is None else told // second
        if first % groups:
            return None
        return transposed("the bias is as long as the second axis", groups == 1, groups)
    before = known.before.get(module.path, 0)
    times = first // before if before > 1 and first % before == 0 else 0
    if second == 1 and not upwards and times and (times == 1 or axes < 3):
        why = "one input a filter, where more come in; it could be plain, of one channel"
        sizes = (("channels", before), ("filters", first), ("kernel", size))
        more = (*flags, ("multiplier", times))
        return Guess(f"kinds.DEPTHWISE_CONV_{axes}D", why, False, "depthwise", more, sizes)
    if told is not None and first != second and second > 1:
        why = "the bias is as long as the first axis"
        if axes == 1:
            return plain(f"{why}; Bilinear has such shapes too")
        groups = first // second
        return plain(f"{why}; it could be CONV_TRANSPOSE in {groups} groups" if turned else why, not turned)
    behind = known.norms.get(module.path)
    if told is None and first != second and behind in (first, second):
        if behind == second and second > 1:
            return transposed("the norm behind it has as many channels as the second axis")
        other = "DEPTHWISE" if second == 1 else "CONV_TRANSPOSE"
        return plain(f"the norm behind it has as many channels as the first axis; it could be {other}")
    if upwards and turned:
        return transposed("its name leads upwards; the shapes fit a plain one too")
    if second == 1:
        return plain("one input channel; it could be DEPTHWISE, of as many as there are filters")
    why = "as many channels come in as go out" if first == second else "no bias tells which axis is the output"
    return plain(f"{why}; it could be CONV_TRANSPOSE")


def alone(shape: Shape, kernel: bool) -> tuple[bool, str]:
    """(is certain, why) of a tensor that stands for itself; `kernel`: it is called as those of layers are."""
    if kernel:
        return False, "no kind has just these tensors; the axes stay as they are"
    if len(shape) > 3:
        return False, "a parameter of its own; if it is an image's, its axes change in Keras"
    return True, "a parameter of its own, the same axes on both sides"


def guesses(root: Module) -> Iterator[tuple[Module, Guess | None]]:
    """Every module with its guess, in the file's order; of those that have one, what is below is left out."""
    known = evidence(root)

    def walk(module: Module) -> Iterator[tuple[Module, Guess | None]]:
        found = guess(module, known)
        yield module, found
        if found is None:
            for part in module.parts.values():
                yield from walk(part)

    yield from walk(root)
