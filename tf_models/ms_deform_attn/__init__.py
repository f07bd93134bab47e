"""Deformable DETR's attention. Importing this package does not import TensorFlow."""

BUILDERS = {
    "ms_deform_attn": "tf_models.ms_deform_attn.model:build_ms_deform_attn",
}
