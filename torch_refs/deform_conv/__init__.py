"""Deformable convolution with its own offsets. Importing this package does not import torch."""

BUILDERS = {
    "dcn_v2": "torch_refs.deform_conv.model:DCNv2",
    "deform_conv2d": "torch_refs.deform_conv.model:DeformConv2d",
}
