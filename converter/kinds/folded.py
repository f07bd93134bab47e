"""Kernels that torch normalises, and a batch normalisation that Keras has in the kernel before it: kinds with folds."""

import re
from dataclasses import replace

from converter.kinds import folds
from converter.kinds.axes import pattern
from converter.kinds.kind import Kind, Leaf, leaf


def normed(plain: Leaf, dim: int | None = 0, spectral: int = 0) -> Leaf:
    """The leaf of a kernel, in whose place there may be what torch's weight or spectral normalisation makes of it.

    Each under both names, those of before torch 2.0 and those of `torch.nn.utils.parametrizations`. `dim` is the axis
    that torch was given for the one, `spectral` that for the other.
    """
    name = plain.torch[0]
    owner, dot, own = name.rpartition(".")
    now = f"{owner}{dot}parametrizations.{own}"
    spelled = [
        ((f"{name}_g", f"{name}_v"), folds.weight_norm(dim)),
        ((f"{now}.original0", f"{now}.original1"), folds.weight_norm(dim)),
        ((f"{name}_orig", f"{name}_u", f"{name}_v"), folds.spectral_norm(spectral)),
        ((f"{now}.original", f"{now}.0._u", f"{now}.0._v"), folds.spectral_norm(spectral)),
    ]
    others = tuple(replace(plain, torch=names, fold=fold, alternatives=()) for names, fold in spelled)
    return replace(plain, alternatives=others)


def weight_normed(kind: Kind, dim: int | None = 0, spectral: int | None = None) -> Kind:
    """The kind where torch's weight_norm was given another `dim`, or spectral_norm (`spectral`); the plain one has the
    defaults of both.

    Raises:
        ValueError: the kind has no kernel.
    """
    kernel, *others = kind.leaves
    if not kernel.alternatives:
        raise ValueError(f"{kind} has no kernel that torch normalises")
    usual = int(kind.name.startswith("CONV_TRANSPOSE"))
    return replace(kind, leaves=(normed(kernel, dim, usual if spectral is None else spectral), *others))


def weight_norm_kept(kind: Kind, dim: int | None = 0) -> Kind:
    """Weight normalisation that Keras has too: `tf_models.layers.WeightNormalization` around the kind's layer.

    Its `axes` are those of Keras's kernel that torch's axis `dim` became; with None, `()`.

    Raises:
        ValueError: the kind has no kernel, or one that is folded along another `dim`.
    """
    kernel, *others = kind.leaves
    if not kernel.alternatives:
        raise ValueError(f"{kind} has no kernel that torch normalises")
    _check_one(kind, kernel)
    if kernel.alternatives[0].fold not in (folds.weight_norm(0), folds.weight_norm(dim)):
        raise ValueError(f"{kind} is folded along another dim than {dim}: give weight_norm_kept the same")
    axes = _left_axes(kernel)
    factor = "... -> ..."  # one number
    if dim is not None:
        own = axes[dim]
        factor = " ".join("1" if place != dim % len(axes) else own for place in range(len(axes)))
        factor += f" -> {own.strip('()')}"
    leaves = []
    both = ("weight_g", "g", factor), ("weight_v", f"layer.{kernel.keras[0]}", kernel.pattern.text)
    for number, (name, place, axes_of) in enumerate(both):
        now = leaf(f"parametrizations.weight.original{number}", place, axes_of)
        leaves.append(replace(leaf(name, place, axes_of), alternatives=(now,)))
    inner = (replace(one, keras=tuple(f"layer.{name}" for name in one.keras)) for one in others)
    return replace(kind, name=f"{kind.name}_WEIGHT_NORM_KEPT", leaves=(*leaves, *inner))


def batch_norm_folded(
    kind: Kind,
    conv: str,
    norm: str,
    epsilon: float = 1e-5,
    bias: bool = False,
    affine: bool = True,
    alone: bool = False,
) -> Kind:
    """A convolution or linear layer and the BatchNorm behind it in torch, one layer with a bias in Keras.

    The row's path is that of the module that holds both, its Keras path that of the layer: `Row("layer1.0",
    batch_norm_folded(CONV_2D, "conv1", "bn1"), keras="layer1.0.conv1")`. No torch module computes just that, so the
    layer is proven by what reaches the next one; `alone` where the module that holds both is such a one, as
    nn.Sequential(conv, norm) is. A transposed convolution must have one group.

    Args:
        kind: that of the convolution.
        conv, norm: the paths of both below the row's.
        epsilon: the normalisation's.
        bias: the convolution has one.
        affine: the normalisation has factors.

    Raises:
        ValueError: the kind has not one kernel.
    """
    kernel = kind.leaves[0]
    _check_one(kind, kernel)
    left, right = kernel.pattern.sides
    axes = _axes(left)
    biases = [_words(one.pattern.sides[0]) for one in kind.leaves[1:] if one.keras == ("bias",)]
    dim = next((place for place, axis in enumerate(axes) if _words(axis) in biases), 0)  # a depthwise one's has no name
    outputs = axes[dim]
    # As the kind's own bias has it, or in the kernel's order, which may be another; a depthwise one has two axes there.
    sides = [one.pattern.sides[1] for one in kind.leaves[1:] if one.keras == ("bias",)] + _axes(right)
    there = next((side for side in sides if _words(side) == _words(outputs)), outputs)
    names = [f"{conv}.weight", *([f"{conv}.bias"] if bias else [])]
    names += [f"{norm}.{name}" for name in (["weight", "bias"] if affine else []) + ["running_mean", "running_var"]]
    both = Leaf(
        tuple(names),
        (kernel.keras[0], "bias"),
        pattern(f"{left}, {outputs} -> {right}, {there}"),
        sizes=kernel.sizes,
        fold=folds.batch_norm(dim, epsilon, bias, affine),
    )
    return replace(
        kind,
        name=f"{kind.name}_BATCH_NORM_FOLDED",
        leaves=(both,),
        ignored=((f"{norm}.num_batches_tracked", "Keras keeps no count of batches"),),
        callable_alone=alone,
        suspects="the epsilon of the normalisation that was folded",
    )


def _check_one(kind: Kind, kernel: Leaf) -> None:
    if len(kernel.torch) != 1 or len(kernel.keras) != 1:
        raise ValueError(f"{kind} has several kernels")


def _left_axes(kernel: Leaf) -> list[str]:
    """Torch's axes of a kernel, as text."""
    return _axes(kernel.pattern.sides[0])


def _axes(side: str) -> list[str]:
    return [axis.strip() for axis in re.findall(r"\([^)]*\)|\S+", side)]


def _words(axis: str) -> set[str]:
    return set(axis.strip("()").split())
