"""timm's networks and those of keras_cv_attention_models, of which most are written for Keras 2."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.ports.port import Port, State, picture

# Parts of a block or a stage of ConvNeXt: Keras's word -> torch's.
_PARTS = {
    "dw_conv": "conv_dw",
    "ln": "norm",
    "up_dense": "mlp.fc1",
    "down_dense": "mlp.fc2",
    "gamma": "gamma",
    "downsample_ln": "downsample.0",
    "downsample_conv": "downsample.1",
}
_WHOLE = {"stem_conv": "stem.0", "stem_ln": "stem.1", "head_ln": "head.norm", "predictions": "head.fc"}
_LEAVES = {"kernel": ".weight", "gamma": ".weight", "bias": ".bias", "beta": ".bias", "ww": ""}


def _convnext(model: Any, state: State) -> None:
    """By the authors' names: the library's own converter is for what it downloads."""
    from converter.planning.variables import by_path

    for path, variable in by_path(model).items():
        layer, _, leaf = path.rpartition(".")
        module = _WHOLE.get(layer)
        if module is None:
            found = re.fullmatch(r"stack(\d)_(?:block(\d+)_)?(\w+)", layer)
            assert found is not None, f"no rule for the layer {layer}"
            block = f"blocks.{int(found[2]) - 1}." if found[2] else ""
            module = f"stages.{int(found[1]) - 1}.{block}{_PARTS[found[3]]}"
        value = state[module + _LEAVES[leaf]]
        if value.ndim == 4:
            value = value.transpose((2, 3, 0, 1) if layer.endswith("dw_conv") else (2, 3, 1, 0))
        variable.assign(value.T if value.ndim == 2 else value)


def _none(model: Any, state: State) -> None:
    raise NotImplementedError("the model does not build")


def _port(theirs: str, place: str, truth: Callable[[Any, State], None] = _none, **facts: Any) -> Port:
    def build_torch() -> Any:
        import timm

        return timm.create_model(theirs)

    def build_keras() -> Any:
        module, name = place.split(".")
        builder = getattr(import_module(f"keras_cv_attention_models.{module}"), name)
        return builder(pretrained=None, classifier_activation=None)

    return Port(build_torch, build_keras, picture(224), truth, **facts)


_KERAS_2: dict[str, Any] = {
    "kind": "unbuildable",
    "reason": "written for Keras 2: it gives TensorFlow's functions what Keras 3 does not let them have",
}

PORTS: dict[str, Port] = {
    "k_edgenext_xxs": _port("edgenext_xx_small", "edgenext.EdgeNeXt_XX_Small", **_KERAS_2),
    "k_levit_128s": _port("levit_128s", "levit.LeViT128S", **_KERAS_2),
    "k_convnext_tiny": _port("convnext_tiny", "convnext.ConvNeXtTiny", _convnext),
    "k_coat_lite_tiny": _port("coat_lite_tiny", "coat.CoaTLiteTiny", **_KERAS_2),
}
