"""The shipped pairs at small sizes, with seeded checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from converter import Pair
from tests.support import small_mobile_sam, small_sam

_DCN = {"in_channels": 6, "out_channels": 10, "kernel_size": (3, 2), "offset_groups": 2, "groups": 2}
_ATTENTION = {"d_model": 24, "n_levels": 2, "n_heads": 3, "n_points": 4}
_DEFORMABLE = {"dim": 12, "dim_head": 5, "heads": 6, "offset_groups": 3, "offset_kernel_size": 5}
_VOLUME = {**_DEFORMABLE, "offset_kernel_size": (3, 6, 5), "downsample_factor": (1, 4, 3)}


@dataclass(frozen=True)
class Shipped:
    """A shipped pair: which torch reference makes its checkpoint, of which sizes, and the options to convert with."""

    name: str
    reference: str
    config: dict[str, Any]
    options: dict[str, Any]

    @property
    def real(self) -> bool:
        """A whole network takes as long as one of real size."""
        return self.name.startswith(("sam_vit", "mobile"))

    def seeded_state(self, seed: int) -> dict[str, Any]:
        """Seeded weights and statistics, none left at 0 or 1."""
        import torch

        import torch_refs

        rng = torch.Generator().manual_seed(seed)
        state = torch_refs.create(self.reference, **self.config).state_dict()
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                continue
            values = torch.randn(tensor.shape, generator=rng)
            if name.endswith("running_var"):
                values = 0.5 + torch.rand(tensor.shape, generator=rng)
            elif tensor.ndim == 1:
                values = 0.1 * values + name.endswith("weight")
            elif not name.endswith(("attention_biases", "gaussian_matrix", "embed.weight", "pos_embed")):
                values = values / tensor[0].numel() ** 0.5
            state[name] = values
        return state

    def pair(self, name: str, wrapped: Callable[[Any], Any] | None = None) -> Pair:
        """The pair under another name; `wrapped` changes the builder of its Keras side."""
        from converter.pairs.registry import get

        def build_tf(**config: Any) -> Any:
            import tf_models

            return tf_models.create(self.name, **config)

        def build_torch(**config: Any) -> Any:
            import torch_refs

            return torch_refs.create(self.name, **config)

        made = build_tf if wrapped is None else wrapped(build_tf)
        return replace(get(self.name), name=name, build_tf=made, build_torch=build_torch)


_ALL = (
    Shipped("dcn_v2", "dcn_v2", _DCN, {"stride": (2,), "padding": (1, 0)}),
    Shipped("deform_conv2d", "deform_conv2d", _DCN, {"stride": (2,), "padding": (1, 0)}),
    Shipped("ms_deform_attn", "ms_deform_attn", _ATTENTION, {"n_heads": 3, "n_levels": 2}),
    Shipped(
        "deformable_attention_1d",
        "deformable_attention_1d",
        {**_DEFORMABLE, "downsample_factor": 3},
        {"downsample_factor": 3},
    ),
    Shipped(
        "deformable_attention_2d",
        "deformable_attention_2d",
        {**_DEFORMABLE, "downsample_factor": 3},
        {"downsample_factor": 3},
    ),
    Shipped("deformable_attention_3d", "deformable_attention_3d", _VOLUME, {"downsample_factor": (1, 4, 3)}),
    Shipped("mobile_sam", "mobile_sam", small_mobile_sam.CONFIG, small_mobile_sam.OPTIONS),
    Shipped("sam_decoder", "sam_vit_b", small_sam.CONFIG, small_sam.OPTIONS),
    Shipped("sam_image_encoder", "sam_vit_b", small_sam.CONFIG, {}),
    Shipped("sam_prompt_encoder", "sam_vit_b", small_sam.CONFIG, {"image_size": 80, "patch_size": 8}),
    Shipped("sam_vit_b", "sam_vit_b", small_sam.CONFIG, small_sam.OPTIONS),
    Shipped("sam_vit_l", "sam_vit_b", small_sam.CONFIG, small_sam.OPTIONS),
    Shipped("sam_vit_h", "sam_vit_b", small_sam.CONFIG, small_sam.OPTIONS),
)
SHIPPED: dict[str, Shipped] = {pair.name: pair for pair in _ALL}
