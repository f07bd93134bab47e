"""The TensorFlow side of every pair: Keras models, and the sampling ops they are built on.

Nothing here imports torch, and importing this package does not import TensorFlow.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Model name -> "module:callable"; the callable takes the configuration and returns a built keras.Model.
_BUILDERS: dict[str, str | Callable[..., Any]] = {
    "dcn_v2": "tf_models.deform_conv:build_dcn_v2",
    "deform_conv2d": "tf_models.deform_conv:build_deform_conv2d",
    "ms_deform_attn": "tf_models.ms_deform_attn:build_ms_deform_attn",
    "deformable_attention_1d": "tf_models.deformable_attention:build_1d",
    "deformable_attention_2d": "tf_models.deformable_attention:build_2d",
    "deformable_attention_3d": "tf_models.deformable_attention:build_3d",
    "mobile_sam": "tf_models.sam.mobile_sam:build_mobile_sam",
    "sam_decoder": "tf_models.sam.mask_decoder:build_mask_decoder",
    "sam_image_encoder": "tf_models.sam.image_encoder:build_image_encoder",
    "sam_prompt_encoder": "tf_models.sam.prompt_encoder:build_prompt_encoder",
    "sam_vit_b": "tf_models.sam.sam:build_sam_vit_b",
    "sam_vit_h": "tf_models.sam.sam:build_sam_vit_h",
    "sam_vit_l": "tf_models.sam.sam:build_sam_vit_l",
}


def __getattr__(name: str) -> Any:
    # Loading needs h5py; whoever only asks for names should not wait for it.
    if name in ("WeightsError", "load"):
        return getattr(import_module("tf_models.loading"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """Names of the models that `create` builds, sorted."""
    return sorted(_BUILDERS)


def register(name: str, builder: str | Callable[..., Any]) -> None:
    """Let `create(name)` and `load` build a model: `builder` is a callable, or its place ("module:callable")."""
    _BUILDERS[name] = builder


def create(name: str, **config: Any) -> Any:
    """Build the Keras model `name`, all its variables made, with fresh weights.

    Raises:
        ValueError: no such name; the known ones are listed.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(names())}")
    builder = _BUILDERS[name]
    if isinstance(builder, str):
        module, _, attribute = builder.partition(":")
        builder = getattr(import_module(module), attribute)
    return builder(**config)
