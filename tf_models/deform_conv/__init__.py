"""Deformable convolution with its own offsets. Importing this package does not import TensorFlow."""

BUILDERS = {
    "dcn_v2": "tf_models.deform_conv.model:build_dcn_v2",
    "deform_conv2d": "tf_models.deform_conv.model:build_deform_conv2d",
}
