"""More kinds: normalisations, kernels whose inputs or outputs lie otherwise in Keras, folds that are made to order.

Each is a name of `converter.kinds` too. Further axis letters: g positions of a grid (gd, gh, gw), r factors by which an
image grows (rh, rw).
"""

import re
from dataclasses import replace
from typing import Any

from converter import folds
from converter.axes import pattern
from converter.kinds import (
    BIAS,
    IMAGE,
    NORM_LEAVES,
    NORM_SCALES,
    NORM_SUSPECTS,
    Kind,
    Leaf,
    leaf,
    normed,
)

__all__ = [
    "BATCH_NORM_FLATTENED",
    "CONV_2D_SHUFFLED",
    "CONV_2D_UNSHUFFLED",
    "DENSE_CONV_1D",
    "DENSE_CONV_2D",
    "DENSE_FLATTENED",
    "INSTANCE_NORM",
    "PATCHES_1D",
    "PATCHES_2D",
    "PATCHES_3D",
    "PIXEL_SHUFFLE",
    "RMS_NORM",
    "batch_norm_folded",
    "patches",
    "weight_norm_kept",
    "weight_normed",
]

_COUNT = (("num_batches_tracked", "Keras keeps no count of batches"),)
_STATISTICS = (
    leaf("running_mean", "moving_mean", "c -> c", optional=True),
    leaf("running_var", "moving_variance", "c -> c", optional=True),
)

# `tf_models.layers.InstanceNormalization`, with or without factors and statistics.
INSTANCE_NORM = Kind(
    "INSTANCE_NORM",
    (*NORM_LEAVES, *_STATISTICS),
    ignored=_COUNT,
    inputs=IMAGE,
    results=IMAGE,
    probe_scales=NORM_SCALES,
    suspects="its epsilon, or statistics that one side keeps (track_running_stats)",
)
# torch's eps=None is float32's epsilon, 1.19e-7; Keras's default is 1e-6.
RMS_NORM = Kind(
    "RMS_NORM",
    (leaf("weight", "scale", "... -> ...", optional=True),),
    probe_scales=NORM_SCALES,
    suspects="its epsilon (torch's None is 2 ** -23, Keras's default 1e-6)",
)


# A linear layer after a flatten, `n c h w -> n (c h w)` in torch and `n h w c -> n (h w c)` in Keras.
# `DENSE_FLATTENED.sized(h=7, w=7)`; only h times w counts, so that one of more or fewer axes is h=length, w=1.
_FLAT = "... (c h w) -> ... (h w c)"
_FLAT_INPUT = {"0": _FLAT, "input": _FLAT}
FLAT_SUSPECTS = "the sizes of what was flattened: h and w"
DENSE_FLATTENED = Kind(
    "DENSE_FLATTENED",
    (normed(leaf("weight", "kernel", "o (c h w) -> (h w c) o")), BIAS),
    inputs=_FLAT_INPUT,
    suspects=FLAT_SUSPECTS,
    activated=True,
)
_FLAT_VECTOR = "(c h w) -> (h w c)"
# BatchNorm1d after such a flatten.
BATCH_NORM_FLATTENED = Kind(
    "BATCH_NORM_FLATTENED",
    (
        leaf("weight", "gamma", _FLAT_VECTOR, optional=True),
        leaf("bias", "beta", _FLAT_VECTOR, optional=True),
        leaf("running_mean", "moving_mean", _FLAT_VECTOR, optional=True),
        leaf("running_var", "moving_variance", _FLAT_VECTOR, optional=True),
    ),
    ignored=_COUNT,
    inputs=_FLAT_INPUT,
    results={"": "n (c h w) -> n (h w c)"},
    probe_scales=NORM_SCALES,
    suspects=f"{FLAT_SUSPECTS}, or {NORM_SUSPECTS}",
)


def patches(rank: int, channels_first: bool = False, grid: bool = False) -> Kind:
    """A convolution whose stride is its kernel, against a Dense on patches.

    A patch has its channels last, `(kh kw i)` as keras.ops.image.extract_patches gives them, or first, `(i kh kw)`.
    Patches stand one behind another, (N, gh * gw, ...), or as the `grid` that they are. Sized with kh and kw.
    """
    axes = {1: ("",), 2: ("h", "w"), 3: ("d", "h", "w")}[rank]
    taps, places = " ".join(f"k{axis}" for axis in axes), " ".join(f"g{axis}" for axis in axes)
    patch = f"(i {taps})" if channels_first else f"({taps} i)"
    laid = places if grid or rank == 1 else f"({places})"
    image = " ".join(f"(g{axis} k{axis})" for axis in axes)
    return Kind(
        f"PATCHES_{rank}D" + ("_CHANNELS_FIRST" if channels_first else "") + ("_GRID" if grid else ""),
        (normed(leaf("weight", "kernel", f"o i {taps} -> {patch} o")), BIAS),
        inputs={"": f"n i {image} -> n {laid} {patch}"},
        results={"": f"n o {places} -> n {laid} o"},
        suspects="the order of the values in a patch, or its sizes",
        activated=True,
    )


# Patches one behind another, channels last; `PATCHES_2D.sized(kh=16, kw=16)`, `PATCHES_1D.sized(k=4)`.
PATCHES_1D, PATCHES_2D, PATCHES_3D = map(patches, (1, 2, 3))


def _call_with_places(layer: Any, x: Any) -> Any:
    """A convolution wants axes of places, where a linear layer takes (N, I)."""
    if x.ndim > 2:
        return layer(x)
    rank = layer.rank
    return layer(x[(slice(None), *(None,) * rank)])[(slice(None), *(0,) * rank)]


# A linear layer against a convolution of size 1.
DENSE_CONV_1D = Kind(
    "DENSE_CONV_1D",
    (normed(leaf("weight", "kernel", "o i -> 1 i o")), BIAS),
    call=_call_with_places,
    activated=True,
)
DENSE_CONV_2D = Kind(
    "DENSE_CONV_2D",
    (normed(leaf("weight", "kernel", "o i -> 1 1 i o")), BIAS),
    call=_call_with_places,
    activated=True,
)

# torch.nn.PixelShuffle and PixelUnshuffle by themselves; torch counts the channels (c rh rw), TensorFlow's
# depth_to_space (rh rw c).
CHANNEL_ORDER = "the order of its channels: (c rh rw) in torch, (rh rw c) in TensorFlow's depth_to_space"
PIXEL_SHUFFLE = Kind("PIXEL_SHUFFLE", (), inputs=IMAGE, results=IMAGE, suspects=CHANNEL_ORDER)
# A convolution whose outputs depth_to_space takes, where torch's go into a PixelShuffle: `.sized(rh=2, rw=2)`.
CONV_2D_SHUFFLED = Kind(
    "CONV_2D_SHUFFLED",
    (
        normed(leaf("weight", "kernel", "(o rh rw) i kh kw -> kh kw i (rh rw o)")),
        leaf("bias", "bias", "(o rh rw) -> (rh rw o)", optional=True),
    ),
    inputs=IMAGE,
    results={"": "n (o rh rw) h w -> n h w (rh rw o)"},
    suspects=CHANNEL_ORDER,
    activated=True,
)
# A convolution that takes what space_to_depth gives, where torch's takes what a PixelUnshuffle does.
CONV_2D_UNSHUFFLED = Kind(
    "CONV_2D_UNSHUFFLED",
    (normed(leaf("weight", "kernel", "o (i rh rw) kh kw -> kh kw (rh rw i) o")), BIAS),
    inputs={"": "n (i rh rw) h w -> n h w (rh rw i)"},
    results=IMAGE,
    suspects=CHANNEL_ORDER,
    activated=True,
)


def weight_normed(kind: Kind, dim: int | None = 0, spectral: int | None = None) -> Kind:
    """The kind where torch's weight_norm was given another `dim`, or spectral_norm (`spectral`); the plain one has the
    defaults of both.

    Raises:
        ValueError: the kind has no kernel.
    """
    kernel, *others = kind.leaves
    if not kernel.spellings:
        raise ValueError(f"{kind} has no kernel that torch normalises")
    usual = int(kind.name.startswith("CONV_TRANSPOSE"))
    return replace(kind, leaves=(normed(kernel, dim, usual if spectral is None else spectral), *others))


def weight_norm_kept(kind: Kind) -> Kind:
    """Weight normalisation (dim 0) that Keras has too: `tf_models.layers.WeightNormalization` around the kind's layer.

    Raises:
        ValueError: the kind has no kernel.
    """
    kernel, *others = kind.leaves
    if not kernel.spellings:
        raise ValueError(f"{kind} has no kernel that torch normalises")
    axes = _left_axes(kernel)
    factor = " ".join([axes[0], *["1"] * (len(axes) - 1)]) + " -> " + axes[0].strip("()")
    leaves = []
    both = ("weight_g", "g", factor), ("weight_v", f"layer.{kernel.keras[0]}", kernel.pattern.text)
    for number, (name, place, axes_of) in enumerate(both):
        now = leaf(f"parametrizations.weight.original{number}", place, axes_of)
        leaves.append(replace(leaf(name, place, axes_of), spellings=(now,)))
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
    """
    kernel, axes = kind.leaves[0], _left_axes(kind.leaves[0])
    dim = int(kind.name.startswith("CONV_TRANSPOSE"))
    left, right = kernel.pattern.sides
    names = [f"{conv}.weight", *([f"{conv}.bias"] if bias else [])]
    names += [f"{norm}.{name}" for name in (["weight", "bias"] if affine else []) + ["running_mean", "running_var"]]
    both = Leaf(
        tuple(names),
        (kernel.keras[0], "bias"),
        pattern(f"{left}, {axes[dim]} -> {right}, {axes[dim]}"),
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


def _left_axes(kernel: Leaf) -> list[str]:
    """Torch's axes of a kernel, as text."""
    return [axis.strip() for axis in re.findall(r"\([^)]*\)|\S+", kernel.pattern.sides[0])]
