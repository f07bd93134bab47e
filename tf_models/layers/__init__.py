"""Layers that compute what torch's do where Keras's do not, and what several networks share."""

from tf_models.layers.attention import MultiheadAttention, TransformerDecoderLayer, TransformerEncoderLayer
from tf_models.layers.convolutions import (
    PADDING_MODES,
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    DepthwiseConv1D,
    DepthwiseConv2D,
    DepthwiseConv3D,
    PointwiseConv,
    SummedConv2D,
)
from tf_models.layers.dense import GELU, MLP, Embedding, MLPBlock
from tf_models.layers.normalizations import (
    BatchStatisticsNormalization,
    InstanceNormalization,
    LayerNorm,
    RMSNormalization,
    WeightNormalization,
)
from tf_models.layers.pixels import PatchConv2D, PatchConv2DTranspose, PixelShuffle, PixelUnshuffle
from tf_models.layers.recurrent import GRU, LSTM, RNN

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "MLP",
    "PADDING_MODES",
    "RNN",
    "BatchStatisticsNormalization",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "DepthwiseConv3D",
    "Embedding",
    "InstanceNormalization",
    "LayerNorm",
    "MLPBlock",
    "MultiheadAttention",
    "PatchConv2D",
    "PatchConv2DTranspose",
    "PixelShuffle",
    "PixelUnshuffle",
    "PointwiseConv",
    "RMSNormalization",
    "SummedConv2D",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "WeightNormalization",
]
