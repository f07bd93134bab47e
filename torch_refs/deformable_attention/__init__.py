"""Deformable attention with position bias. Importing this package does not import torch."""

BUILDERS = {
    "deformable_attention_1d": "torch_refs.deformable_attention.model:build_1d",
    "deformable_attention_2d": "torch_refs.deformable_attention.model:build_2d",
    "deformable_attention_3d": "torch_refs.deformable_attention.model:build_3d",
}
