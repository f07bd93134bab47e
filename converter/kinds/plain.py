"""Kinds of modules that have one tensor for each variable, whose axes change places at most.

Axis letters: o output channels, i input channels, c channels, m depth multiplier, k kernel taps (kd, kh, kw),
n embeddings or features.
"""

from typing import Any

from converter.kinds.folded import normed
from converter.kinds.kind import IMAGE, IMAGE_2D, Kind, Leaf, leaf

BIAS: Leaf = leaf("bias", "bias", "o -> o", optional=True)
NORM_LEAVES: tuple[Leaf, ...] = (
    leaf("weight", "gamma", "c -> c", optional=True),
    leaf("bias", "beta", "c -> c", optional=True),
)
STATISTICS: tuple[Leaf, ...] = (
    leaf("running_mean", "moving_mean", "c -> c", optional=True),
    leaf("running_var", "moving_variance", "c -> c", optional=True),
)
COUNT = (("num_batches_tracked", "Keras keeps no count of batches"),)
# Recorded activations times 0.01 bring the variance near epsilon, where a wrong one shows.
NORM_SCALES: tuple[float, ...] = (1.0, 0.01)
NORM_SUSPECTS: str = "its epsilon"


def _conv(name: str, pattern: str, keras: str = "kernel") -> Kind:
    # Of a transposed convolution, spectral normalisation takes the output axis.
    transposed = pattern.startswith("i o")
    leaves = (normed(leaf("weight", keras, pattern), spectral=int(transposed)), BIAS)
    suspects = "its padding, or the axes of its kernel"
    call = _call_without_size if transposed else None
    return Kind(name, leaves, inputs=IMAGE, results=IMAGE, suspects=suspects, activated=True, call=call)


def _call_without_size(layer: Any, x: Any, output_size: Any = None) -> Any:
    """Torch's transposed convolution may be told how large its output is; Keras's has `output_padding`."""
    return layer(x)


DENSE = Kind(
    "DENSE",
    (normed(leaf("weight", "kernel", "o i -> i o")), BIAS),
    suspects="a kernel that is not transposed",
    activated=True,
)
# Paddle's Linear.
DENSE_IN_OUT = Kind("DENSE_IN_OUT", (leaf("weight", "kernel", "i o -> i o"), BIAS), of=DENSE, activated=True)
EMBEDDING = Kind(
    "EMBEDDING",
    (leaf("weight", "embeddings", "n c -> n c"),),
    suspects="max_norm, by which torch shortens the rows that it looks up, in the table itself",
)
# An Embedding whose weight its owner reads as a table of parameters; it is never called.
TOKENS = Kind("TOKENS", EMBEDDING.leaves, callable_alone=False)

CONV_1D = _conv("CONV_1D", "o i k -> k i o")
CONV_2D = _conv("CONV_2D", "o i kh kw -> kh kw i o")
# A convolution as Keras-YOLOv4's DCNv2 keeps it: Keras's axes, and a bias that has those of its output.
CONV_2D_HWIO = Kind(
    "CONV_2D_HWIO",
    (leaf("weight", "kernel", "kh kw i o -> kh kw i o"), leaf("bias", "bias", "1 1 1 o -> o", optional=True)),
    inputs=IMAGE,
    results=IMAGE,
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
# LayerNorm over an image as a whole, of a size that is known: torch's over (C, H, W), Keras's over the axes 1, 2, 3.
LAYER_NORM_WHOLE_2D = Kind(
    "LAYER_NORM_WHOLE_2D",
    (
        leaf("weight", "gamma", "c h w -> h w c", optional=True),
        leaf("bias", "beta", "c h w -> h w c", optional=True),
    ),
    inputs=IMAGE,
    results=IMAGE,
    probe_scales=NORM_SCALES,
    suspects=NORM_SUSPECTS,
)
# LayerNorm over the channels of an image (segment-anything's LayerNorm2d, ConvNeXt's).
LAYER_NORM_2D = Kind(
    "LAYER_NORM_2D", NORM_LEAVES, inputs=IMAGE, results=IMAGE, probe_scales=NORM_SCALES, suspects=NORM_SUSPECTS
)
GROUP_NORM = Kind(
    "GROUP_NORM",
    NORM_LEAVES,
    inputs=IMAGE,
    results=IMAGE,
    probe_scales=NORM_SCALES,
    suspects="its epsilon, or the number of its groups",
)
BATCH_NORM = Kind(
    "BATCH_NORM",
    (
        *NORM_LEAVES,
        *STATISTICS,
    ),
    ignored=COUNT,
    inputs=IMAGE,
    results=IMAGE,
    probe_scales=NORM_SCALES,
    suspects=NORM_SUSPECTS,
)
# `tf_models.layers.InstanceNormalization`, with or without factors and statistics.
INSTANCE_NORM = Kind(
    "INSTANCE_NORM",
    (*NORM_LEAVES, *STATISTICS),
    ignored=COUNT,
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
# A factor for each channel.
SCALE = Kind("SCALE", (leaf("scale", "scale", "c -> c"),), inputs=IMAGE, results=IMAGE)
PRELU = Kind("PRELU", (leaf("weight", "alpha", "c -> * c"),), inputs=IMAGE, results=IMAGE)

# A layer without weights, listed so that it is proven on its own.
APPROXIMATED = "another function, or an approximation (torch's GELU is the exact one)"
ACTIVATION = Kind("ACTIVATION", (), suspects=APPROXIMATED)
ACTIVATION_2D = Kind("ACTIVATION_2D", (), inputs=IMAGE, results=IMAGE, suspects=APPROXIMATED)


def _call_in_order(layers: Any, x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


# Parts of a network, listed so that each is proven on its own: a failure then names the first one that differs.
BETWEEN = "what joins its layers: padding of windows, order of positions, residual sums"
STAGE = Kind("STAGE", (), stage=True, suspects=BETWEEN)
STAGE_2D = Kind("STAGE_2D", (), inputs=IMAGE_2D, results=IMAGE_2D, stage=True, suspects=BETWEEN)
# torch.nn.Sequential, against a list of Keras layers.
SEQUENTIAL_2D = Kind("SEQUENTIAL_2D", (), inputs=IMAGE, results=IMAGE, call=_call_in_order, stage=True)

# A parameter of the model itself: the row's path names the tensor and the Keras variable.
PARAMETER = Kind("PARAMETER", (leaf("", "", "... -> ..."),), callable_alone=False)
