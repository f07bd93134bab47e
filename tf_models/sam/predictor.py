"""Segment Anything on pictures: a picture is encoded once, then any number of prompts are answered quickly."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_models.sam.mask_resize import MaskResize
from tf_models.sam.transforms import ResizeLongestSide, preprocess

# Prompts decoded at once. Temporaries then fit the allocator's pages, and memory does not grow with the prompts.
_GROUP = 4

Size = tuple[int, int]
Predicted = tuple[np.ndarray, np.ndarray, np.ndarray]


class Encoded(NamedTuple):
    """What is kept of an encoded picture."""

    features: tf.Tensor  # (1, G, G, C)
    image_pe: tf.Tensor  # (1, G, G, C)
    original_size: Size  # (H, W)
    input_size: Size  # (h, w), its size inside the padded input
    mask_resize: MaskResize


class Predictor:
    """Masks of a picture for prompts: points, boxes and earlier masks.

    The methods, their arguments and results are those of segment-anything's `SamPredictor`, with numpy arrays
    throughout and `tf` for `torch` in the names; `predict` also takes many prompts in one call, and several pictures
    can be set at once.

    Args:
        sam_model: a `tf_models.sam.sam.Sam`, as `tf_models.load` returns it, or any model with its parts.
    """

    def __init__(self, sam_model: Any) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
        self._encode = tf.function(
            lambda image: (sam_model.image_encoder(image), sam_model.prompt_encoder.get_dense_pe()), autograph=False
        )
        self._decoders: dict[tuple, Callable[..., Any]] = {}
        self._pictures: list[Encoded] = []

    # --- Pictures ---------------------------------------------------------------------------------------------------

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encode a picture; the prompts that follow are about it.

        Args:
            image: (H, W, 3), uint8, of any size.
            image_format: order of the channels, "RGB" or "BGR".

        Raises:
            ValueError: another shape, dtype or format, or a picture so long that its short side would vanish.
        """
        self.set_image_batch([image], image_format)

    def set_image_batch(self, image_list: Sequence[np.ndarray], image_format: str = "RGB") -> None:
        """Encode several pictures, of any sizes, for `predict_batch`; the arguments are as those of `set_image`."""
        inputs = self._scaled(image_list, image_format)
        self.reset_image()
        # One picture after the other: the encoder's temporaries are large, and one picture keeps a processor busy.
        self._pictures = [one for each in inputs for one in self._encoded([each])]

    def encode(self, image_list: Sequence[np.ndarray], image_format: str = "RGB") -> list[Encoded]:
        """Encode several pictures, of any sizes, in one run of the encoder, which a GPU needs to be busy.

        The arguments and errors are those of `set_image_batch`; nothing is set, see `set_encoded`.
        """
        return self._encoded(self._scaled(image_list, image_format))

    def set_encoded(self, picture: Encoded) -> None:
        """Set a picture that `encode` gave: the prompts that follow are about it."""
        self._pictures = [picture]

    def set_tf_image(self, transformed_image: Any, original_image_size: Size) -> None:
        """Encode pictures which `transform` has already scaled; more than one are for `predict_batch`.

        Args:
            transformed_image: (N, h, w, 3), pixel values as RGB; the longer of h and w is the encoder's image size.
            original_image_size: (H, W) before the scaling.

        Raises:
            ValueError: another shape.
        """
        images, side = np.asarray(transformed_image), self.transform.target_length
        if images.ndim != 4 or images.shape[3] != 3 or max(images.shape[1:3]) != side:
            raise ValueError(f"transformed_image: expected (N, h, w, 3) with a long side of {side}, got {images.shape}")
        self.reset_image()
        self._pictures = [one for image in images for one in self._encoded([(image, original_image_size)])]

    def reset_image(self) -> None:
        """Forget the pictures."""
        self._pictures = []

    @property
    def is_image_set(self) -> bool:
        return bool(self._pictures)

    @property
    def features(self) -> tf.Tensor | None:
        """The embedding of the picture, (1, G, G, C); None where no picture is set."""
        return self._only.features if self._pictures else None

    @property
    def original_size(self) -> Size:
        """The picture's size, (H, W)."""
        return self._only.original_size

    @property
    def input_size(self) -> Size:
        """The size (h, w) that the picture was scaled to."""
        return self._only.input_size

    def get_image_embedding(self) -> np.ndarray:
        """The embedding of the picture in the official order of axes: (1, C, G, G), float32.

        Raises:
            RuntimeError: no picture is set, or several are.
        """
        return np.moveaxis(np.asarray(self._only.features, np.float32), -1, 1)

    def _scaled(self, images: Sequence[np.ndarray], image_format: str) -> list[tuple[np.ndarray, Size]]:
        """Each picture scaled for the encoder, (h, w, 3), uint8, with the size it had."""
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format: expected 'RGB' or 'BGR', got {image_format!r}")
        scaled = []
        for image in images:
            image = np.asarray(image)
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"image: expected (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
            if image_format != self.model.image_format:
                image = image[..., ::-1]
            scaled.append((self.transform.apply_image(image), image.shape[:2]))
        return scaled

    def _encoded(self, scaled: Sequence[tuple[np.ndarray, Size]]) -> list[Encoded]:
        model, side = self.model, self.transform.target_length
        pixels = [preprocess(image, side, model.pixel_mean, model.pixel_std) for image, _ in scaled]
        features, image_pe = self._encode(tf.constant(np.stack(pixels)))  # from (N, S, S, 3)
        low_size = [4 * grid for grid in features.shape[1:3]]
        encoded = []
        for index, (image, (height, width)) in enumerate(scaled):
            input_size = (image.shape[0], image.shape[1])
            mask_resize = MaskResize(low_size, side, input_size, (height, width))
            one = features[index : index + 1]
            encoded.append(Encoded(one, image_pe, (height, width), input_size, mask_resize))
        return encoded

    @property
    def _only(self) -> Encoded:
        if not self._pictures:
            raise RuntimeError("no image is set; call set_image(...) first")
        if len(self._pictures) > 1:
            raise RuntimeError(f"{len(self._pictures)} images are set; call predict_batch(...)")
        return self._pictures[0]

    # --- Prompts ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        boxes: Any = None,
    ) -> Predicted:
        """Predict the masks of one prompt, or of B prompts.

        One prompt is as many points, a box and a mask as describe one object. B prompts are B objects: then the points
        are (B, N, 2), and `boxes` takes the place of `box`.

        Args:
            point_coords: (N, 2) or (B, N, 2), (x, y) in pixels of the picture; they may lie outside.
            point_labels: (N,) or (B, N): 1 foreground, 0 background, -1 not a point.
            box: (4,) or (1, 4), (x0, y0, x1, y1) in pixels of the picture.
            mask_input: (1, h, w) or (B, 1, h, w), low-resolution logits of an earlier call.
            multimask_output: three masks a prompt, best where a single point is ambiguous; or one.
            return_logits: return the masks as logits, not thresholded.
            boxes: (B, 4).

        Returns:
            masks (K, H, W), bool or float32; iou (K,), float32, the estimated quality of each;
            low-resolution logits (K, h, w), float32. With B prompts each has a first axis of B before these.

        Raises:
            RuntimeError: no picture is set, or several are.
            ValueError: an argument of a wrong shape.
        """
        return self._predict(
            self._only, point_coords, point_labels, box, mask_input, multimask_output, return_logits, boxes
        )

    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """`predict` for each picture that is set: every sequence has one entry a picture, and every result too.

        An entry of `box_batch` is a box (4,) or B boxes (B, 4).

        Raises:
            RuntimeError: no picture is set.
            ValueError: a sequence has another length than there are pictures, or an entry of a wrong shape.
        """
        if not self._pictures:
            raise RuntimeError("no image is set; call set_image_batch(...) first")
        columns = []
        for name, batch in (
            ("point_coords_batch", point_coords_batch),
            ("point_labels_batch", point_labels_batch),
            ("box_batch", box_batch),
            ("mask_input_batch", mask_input_batch),
        ):
            if batch is not None and len(batch) != len(self._pictures):
                raise ValueError(
                    f"{name}: expected an entry for each of {len(self._pictures)} images, got {len(batch)}"
                )
            columns.append([None] * len(self._pictures) if batch is None else batch)
        results = []
        for picture, coords, labels, box, mask in zip(self._pictures, *columns, strict=True):
            many = box is not None and np.ndim(box) == 2
            one, several = (None, box) if many else (box, None)
            results.append(self._predict(picture, coords, labels, one, mask, multimask_output, return_logits, several))
        masks, iou, low = (list(column) for column in zip(*results, strict=True))
        return masks, iou, low

    def predict_tf(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Predicted:
        """`predict` for B prompts whose points and boxes `transform` has already scaled.

        Args:
            point_coords: (B, N, 2), (x, y) in pixels of the scaled picture, or None.
            point_labels: (B, N), or None.
            boxes: (B, 4).
            mask_input: (B, 1, h, w).

        Returns:
            masks (B, K, H, W), iou (B, K), low-resolution logits (B, K, h, w).
        """
        low, iou = self.decode(point_coords, point_labels, boxes, mask_input, multimask_output)
        return self._resized(self._only, low, return_logits), iou, low

    def decode(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`predict_tf` without masks of the picture's size: low-resolution logits (B, K, h, w) and iou (B, K)."""
        return self._decode(self._only, point_coords, point_labels, boxes, mask_input, multimask_output)

    @property
    def mask_resize(self) -> MaskResize:
        """What turns low-resolution logits into masks of the picture's size."""
        return self._only.mask_resize

    def _predict(
        self,
        picture: Encoded,
        point_coords: Any,
        point_labels: Any,
        box: Any,
        mask_input: Any,
        multimask_output: bool,
        return_logits: bool,
        boxes: Any,
    ) -> Predicted:
        coords = None if point_coords is None else np.asarray(point_coords)
        labels = None if point_coords is None or point_labels is None else np.asarray(point_labels)
        mask = None if mask_input is None else np.asarray(mask_input)
        many = boxes is not None or (coords is not None and coords.ndim == 3) or (mask is not None and mask.ndim == 4)
        if many and box is not None:
            raise ValueError("box: expected None with many prompts; give one box to each by boxes, (B, 4)")
        if box is not None and np.size(box) != 4:
            raise ValueError(f"box: expected (4,), got {np.shape(box)}; many boxes go into boxes, (B, 4)")
        if not many:
            coords, labels, mask = (None if each is None else each[None] for each in (coords, labels, mask))
            boxes = None if box is None else np.reshape(box, (1, 4))
        if coords is not None and coords.ndim == 3 and coords.shape[2] == 2:
            coords = self.transform.apply_coords(coords, picture.original_size)
        if boxes is not None and np.shape(boxes)[-1:] == (4,):
            boxes = self.transform.apply_boxes(boxes, picture.original_size)
        low, iou = self._decode(picture, coords, labels, boxes, mask, multimask_output)
        masks = self._resized(picture, low, return_logits)
        return (masks, iou, low) if many else (masks[0], iou[0], low[0])

    def _decode(
        self, picture: Encoded, coords: Any, labels: Any, boxes: Any, mask: Any, multimask_output: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        prompts = _checked(coords, labels, boxes, mask, [4 * grid for grid in picture.features.shape[1:3]])
        decoder = self._decoder(picture, tuple(prompts), multimask_output)
        count = min((len(values) for values in prompts.values()), default=1)
        results = []
        for start in range(0, max(count, 1), _GROUP):
            group = {name: tf.constant(values[start : start + _GROUP]) for name, values in prompts.items()}
            results.append(decoder(picture.features, picture.image_pe, **group))
        low, iou = (np.concatenate([each.numpy() for each in part]) for part in zip(*results, strict=True))
        return low, iou

    def _decoder(self, picture: Encoded, given: tuple[str, ...], multimask_output: bool) -> Callable[..., Any]:
        """The graph for these kinds of prompts; it serves any number of them, of points, and any picture."""
        key = (*given, multimask_output)
        if key not in self._decoders:
            model = self.model

            def decode(features: tf.Tensor, image_pe: tf.Tensor, **prompts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                points = (prompts["point_coords"], prompts["point_labels"]) if "point_coords" in prompts else None
                boxes, masks = prompts.get("boxes"), prompts.get("mask_input")
                if masks is not None:
                    masks = tf.transpose(masks, (0, 2, 3, 1))  # (B, 1, h, w) -> (B, h, w, 1)
                sparse = model.prompt_encoder.embed_sparse(points, boxes, masks)
                dense = model.prompt_encoder.embed_dense(masks)
                low, iou = model.mask_decoder(features, image_pe, sparse, dense, multimask_output=multimask_output)
                low = tf.transpose(low, (0, 3, 1, 2))  # (B, h, w, K) -> (B, K, h, w)
                return tf.cast(low, tf.float32), tf.cast(iou, tf.float32)

            fixed = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in (picture.features, picture.image_pe)]
            specs = {name: tf.TensorSpec(*_SPECS[name]) for name in given}
            self._decoders[key] = tf.function(decode, autograph=False).get_concrete_function(*fixed, **specs)
        return self._decoders[key]

    def _resized(self, picture: Encoded, low: np.ndarray, return_logits: bool) -> np.ndarray:
        """low (B, K, h, w) -> (B, K, H, W)."""
        flat = low.reshape(-1, *low.shape[2:])
        mask_resize = picture.mask_resize
        masks = mask_resize.logits(flat) if return_logits else mask_resize.masks(flat, self.model.mask_threshold)
        return masks.reshape(*low.shape[:2], *masks.shape[1:])


_SPECS: dict[str, tuple[tuple[int | None, ...], tf.DType]] = {
    "point_coords": ((None, None, 2), tf.float32),
    "point_labels": ((None, None), tf.int32),
    "boxes": ((None, 4), tf.float32),
    "mask_input": ((None, 1, None, None), tf.float32),
}


def _checked(coords: Any, labels: Any, boxes: Any, mask: Any, low_size: Sequence[int]) -> dict[str, np.ndarray]:
    """What is given of the prompts as arrays of the right dtypes.

    Raises:
        ValueError: a shape that does not fit, alone or to the others.
    """
    if (coords is None) != (labels is None):
        raise ValueError("point_coords, point_labels: expected both or neither")
    values = {"point_coords": coords, "point_labels": labels, "boxes": boxes, "mask_input": mask}
    prompts = {
        name: np.ascontiguousarray(value, _SPECS[name][1].as_numpy_dtype)
        for name, value in values.items()
        if value is not None
    }
    count = points = None
    for name, value in prompts.items():
        wanted = {
            "point_coords": (count, None, 2),
            "point_labels": (count, points),
            "boxes": (count, 4),
            "mask_input": (count, 1, *low_size),
        }[name]
        if value.ndim != len(wanted) or any(size not in (None, n) for size, n in zip(wanted, value.shape, strict=True)):
            shown = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(f"{name}: expected the shape ({shown}) for all prompts, got {value.shape}")
        count = len(value)
        points = value.shape[1] if name == "point_coords" else points
    return prompts
