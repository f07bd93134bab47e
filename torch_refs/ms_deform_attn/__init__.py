"""Deformable DETR's attention. Importing this package does not import torch."""

BUILDERS = {
    "ms_deform_attn": "torch_refs.ms_deform_attn.model:MSDeformAttn",
}
