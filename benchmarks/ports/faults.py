"""Planted faults: each a right port, filled by the library's own converter, with one thing wrong; and their judge."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Change = Callable[[Any], Any]  # changes a Keras model in its place, or returns another


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        kind: what sort of fault; several faults may be of one.
        port: the right port's name.
        places: layers that a report may name, by their paths in Keras and in torch: where several differ, any is right.
        cause: regular expression of the words that say the cause.
        change: makes the filled Keras model wrong.
        seen: the outputs differ. A difference of training alone they hide.
    """

    kind: str
    port: str
    places: tuple[str, ...]
    cause: str
    change: Change
    seen: bool = True

    @property
    def name(self) -> str:
        return f"{self.port}: {self.kind} at {self.places[0]}"


# --- changes ----------------------------------------------------------------------------------------------------------


def _at(model: Any, path: str) -> Any:
    from converter.planning.variables import layer_at

    found = layer_at(model, path)
    if found is None:
        raise ValueError(f"the model has no layer {path}")
    return found


def _variable(model: Any, path: str) -> Any:
    from converter.planning.variables import by_path

    return by_path(model)[path]


def attributes(path: str, **values: Any) -> Change:
    """Attributes of a layer are others."""

    def change(model: Any) -> None:
        layer = _at(model, path)
        for name, value in values.items():
            if not hasattr(layer, name):
                raise ValueError(f"{path} has no {name}")
            setattr(layer, name, value)

    return change


def activation(path: str, name: str) -> Change:
    """The function of an activation is another of Keras's; `tanh_gelu` is the approximation of GELU."""

    def change(model: Any) -> None:
        from keras import activations, ops

        found = (lambda x: ops.gelu(x, approximate=True)) if name == "tanh_gelu" else activations.get(name)
        attributes(path, activation=found)(model)

    return change


def values(path: str, function: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A variable's values are others."""

    def change(model: Any) -> None:
        variable = _variable(model, path)
        variable.assign(function(variable.numpy()).reshape(variable.shape))

    return change


def exchanged(one: str, other: str) -> Change:
    """Two layers have each other's weights."""

    def change(model: Any) -> None:
        for mine, yours in zip(_at(model, one).weights, _at(model, other).weights, strict=True):
            kept = mine.numpy()
            mine.assign(yours.numpy())
            yours.assign(kept)

    return change


def unfilled(port: str, *paths: str) -> Change:
    """Variables have the values with which the model is built."""

    def change(model: Any) -> None:
        from benchmarks.ports.pairs import keras_of

        built = keras_of(port)
        for path in paths:
            _variable(model, path).assign(_variable(built, path).numpy())

    return change


def both(*changes: Change) -> Change:
    def change(model: Any) -> None:
        for one in changes:
            one(model)

    return change


def rescaled(model: Any) -> Any:
    """The model divides its input by 255 first."""
    import keras

    inputs = [keras.Input(one.shape[1:], dtype=one.dtype) for one in model.inputs]
    return keras.Model(inputs, model(keras.layers.Rescaling(1 / 255)(inputs[0])))


def bfloat16(value: np.ndarray) -> np.ndarray:
    """Rounded as if it had been stored so."""
    import ml_dtypes

    return value.astype(ml_dtypes.bfloat16).astype(value.dtype)


def float16(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(value.dtype)


def _turned(value: np.ndarray) -> np.ndarray:
    """The first two axes, of a picture's height and width, are exchanged."""
    return value.swapaxes(0, 1)


def _transposed(value: np.ndarray) -> np.ndarray:
    """The last two axes, of what comes in and what goes out, are exchanged."""
    return value.swapaxes(-1, -2)


def _dims_first(value: np.ndarray) -> np.ndarray:
    """The last axis of 4 heads and 12 dims has the dims before the heads."""
    return value.reshape(-1, 4, 12).swapaxes(1, 2)


def _rows_dims_first(value: np.ndarray) -> np.ndarray:
    """The same of the first axis."""
    return value.reshape(4, 12, -1).swapaxes(0, 1)


def _q_and_k(value: np.ndarray) -> np.ndarray:
    """The first two thirds of the last axis are exchanged."""
    q, k, v = np.split(value, 3, -1)
    return np.concatenate((k, q, v), -1)


def _times(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda value: value * np.float32(factor)


# --- the faults -------------------------------------------------------------------------------------------------------

_R = "res_net_backbone"
_A = "vi_t_multi_head_self_attention"
_STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")

# Words of causes.
_TURNED = r"transpos|axes|axis|turned|swapped|exchanged"
_SWAPPED = r"exchang|swap"
_HALF = r"half|b?float16|precision|rounded"
_INITIAL = r"initial|built|unfilled|not filled"
_SCALE = r"scale|factor|times"


def _resnet(kind: str, ours: str, theirs: str | tuple[str, ...], cause: str, change: Change, **facts: Any) -> Fault:
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return Fault(
        kind, "h_resnet18", (f"{_R}.{ours}" if ours != "predictions" else ours, *theirs), cause, change, **facts
    )


_RESNET = (
    _resnet(
        "epsilon", "stack1_block0_1_bn", "layer2.0.bn1", "epsilon", attributes(f"{_R}.stack1_block0_1_bn", epsilon=1e-3)
    ),
    _resnet("epsilon", "conv1_bn", "bn1", "epsilon", attributes(f"{_R}.conv1_bn", epsilon=1e-3)),
    _resnet(
        "momentum",
        "stack2_block1_1_bn",
        "layer3.1.bn1",
        "momentum",
        attributes(f"{_R}.stack2_block1_1_bn", momentum=0.99),
        seen=False,
    ),
    _resnet(
        "padding",
        "stack1_block0_1_conv",
        ("layer2.0.conv1", f"{_R}.stack1_block0_1_pad"),
        "pad",
        attributes(f"{_R}.stack1_block0_1_pad", padding=((0, 2), (0, 2))),
    ),
    _resnet(
        "padding",
        "conv1_conv",
        ("conv1", f"{_R}.conv1_pad"),
        "pad",
        attributes(f"{_R}.conv1_pad", padding=((2, 4), (2, 4))),
    ),
    _resnet(
        "stride on another convolution",
        "stack1_block0_1_conv",
        ("layer2.0.conv1", f"{_R}.stack1_block0_2_conv", "layer2.0.conv2"),
        "stride",
        both(
            attributes(f"{_R}.stack1_block0_1_conv", strides=(1, 1)),
            attributes(f"{_R}.stack1_block0_2_conv", strides=(2, 2)),
        ),
    ),
    _resnet("bias lost", "predictions", "fc", "bias", values("predictions.bias", np.zeros_like)),
    _resnet(
        "scale",
        "stack2_block0_2_conv",
        "layer3.0.conv2",
        _SCALE,
        values(f"{_R}.stack2_block0_2_conv.kernel", _times(1.5)),
    ),
    _resnet(
        "square kernel transposed",
        "stack0_block0_1_conv",
        "layer1.0.conv1",
        _TURNED,
        values(f"{_R}.stack0_block0_1_conv.kernel", _transposed),
    ),
    _resnet(
        "height and width exchanged",
        "stack3_block1_1_conv",
        "layer4.1.conv1",
        _TURNED,
        values(f"{_R}.stack3_block1_1_conv.kernel", _turned),
    ),
    _resnet(
        "layers exchanged",
        "stack1_block1_1_conv",
        ("layer2.1.conv1", f"{_R}.stack1_block1_2_conv", "layer2.1.conv2"),
        _SWAPPED,
        exchanged(f"{_R}.stack1_block1_1_conv", f"{_R}.stack1_block1_2_conv"),
    ),
    _resnet(
        "half precision",
        "stack2_block1_2_conv",
        "layer3.1.conv2",
        _HALF,
        values(f"{_R}.stack2_block1_2_conv.kernel", bfloat16),
    ),
    _resnet(
        "unfilled",
        "stack3_block0_0_bn",
        "layer4.0.downsample.1",
        _INITIAL,
        unfilled("h_resnet18", *(f"{_R}.stack3_block0_0_bn.{name}" for name in _STATISTICS)),
    ),
    _resnet(
        "statistics unfilled",
        "stack0_block0_2_bn",
        "layer1.0.bn2",
        _INITIAL,
        unfilled("h_resnet18", *(f"{_R}.stack0_block0_2_bn.{name}" for name in _STATISTICS[2:])),
    ),
)


def _mobilenet(kind: str, ours: str, theirs: str | tuple[str, ...], cause: str, change: Change) -> Fault:
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return Fault(kind, "z_mbv3_s", (ours, *theirs), cause, change)


_MOBILENET = (
    _mobilenet(
        "epsilon",
        "final_batchnorm",
        "blocks.5.0.bn1",
        "epsilon",
        attributes("final_batchnorm", epsilon=1e-3),
    ),
    _mobilenet(
        "padding",
        "ir_block_1_dwconv",
        ("blocks.1.0.conv_dw", "zero_padding2d_1"),
        "pad",
        attributes("zero_padding2d_1", padding=((0, 2), (0, 2))),
    ),
    _mobilenet(
        "stride on another convolution",
        "ir_block_3_conv_pw",
        ("blocks.2.0.conv_pw", "ir_block_3_dwconv", "blocks.2.0.conv_dw"),
        "stride",
        both(attributes("ir_block_3_conv_pw", strides=(2, 2)), attributes("ir_block_3_dwconv", strides=(1, 1))),
    ),
    _mobilenet(
        "activation",
        "ir_block_5_activation_2",
        ("blocks.2.2.bn2", "blocks.2.2.bn2.act", "ir_block_5_batchnorm_2"),
        "activation|silu|swish",
        activation("ir_block_5_activation_2", "silu"),
    ),
    _mobilenet(
        "activation",
        "ir_block_4_se_activation_2",
        ("blocks.2.1.se.gate", "blocks.2.1.se", "blocks.2.1.se.conv_expand", "ir_block_4_se_conv_2"),
        "activation|sigmoid",
        activation("ir_block_4_se_activation_2", "sigmoid"),
    ),
    _mobilenet(
        "bias lost",
        "ir_block_3_se_conv_1",
        "blocks.2.0.se.conv_reduce",
        "bias",
        values("ir_block_3_se_conv_1.bias", np.zeros_like),
    ),
    _mobilenet(
        "scale", "ir_block_6_batchnorm_2", "blocks.3.0.bn2", _SCALE, values("ir_block_6_batchnorm_2.gamma", _times(2.0))
    ),
    _mobilenet(
        "layers exchanged",
        "ir_block_9_conv_pw",
        ("blocks.4.1.conv_pw", "ir_block_10_conv_pw", "blocks.4.2.conv_pw"),
        _SWAPPED,
        exchanged("ir_block_9_conv_pw", "ir_block_10_conv_pw"),
    ),
    _mobilenet("half precision", "final_conv", "blocks.5.0.conv", _HALF, values("final_conv.kernel", float16)),
    _mobilenet(
        "unfilled", "head_conv", "conv_head", _INITIAL, unfilled("z_mbv3_s", "head_conv.kernel", "head_conv.bias")
    ),
    _mobilenet(
        "height and width exchanged",
        "ir_block_8_dwconv",
        "blocks.4.0.conv_dw",
        _TURNED,
        values("ir_block_8_dwconv.kernel", _turned),
    ),
)


def _bert(kind: str, ours: str, theirs: str | tuple[str, ...], cause: str, change: Change) -> Fault:
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return Fault(kind, "z_bert", (ours, *theirs), cause, change)


_L = "encoder.layer"
_BERT = (
    _bert(
        "tanh GELU",
        "blocks_1_intermediate_act",
        (
            f"{_L}.1.intermediate.intermediate_act_fn",
            f"{_L}.1.intermediate",
            "blocks_1_intermediate_dense",
            f"{_L}.1.intermediate.dense",
        ),
        "gelu",
        activation("blocks_1_intermediate_act", "tanh_gelu"),
    ),
    _bert(
        "q and k exchanged",
        "blocks_0_attention_self.query",
        (f"{_L}.0.attention.self.query", "blocks_0_attention_self.key", f"{_L}.0.attention.self.key"),
        _SWAPPED,
        exchanged("blocks_0_attention_self.query", "blocks_0_attention_self.key"),
    ),
    _bert(
        "heads and dims exchanged",
        "blocks_2_attention_self.value",
        f"{_L}.2.attention.self.value",
        f"{_TURNED}|heads",
        both(
            values("blocks_2_attention_self.value.kernel", _dims_first),
            values("blocks_2_attention_self.value.bias", _dims_first),
        ),
    ),
    _bert(
        "epsilon",
        "blocks_0_output_layernorm",
        f"{_L}.0.output.LayerNorm",
        "epsilon",
        attributes("blocks_0_output_layernorm", epsilon=1e-3),
    ),
    _bert(
        "bias lost",
        "blocks_1_output_dense",
        f"{_L}.1.output.dense",
        "bias",
        values("blocks_1_output_dense.bias", np.zeros_like),
    ),
    _bert(
        "square kernel transposed",
        "blocks_0_attention_output_dense",
        f"{_L}.0.attention.output.dense",
        _TURNED,
        values("blocks_0_attention_output_dense.kernel", _transposed),
    ),
    _bert(
        "layers exchanged",
        "blocks_0_intermediate_dense",
        (f"{_L}.0.intermediate.dense", "blocks_2_intermediate_dense", f"{_L}.2.intermediate.dense"),
        _SWAPPED,
        exchanged("blocks_0_intermediate_dense", "blocks_2_intermediate_dense"),
    ),
    _bert(
        "half precision",
        "embeddings.word_embeddings",
        "embeddings.word_embeddings",
        _HALF,
        values("embeddings.word_embeddings.embeddings", bfloat16),
    ),
    _bert(
        "unfilled",
        "embeddings.token_type_embeddings",
        "embeddings.token_type_embeddings",
        _INITIAL,
        unfilled("z_bert", "embeddings.token_type_embeddings.embeddings"),
    ),
    _bert(
        "scale",
        "blocks_1_attention_self",
        f"{_L}.1.attention.self",
        _SCALE,
        attributes("blocks_1_attention_self", scale=1.0),
    ),
    _bert(
        "activation",
        "pooler_dense",
        ("pooler.dense", "pooler", "pooler.activation"),
        "activation|tanh",
        activation("pooler_dense", "linear"),
    ),
)


def _dino(kind: str, ours: str, theirs: str | tuple[str, ...], cause: str, change: Change) -> Fault:
    theirs = (theirs,) if isinstance(theirs, str) else theirs
    return Fault(kind, "z_dinov2", (ours, *theirs), cause, change)


_DINO = (
    _dino(
        "scale",
        "blocks_1_layerscale_2",
        f"{_L}.1.layer_scale2",
        f"{_SCALE}|{_INITIAL}",
        values("blocks_1_layerscale_2.gamma", np.ones_like),
    ),
    _dino(
        "tanh GELU",
        "blocks_2_gelu",
        (f"{_L}.2.mlp.activation_fn", f"{_L}.2.mlp", "blocks_2_dense_1", f"{_L}.2.mlp.fc1"),
        "gelu",
        activation("blocks_2_gelu", "tanh_gelu"),
    ),
    _dino(
        "q and k exchanged",
        f"{_A}.qkv",
        (f"{_L}.0.attention.q_proj", f"{_L}.0.attention.k_proj", f"{_L}.0.attention"),
        _SWAPPED,
        both(values(f"{_A}.qkv.kernel", _q_and_k), values(f"{_A}.qkv.bias", _q_and_k)),
    ),
    _dino(
        "heads and dims exchanged",
        f"{_A}_2.proj",
        f"{_L}.2.attention.o_proj",
        f"{_TURNED}|heads",
        values(f"{_A}_2.proj.kernel", _rows_dims_first),
    ),
    _dino(
        "height and width exchanged",
        "conv1",
        "embeddings.patch_embeddings.projection",
        _TURNED,
        values("conv1.kernel", _turned),
    ),
    _dino(
        "rescaling inside the model",
        "rescaling",
        (
            "embeddings.patch_embeddings.projection",
            "conv1",
            "functional.conv1",
            "dino_v2_model.conv1",
            "DinoV2Model.conv1",
        ),
        "rescal|255|scale",
        rescaled,
    ),
    _dino("epsilon", "final_layernorm", "layernorm", "epsilon", attributes("final_layernorm", epsilon=1e-3)),
    _dino(
        "unfilled",
        "pos_embed",
        ("embeddings", "embeddings.position_embeddings"),
        _INITIAL,
        unfilled("z_dinov2", "pos_embed.position_embedding"),
    ),
    _dino("half precision", "blocks_1_dense_1", f"{_L}.1.mlp.fc1", _HALF, values("blocks_1_dense_1.kernel", bfloat16)),
    _dino("bias lost", "conv1", "embeddings.patch_embeddings.projection", "bias", values("conv1.bias", np.zeros_like)),
    _dino(
        "layers exchanged",
        "blocks_0_layernorm_1",
        (f"{_L}.0.norm1", "blocks_0_layernorm_2", f"{_L}.0.norm2"),
        _SWAPPED,
        exchanged("blocks_0_layernorm_1", "blocks_0_layernorm_2"),
    ),
)

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*_RESNET, *_MOBILENET, *_BERT, *_DINO)}


# --- scoring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """What an audit says of a fault.

    Attributes:
        place, cause: whether a finding names the layer, and whether one of those has the cause.
        others: findings of other layers, which are not there.
    """

    place: bool
    cause: bool
    others: list[str]


def judge(fault: Fault, findings: Iterable[Any], usual: Iterable[str] = ()) -> Named:
    """Hold the findings (`.layer`, `.what`, `.cause`) against the fault.

    `usual` are the texts of those that the right port has as well, as real differences of its configuration.
    """
    here, others = [], []
    known = set(usual)
    for finding in findings:
        if names(finding.layer, fault.places):
            here.append(finding)
        elif text(finding) not in known:
            others.append(text(finding))
    words = re.compile(fault.cause, re.IGNORECASE)
    return Named(bool(here), any(words.search(f"{one.what} {one.cause}") for one in here), others)


def names(layer: str, places: Iterable[str]) -> bool:
    """Whether a report that names `layer`, a path or several words with paths in them, means one of the places."""
    return any(
        word == place or word.startswith(f"{place}.") for word in re.split(r"[\s,;:|]+", layer) for place in places
    )


def text(finding: Any) -> str:
    return f"{finding.layer}: {finding.what}: {finding.cause}"
