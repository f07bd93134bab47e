"""The mask decoder of Segment Anything: image and prompt embeddings in, masks and their estimated quality out."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_models.layers import GELU, MLP, LayerNorm, PatchConv2DTranspose
from tf_models.layers.pixels import place_patches
from tf_models.layers.sizes import check_sizes
from tf_models.sam.transformer import TwoWayTransformer

_GROUP = 4  # prompts decoded at once where their number is known beforehand


@keras.saving.register_keras_serializable(package="weightbridge")
class MaskDecoder(keras.Model):
    """Predicts masks from an image embedding and prompt embeddings.

    Follows segment-anything's `MaskDecoder`, channels last; every layer has the attribute path of its torch module.
    For speed call it inside `tf.function`, best with `jit_compile=True` (XLA compiles once per set of shapes), and with
    many prompts a few at a time: `benchmarks/decoder_latency.py` shows what each is worth.
    Keyword arguments beyond SAM's sizes (`name`, `dtype`: a dtype or a policy such as "mixed_float16") are Keras's.
    """

    def __init__(
        self,
        transformer_dim: int = 256,
        num_multimask_outputs: int = 3,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        attention_downsample_rate: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.transformer_dim = transformer_dim
        self.sizes = {
            "transformer_dim": transformer_dim,
            "num_multimask_outputs": num_multimask_outputs,
            "iou_head_depth": iou_head_depth,
            "iou_head_hidden_dim": iou_head_hidden_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "attention_downsample_rate": attention_downsample_rate,
        }
        check_sizes(self.sizes)
        c, policy = transformer_dim, self.dtype_policy
        num_mask_tokens = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(depth, c, num_heads, mlp_dim, attention_downsample_rate, dtype=policy)
        self.iou_token = keras.layers.Embedding(1, c, dtype=policy)
        self.mask_tokens = keras.layers.Embedding(num_mask_tokens, c, dtype=policy)
        self.output_upscaling: list[Any] = [
            PatchConv2DTranspose(c // 4, (2, 2), dtype=policy),
            LayerNorm(epsilon=1e-6, dtype=policy),
            GELU(dtype=policy),
            PatchConv2DTranspose(c // 8, (2, 2), dtype=policy),
            GELU(dtype=policy),
        ]
        self.output_hypernetworks_mlps = [MLP(c, c, c // 8, 3, dtype=policy) for _ in range(num_mask_tokens)]
        self.iou_prediction_head = MLP(c, iou_head_hidden_dim, num_mask_tokens, iou_head_depth, dtype=policy)

    def build(
        self,
        image_embeddings_shape: Any = None,
        image_pe_shape: Any = None,
        sparse_prompt_embeddings_shape: Any = None,
        dense_prompt_embeddings_shape: Any = None,
    ) -> None:
        c = self.transformer_dim
        for layer in (self.transformer, self.iou_token, self.mask_tokens):
            layer.build(None)
        first, norm, _, second, _ = self.output_upscaling
        first.build((None, None, None, c))
        norm.build((None, None, None, c // 4))
        second.build((None, None, None, c // 4))
        for head in (*self.output_hypernetworks_mlps, self.iou_prediction_head):
            head.build()

    def call(
        self,
        image_embeddings: Any,
        image_pe: Any,
        sparse_prompt_embeddings: Any,
        dense_prompt_embeddings: Any,
        multimask_output: bool = True,
    ) -> tuple[Any, Any]:
        """Predict the masks of B prompts.

        Args:
            image_embeddings: (B|1, H, W, C), where C is `transformer_dim`; a single one serves all prompts.
            image_pe: (1, H, W, C), the positional encoding of the image.
            sparse_prompt_embeddings: (B, N, C), points and boxes; N may be 0.
            dense_prompt_embeddings: (B|1, H, W, C), the mask prompts. One that is the same for all prompts, as it is
                without masks, is best given once: then the image tokens are shared up to the first attention.
            multimask_output: return the masks of the ambiguity-aware tokens; otherwise that of the first token.

        Returns:
            masks (B, 4H, 4W, K), logits; iou (B, K), estimated quality. K is `num_multimask_outputs`, or 1.

        Raises:
            ValueError: an argument has another rank, or a size that does not fit the others.
        """
        self._check_shapes(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        per_prompt = (image_embeddings, sparse_prompt_embeddings, dense_prompt_embeddings)
        batch = sparse_prompt_embeddings.shape[0]
        if batch is None or batch < 2 * _GROUP or any(tensor.shape[0] not in (1, batch) for tensor in per_prompt):
            return self._decode(*per_prompt, image_pe, multimask_output)
        return self._decode_in_groups(per_prompt, image_pe, multimask_output)

    def _decode_in_groups(self, per_prompt: tuple, image_pe: Any, multimask_output: bool) -> tuple[Any, Any]:
        """A few prompts at a time: temporaries then fit the allocator's pages, which is worth a third of the time."""
        batch = per_prompt[1].shape[0]
        groups = -(-batch // _GROUP)

        def grouped(tensor: Any) -> Any:
            """(B, ...) -> (groups, _GROUP, ...), the last group filled up with zeros."""
            room = [(0, groups * _GROUP - batch)] + [(0, 0)] * (len(tensor.shape) - 1)
            return ops.reshape(ops.pad(tensor, room), (groups, _GROUP, *ops.shape(tensor)[1:]))

        mapped = [index for index, tensor in enumerate(per_prompt) if tensor.shape[0] == batch]

        def decode(parts: tuple) -> tuple[Any, Any]:
            given = list(per_prompt)
            for index, part in zip(mapped, parts, strict=True):
                given[index] = part
            image, sparse, dense = given
            return self._decode(image, sparse, dense, image_pe, multimask_output)

        signature = (self.compute_dtype, self.compute_dtype)
        results = tf.map_fn(
            decode, tuple(grouped(per_prompt[index]) for index in mapped), fn_output_signature=signature
        )
        # (groups, _GROUP, ...) -> (B, ...)
        masks, iou = (ops.reshape(result, (-1, *ops.shape(result)[2:]))[:batch] for result in results)
        return masks, iou

    def _decode(
        self,
        image_embeddings: Any,
        sparse_prompt_embeddings: Any,
        dense_prompt_embeddings: Any,
        image_pe: Any,
        multimask_output: bool,
    ) -> tuple[Any, Any]:
        own_tokens = ops.concatenate([self.iou_token.embeddings, self.mask_tokens.embeddings])  # (1 + masks, C)
        count, batch = own_tokens.shape[0], ops.shape(sparse_prompt_embeddings)[0]
        own_tokens = ops.broadcast_to(own_tokens, (batch, *own_tokens.shape))
        tokens = ops.concatenate([own_tokens, sparse_prompt_embeddings], axis=1)  # (B, 1 + masks + N, C)
        hidden, keys = self.transformer(image_embeddings + dense_prompt_embeddings, image_pe, tokens)
        iou_hidden, *mask_hidden = ops.unstack(hidden[:, :count], count, axis=1)  # each (B, C)

        per_mask = zip(self.output_hypernetworks_mlps, mask_hidden, strict=True)
        kernels = ops.stack([mlp(token) for mlp, token in per_mask], axis=1)  # (B, masks, C/8)
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        _, height, width, _ = ops.shape(image_pe)
        masks = self._masks(keys, kernels[:, wanted], height, width)
        return masks, self.iou_prediction_head(iou_hidden)[:, wanted]

    def _masks(self, keys: Any, kernels: Any, height: Any, width: Any) -> Any:
        """keys (B, HW, C), kernels (B, K, C/8) -> masks (B, 4H, 4W, K).

        Both upscalings are products of single pixels with a kernel, and the layers between and after them act on
        pixels alone. So pixels are put in their places only at the end, when K channels are left to move.
        """
        first, norm, first_gelu, second, second_gelu = self.output_upscaling
        c = self.transformer_dim
        x = first.patches(keys)  # (B, HW, 4 * C/4)
        x = first_gelu(norm(ops.reshape(x, (-1, height * width * 4, c // 4))))  # (B, HW * 4, C/4)
        x = second_gelu(second.patches(x))  # (B, HW * 4, 4 * C/8)
        x = ops.reshape(x, (-1, height * width * 16, c // 8))  # (B, HW * 4 * 4, C/8)
        x = ops.matmul(x, ops.swapaxes(kernels, 1, 2))  # (B, HW * 4 * 4, K)
        k = kernels.shape[1]
        x = place_patches(ops.reshape(x, (-1, height, width, 4 * 4 * k)), (2, 2))  # (B, 2H, 2W, 4 * K)
        return place_patches(x, (2, 2))  # (B, 4H, 4W, K)

    def _check_shapes(self, image: Any, image_pe: Any, sparse: Any, dense: Any) -> None:
        c = self.transformer_dim
        _check_shape("sparse_prompt_embeddings", sparse, (None, None, c))
        batch = sparse.shape[0]
        _check_shape("image_embeddings", image, (batch, None, None, c))
        height, width = image.shape[1:3]
        _check_shape("image_pe", image_pe, (batch, height, width, c))
        _check_shape("dense_prompt_embeddings", dense, (batch, height, width, c))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | self.sizes


def _check_shape(name: str, tensor: Any, expected: tuple[int | None, ...]) -> None:
    """Raise ValueError unless the shape is as expected; None is any size, and the first may be 1."""
    shape = tuple(tensor.shape)
    sizes = zip(shape, expected, strict=False)
    fits = [
        None in (size, wanted) or size == wanted or (axis == 0 and size == 1)
        for axis, (size, wanted) in enumerate(sizes)
    ]
    if len(shape) != len(expected) or not all(fits):
        raise ValueError(f"{name} has shape {shape}; expected {expected}")


def build_mask_decoder(**config: Any) -> MaskDecoder:
    """Build a `MaskDecoder`, all its variables made, with fresh weights; the arguments are those of the class."""
    model = MaskDecoder(**config)
    c = model.transformer_dim
    model.build((None, None, None, c), (1, None, None, c), (None, None, c), (None, None, None, c))
    return model
