"""Segment Anything as a whole: image encoder, prompt encoder and mask decoder."""

from typing import Any

import keras

from tf_models.sam.image_encoder import build_image_encoder
from tf_models.sam.mask_decoder import build_mask_decoder
from tf_models.sam.prompt_encoder import build_prompt_encoder


@keras.saving.register_keras_serializable(package="weightbridge")
class Sam(keras.Model):
    """Predicts masks from an image and prompts.

    Follows segment-anything's `Sam`, channels last, and has its parts: `image_encoder`, `prompt_encoder`,
    `mask_decoder`, each a model that can be called alone. The image is already normalised and padded, and the masks are
    the decoder's.

    Args:
        image_encoder: a built model, (B, S, S, 3) -> (B, G, G, C), with the attribute `img_size`, S.
        prompt_encoder, mask_decoder: built models, for the same G and C.
    """

    mask_threshold = 0.0
    image_format = "RGB"
    pixel_mean = (123.675, 116.28, 103.53)
    pixel_std = (58.395, 57.12, 57.375)

    def __init__(self, image_encoder: Any, prompt_encoder: Any, mask_decoder: Any, **kwargs: Any) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.built = True

    def call(
        self,
        image: Any,
        point_coords: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
    ) -> tuple[Any, Any]:
        """Predict the masks of B prompts.

        Args:
            image: (1|B, S, S, 3), where S is the image encoder's `img_size`; a single one serves all prompts.
            point_coords: (B, N, 2), (x, y) in pixels of the image.
            point_labels: (B, N): 1 foreground, 0 background, -1 not a point.
            boxes: (B, 4), (x0, y0, x1, y1) in pixels of the image.
            mask_input: (B, 4G, 4G, 1), logits, for an image embedding of G x G.
            multimask_output: three masks a prompt, or one.

        Returns:
            masks (B, 4G, 4G, K), logits; iou (B, K), estimated quality.

        Raises:
            ValueError: an argument has another rank, or a size that does not fit the others.
        """
        return self.decode(self.image_encoder(image), point_coords, point_labels, boxes, mask_input, multimask_output)

    def decode(
        self,
        image_embeddings: Any,
        point_coords: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
    ) -> tuple[Any, Any]:
        """`call` with an image that is encoded already: image_embeddings (1|B, G, G, C)."""
        points = None if point_coords is None else (point_coords, point_labels)
        return self.mask_decoder(
            image_embeddings,
            self.prompt_encoder.get_dense_pe(),
            self.prompt_encoder.embed_sparse(points, boxes, mask_input),
            self.prompt_encoder.embed_dense(mask_input),
            multimask_output=multimask_output,
        )

    def get_config(self) -> dict[str, Any]:
        parts = ("image_encoder", "prompt_encoder", "mask_decoder")
        return super().get_config() | {part: keras.saving.serialize_keras_object(getattr(self, part)) for part in parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sam":
        parts = ("image_encoder", "prompt_encoder", "mask_decoder")
        return cls(**config | {part: keras.saving.deserialize_keras_object(config[part]) for part in parts})


# Sizes of the image encoder; ViT-B's are the defaults of the class.
VIT_L = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096, "global_attn_indexes": (5, 11, 17, 23)}
VIT_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120, "global_attn_indexes": (7, 15, 23, 31)}
Sizes = dict[str, Any] | None


def build_sam(
    image_encoder: Sizes = None,
    prompt_encoder: Sizes = None,
    mask_decoder: Sizes = None,
    image_size: int = 1024,
    num_heads: int = 8,
    **kwargs: Any,
) -> Sam:
    """Build a `Sam` with an `ImageEncoderViT`, all its variables made, with fresh weights.

    `image_size` is the side of the square image in pixels, `num_heads` the mask decoder's. The other arguments are
    those of the parts, by name, and Keras's own for all of them (`dtype`).
    """
    encoder = {"image_size": image_size, **(image_encoder or {})}
    prompt = {"image_size": image_size, "patch_size": encoder.get("patch_size", 16), **(prompt_encoder or {})}
    decoder = {"num_heads": num_heads, **(mask_decoder or {})}
    return Sam(
        build_image_encoder(**encoder, **kwargs),
        build_prompt_encoder(**prompt, **kwargs),
        build_mask_decoder(**decoder, **kwargs),
        **kwargs,
    )


def build_sam_vit_l(image_encoder: Sizes = None, **parts: Any) -> Sam:
    """`build_sam` with ViT-L for an image encoder."""
    return build_sam(VIT_L | (image_encoder or {}), **parts)


def build_sam_vit_h(image_encoder: Sizes = None, **parts: Any) -> Sam:
    """`build_sam` with ViT-H for an image encoder."""
    return build_sam(VIT_H | (image_encoder or {}), **parts)
