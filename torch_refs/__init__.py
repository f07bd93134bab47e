"""The torch side of every pair: reference modules whose state dicts carry the canonical names.

Nothing here imports TensorFlow, and importing this package does not import torch.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# Model name -> "module:callable"; the callable takes the configuration and returns a torch.nn.Module.
_BUILDERS: dict[str, str | Callable[..., Any]] = {
    "dcn_v2": "torch_refs.deform_conv:DCNv2",
    "deform_conv2d": "torch_refs.deform_conv:DeformConv2d",
    "ms_deform_attn": "torch_refs.ms_deform_attn:MSDeformAttn",
    "deformable_attention_1d": "torch_refs.deformable_attention:build_1d",
    "deformable_attention_2d": "torch_refs.deformable_attention:build_2d",
    "deformable_attention_3d": "torch_refs.deformable_attention:build_3d",
    "mobile_sam": "torch_refs.sam.mobile_sam:build_mobile_sam",
    "sam_decoder": "torch_refs.sam.mask_decoder:build_mask_decoder",
    "sam_image_encoder": "torch_refs.sam.image_encoder:build_image_encoder",
    "sam_prompt_encoder": "torch_refs.sam.prompt_encoder:build_prompt_encoder",
    "sam_vit_b": "torch_refs.sam.sam:build_sam_vit_b",
    "sam_vit_h": "torch_refs.sam.sam:build_sam_vit_h",
    "sam_vit_l": "torch_refs.sam.sam:build_sam_vit_l",
}


def names() -> list[str]:
    """Names of the models that `create` builds, sorted."""
    return sorted(_BUILDERS)


def register(name: str, builder: str | Callable[..., Any]) -> None:
    """Let `create(name)` build a model: `builder` is a callable, or where to find one ("module:callable")."""
    _BUILDERS[name] = builder


def create(name: str, **config: Any) -> Any:
    """Build the torch reference `name` with fresh weights.

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
