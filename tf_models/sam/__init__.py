"""Segment Anything. Importing this package does not import TensorFlow."""

from importlib import import_module
from typing import Any

BUILDERS = {
    "mobile_sam": "tf_models.sam.mobile_sam:build_mobile_sam",
    "sam": "tf_models.sam.sam:build_sam",
    "sam_decoder": "tf_models.sam.mask_decoder:build_mask_decoder",
    "sam_image_encoder": "tf_models.sam.image_encoder:build_image_encoder",
    "sam_prompt_encoder": "tf_models.sam.prompt_encoder:build_prompt_encoder",
    "sam_vit_b": "tf_models.sam.sam:build_sam",
    "sam_vit_h": "tf_models.sam.sam:build_sam_vit_h",
    "sam_vit_l": "tf_models.sam.sam:build_sam_vit_l",
}
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")  # of a whole one, as attributes
WHOLE = ("mobile_sam", "sam", "sam_vit_b", "sam_vit_h", "sam_vit_l")
SIGNATURES = {
    **dict.fromkeys(WHOLE, "tf_models.sam.signatures:sam"),
    "sam_decoder": "tf_models.sam.signatures:mask_decoder",
    "sam_image_encoder": "tf_models.sam.signatures:image_encoder",
    "sam_prompt_encoder": "tf_models.sam.signatures:prompt_encoder",
}
_IMAGE, _PROMPTS = ("images",), ("prompts", "points")
_MASKS = ("images", "height", "width", "prompts", "tokens")
# Of each part that is exported, the axes that have a length of one's own choice.
AXES = {
    **{name: dict(zip(PARTS, (_IMAGE, _PROMPTS, _MASKS), strict=True)) | {"from_pixels": ()} for name in WHOLE},
    "sam_decoder": {"mask_decoder": _MASKS},
    "sam_image_encoder": {"image_encoder": _IMAGE},
    "sam_prompt_encoder": {"prompt_encoder": _PROMPTS},
}
BY_NAME = dict.fromkeys(WHOLE, ("from_pixels",))  # the whole once more, for who asks
_PLACES = {"Predictor": "tf_models.sam.predictor", "AutomaticMaskGenerator": "tf_models.sam.automatic"}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
