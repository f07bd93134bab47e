"""Segment Anything. Importing this package does not import torch."""

BUILDERS = {
    "mobile_sam": "torch_refs.sam.mobile_sam:build_mobile_sam",
    "sam": "torch_refs.sam.sam:build_sam",
    "sam_decoder": "torch_refs.sam.mask_decoder:build_mask_decoder",
    "sam_image_encoder": "torch_refs.sam.image_encoder:build_image_encoder",
    "sam_prompt_encoder": "torch_refs.sam.prompt_encoder:build_prompt_encoder",
    "sam_vit_b": "torch_refs.sam.sam:build_sam",
    "sam_vit_h": "torch_refs.sam.sam:build_sam_vit_h",
    "sam_vit_l": "torch_refs.sam.sam:build_sam_vit_l",
}
