"""Kinds whose inputs, outputs or kernels lie in another order in Keras: flattened images, patches, pixel shuffles.

Further axis letters: g positions of a grid (gd, gh, gw), r factors by which an image grows (rh, rw).
"""

from typing import Any

from converter.kinds.folded import normed
from converter.kinds.kind import IMAGE, Kind, leaf
from converter.kinds.plain import BIAS, COUNT, NORM_SCALES, NORM_SUSPECTS

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
    ignored=COUNT,
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
