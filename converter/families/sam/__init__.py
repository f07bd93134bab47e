"""Segment Anything: its three parts, the whole, and MobileSAM."""

from converter.families.sam.image_encoder import SAM_IMAGE_ENCODER
from converter.families.sam.mask_decoder import SAM_DECODER
from converter.families.sam.mobile_sam import MOBILE_SAM
from converter.families.sam.prompt_encoder import SAM_PROMPT_ENCODER
from converter.families.sam.whole import SAM

PAIRS = (SAM, SAM_IMAGE_ENCODER, SAM_PROMPT_ENCODER, SAM_DECODER, MOBILE_SAM)
