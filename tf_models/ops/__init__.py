"""The sampling ops of torch and torchvision in TensorFlow: channels last, the same parameters, values and gradients.

`tf_models` itself does not import this package, nor TensorFlow. Each function replaces the module of its name here,
which is why they are imported at once and not on demand.
"""

from tf_models.ops.affine_grid import affine_grid
from tf_models.ops.compiling import jit
from tf_models.ops.deform_conv import deform_conv2d, deform_conv3d
from tf_models.ops.grid_sample import grid_sample
from tf_models.ops.interpolate import interpolate
from tf_models.ops.ms_deform_attn import ms_deform_attn
from tf_models.ops.paste_masks import paste_masks
from tf_models.ops.roi_align import roi_align

__all__ = [
    "affine_grid",
    "deform_conv2d",
    "deform_conv3d",
    "grid_sample",
    "interpolate",
    "jit",
    "ms_deform_attn",
    "paste_masks",
    "roi_align",
]
