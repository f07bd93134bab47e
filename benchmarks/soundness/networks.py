"""The right networks: torch side, Keras side, mapping of names, inputs, and seeded weights of each.

Importing this imports neither framework; the builders do.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from converter import Drop, Mapping, Pair, Probe, Row, kinds
from converter.kinds import Kind, leaf
from converter.pairs.registry import locate

_TORCH = "benchmarks.soundness.torch_networks"
_TF = "benchmarks.soundness.tf_networks"
Rows = tuple[Row | Drop, ...]

LAYER_SCALE = Kind("LAYER_SCALE", (leaf("gamma", "gamma", "c -> c"),))
# ConvNeXt keeps its factors as (c, 1, 1); the row's path names the tensor.
FACTORS = Kind("FACTORS", (leaf("", "", "c 1 1 -> c"),), callable_alone=False)
# transformers' Conv1D, which is a linear layer with the axes of Keras.
CONV1D_OF_GPT2 = Kind("CONV1D_OF_GPT2", (leaf("weight", "kernel", "i o -> i o"), leaf("bias", "bias", "o -> o")))


def _sequence(layer: Any, x: Any, *_: Any) -> Any:
    """torch returns the states and the last one; Keras the states."""
    return layer(x)


def _lstm(torch: str, keras: str) -> tuple:
    return (
        leaf(f"weight_ih_{torch}", f"{keras}cell.kernel", "o i -> i o"),
        leaf(f"weight_hh_{torch}", f"{keras}cell.recurrent_kernel", "o i -> i o"),
    )


# Of torch's results Keras has the states of all steps.
_FIRST: dict[str, Any] = {"returns": (0,)} if hasattr(Kind, "returns") else {}
LSTM = Kind("LSTM_WITHOUT_BIAS", _lstm("l0", ""), call=_sequence, **_FIRST)
BIDIRECTIONAL = Kind(
    "BIDIRECTIONAL_LSTM",
    (*_lstm("l0", "forward_layer."), *_lstm("l0_reverse", "backward_layer.")),
    call=_sequence,
    **_FIRST,
)


def _encoder_layer(layer: Any, src: Any, src_mask: Any = None, is_causal: Any = None, src_key_padding_mask: Any = None):
    """nn.TransformerEncoder turns the mask of padding into minus infinities before it calls its layers."""
    mask = np.asarray(src_key_padding_mask)
    return layer(src, mask if mask.dtype == bool else mask != 0)


def _without_masks(layer: Any, x: Any, *_: Any, **__: Any) -> Any:
    """timm's block calls its attention with masks, which are none."""
    return layer(x)


TIMM_ATTENTION = replace(kinds.STAGE, name="TIMM_ATTENTION", call=_without_masks)
ENCODER_LAYER = replace(kinds.STAGE, name="ENCODER_LAYER", call=_encoder_layer)


@dataclass(frozen=True)
class Network:
    """One network on both sides.

    Attributes:
        torch: the builder and its arguments; `tf` is the same of the Keras side.
        inputs: (seeded generator, which of a few sizes) -> inputs in torch's layout.
        images: the inputs and outputs with channels first in torch.
        finish: changes the seeded state dict at the end.
        real: of real size, and not small.
    """

    name: str
    torch: tuple[str, dict[str, Any]]
    tf: tuple[str, dict[str, Any]]
    rows: Rows
    inputs: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    images: frozenset[str] = frozenset({"x"})
    outputs: tuple[str, ...] = ("output",)
    finish: tuple[str, tuple[str, ...]] | None = None
    real: bool = False
    sizes: int = 3

    def build_torch(self) -> Any:
        return locate(f"{_TORCH}:{self.torch[0]}")(**self.torch[1])

    def build_tf(self, **more: Any) -> Any:
        module, _, function = self.tf[0].partition(":")
        return locate(f"{_TF}.{module}:{function}")(**{**self.tf[1], **more})

    def seeded_state(self, seed: int) -> dict[str, Any]:
        """A checkpoint: torch tensors by name."""
        import torch

        side = locate(f"{_TORCH}:seeded_state")
        given = {}
        for name, value in self.inputs(np.random.default_rng(seed), 0).items():
            # Batch statistics want more than a few values.
            many = np.concatenate([value, *(np.roll(value, n + 1, -1) for n in range(3))]) if value.ndim else value
            given[name] = torch.from_numpy(np.ascontiguousarray(many))
        finish = None
        if self.finish is not None:
            finish = locate(f"{_TORCH}:{self.finish[0]}")(*self.finish[1])
        return side(self.build_torch, seed, given, finish)

    def pair(self, name: str | None = None, size: int = 0, **changes: Any) -> Pair:
        """The pair to register; its probe has the inputs of that size."""

        def probes(config: dict[str, Any], rng: np.random.Generator) -> list[Probe]:
            return [Probe(self.inputs(rng, size))]

        values = {
            "mapping": lambda config: Mapping(self.rows),
            "build_tf": lambda **config: self.build_tf(),
            "build_torch": lambda **config: self.build_torch(),
            **changes,
        }
        return Pair(
            name=name or f"soundness_{self.name}",
            probes=probes,
            outputs=self.outputs,
            channels_first=self.images,
            **values,
        )


def _image(*shapes: tuple[int, ...], name: str = "x") -> Callable[[np.random.Generator, int], dict[str, np.ndarray]]:
    def inputs(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal(shapes[size % len(shapes)], dtype=np.float32)}

    return inputs


def _ids(words: int, name: str, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    return {name: rng.integers(0, words, ((3, 9), (2, 12), (5, 6))[size % 3])}


def _padded(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of sequences (N, 1), of which the first is whole, and positions (1, L)."""
    n, length = ((3, 9), (2, 12), (5, 6))[size % 3]
    lengths = np.maximum(length - np.arange(n) * 2, 2)
    return np.arange(length)[None], lengths[:, None]


def _encoder_inputs(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    positions, lengths = _padded(rng, size)
    return {"ids": rng.integers(0, 31, np.broadcast(positions, lengths).shape), "padding": positions >= lengths}


def _bert_inputs(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    positions, lengths = _padded(rng, size)
    shape = np.broadcast(positions, lengths).shape
    return {
        "input_ids": rng.integers(0, 40, shape),
        "attention_mask": (positions < lengths).astype(np.int64),
        "token_type_ids": rng.integers(0, 2, shape),
    }


_SMALL_IMAGE = _image((2, 3, 32, 48), (3, 3, 40, 56), (1, 3, 53, 37))


def _resnet_rows(depths: tuple[int, ...], convolutions: int, projected: tuple[int, ...], stages: bool = True) -> Rows:
    rows: list[Row | Drop] = [Row("conv1", kinds.CONV_2D), Row("bn1", kinds.BATCH_NORM), Row("fc", kinds.DENSE)]
    for index, depth in enumerate(depths):
        blocks = f"layer{index + 1}.{{0-{depth - 1}}}" if depth > 1 else f"layer{index + 1}.0"
        rows += [
            Row(f"{blocks}.conv{{1-{convolutions}}}", kinds.CONV_2D),
            Row(f"{blocks}.bn{{1-{convolutions}}}", kinds.BATCH_NORM),
        ]
        if stages:
            rows.append(Row(blocks, kinds.STAGE_2D))
        if index in projected:
            rows += [
                Row(f"layer{index + 1}.0.downsample.0", kinds.CONV_2D),
                Row(f"layer{index + 1}.0.downsample.1", kinds.BATCH_NORM),
            ]
    return tuple(rows)


def _conv_norm(*paths: str, sequential: bool = True) -> list[Row]:
    rows = []
    for path in paths:
        rows += [Row(f"{path}.0", kinds.CONV_2D), Row(f"{path}.1", kinds.BATCH_NORM)]
        if sequential:
            rows.append(Row(path, kinds.SEQUENTIAL_2D))
    return rows


def _depthwise_norm(*paths: str) -> list[Row]:
    rows = []
    for path in paths:
        rows += [Row(f"{path}.0", kinds.DEPTHWISE_CONV_2D), Row(f"{path}.1", kinds.BATCH_NORM)]
    return rows


_MOBILENET = (
    *_conv_norm("features.0", "features.4"),
    *_conv_norm("features.{1-3}.block.0", "features.{1,2}.block.3", "features.3.block.2"),
    *_depthwise_norm("features.{1-3}.block.1"),
    Row("features.{1,2}.block.2.fc{1,2}", kinds.CONV_2D),
    Row("features.{1,2}.block.2", kinds.STAGE_2D),
    Row("features.{1-3}", kinds.STAGE_2D),
    Row("features.0.2", kinds.ACTIVATION_2D),
    Row("classifier.{0,3}", kinds.DENSE),
)
_EFFICIENTNET = (
    *_conv_norm("features.{0,4}", "features.{2.0,2.1,3.0}.block.{0,3}"),
    *_conv_norm("features.1.0.block.2"),
    *_depthwise_norm("features.1.0.block.0", "features.{2.0,2.1,3.0}.block.1"),
    Row("features.1.0.block.1.fc{1,2}", kinds.CONV_2D),
    Row("features.{2.0,2.1,3.0}.block.2.fc{1,2}", kinds.CONV_2D),
    Row("features.{1.0,2.0,2.1,3.0}", kinds.STAGE_2D),
    Row("features.{0,4}.2", kinds.ACTIVATION_2D),
    Row("classifier.1", kinds.DENSE),
)
_FIRES = "features.{3,4,6,7,9,10,11,12}"
_SQUEEZENET = (
    Row("features.0", kinds.CONV_2D),
    Row(f"{_FIRES}.{{squeeze,expand1x1,expand3x3}}", kinds.CONV_2D),
    Row(_FIRES, kinds.STAGE_2D),
    Row("features.{2,5,8}", kinds.ACTIVATION_2D),
    Row("classifier.1", kinds.CONV_2D),
)
_DENSENET = (
    Row("features.conv0", kinds.CONV_2D),
    Row("features.norm{0,5}", kinds.BATCH_NORM),
    Row("features.denseblock{1,2}.denselayer{1,2}.norm{1,2}", kinds.BATCH_NORM),
    Row("features.denseblock{1,2}.denselayer{1,2}.conv{1,2}", kinds.CONV_2D),
    Row("features.denseblock{1,2}", kinds.STAGE_2D),
    Row("features.transition1.norm", kinds.BATCH_NORM),
    Row("features.transition1.conv", kinds.CONV_2D),
    Row("features.transition1", kinds.STAGE_2D),
    Row("features", kinds.STAGE_2D),
    Row("classifier", kinds.DENSE),
)
_BRANCHES = "mixed.branch{1x1,5x5_1,5x5_2,3x3dbl_1,3x3dbl_2,3x3dbl_3,_pool}"
_INCEPTION = (
    Row("stem.conv", kinds.CONV_2D),
    Row("stem.bn", kinds.BATCH_NORM),
    Row(f"{_BRANCHES}.conv", kinds.CONV_2D),
    Row(f"{_BRANCHES}.bn", kinds.BATCH_NORM),
    Row("{stem,mixed}", kinds.STAGE_2D),
    Row("fc", kinds.DENSE),
)
_CONVNEXT_BLOCKS = "features.{1.0,1.1,3.0}"
_CONVNEXT = (
    Row("features.0.0", kinds.CONV_2D),
    Row("features.0.1", kinds.LAYER_NORM_2D),
    Row(f"{_CONVNEXT_BLOCKS}.block.0", kinds.DEPTHWISE_CONV_2D),
    Row(f"{_CONVNEXT_BLOCKS}.block.2", kinds.LAYER_NORM),
    Row(f"{_CONVNEXT_BLOCKS}.block.{{3,5}}", kinds.DENSE),
    Row(f"{_CONVNEXT_BLOCKS}.block.4", kinds.ACTIVATION),
    Row(f"{_CONVNEXT_BLOCKS}.layer_scale", FACTORS),
    Row(_CONVNEXT_BLOCKS, kinds.STAGE_2D),
    Row("features.2.0", kinds.LAYER_NORM_2D),
    Row("features.2.1", kinds.CONV_2D),
    Row("classifier.0", kinds.LAYER_NORM_2D),
    Row("classifier.2", kinds.DENSE),
)


def _unet_rows() -> Rows:
    parts = "{down1,down2,bottom,merge2,merge1}"
    return (
        Row(f"{parts}.conv{{1,2}}", kinds.CONV_2D),
        Row(f"{parts}.bn{{1,2}}", kinds.BATCH_NORM),
        Row(parts, kinds.STAGE_2D),
        Row("head", kinds.CONV_2D),
    )


_UNET_UP = (*_unet_rows(), Row("up{1,2}", kinds.CONV_TRANSPOSE_2D))
_UNET_RESIZED = (*_unet_rows(), Row("up{1,2}", kinds.CONV_2D))
_SEGMENTER = (
    Row("stem", kinds.CONV_2D),
    *_conv_norm("aspp.convs.{0-2}", "aspp.project"),
    Row("aspp.convs.3.1", kinds.CONV_2D),
    Row("aspp.convs.3.2", kinds.BATCH_NORM),
    Row("aspp", kinds.STAGE_2D),
    Row("classifier", kinds.CONV_2D),
)
_PYRAMID = (
    Row("body.{0-2}", kinds.CONV_2D),
    Row("fpn.{inner,layer}_blocks.{0-2}.0", kinds.CONV_2D),
    Row("fpn", kinds.STAGE_2D),
)
_UPSCALER = (
    Row("{entry,conv1,conv2,expand,last}", kinds.CONV_2D),
    Row("act", kinds.PRELU),
    Row("norm{1,2}", kinds.GROUP_NORM),
    Row("gamma", kinds.PARAMETER),
    Row("shuffle", kinds.ACTIVATION_2D),
)
_GENERATOR = (
    Row("project", kinds.DENSE),
    Row("up{1,2}", kinds.CONV_TRANSPOSE_2D),
    Row("bn{1,2}", kinds.BATCH_NORM),
    Row("depthwise", kinds.DEPTHWISE_CONV_2D),
    Row("{grouped,last}", kinds.CONV_2D),
)


def _vit_rows(depth: int) -> Rows:
    blocks = f"encoder.layers.encoder_layer_{{0-{depth - 1}}}"
    return (
        Row("conv_proj", kinds.CONV_2D),
        Row("{class_token,encoder.pos_embedding}", kinds.PARAMETER),
        Row(f"{blocks}.ln_{{1,2}}", kinds.LAYER_NORM),
        Row(f"{blocks}.self_attention", kinds.MULTIHEAD_ATTENTION),
        Row(f"{blocks}.mlp.{{0,3}}", kinds.DENSE),
        Row(f"{blocks}.mlp.1", kinds.ACTIVATION),
        Row(blocks, kinds.STAGE),
        Row("encoder", kinds.STAGE),
        Row("encoder.ln", kinds.LAYER_NORM),
        Row("heads.head", kinds.DENSE),
    )


_TIMM_VIT = (
    Row("{cls_token,pos_embed}", kinds.PARAMETER),
    Row("patch_embed.proj", kinds.CONV_2D),
    Row("patch_embed", kinds.STAGE_2D),
    Row("blocks.{0,1}.norm{1,2}", kinds.LAYER_NORM),
    Row("blocks.{0,1}.attn.{qkv,proj}", kinds.DENSE),
    Row("blocks.{0,1}.mlp.fc{1,2}", kinds.DENSE),
    Row("blocks.{0,1}.mlp.act", kinds.ACTIVATION),
    Row("blocks.{0,1}.ls{1,2}", LAYER_SCALE),
    Row("blocks.{0,1}", kinds.STAGE),
    Row("blocks.{0,1}.attn", TIMM_ATTENTION),
    Row("blocks.{0,1}.mlp", kinds.STAGE),
    Row("norm", kinds.LAYER_NORM),
    Row("head", kinds.DENSE),
)
_MIXER = (
    Row("stem.proj", kinds.CONV_2D),
    Row("blocks.{0,1}.norm{1,2}", kinds.LAYER_NORM),
    Row("blocks.{0,1}.mlp_{tokens,channels}.fc{1,2}", kinds.DENSE),
    Row("blocks.{0,1}.mlp_{tokens,channels}.act", kinds.ACTIVATION),
    Row("blocks.{0,1}", kinds.STAGE),
    Row("norm", kinds.LAYER_NORM),
    Row("head", kinds.DENSE),
)
_SWIN_BLOCKS = "features.{1.0,1.1,3.0}"
_SWIN = (
    Row("features.0.0", kinds.CONV_2D),
    Row("features.0.2", kinds.LAYER_NORM),
    Row(f"{_SWIN_BLOCKS}.norm{{1,2}}", kinds.LAYER_NORM),
    Row(f"{_SWIN_BLOCKS}.attn.relative_position_bias_table", kinds.PARAMETER),
    Drop(f"{_SWIN_BLOCKS}.attn.relative_position_index", "computed from the window's size"),
    Row(f"{_SWIN_BLOCKS}.attn.{{qkv,proj}}", kinds.DENSE),
    Row(f"{_SWIN_BLOCKS}.attn", kinds.STAGE),
    Row(f"{_SWIN_BLOCKS}.mlp.{{0,3}}", kinds.DENSE),
    Row(f"{_SWIN_BLOCKS}.mlp.1", kinds.ACTIVATION),
    Row(_SWIN_BLOCKS, kinds.STAGE),
    Row("features.2.reduction", kinds.DENSE),
    Row("features.2.norm", kinds.LAYER_NORM),
    Row("features.2", kinds.STAGE),
    Row("norm", kinds.LAYER_NORM),
    Row("head", kinds.DENSE),
)
_ENCODER = (
    Row("embed", kinds.EMBEDDING),
    Row("positions", kinds.PARAMETER),
    Row("encoder.layers.{0,1}.self_attn", kinds.MULTIHEAD_ATTENTION),
    Row("encoder.layers.{0,1}.linear{1,2}", kinds.DENSE),
    Row("encoder.layers.{0,1}.norm{1,2}", kinds.LAYER_NORM),
    Row("encoder.layers.{0,1}", ENCODER_LAYER),
    Row("head", kinds.DENSE),
)
_BERT_LAYERS = "encoder.layer.{0,1}"
_BERT = (
    Row("embeddings.{word,position,token_type}_embeddings", kinds.EMBEDDING),
    Row("embeddings.LayerNorm", kinds.LAYER_NORM),
    Row(
        f"{_BERT_LAYERS}.attention.self.{{query,key,value}}",
        kinds.DENSE,
        f"{_BERT_LAYERS}.attention.inner.{{query,key,value}}",
    ),
    Row(f"{_BERT_LAYERS}.attention.output.dense", kinds.DENSE, f"{_BERT_LAYERS}.attention.outer.dense"),
    Row(f"{_BERT_LAYERS}.attention.output.LayerNorm", kinds.LAYER_NORM, f"{_BERT_LAYERS}.attention.outer.LayerNorm"),
    Row(f"{_BERT_LAYERS}.intermediate.dense", kinds.DENSE),
    Row(f"{_BERT_LAYERS}.output.dense", kinds.DENSE, f"{_BERT_LAYERS}.outer.dense"),
    Row(f"{_BERT_LAYERS}.output.LayerNorm", kinds.LAYER_NORM, f"{_BERT_LAYERS}.outer.LayerNorm"),
    Row("pooler.dense", kinds.DENSE),
)
_GPT2 = (
    Row("transformer.{wte,wpe}", kinds.EMBEDDING),
    Row("transformer.h.{0,1}.ln_{1,2}", kinds.LAYER_NORM),
    Row("transformer.h.{0,1}.attn.c_{attn,proj}", CONV1D_OF_GPT2),
    Row("transformer.h.{0,1}.mlp.c_{fc,proj}", CONV1D_OF_GPT2),
    Row("transformer.ln_f", kinds.LAYER_NORM),
    Drop("lm_head.weight", "the table of the tokens"),
)
_TAGGER = (
    Row("embed", kinds.EMBEDDING),
    Row("rnn", LSTM),
    Row("both", BIDIRECTIONAL),
    Row("{tags,head}", kinds.DENSE),
)
_CHAIN = (Row("conv{1-3}", kinds.CONV_2D), Row("bn", kinds.BATCH_NORM), Row("fc{1,2}", kinds.DENSE))
_LENET = (Row("conv{1,2}", kinds.CONV_2D), Row("bn", kinds.BATCH_NORM), Row("fc{1,2}", kinds.DENSE))
_VGG = (
    Row("0", kinds.CONV_2D),
    Row("3", kinds.CONV_2D, "2"),
    Row("5", kinds.CONV_2D, "3"),
    Row("10", kinds.DENSE, "6"),
    Row("12", kinds.DENSE, "7"),
)
_NONE: frozenset[str] = frozenset()
_BOTH = frozenset({"x", "output"})
_BOTTLENECK = {"block": "Bottleneck"}
_R18, _R50 = (2, 2, 2, 2), (3, 4, 6, 3)
_R18_TF = {"layers": _R18, "channels": (64, 128, 256, 512), "classes": 10}
_R50_TF = {**_R18_TF, **_BOTTLENECK, "layers": _R50}
_VIT_ROWS = _vit_rows(2)
_PYRAMID_OUTPUTS = ("fine", "middle", "coarse")

_ALL = (
    Network(
        "resnet_basic",
        ("resnet", {}),
        ("convolutional:resnet", {}),
        _resnet_rows((1, 1, 1, 1), 2, (0, 1, 2, 3)),
        _SMALL_IMAGE,
    ),
    Network(
        "resnet_bottleneck",
        ("resnet", {**_BOTTLENECK, "layers": (1, 2, 1, 1), "channels": (8, 12, 16, 20)}),
        ("convolutional:resnet", {**_BOTTLENECK, "layers": (1, 2, 1, 1), "channels": (8, 12, 16, 20)}),
        _resnet_rows((1, 2, 1, 1), 3, (0, 1, 2, 3)),
        _SMALL_IMAGE,
    ),
    Network(
        "resnet_zero_gamma",  # the last normalisation of each branch starts at zero, and here it still is
        ("resnet", {}),
        ("convolutional:resnet", {}),
        _resnet_rows((1, 1, 1, 1), 2, (0, 1, 2, 3)),
        _SMALL_IMAGE,
        finish=("zeroed", (".bn2.weight", ".bn2.bias")),
    ),
    Network(
        "resnet_functional",
        ("resnet", {}),
        ("convolutional:resnet_functional", {}),
        _resnet_rows((1, 1, 1, 1), 2, (0, 1, 2, 3), stages=False),
        _SMALL_IMAGE,
    ),
    Network("mobilenet", ("mobilenet", {}), ("convolutional:mobilenet", {}), _MOBILENET, _SMALL_IMAGE),
    Network("efficientnet", ("efficientnet", {}), ("convolutional:efficientnet", {}), _EFFICIENTNET, _SMALL_IMAGE),
    Network(
        "squeezenet",
        ("squeezenet", {}),
        ("convolutional:squeezenet", {}),
        _SQUEEZENET,
        _image((2, 3, 40, 60), (1, 3, 50, 66), (3, 3, 44, 35)),
    ),
    Network("densenet", ("densenet", {}), ("convolutional:densenet", {}), _DENSENET, _SMALL_IMAGE),
    Network(
        "inception",
        ("Inception", {}),
        ("convolutional:inception", {}),
        _INCEPTION,
        _image((2, 3, 21, 27), (3, 3, 17, 24), (1, 3, 30, 19)),
    ),
    Network(
        "convnext",
        ("convnext", {"layer_scale": 0.5}),
        ("convolutional:convnext", {}),
        _CONVNEXT,
        _SMALL_IMAGE,
    ),
    Network(
        "convnext_tiny_gamma",  # as torchvision makes it: the branches count for a millionth
        ("convnext", {"layer_scale": 1e-6}),
        ("convolutional:convnext", {}),
        _CONVNEXT,
        _SMALL_IMAGE,
    ),
    Network(
        "lenet",
        ("LeNet", {}),
        ("convolutional:lenet", {}),
        _LENET,
        _image((4, 1, 20, 28), (2, 1, 20, 28), (7, 1, 20, 28)),
    ),
    Network(
        "keras_style",
        ("Chain", {}),
        ("convolutional:chained", {}),
        _CHAIN,
        _image((4, 3, 12, 15), (2, 3, 16, 11), (3, 3, 21, 18)),
        finish=("steep", ("conv1.weight",)),
    ),
    Network(
        "two_heads",
        ("TwoHeads", {}),
        ("convolutional:two_heads", {}),
        (Row("conv", kinds.CONV_2D), Row("{left,right}", kinds.DENSE)),
        _image((4, 3, 12, 15), (2, 3, 16, 11), (3, 3, 21, 18)),
        outputs=("left", "right"),
    ),
    Network(
        "vgg_sequential",
        ("vgg", {}),
        ("convolutional:vgg", {}),
        _VGG,
        _image((3, 3, 16, 20), (2, 3, 22, 13), (4, 3, 12, 29), name="input"),
        images=frozenset({"input"}),
    ),
    Network(
        "unet",
        ("UNet", {}),
        ("images:unet", {}),
        _UNET_UP,
        _image((2, 3, 16, 24), (1, 3, 32, 20), (3, 3, 12, 28)),
        images=_BOTH,
    ),
    Network(
        "unet_edges",
        ("UNet", {"up": "edges"}),
        ("images:unet", {"up": "edges"}),
        _UNET_RESIZED,
        _image((2, 3, 16, 24), (1, 3, 32, 20), (3, 3, 12, 28)),
        images=_BOTH,
    ),
    Network(
        "unet_corners",
        ("UNet", {"up": "corners"}),
        ("images:unet", {"up": "corners"}),
        _UNET_RESIZED,
        _image((2, 3, 16, 24), (1, 3, 32, 20), (3, 3, 12, 28)),
        images=_BOTH,
    ),
    Network(
        "segmenter",
        ("Segmenter", {}),
        ("images:segmenter", {}),
        _SEGMENTER,
        _image((2, 3, 20, 28), (3, 3, 26, 17), (2, 3, 14, 31)),
        images=_BOTH,
    ),
    Network(
        "pyramid",
        ("Pyramid", {}),
        ("images:pyramid", {}),
        _PYRAMID,
        _image((2, 3, 26, 36), (1, 3, 40, 22), (3, 3, 32, 48)),
        images=frozenset({"x", *_PYRAMID_OUTPUTS}),
        outputs=_PYRAMID_OUTPUTS,
    ),
    Network(
        "upscaler",
        ("Upscaler", {}),
        ("images:upscaler", {}),
        _UPSCALER,
        _image((2, 3, 10, 12), (1, 3, 14, 9), (3, 3, 8, 17)),
        images=_BOTH,
    ),
    Network(
        "upscaler_zero_gamma",
        ("Upscaler", {}),
        ("images:upscaler", {}),
        _UPSCALER,
        _image((2, 3, 10, 12), (1, 3, 14, 9), (3, 3, 8, 17)),
        images=_BOTH,
        finish=("zeroed", ("gamma",)),
    ),
    Network(
        "generator",
        ("Generator", {}),
        ("images:generator", {}),
        _GENERATOR,
        _image((4, 6), (7, 6), (2, 6), name="z"),
        images=frozenset({"output"}),
    ),
    Network(
        "vit",
        ("vit", {}),
        ("sequences:vit", {}),
        _VIT_ROWS,
        _image((2, 3, 24, 24), (3, 3, 24, 24), (1, 3, 24, 24)),
    ),
    Network(
        "timm_vit",
        ("timm_vit", {"init_values": 0.5}),
        ("sequences:timm_vit", {}),
        _TIMM_VIT,
        _image((2, 3, 24, 40), (3, 3, 24, 40), (1, 3, 24, 40)),
    ),
    Network(
        "timm_vit_tiny_gamma",
        ("timm_vit", {"init_values": 1e-6}),
        ("sequences:timm_vit", {}),
        _TIMM_VIT,
        _image((2, 3, 24, 40), (3, 3, 24, 40), (1, 3, 24, 40)),
    ),
    Network(
        "timm_vit_ones",  # LayerScale as if it were not there
        ("timm_vit", {}),
        ("sequences:timm_vit", {}),
        _TIMM_VIT,
        _image((2, 3, 24, 40), (3, 3, 24, 40), (1, 3, 24, 40)),
        finish=("ones", ("gamma",)),
    ),
    Network(
        "mixer",
        ("mixer", {}),
        ("sequences:mixer", {}),
        _MIXER,
        _image((2, 3, 24, 40), (3, 3, 24, 40), (1, 3, 24, 40)),
    ),
    Network(
        "swin",
        ("swin", {}),
        ("sequences:swin", {}),
        _SWIN,
        _image((2, 3, 28, 36), (1, 3, 40, 56), (3, 3, 24, 44)),
    ),
    Network(
        "encoder",
        ("Encoder", {}),
        ("sequences:encoder", {}),
        _ENCODER,
        _encoder_inputs,
        images=_NONE,
        outputs=("scores", "states"),
    ),
    Network(
        "encoder_norm_first",
        ("Encoder", {"norm_first": True}),
        ("sequences:encoder", {"norm_first": True}),
        _ENCODER,
        _encoder_inputs,
        images=_NONE,
        outputs=("scores", "states"),
    ),
    Network("bert", ("bert", {}), ("sequences:bert", {}), _BERT, _bert_inputs, _NONE, ("states", "pooled")),
    Network("gpt2", ("gpt2", {}), ("sequences:gpt2", {}), _GPT2, partial(_ids, 37, "input_ids"), images=_NONE),
    Network(
        "gpt2_untied",
        ("gpt2", {"tied": False}),
        ("sequences:gpt2", {"tied": False}),
        (*_GPT2[:-1], Row("lm_head", kinds.DENSE)),
        partial(_ids, 37, "input_ids"),
        images=_NONE,
    ),
    Network(
        "tagger",
        ("Tagger", {}),
        ("sequences:tagger", {}),
        _TAGGER,
        partial(_ids, 23, "ids"),
        images=_NONE,
        outputs=("tags", "scores"),
    ),
    Network(
        "resnet18",
        ("torchvision_resnet", {"name": "resnet18"}),
        ("convolutional:resnet", _R18_TF),
        _resnet_rows(_R18, 2, (1, 2, 3)),
        _image((2, 3, 64, 96), (1, 3, 224, 224), (3, 3, 72, 40)),
        real=True,
    ),
    Network(
        "resnet50",
        ("torchvision_resnet", {"name": "resnet50"}),
        ("convolutional:resnet", _R50_TF),
        _resnet_rows(_R50, 3, (0, 1, 2, 3)),
        _image((2, 3, 64, 96), (1, 3, 224, 224), (3, 3, 72, 40)),
        real=True,
    ),
    Network(
        "vit_wide",
        (
            "vit",
            {"image_size": 96, "patch_size": 16, "num_layers": 3, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072},
        ),
        ("sequences:vit", {"patch": 16, "grid": 6, "depth": 3, "heads": 12, "width": 768, "inner": 3072}),
        _vit_rows(3),
        _image((2, 3, 96, 96), (1, 3, 96, 96), (3, 3, 96, 96)),
        real=True,
    ),
)

NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}
