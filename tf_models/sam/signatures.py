"""What Segment Anything's parts take and return when they are exported, by name.

The outputs of the first two have the names of the inputs of the third.
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from tf_models.runtime.exporting import Input, Part, Signature

_GRID = 64  # patches along a side in every published SAM
_CHEAP = 256  # pixels along a side up to which a second probe costs little


def sam(model: Any) -> list[Part]:
    """The three parts of a whole `Sam`, and all of it from a picture's pixels."""
    grid = model.prompt_encoder.image_embedding_size
    return [
        *image_encoder(model.image_encoder),
        *prompt_encoder(model.prompt_encoder),
        *mask_decoder(model.mask_decoder, grid),
        from_pixels(model),
    ]


def from_pixels(model: Any) -> Part:
    """`points`: three masks a prompt; `boxes`: one. With `encoded_` before it, the same of a file.

    image (height, width, 3), uint8, RGB, of any size, or `encoded`, (), the bytes of a JPEG or PNG file; in pixels of
    that picture point_coords (prompts, points, 2) and point_labels (prompts, points), or boxes (prompts, 4) -> masks
    (prompts, K, height, width), bool; iou (prompts, K).
    """
    height, width = 3 * model.image_encoder.img_size // 4, model.image_encoder.img_size + 8

    def pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 256, shape)

    def file(rng: np.random.Generator, _shape: tuple[int, ...]) -> np.ndarray:
        import tensorflow as tf

        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        return np.array(tf.io.encode_png(image).numpy(), object)

    def places(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.random(shape, np.float32) * height

    def corners(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.sort(places(rng, (shape[0], 2, 2)), axis=1).reshape(shape)

    def labels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 2, shape)

    points = {
        "point_coords": Input(("prompts", "points", 2), draw=places),
        "point_labels": Input(("prompts", "points"), "int32", labels),
    }
    boxes = {"boxes": Input(("prompts", 4), draw=corners)}
    sizes = {"height": height, "width": width, "prompts": 2, "points": 1}

    def logits(multimask_output: bool) -> Callable[..., Mapping[str, Any]]:
        def call(encoded: Any = None, image: Any = None, **prompts: Any) -> Mapping[str, Any]:
            import tensorflow as tf

            from tf_models.sam.from_pixels import segment

            if image is None:
                image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")  # reads PNG too
            found, iou = segment(model, image, **prompts, multimask_output=multimask_output)
            return {"masks": found - model.mask_threshold, "iou": iou}

        return call

    def masks(numbers: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
        def call(**inputs: Any) -> Mapping[str, Any]:
            found = numbers(**inputs)
            return {"masks": found["masks"] > 0, "iou": found["iou"]}

        return call

    signatures = {}
    for before, picture in {
        "": {"image": Input(("height", "width", 3), "uint8", pixels)},
        "encoded_": {"encoded": Input((), "string", file)},
    }.items():
        for name, prompts in {"points": points, "boxes": boxes}.items():
            taken, numbers = picture | prompts, logits(multimask_output=name == "points")
            signatures[before + name] = Signature(taken, masks(numbers), _of(taken, sizes), signs_of=numbers)
    return Part("from_pixels", model, signatures)


def image_encoder(model: Any) -> list[Part]:
    """image (images, S, S, 3), normalised -> image_embeddings (images, G, G, C)."""
    side = model.img_size
    image = Input(("images", side, side, 3))
    also = {"images": 2} if side <= _CHEAP else {}
    encode = Signature({"image": image}, lambda image: {"image_embeddings": model(image)}, {"images": 1}, also)
    return [Part("image_encoder", model, {"encode": encode})]


def prompt_encoder(model: Any) -> list[Part]:
    """A signature for every choice of prompts, from `points` to `points_boxes_masks`.

    point_coords (prompts, points, 2), point_labels (prompts, points), boxes (prompts, 4), mask_input
    (prompts, 4G, 4G, 1) -> sparse_prompt_embeddings (prompts, T, C), dense_prompt_embeddings (prompts, G, G, C),
    image_pe (1, G, G, C).
    """
    side = 4 * model.image_embedding_size

    def pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.random(shape, np.float32) * model.input_image_size

    def labels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(-1, 2, shape)

    inputs = {
        "points": {
            "point_coords": Input(("prompts", "points", 2), draw=pixels),
            "point_labels": Input(("prompts", "points"), "int32", labels),
        },
        "boxes": {"boxes": Input(("prompts", 4), draw=pixels)},
        "masks": {"mask_input": Input(("prompts", side, side, 1))},
    }

    def embed(point_coords: Any = None, point_labels: Any = None, boxes: Any = None, mask_input: Any = None) -> dict:
        points = None if point_coords is None else (point_coords, point_labels)
        sparse, dense = model(points=points, boxes=boxes, masks=mask_input)
        return {
            "sparse_prompt_embeddings": sparse,
            "dense_prompt_embeddings": dense,
            "image_pe": model.get_dense_pe(),
        }

    signatures = {}
    for chosen in (names for count in (1, 2, 3) for names in combinations(inputs, count)):
        taken = {name: one for sort in chosen for name, one in inputs[sort].items()}
        usual, other = {"prompts": 1, "points": 1}, {"prompts": 3, "points": 4}
        # A mask alone has no tokens.
        signatures["_".join(chosen)] = Signature(
            taken, embed, _of(taken, usual), _of(taken, other), empty=chosen == ("masks",)
        )
    return [Part("prompt_encoder", model, signatures)]


def mask_decoder(model: Any, grid: int = _GRID) -> list[Part]:
    """`multimask`: three masks a prompt; `single_mask`: one.

    image_embeddings (images, height, width, C), image_pe (1, height, width, C), sparse_prompt_embeddings
    (prompts, tokens, C), dense_prompt_embeddings (prompts, height, width, C) -> masks (prompts, 4 height, 4 width, K),
    logits; iou (prompts, K). `images` is 1 or `prompts`. A click has two tokens: itself, and one that is no point.
    """
    c = model.transformer_dim
    inputs = {
        "image_embeddings": Input(("images", "height", "width", c)),
        "image_pe": Input((1, "height", "width", c)),
        "sparse_prompt_embeddings": Input(("prompts", "tokens", c)),
        "dense_prompt_embeddings": Input(("prompts", "height", "width", c)),
    }
    usual = {"images": 1, "height": grid, "width": grid, "prompts": 1, "tokens": 2}
    other = {"images": 1, "height": 7, "width": 9, "prompts": 3, "tokens": 5}

    def decode(multimask_output: bool) -> Callable[..., Mapping[str, Any]]:
        def call(**inputs: Any) -> Mapping[str, Any]:
            masks, iou = model(**inputs, multimask_output=multimask_output)
            return {"masks": masks, "iou": iou}

        return call

    signatures = {
        "multimask": Signature(inputs, decode(True), usual, other),
        "single_mask": Signature(inputs, decode(False), usual, other),
    }
    return [Part("mask_decoder", model, signatures)]


def _of(inputs: Mapping[str, Input], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of axes that these inputs have."""
    used = {axis for one in inputs.values() for axis in one.shape}
    return {axis: size for axis, size in sizes.items() if axis in used}
