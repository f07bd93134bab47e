"""Deformable attention with position bias. Importing this package does not import TensorFlow."""

BUILDERS = {
    "deformable_attention_1d": "tf_models.deformable_attention.model:build_1d",
    "deformable_attention_2d": "tf_models.deformable_attention.model:build_2d",
    "deformable_attention_3d": "tf_models.deformable_attention.model:build_3d",
}
