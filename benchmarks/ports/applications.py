"""torchvision's networks and those of keras.applications, whose layers stand for torch's modules by these rules.

No converter exists; the two sides' names are the authors', and no tensor fits elsewhere by them.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.ports.port import Port, State, picture

Names = Callable[[str], str]  # a Keras layer's name -> the torch module's

_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _table(text: str) -> dict[str, str]:
    """Lines of `Keras torch`."""
    return dict(line.split() for line in text.strip().splitlines())


def _parts(pattern: str, layer: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, layer)
    if found is None:
        raise ValueError(f"no rule for the layer {layer}")
    return found.groups()


def _resnet(layer: str) -> str:
    whole = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}
    if layer in whole:
        return whole[layer]
    stage, block, place, what = _parts(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer)
    parent = f"layer{int(stage) - 1}.{int(block) - 1}"
    return f"{parent}.downsample.{int(what == 'bn')}" if place == "0" else f"{parent}.{what}{place}"


def _vgg(layer: str) -> str:
    whole = {"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"}
    if layer in whole:
        return whole[layer]
    block, place = map(int, _parts(r"block(\d)_conv(\d)", layer))
    return f"features.{(0, 5, 10, 17, 24)[block - 1] + 2 * (place - 1)}"


_MOBILENET = {
    "": _table("depthwise 1.0\ndepthwise_BN 1.1\nexpand 0.0\nexpand_BN 0.1\nproject 2\nproject_BN 3"),
    "first": _table("depthwise 0.0\ndepthwise_BN 0.1\nproject 1\nproject_BN 2"),
}


def _mobilenet_v2(layer: str) -> str:
    whole = _table("""
        Conv1 features.0.0
        bn_Conv1 features.0.1
        Conv_1 features.18.0
        Conv_1_bn features.18.1
        predictions classifier.1
    """)
    if layer in whole:
        return whole[layer]
    if layer.startswith("expanded_conv_"):
        return f"features.1.conv.{_MOBILENET['first'][layer.removeprefix('expanded_conv_')]}"
    block, what = _parts(r"block_(\d+)_(\w+)", layer)
    return f"features.{int(block) + 1}.conv.{_MOBILENET[''][what]}"


def _efficientnet(layer: str) -> str:
    whole = _table("""
        stem_conv features.0.0
        stem_bn features.0.1
        top_conv features.8.0
        top_bn features.8.1
        predictions classifier.1
    """)
    if layer in whole:
        return whole[layer]
    stage, letter, what = _parts(r"block(\d)([a-z])_(\w+)", layer)
    parts = "dwconv 0.0\nbn 0.1\nse_reduce 1.fc1\nse_expand 1.fc2\nproject_conv 2.0\nproject_bn 2.1"
    if stage != "1":
        parts = (
            "expand_conv 0.0\nexpand_bn 0.1\ndwconv 1.0\nbn 1.1\nse_reduce 2.fc1\nse_expand 2.fc2\n"
            "project_conv 3.0\nproject_bn 3.1"
        )
    return f"features.{stage}.{ord(letter) - ord('a')}.block.{_table(parts)[what]}"


def _densenet(layer: str) -> str:
    whole = _table("""
        conv1_conv features.conv0
        conv1_bn features.norm0
        bn features.norm5
        predictions classifier
    """)
    if layer in whole:
        return whole[layer]
    if found := re.fullmatch(r"pool(\d)_(conv|bn)", layer):
        return f"features.transition{int(found[1]) - 1}.{'conv' if found[2] == 'conv' else 'norm'}"
    stage, block, place, what = _parts(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer)
    # A layer's first normalisation is its number 0 in Keras, and each convolution counts with the one before it.
    name = f"conv{place}" if what == "conv" else f"norm{int(place) + 1}"
    return f"features.denseblock{int(stage) - 1}.denselayer{block}.{name}"


def _convnext(layer: str) -> str:
    layer = layer.removeprefix("convnext_tiny_")
    whole = _table("""
        stem_conv features.0.0
        stem_layernorm features.0.1
        head_layernorm classifier.0
        head_dense classifier.2
    """)
    if layer in whole:
        return whole[layer]
    if found := re.fullmatch(r"downsampling_(\w+)_(\d)", layer):
        return f"features.{2 * int(found[2]) + 2}.{int(found[1] == 'conv')}"
    stage, block, what = _parts(r"stage_(\d)_block_(\d+)_(\w+)", layer)
    parts = "depthwise_conv block.0\nlayernorm block.2\npointwise_conv_1 block.3\npointwise_conv_2 block.5"
    return f"features.{2 * int(stage) + 1}.{block}.{ {**_table(parts), 'layer_scale': 'layer_scale'}[what] }"


def _layers(model: Any) -> Iterator[Any]:
    """Those with weights, out of what holds them; Keras computes the statistics of a `Normalization` from data."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer)
        elif layer.weights and type(layer).__name__ != "Normalization":
            yield layer


def _fill(names: Names) -> Callable[[Any, State], None]:
    def truth(model: Any, state: State) -> None:
        for layer in _layers(model):
            kind = type(layer).__name__
            module = names(layer.name)
            for variable in layer.weights:
                shape = tuple(variable.shape)
                if kind == "LayerScale":
                    variable.assign(state[module].reshape(shape))
                    continue
                tensor = state.get(f"{module}.{_LEAVES[variable.name]}")
                if tensor is None and variable.name == "bias":  # before a normalisation torch has none
                    tensor = np.zeros(shape, np.float32)
                assert tensor is not None, f"{module} has no tensor for {variable.path}"
                variable.assign(_laid_out(tensor, shape, kind, layer.name))

    return truth


def _laid_out(tensor: np.ndarray, shape: tuple[int, ...], kind: str, name: str) -> np.ndarray:
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 0, 1) if kind == "DepthwiseConv2D" else tensor.transpose(2, 3, 1, 0)
    if name == "fc1" and tensor.ndim == 2:  # behind a picture that torch flattens channels first
        return tensor.reshape(-1, 512, 7, 7).transpose(2, 3, 1, 0).reshape(shape)
    return tensor.T if tensor.ndim == 2 else tensor


def _port(theirs: str, ours: str, names: Names, reason: str = "", scale: float = 1.0, **arguments: Any) -> Port:
    def build_torch() -> Any:
        import torchvision

        return torchvision.models.get_model(theirs, weights=None)

    def build_keras() -> Any:
        import keras

        return getattr(keras.applications, ours)(weights=None, classifier_activation=None, **arguments)

    kind = "near" if reason else "equal"
    return Port(build_torch, build_keras, picture(224, scale=scale), _fill(names), kind, reason=reason)


PORTS: dict[str, Port] = {
    "tv_resnet50": _port("resnet50", "ResNet50", _resnet, "the stride is on another convolution; epsilon"),
    "tv_vgg16": _port("vgg16", "VGG16", _vgg),
    "tv_mobilenet_v2": _port("mobilenet_v2", "MobileNetV2", _mobilenet_v2, "padding; epsilon"),
    "tv_efficientnet_b0": _port(
        "efficientnet_b0", "EfficientNetB0", _efficientnet, "padding; epsilon; rescaling inside", scale=255.0
    ),
    "tv_densenet121": _port("densenet121", "DenseNet121", _densenet, "epsilon"),
    "tv_convnext_tiny": _port("convnext_tiny", "ConvNeXtTiny", _convnext, include_preprocessing=False),
}
