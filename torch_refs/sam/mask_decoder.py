"""The mask decoder of Segment Anything: image and prompt embeddings in, masks and their estimated quality out."""

import torch
from torch import nn

from torch_refs.sam.common import MLP, LayerNorm2d
from torch_refs.sam.transformer import TwoWayTransformer


class MaskDecoder(nn.Module):
    """Predicts masks from an image embedding and prompt embeddings.

    Follows segment-anything's `MaskDecoder`: the state dict has its names and shapes, and the outputs are equal.
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
    ) -> None:
        super().__init__()
        c = transformer_dim
        num_mask_tokens = num_multimask_outputs + 1
        self.transformer = TwoWayTransformer(depth, c, num_heads, mlp_dim, attention_downsample_rate)
        self.iou_token = nn.Embedding(1, c)
        self.mask_tokens = nn.Embedding(num_mask_tokens, c)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(c, c // 4, kernel_size=2, stride=2),
            LayerNorm2d(c // 4),
            nn.GELU(),
            nn.ConvTranspose2d(c // 4, c // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(c, c, c // 8, 3) for _ in range(num_mask_tokens))
        self.iou_prediction_head = MLP(c, iou_head_hidden_dim, num_mask_tokens, iou_head_depth)

    def forward(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        multimask_output: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict the masks of B prompts.

        Args:
            image_embeddings: (B|1, C, H, W), where C is `transformer_dim`; a single one serves all prompts.
            image_pe: (1, C, H, W), the positional encoding of the image.
            sparse_prompt_embeddings: (B, N, C), points and boxes; N may be 0.
            dense_prompt_embeddings: (B, C, H, W), the mask prompts.
            multimask_output: return the masks of the ambiguity-aware tokens; otherwise that of the first token.

        Returns:
            masks (B, K, 4H, 4W), logits; iou (B, K), estimated quality. K is `num_multimask_outputs`, or 1.
        """
        masks, iou = self._predict_all(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, wanted], iou[:, wanted]

    def _predict_all(
        self, image: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # (1 + masks, C)
        tokens = torch.cat([own_tokens.expand(len(sparse), -1, -1), sparse], dim=1)  # (B, 1 + masks + N, C)
        hidden, keys = self.transformer(image + dense, image_pe, tokens)
        iou_hidden, mask_hidden = hidden[:, 0], hidden[:, 1 : len(own_tokens)]  # (B, C), (B, masks, C)

        keys = keys.transpose(1, 2).unflatten(2, dense.shape[-2:])  # (B, HW, C) -> (B, C, H, W)
        upscaled = self.output_upscaling(keys)  # (B, C/8, 4H, 4W)
        per_mask = zip(self.output_hypernetworks_mlps, mask_hidden.unbind(1), strict=True)
        kernels = torch.stack([mlp(token) for mlp, token in per_mask], dim=1)  # (B, masks, C/8)
        masks = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])  # (B, masks, 4H, 4W)
        return masks, self.iou_prediction_head(iou_hidden)


def build_mask_decoder(**config: int) -> MaskDecoder:
    """Build a `MaskDecoder` with fresh weights, in inference mode; the arguments are those of the class."""
    return MaskDecoder(**config).eval()
