"""timm's networks and those of keras_cv_attention_models, which does not build with Keras 3."""

from importlib import import_module
from typing import Any

from benchmarks.ports.port import Port, State, picture


def _truth(model: Any, state: State) -> None:
    raise NotImplementedError("keras_cv_attention_models converts only what it downloads")


def _port(theirs: str, place: str) -> Port:
    def build_torch() -> Any:
        import timm

        return timm.create_model(theirs)

    def build_keras() -> Any:
        module, name = place.split(".")
        builder = getattr(import_module(f"keras_cv_attention_models.{module}"), name)
        return builder(pretrained=None, classifier_activation=None)

    reason = "written for Keras 2: it does not build with Keras 3"
    return Port(build_torch, build_keras, picture(224), _truth, "unbuildable", reason=reason)


PORTS: dict[str, Port] = {
    "k_edgenext_xxs": _port("edgenext_xx_small", "edgenext.EdgeNeXt_XX_Small"),
    "k_levit_128s": _port("levit_128s", "levit.LeViT128S"),
    "k_convnext_tiny": _port("convnext_tiny", "convnext.ConvNeXtTiny"),
    "k_coat_lite_tiny": _port("coat_lite_tiny", "coat.CoaTLiteTiny"),
}
