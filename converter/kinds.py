"""Kinds: how each sort of module is laid out in torch and in Keras. The only place where an axis order is written.

A kind lists the leaves of a torch module (`weight`, `running_mean`, ...) and, for each, the Keras variables it
becomes and with which axes, in the notation of einops: `"o i kh kw -> kh kw i o"`. A pattern is read in both
directions, so every kind is invertible; `*` stands for leading axes of length one. A kind also says how the module's
activations are laid out, for the proof that feeds torch's recorded inputs to the Keras layer at the same path.

Axis letters: o output channels, i input channels, c channels, m depth multiplier, k kernel taps (kd, kh, kw),
h heads, d channels of a head, n embeddings or features.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import EinopsError, rearrange

from converter import nested
from converter.errors import ConversionError


@dataclass(frozen=True)
class Layout:
    """One Keras variable's axes, against the torch tensor (or the part of it) that fills it.

    `pattern` is "torch axes -> Keras axes". `part` = (index, count) says that the variable is filled by one of `count`
    equal blocks along torch's first axis.
    """

    pattern: str
    part: tuple[int, int] = (0, 1)

    @property
    def sides(self) -> tuple[str, str]:
        torch_axes, keras_axes = self.pattern.split("->")
        return torch_axes.strip(), keras_axes.strip()

    def _sides_for(self, keras_rank: int) -> tuple[str, str]:
        """Both sides, with a `*` on the Keras side (leading ones, as many as the variable has) written out."""
        torch_axes, keras_axes = self.sides
        if "*" in keras_axes:
            ones = keras_rank - len(keras_axes.split()) + 1
            keras_axes = keras_axes.replace("*", " ".join(["1"] * ones))
        return torch_axes, keras_axes

    def _lengths(self, keras_shape: tuple[int, ...]) -> dict[str, int]:
        names = self._sides_for(len(keras_shape))[1].split()
        if "..." in names:
            return {}
        if len(names) != len(keras_shape):
            raise ValueError(f"a Keras variable of shape {keras_shape} does not have the axes ({' '.join(names)})")
        return {name: size for name, size in zip(names, keras_shape, strict=True) if name != "1"}

    def to_keras(self, tensor: np.ndarray, keras_shape: tuple[int, ...]) -> np.ndarray:
        """The torch tensor as the Keras variable wants it (a view where numpy can make one)."""
        torch_axes, keras_axes = self._sides_for(len(keras_shape))
        index, count = self.part
        if count > 1:
            rows = tensor.shape[0] // count
            tensor = tensor[index * rows : (index + 1) * rows]
        return rearrange(tensor, f"{torch_axes} -> {keras_axes}", **self._lengths(keras_shape))

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """The Keras variable's value as torch lays it out: `to_keras` undone."""
        torch_axes, keras_axes = self._sides_for(value.ndim)
        self._lengths(value.shape)
        return rearrange(value, f"{keras_axes} -> {torch_axes}")

    def torch_shape(self, keras_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the torch tensor (whole, not of the part) that fills a Keras variable of this shape."""
        shape = self.to_torch(np.broadcast_to(np.float32(0), keras_shape)).shape
        return (shape[0] * self.part[1], *shape[1:]) if self.part[1] > 1 else shape


@dataclass(frozen=True)
class Leaf:
    """One tensor of a torch module: its name below the module, and the Keras variables it fills, each with its axes.

    An `optional` leaf may be absent on both sides (a bias); present on one side only, it is a problem like any other.
    """

    torch: str
    variables: tuple[tuple[str, Layout], ...]
    optional: bool = False


def leaf(torch: str, keras: str, pattern: str, optional: bool = False) -> Leaf:
    """A leaf that fills one variable."""
    return Leaf(torch, ((keras, Layout(pattern)),), optional)


@dataclass(frozen=True)
class Kind:
    """A sort of module.

    Attributes:
        leaves: the tensors it owns.
        ignored: torch leaf -> why TensorFlow does not need it.
        channels_first: torch's activations carry the channels at axis 1, Keras's at the end.
        only_images: of a stage's activations this holds for those of rank 4; the others are the same on both sides.
        probe_scales: factors by which recorded inputs are multiplied for the proof; a small one makes epsilon visible.
        call: calls the Keras layer with the positional inputs and keyword inputs that torch's module received.
        callable_alone: the module is called as a layer (False: its tensors are used directly by their owner).
        of: the kind that torch has there, where this one is another library's layout of it.
        stage: the module is a part of the network with layers of its own.
        suspects: what is usually wrong where the two sides differ, for the error message.
        returns: which of torch's results the Keras layer has, by place; None: all of them, one to one.
        activated: the Keras layer may apply an `activation` that torch has apart; the proof takes it off.
        without_effect: Keras variables on which no result ever depends, whatever their values.
    """

    name: str
    leaves: tuple[Leaf, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    channels_first: bool = False
    probe_scales: tuple[float, ...] = (1.0,)
    call: Callable[..., Any] | None = None
    callable_alone: bool = True
    of: "Kind | None" = None
    only_images: bool = False
    stage: bool = False
    suspects: str = ""
    returns: tuple[int, ...] | None = None
    activated: bool = False
    without_effect: tuple[str, ...] = ()

    def relaid(self) -> Iterator[tuple[str, str]]:
        """(leaf, "these axes -> torch's axes") of every tensor that is laid out otherwise than in the kind `of`.

        Raises:
            ValueError: the two kinds do not fill the same variables, or name the axes of one differently.
        """
        if self.of is None:
            raise ValueError(f"{self} is torch's own layout, not another library's")
        torch_leaves = {leaf.torch: leaf for leaf in self.of.leaves}
        if set(torch_leaves) != {leaf.torch for leaf in self.leaves}:
            raise ValueError(f"{self} and {self.of} do not have the same tensors")
        for leaf in self.leaves:
            theirs, ours = leaf.variables, torch_leaves[leaf.torch].variables
            if theirs == ours:
                continue
            if len(theirs) != 1 or len(ours) != 1 or theirs[0][0] != ours[0][0]:
                raise ValueError(f"{self} and {self.of} do not fill one variable each with {leaf.torch}")
            (their_axes, their_keras), (our_axes, our_keras) = theirs[0][1].sides, ours[0][1].sides
            if their_keras != our_keras:
                raise ValueError(f"{self} and {self.of} name the axes of {theirs[0][0]} differently")
            yield leaf.torch, f"{their_axes} -> {our_axes}"

    def arrange(self, value: Any) -> Any:
        """Torch's activations, an array or nested ones, as the Keras layer has them."""

        def one(part: Any) -> Any:
            moves = self.channels_first and isinstance(part, np.ndarray) and (part.ndim == 4 or not self.only_images)
            return channels_last(part) if moves else part

        return nested.each(one, value)

    def results(self, value: Any) -> Any:
        """Torch's results, as the Keras layer has them, and of them those that it has.

        Raises:
            ConversionError: torch does not return what `returns` names.
        """
        if self.returns is not None:
            several = value if isinstance(value, (tuple, list)) else (value,)
            if max(self.returns) >= len(several):
                raise ConversionError(
                    f"`returns` of the kind {self} names result {max(self.returns)}, but torch's module returns "
                    f"{len(several)}"
                )
            kept = tuple(several[place] for place in self.returns)
            value = kept[0] if len(kept) == 1 else kept
        return self.arrange(value)

    def __repr__(self) -> str:
        return self.name


def relaid_shape(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """A tensor's shape after `axes` ("these -> those"), without its values.

    Raises:
        ValueError: the shape does not have these axes.
    """
    try:
        return rearrange(np.broadcast_to(np.float32(0), shape), axes).shape
    except EinopsError:
        raise ValueError(f"a tensor of shape {shape} does not have the axes ({axes.split('->')[0].strip()})") from None


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, ...) -> (N, ..., C); arrays of rank below 3 have no spatial axes and stay."""
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


BIAS = leaf("bias", "bias", "o -> o", optional=True)
NORM_LEAVES = (leaf("weight", "gamma", "c -> c", optional=True), leaf("bias", "beta", "c -> c", optional=True))
# Recorded activations times 0.01 bring the variance near epsilon, where a wrong one shows.
NORM_SCALES = (1.0, 0.01)
NORM_SUSPECTS = "its epsilon"


def _conv(name: str, pattern: str, keras: str = "kernel") -> Kind:
    leaves = (leaf("weight", keras, pattern), BIAS)
    suspects = "its padding, or the axes of its kernel"
    return Kind(name, leaves, channels_first=True, suspects=suspects, activated=True)


DENSE = Kind(
    "DENSE",
    (leaf("weight", "kernel", "o i -> i o"), BIAS),
    suspects="a kernel that is not transposed",
    activated=True,
)
# Paddle's Linear.
DENSE_IN_OUT = Kind("DENSE_IN_OUT", (leaf("weight", "kernel", "i o -> i o"), BIAS), of=DENSE, activated=True)
EMBEDDING = Kind("EMBEDDING", (leaf("weight", "embeddings", "n c -> n c"),))
# An Embedding whose weight its owner reads as a table of parameters; it is never called.
TOKENS = Kind("TOKENS", EMBEDDING.leaves, callable_alone=False)

CONV_1D = _conv("CONV_1D", "o i k -> k i o")
CONV_2D = _conv("CONV_2D", "o i kh kw -> kh kw i o")
# A convolution as Keras-YOLOv4's DCNv2 keeps it: Keras's axes, and a bias that has those of its output.
CONV_2D_HWIO = Kind(
    "CONV_2D_HWIO",
    (leaf("weight", "kernel", "kh kw i o -> kh kw i o"), leaf("bias", "bias", "1 1 1 o -> o", optional=True)),
    channels_first=True,
    of=CONV_2D,
    activated=True,
)
# A convolution's tensors that their owner uses itself, as a deformable convolution does.
PARAMETERS_OF_CONV_2D = Kind("PARAMETERS_OF_CONV_2D", CONV_2D.leaves, callable_alone=False)
CONV_3D = _conv("CONV_3D", "o i kd kh kw -> kd kh kw i o")
DEPTHWISE_CONV_1D = _conv("DEPTHWISE_CONV_1D", "(c m) 1 k -> k c m")
DEPTHWISE_CONV_2D = _conv("DEPTHWISE_CONV_2D", "(c m) 1 kh kw -> kh kw c m")
DEPTHWISE_CONV_3D = _conv("DEPTHWISE_CONV_3D", "(c m) 1 kd kh kw -> kd kh kw c m")
# A kernel of size 1, which `tf_models.layers.PointwiseConv` keeps as a matrix.
POINTWISE_CONV_1D = _conv("POINTWISE_CONV_1D", "o i 1 -> i o")
POINTWISE_CONV_2D = _conv("POINTWISE_CONV_2D", "o i 1 1 -> i o")
POINTWISE_CONV_3D = _conv("POINTWISE_CONV_3D", "o i 1 1 1 -> i o")
CONV_TRANSPOSE_1D = _conv("CONV_TRANSPOSE_1D", "i o k -> k o i")
CONV_TRANSPOSE_2D = _conv("CONV_TRANSPOSE_2D", "i o kh kw -> kh kw o i")
CONV_TRANSPOSE_3D = _conv("CONV_TRANSPOSE_3D", "i o kd kh kw -> kd kh kw o i")

LAYER_NORM = Kind(
    "LAYER_NORM",
    (leaf("weight", "gamma", "... -> ...", optional=True), leaf("bias", "beta", "... -> ...", optional=True)),
    probe_scales=NORM_SCALES,
    suspects=NORM_SUSPECTS,
)
# LayerNorm over the channels of an image (segment-anything's LayerNorm2d, ConvNeXt's).
LAYER_NORM_2D = Kind(
    "LAYER_NORM_2D", NORM_LEAVES, channels_first=True, probe_scales=NORM_SCALES, suspects=NORM_SUSPECTS
)
GROUP_NORM = Kind("GROUP_NORM", NORM_LEAVES, channels_first=True, probe_scales=NORM_SCALES, suspects=NORM_SUSPECTS)
BATCH_NORM = Kind(
    "BATCH_NORM",
    (
        *NORM_LEAVES,
        leaf("running_mean", "moving_mean", "c -> c"),
        leaf("running_var", "moving_variance", "c -> c"),
    ),
    ignored=(("num_batches_tracked", "Keras keeps no count of batches"),),
    channels_first=True,
    probe_scales=NORM_SCALES,
    suspects=NORM_SUSPECTS,
)
# A factor for each channel.
SCALE = Kind("SCALE", (leaf("scale", "scale", "c -> c"),), channels_first=True)
PRELU = Kind("PRELU", (leaf("weight", "alpha", "c -> * c"),), channels_first=True)

# A layer without weights, listed so that it is proven on its own.
APPROXIMATED = "another function, or an approximation (torch's GELU is the exact one)"
ACTIVATION = Kind("ACTIVATION", (), suspects=APPROXIMATED)
ACTIVATION_2D = Kind("ACTIVATION_2D", (), channels_first=True, suspects=APPROXIMATED)


def _call_in_order(layers: Any, x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


# Parts of a network, listed so that each is proven on its own: a failure then names the first one that differs.
BETWEEN = "what joins its layers: padding of windows, order of positions, residual sums"
STAGE = Kind("STAGE", (), stage=True, suspects=BETWEEN)
STAGE_2D = Kind("STAGE_2D", (), channels_first=True, only_images=True, stage=True, suspects=BETWEEN)
# torch.nn.Sequential, against a list of Keras layers.
SEQUENTIAL_2D = Kind("SEQUENTIAL_2D", (), channels_first=True, call=_call_in_order, stage=True)

# A parameter of the model itself: the row's path names the tensor and the Keras variable.
PARAMETER = Kind("PARAMETER", (leaf("", "", "... -> ..."),), callable_alone=False)


def _call_attention(
    layer: Any,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """keras.layers.MultiHeadAttention takes (query, value, key), and masks that are True where one may look."""
    allowed = None
    if attn_mask is not None:
        allowed = _allowed(attn_mask)  # (Lq, Lk) or (N*h, Lq, Lk)
        if allowed.ndim == 3:
            allowed = allowed.reshape(query.shape[0], -1, *allowed.shape[1:])  # (N, h, Lq, Lk)
    if key_padding_mask is not None:
        keys = _allowed(key_padding_mask)  # (N, Lk)
        keys = keys[:, None, None, :] if allowed is not None and allowed.ndim == 4 else keys[:, None, :]
        allowed = keys if allowed is None else allowed & keys
    if query.ndim == 2:  # torch takes a single sequence without a batch
        return layer(query[None], value[None], key[None], attention_mask=allowed)[0]
    return layer(query, value, key, attention_mask=allowed)


def _allowed(mask: Any) -> np.ndarray:
    """Where one may look, of a torch mask: True, or minus infinity, where one may not."""
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return ~mask
    if not np.isin(mask, (0.0, -np.inf)).all():
        raise ValueError("an attention mask with weights of its own has no counterpart in Keras")
    return mask == 0


def _thirds(suffix: str, pattern: str) -> tuple[tuple[str, Layout], ...]:
    names = ("query_dense", "key_dense", "value_dense")
    return tuple((f"{name}.{suffix}", Layout(pattern, part=(i, 3))) for i, name in enumerate(names))


# torch.nn.MultiheadAttention with its packed in_proj_weight (3E, E), against keras.layers.MultiHeadAttention.
MULTIHEAD_ATTENTION = Kind(
    "MULTIHEAD_ATTENTION",
    (
        Leaf("in_proj_weight", _thirds("kernel", "(h d) i -> i h d")),
        Leaf("in_proj_bias", _thirds("bias", "(h d) -> h d"), optional=True),
        leaf("out_proj.weight", "output_dense.kernel", "o (h d) -> h d o"),
        leaf("out_proj.bias", "output_dense.bias", "o -> o", optional=True),
    ),
    call=_call_attention,
    returns=(0,),  # torch also gives its weights
    without_effect=("key_dense.bias",),  # it adds the same to every score of a query, which softmax takes away
)
