"""The two-way transformer of Segment Anything: tokens attend to an image, and the image to the tokens."""

from typing import Any

import keras
from keras import ops

from tf_models.layers import LayerNorm, MLPBlock
from tf_models.sam.attention import Attention, ImageToTokenAttention, TokenToImageAttention


@keras.saving.register_keras_serializable(package="weightbridge")
class TwoWayAttentionBlock(keras.layers.Layer):
    """Tokens attend to themselves, then to the image, pass an MLP, and the image attends to the tokens.

    queries (B, N, C), keys (B|1, HW, C), query_pe (B, N, C), key_pe (B|1, HW, C)
    -> queries (B, N, C), keys (B, HW, C).
    With `skip_first_layer_pe` the self-attention has neither the positions nor the residual sum: in the first
    block the queries are the positions.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int = 2048,
        attention_downsample_rate: int = 2,
        skip_first_layer_pe: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding_dim, self.num_heads, self.mlp_dim = embedding_dim, num_heads, mlp_dim
        self.attention_downsample_rate = attention_downsample_rate
        self.skip_first_layer_pe = skip_first_layer_pe
        policy = self.dtype_policy
        self.self_attn = Attention(embedding_dim, num_heads, dtype=policy)
        self.norm1 = LayerNorm(epsilon=1e-5, dtype=policy)
        self.cross_attn_token_to_image = TokenToImageAttention(
            embedding_dim, num_heads, attention_downsample_rate, dtype=policy
        )
        self.norm2 = LayerNorm(epsilon=1e-5, dtype=policy)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, "relu", dtype=policy)
        self.norm3 = LayerNorm(epsilon=1e-5, dtype=policy)
        self.norm4 = LayerNorm(epsilon=1e-5, dtype=policy)
        self.cross_attn_image_to_token = ImageToTokenAttention(
            embedding_dim, num_heads, attention_downsample_rate, dtype=policy
        )

    def build(self, queries_shape: Any = None) -> None:
        for block in (self.self_attn, self.cross_attn_token_to_image, self.cross_attn_image_to_token, self.mlp):
            block.build()
        for norm in (self.norm1, self.norm2, self.norm3, self.norm4):
            norm.build((None, self.embedding_dim))

    def call(self, queries: Any, keys: Any, query_pe: Any, key_pe: Any) -> tuple[Any, Any]:
        if self.skip_first_layer_pe:
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)

        k = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(k, queries + query_pe, queries))
        return queries, keys

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "embedding_dim": self.embedding_dim,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "attention_downsample_rate": self.attention_downsample_rate,
            "skip_first_layer_pe": self.skip_first_layer_pe,
        }


@keras.saving.register_keras_serializable(package="weightbridge")
class TwoWayTransformer(keras.layers.Layer):
    """`depth` two-way blocks and a last attention of the tokens to the image.

    image_embedding (B, H, W, C), image_pe (B|1, H, W, C), point_embedding (B, N, C)
    -> queries (B, N, C), keys (B, HW, C). Any H, W and N. Follows segment-anything's `TwoWayTransformer`.
    """

    def __init__(
        self,
        depth: int,
        embedding_dim: int,
        num_heads: int,
        mlp_dim: int,
        attention_downsample_rate: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedding_dim, self.num_heads, self.mlp_dim = embedding_dim, num_heads, mlp_dim
        self.attention_downsample_rate = attention_downsample_rate
        policy = self.dtype_policy
        self.layers = [
            TwoWayAttentionBlock(
                embedding_dim,
                num_heads,
                mlp_dim,
                attention_downsample_rate,
                skip_first_layer_pe=index == 0,
                dtype=policy,
            )
            for index in range(depth)
        ]
        self.final_attn_token_to_image = TokenToImageAttention(
            embedding_dim, num_heads, attention_downsample_rate, dtype=policy
        )
        self.norm_final_attn = LayerNorm(epsilon=1e-5, dtype=policy)

    def build(self, image_embedding_shape: Any = None) -> None:
        for layer in self.layers:
            layer.build()
        self.final_attn_token_to_image.build()
        self.norm_final_attn.build((None, self.embedding_dim))

    def call(self, image_embedding: Any, image_pe: Any, point_embedding: Any) -> tuple[Any, Any]:
        keys = self._flatten(image_embedding)
        key_pe = self._flatten(image_pe)
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, point_embedding, key_pe)
        attended = self.final_attn_token_to_image(queries + point_embedding, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys

    def _flatten(self, image: Any) -> Any:
        """image (B, H, W, C) -> (B, HW, C)."""
        batch, height, width, _ = ops.shape(image)
        return ops.reshape(image, (batch, height * width, self.embedding_dim))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "depth": len(self.layers),
            "embedding_dim": self.embedding_dim,
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "attention_downsample_rate": self.attention_downsample_rate,
        }
