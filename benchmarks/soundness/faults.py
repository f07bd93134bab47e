"""Planted faults: each a right network with one thing wrong on the Keras side, and the places that a report may name.

A place is a layer's path ("layer1.0.conv2"), "A .. B" for what lies between two layers, or an output's name. A stage
counts for what is wrong in it where its own layers are right. Several places are alternatives: where two layers were
exchanged, either of them is right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.soundness import changes as c
from benchmarks.soundness.networks import BIDIRECTIONAL, NETWORKS, Network, Rows
from converter import Drop, Mapping, Row, kinds
from converter.kinds import Kind, Leaf, leaf


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        network: the right network's name.
        places: what a report may name to count as right.
        change: changes the built Keras model.
        rows: changes the rows.
        tf: arguments for the Keras builder in place of the right ones.
        seen_by: "probe", where the outputs on the probe differ; "layers", where a layer or a stage alone shows it and
            the outputs do not (a branch whose factor is zero or a millionth); "seeded", where the checkpoint's own
            values hide it, and others would show it; "train", where only training shows it.
    """

    name: str
    network: str
    places: tuple[str, ...]
    change: Callable[[Any], None] | None = None
    rows: Callable[[Rows], Rows] | None = None
    tf: dict[str, Any] | None = None
    seen_by: str = "probe"

    def mapping(self) -> Rows:
        rows = NETWORKS[self.network].rows
        return rows if self.rows is None else self.rows(rows)

    def build_tf(self) -> Any:
        model = NETWORKS[self.network].build_tf(**(self.tf or {}))
        if self.change is not None:
            self.change(model)
        return model

    def pair(self, name: str) -> Any:
        """The faulty pair, to be registered under `name`."""
        rows = self.mapping()
        return NETWORKS[self.network].pair(
            name, mapping=lambda config: Mapping(rows), build_tf=lambda **config: self.build_tf()
        )

    def planted(self) -> Network:
        """The network with the faulty rows, for a comparison by hand."""
        return replace(NETWORKS[self.network], rows=self.mapping())


# --- changes of the rows- ---------------------------------------------------------------------------------------------


def rekinded(path: str, kind: Kind) -> Callable[[Rows], Rows]:
    """The module at `path` is of another kind."""
    return lambda rows: _changed(rows, {path: lambda keras, _: (keras, kind)})


def relaid(path: str, pattern: str) -> Callable[[Rows], Rows]:
    """The weight of the module at `path` is laid out by another pattern."""

    def other(keras: str, kind: Kind) -> tuple[str, Kind]:
        first = kind.leaves[0]
        wrong = leaf(first.torch, first.keras, pattern, first.optional)
        return keras, replace(kind, leaves=(wrong, *kind.leaves[1:]))

    return lambda rows: _changed(rows, {path: other})


def exchanged(one: str, other: str) -> Callable[[Rows], Rows]:
    """The Keras layers of two modules change places."""

    def change(rows: Rows) -> Rows:
        homes = {path: keras for path, keras, _ in Mapping(rows).modules()}
        return _changed(rows, {one: lambda _, kind: (homes[other], kind), other: lambda _, kind: (homes[one], kind)})

    return change


def dropped(*names: str) -> Callable[[Rows], Rows]:
    """The tensors are left out by name."""
    return lambda rows: (*rows, *(Drop(name, "not needed") for name in names))


def _changed(rows: Rows, changes: dict[str, Callable[[str, Kind], tuple[str, Kind]]]) -> Rows:
    made: list[Row | Drop] = [row for row in rows if isinstance(row, Drop)]
    for path, keras, kind in Mapping(rows).modules():
        keras, kind = changes.pop(path)(keras, kind) if path in changes else (keras, kind)
        made.append(Row(path, kind, keras))
    if changes:
        raise ValueError(f"no rows for {', '.join(changes)}")
    return tuple(made)


def attention_kind(order: tuple[int, int, int] = (0, 1, 2), heads: str = "(h d)", out: str = "(h d)") -> Kind:
    """MULTIHEAD_ATTENTION with its thirds in another order, or its heads apart otherwise."""
    names = ("query_dense", "key_dense", "value_dense")
    right = kinds.MULTIHEAD_ATTENTION
    placed = [name for _, name in sorted(zip(order, names, strict=True))]
    apart = heads.strip("()")

    def thirds(suffix: str, axes: str, laid: str) -> Leaf:
        into = ", ".join(laid.format(one) for one in "qkv")
        first = f"((q + k + v) {apart}){axes}"
        return leaf(
            f"in_proj_{'weight' if axes else 'bias'}",
            tuple(f"{n}.{suffix}" for n in placed),
            f"{first} -> {into}",
            not axes,
            sizes={"q": 1, "k": 1, "v": 1},
        )

    return replace(
        right,
        leaves=(
            thirds("kernel", " i", "i h ({} d)"),
            thirds("bias", "", "h ({} d)"),
            leaf("out_proj.weight", "output_dense.kernel", f"o {out} -> h d o"),
            right.leaves[3],
        ),
    )


REVERSED = replace(
    BIDIRECTIONAL,
    leaves=tuple(
        replace(part, keras=other.keras)
        for part, other in zip(BIDIRECTIONAL.leaves, BIDIRECTIONAL.leaves[2:] + BIDIRECTIONAL.leaves[:2], strict=True)
    ),
)

# --- the list ---------------------------------------------------------------------------------------------------------

# torchvision's Swin uses the tensors of its two linear layers itself: between its normalisations no layer is called.
_V0, _V1 = "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"
_B0, _B1 = "encoder.layer.0", "encoder.layer.1"
_G0, _G1 = "transformer.h.0", "transformer.h.1"
_E0, _E1 = "encoder.layers.0", "encoder.layers.1"

_KERNELS = (
    Fault(
        "a square linear kernel is not transposed (ViT)",
        "timm_vit",
        ("blocks.0.attn.proj",),
        rows=relaid("blocks.0.attn.proj", "o i -> o i"),
    ),
    Fault(
        "a square linear kernel is not transposed (BERT)",
        "bert",
        (f"{_B1}.attention.self.key",),
        rows=relaid(f"{_B1}.attention.self.key", "o i -> o i"),
    ),
    Fault(
        "a kernel that has Keras's axes already is transposed",
        "gpt2",
        (f"{_G0}.attn.c_proj",),
        rows=relaid(f"{_G0}.attn.c_proj", "o i -> i o"),
    ),
    Fault(
        "kh and kw are swapped",
        "resnet_basic",
        ("layer1.0.conv2",),
        rows=relaid("layer1.0.conv2", "o i kh kw -> kw kh i o"),
    ),
    Fault(
        "kh and kw are swapped, 7x7",
        "resnet_functional",
        ("conv1",),
        rows=relaid("conv1", "o i kh kw -> kw kh i o"),
    ),
    Fault(
        "kh and kw are swapped, depthwise",
        "convnext",
        ("features.1.0.block.0",),
        rows=relaid("features.1.0.block.0", "(c m) 1 kh kw -> kw kh c m"),
    ),
    Fault(
        "kh and kw are swapped, transposed convolution",
        "unet",
        ("up1",),
        rows=relaid("up1", "i o kh kw -> kw kh o i"),
    ),
    Fault(
        "input and output channels are swapped",
        "unet",
        ("down1.conv2",),
        rows=relaid("down1.conv2", "o i kh kw -> kh kw o i"),
    ),
    Fault(
        "input and output channels are swapped, 1x1",
        "squeezenet",
        ("features.6.squeeze",),
        change=c.kernel_at("features.6.squeeze", c.first_inputs_exchanged),
    ),
    Fault(
        "a kernel is mirrored, as in a true convolution",
        "upscaler",
        ("conv1",),
        change=c.kernel_at("conv1", lambda kernel: kernel[::-1, ::-1]),
    ),
    Fault(
        "a kernel is mirrored, transposed convolution",
        "generator",
        ("up2",),
        change=c.kernel_at("up2", lambda kernel: kernel[::-1, ::-1]),
    ),
    Fault(
        "a kernel is rounded to bfloat16",
        "resnet_basic",
        ("layer3.0.conv1",),
        change=c.kernel_at("layer3.0.conv1", c.rounded("bfloat16")),
    ),
    Fault(
        "a kernel is rounded to float16",
        "unet",
        ("merge1.conv2",),
        change=c.kernel_at("merge1.conv2", c.rounded("float16")),
    ),
    Fault(
        "a linear kernel is rounded to bfloat16",
        "timm_vit",
        ("blocks.0.mlp.fc1",),
        change=c.kernel_at("blocks.0.mlp.fc1", c.rounded("bfloat16")),
    ),
    Fault(
        "a linear kernel is rounded to float16",
        "bert",
        ("pooler.dense",),
        change=c.kernel_at("pooler.dense", c.rounded("float16")),
    ),
    Fault(
        "a table is rounded to float16",
        "gpt2",
        ("transformer.wte",),
        change=c.table_at("transformer.wte", c.rounded("float16")),
    ),
    Fault(
        "the groups of a convolution are permuted",
        "generator",
        ("grouped",),
        change=c.input_at("grouped", c.interleaved(4)),
    ),
    Fault(
        "the groups' results are permuted",
        "upscaler",
        ("conv2",),
        change=c.output_at("conv2", c.interleaved(2)),
    ),
    Fault(
        "the multiplier of a depthwise convolution runs first",
        "generator",
        ("depthwise",),
        rows=relaid("depthwise", "(m c) 1 kh kw -> kh kw c m"),
    ),
    Fault(
        "two layers of the same shape are exchanged (BERT)",
        "bert",
        (f"{_B0}.attention.output.dense", f"{_B1}.attention.output.dense"),
        rows=exchanged(f"{_B0}.attention.output.dense", f"{_B1}.attention.output.dense"),
    ),
    Fault(
        "two layers of the same shape are exchanged (ViT)",
        "timm_vit",
        ("blocks.0.mlp.fc1", "blocks.1.mlp.fc1"),
        rows=exchanged("blocks.0.mlp.fc1", "blocks.1.mlp.fc1"),
    ),
    Fault(
        "two layers of the same shape are exchanged (fire modules)",
        "squeezenet",
        ("features.9.expand3x3", "features.10.expand3x3"),
        rows=exchanged("features.9.expand3x3", "features.10.expand3x3"),
    ),
    Fault(
        "two layers of the same shape are exchanged (pyramid)",
        "pyramid",
        ("fpn.layer_blocks.0.0", "fpn.layer_blocks.1.0", "fpn.layer_blocks.0.0 .. fine"),
        rows=exchanged("fpn.layer_blocks.0.0", "fpn.layer_blocks.1.0"),
    ),
    Fault(
        "norm1 and norm2 are swapped (ViT)",
        "timm_vit",
        ("blocks.0.norm1", "blocks.0.norm2"),
        rows=exchanged("blocks.0.norm1", "blocks.0.norm2"),
    ),
    Fault(
        "norm1 and norm2 are swapped (encoder)",
        "encoder",
        (f"{_E1}.norm1", f"{_E1}.norm2"),
        rows=exchanged(f"{_E1}.norm1", f"{_E1}.norm2"),
    ),
    Fault(
        "bn1 and bn2 are swapped",
        "resnet_functional",
        ("layer2.0.bn1", "layer2.0.bn2"),
        rows=exchanged("layer2.0.bn1", "layer2.0.bn2"),
    ),
)

_ATTENTION = (
    Fault(
        "q and k are swapped (BERT)",
        "bert",
        (f"{_B0}.attention.self.query", f"{_B0}.attention.self.key", f"{_B0}.attention.output.dense"),
        rows=exchanged(f"{_B0}.attention.self.query", f"{_B0}.attention.self.key"),
    ),
    Fault(
        "q and k are swapped in the packed tensor",
        "vit",
        (f"{_V0}.self_attention",),
        rows=rekinded(f"{_V0}.self_attention", attention_kind((1, 0, 2))),
    ),
    Fault(
        "k and v are swapped in the packed tensor",
        "encoder",
        (f"{_E0}.self_attn",),
        rows=rekinded(f"{_E0}.self_attn", attention_kind((0, 2, 1))),
    ),
    Fault(
        "packed as k, q, v",
        "timm_vit",
        ("blocks.1.attn", "blocks.1.attn.qkv .. blocks.1.attn.proj"),
        change=c.attention_at("blocks.1.attn", lambda q, k, v: (k, q, v)),
    ),
    Fault(
        "packed head by head",
        "timm_vit",
        ("blocks.0.attn", "blocks.0.attn.qkv .. blocks.0.attn.proj"),
        change=c.packed_by_head("blocks.0.attn"),
    ),
    Fault(
        "two heads of the queries are exchanged",
        "timm_vit",
        ("blocks.0.attn", "blocks.0.attn.qkv .. blocks.0.attn.proj"),
        change=c.attention_at("blocks.0.attn", lambda q, k, v: (c.heads_exchanged(q), k, v)),
    ),
    Fault(
        "heads are the fast axis",
        "vit",
        (f"{_V1}.self_attention",),
        rows=rekinded(f"{_V1}.self_attention", attention_kind(heads="(d h)")),
    ),
    Fault(
        "heads are the fast axis of the output projection",
        "encoder_norm_first",
        (f"{_E1}.self_attn",),
        rows=rekinded(f"{_E1}.self_attn", attention_kind(out="(d h)")),
    ),
    Fault(
        "the scale of attention is left out (ViT)",
        "timm_vit",
        ("blocks.0.attn", "blocks.0.attn.qkv .. blocks.0.attn.proj"),
        change=c.attention_at("blocks.0.attn", lambda q, k, v: (q * q.shape[-1] ** 0.5, k, v)),
    ),
    Fault(
        "the scale of attention is left out where gamma is a millionth",
        "timm_vit_tiny_gamma",
        ("blocks.0.attn", "blocks.0.attn.qkv .. blocks.0.attn.proj"),
        change=c.attention_at("blocks.0.attn", lambda q, k, v: (q * q.shape[-1] ** 0.5, k, v)),
        seen_by="layers",
    ),
    Fault(
        "the scale of attention is the root of the whole width (encoder)",
        "encoder",
        (f"{_E0}.self_attn",),
        change=c.scaled_mha(f"{_E0}.self_attn", 0.5),
    ),
    Fault(
        "the scale of attention is the root of the whole width (GPT-2)",
        "gpt2",
        (f"{_G1}.attn.c_attn .. {_G1}.attn.c_proj",),
        change=c.with_attend(f"{_G1}.attn", lambda q, k, v, bias: (q / 3**0.5, k, v, bias)),
    ),
    Fault(
        "the scale of attention is the root of the whole width (Swin)",
        "swin",
        ("features.3.0.attn", "features.3.0.norm1 .. features.3.0.norm2"),
        change=c.with_attend("features.3.0.attn", lambda q, k, v, bias: (q / 4**0.5, k, v, bias)),
    ),
    Fault(
        "softmax runs over the wrong axis",
        "timm_vit",
        ("blocks.0.attn", "blocks.0.attn.qkv .. blocks.0.attn.proj"),
        change=c.softmax_over_queries("blocks.0.attn"),
    ),
    Fault(
        "the mask of padding is ignored (encoder)",
        "encoder",
        (_E0, f"{_E0}.self_attn", f"{_E0}.self_attn .. {_E0}.norm1", f"embed .. {_E0}.self_attn"),
        change=c.unmasked(_E0),
    ),
    Fault(
        "the mask of padding is ignored (BERT)",
        "bert",
        (f"{_B0}.attention.self.value .. {_B0}.attention.output.dense",),
        change=c.bert_mask(0.0),
    ),
    Fault(
        "the mask of padding is turned around (BERT)",
        "bert",
        (f"{_B0}.attention.self.value .. {_B0}.attention.output.dense",),
        change=c.bert_mask(None),
    ),
    Fault(
        "attention looks ahead",
        "gpt2",
        (f"{_G0}.attn.c_attn .. {_G0}.attn.c_proj",),
        change=c.with_attend(f"{_G0}.attn", lambda q, k, v, bias: (q, k, v, None)),
    ),
    Fault(
        "attention looks one token ahead",
        "gpt2",
        (f"{_G1}.attn.c_attn .. {_G1}.attn.c_proj",),
        change=c.causal_by_one(f"{_G1}.attn"),
    ),
    Fault(
        "the mask of shifted windows is ignored",
        "swin",
        ("features.1.1.attn", "features.1.1.norm1 .. features.1.1.norm2"),
        change=c.no_window_mask("features.1.1.attn"),
    ),
    Fault(
        "windows are shifted the other way",
        "swin",
        ("features.1.1.attn", "features.1.1.norm1 .. features.1.1.norm2"),
        change=c.attribute_at("features.1.1.attn", "shift", (2, 1)),
    ),
    Fault(
        "the index of relative positions is transposed",
        "swin",
        ("features.1.0.attn", "features.1.0.norm1 .. features.1.0.norm2"),
        change=c.index_transposed("features.1.0.attn"),
    ),
    Fault(
        "one row of the position table is the next one",
        "vit",
        ("encoder", f"conv_proj .. {_V0}.ln_1", "encoder.pos_embedding"),
        change=c.one_position_off,
    ),
    Fault(
        "the position table is rolled by one",
        "timm_vit",
        ("patch_embed.proj .. blocks.0.norm1", "pos_embed"),
        change=c.positions_rolled,
    ),
    Fault(
        "positions begin at 2",
        "bert",
        (
            "embeddings.position_embeddings",
            "embeddings.LayerNorm",
            "embeddings.token_type_embeddings .. embeddings.position_embeddings",
        ),
        change=c.bert_positions(2),
    ),
    Fault(
        "token types are ignored",
        "bert",
        ("embeddings.token_type_embeddings", "embeddings.position_embeddings .. embeddings.LayerNorm"),
        change=c.one_token_type,
    ),
    Fault(
        "the class token comes last",
        "vit",
        (f"conv_proj .. {_V0}.ln_1", "encoder", "conv_proj .. encoder"),
        change=c.class_token_last,
    ),
    Fault(
        "the last token is read in place of the first",
        "vit",
        ("encoder.ln .. heads.head", "heads.head"),
        change=c.last_token_read,
    ),
    Fault(
        "tokens run down the columns (ViT)",
        "vit",
        (f"conv_proj .. {_V0}.ln_1", "encoder"),
        change=c.tokens_by_column(),
    ),
    Fault(
        "tokens run down the columns (Mixer)",
        "mixer",
        ("stem.proj .. blocks.0.norm1",),
        change=c.tokens_by_column("stem"),
    ),
    Fault(
        "neighbours are merged in another order",
        "swin",
        ("features.2", "features.2.norm", "features.1.1.mlp.3 .. features.2.norm"),
        change=c.neighbours_by_row,
    ),
)

_NORMS = (
    Fault(
        "epsilon 1e-5 for 1e-6 (LayerNorm)",
        "timm_vit",
        ("blocks.1.norm2",),
        change=c.attribute_at("blocks.1.norm2", "epsilon", 1e-5),
    ),
    Fault(
        "epsilon 1e-3 for 1e-5 (LayerNorm)",
        "swin",
        ("features.2.norm",),
        change=c.attribute_at("features.2.norm", "epsilon", 1e-3),
    ),
    Fault(
        "epsilon 1e-6 for 1e-5 (LayerNorm)",
        "encoder",
        (f"{_E1}.norm1",),
        change=c.attribute_at(f"{_E1}.norm1", "epsilon", 1e-6),
    ),
    Fault(
        "epsilon 1e-6 for 1e-12 (LayerNorm)",
        "bert",
        (f"{_B0}.output.LayerNorm",),
        change=c.attribute_at(f"{_B0}.outer.LayerNorm", "epsilon", 1e-6),
    ),
    Fault(
        "epsilon 1e-3 for 1e-5 (BatchNorm)",
        "resnet_basic",
        ("layer2.0.bn1",),
        change=c.attribute_at("layer2.0.bn1", "epsilon", 1e-3),
    ),
    Fault(
        "epsilon 1e-5 for 1e-3 (BatchNorm)",
        "mobilenet",
        ("features.1.block.0.1",),
        change=c.attribute_at("features.1.block.0.1", "epsilon", 1e-5),
    ),
    Fault(
        "epsilon 1e-6 for 1e-5 (BatchNorm)",
        "unet",
        ("bottom.bn1",),
        change=c.attribute_at("bottom.bn1", "epsilon", 1e-6),
    ),
    Fault(
        "epsilon 1e-3 for 1e-5 (BatchNorm, functional)",
        "keras_style",
        ("bn",),
        change=c.attribute_at("bn", "epsilon", 1e-3),
    ),
    Fault(
        "epsilon 1e-3 for 1e-5 (GroupNorm)",
        "upscaler",
        ("norm1",),
        change=c.attribute_at("norm1", "epsilon", 1e-3),
    ),
    Fault(
        "epsilon 1e-6 for 1e-5 (GroupNorm)",
        "upscaler",
        ("norm2",),
        change=c.attribute_at("norm2", "epsilon", 1e-6),
    ),
    Fault(
        "epsilon 1e-5 for 1e-6 (LayerNorm2d)",
        "convnext",
        ("features.2.0",),
        change=c.attribute_at("features.2.0", "epsilon", 1e-5),
    ),
    Fault(
        "epsilon 1e-3 for 1e-6 (LayerNorm2d)",
        "convnext",
        ("classifier.0",),
        change=c.attribute_at("classifier.0", "epsilon", 1e-3),
    ),
    Fault(
        "two groups for four (GroupNorm)",
        "upscaler",
        ("norm2",),
        change=c.attribute_at("norm2", "groups", 2),
    ),
    Fault(
        "momentum 0.99 for torch's 0.1 (BatchNorm)",
        "unet",
        ("down1.bn1",),
        change=c.attribute_at("down1.bn1", "momentum", 0.99),
        seen_by="train",
    ),
    Fault(
        "normalisation uses the batch's statistics in inference",
        "resnet_basic",
        ("layer3.0.bn2",),
        change=c.training_at("layer3.0.bn2"),
    ),
)

_GEOMETRY = (
    Fault(
        "the stride is on the first of a bottleneck's convolutions",
        "resnet_bottleneck",
        ("layer2.0.conv1", "layer2.0.conv2"),
        change=c.stride_moved("layer2.0"),
    ),
    Fault(
        'padding "same" at stride 2 is uneven (7x7)',
        "resnet_basic",
        ("conv1",),
        change=c.uneven("conv1", 3),
    ),
    Fault(
        'padding "same" at stride 2 is uneven (functional)',
        "keras_style",
        ("conv2", "conv1 .. conv2"),
        tf={"second": "same"},
    ),
    Fault(
        'padding "same" at stride 2 is uneven (depthwise)',
        "efficientnet",
        ("features.2.0.block.1.0",),
        change=c.uneven("features.2.0.block.1.0", 1),
    ),
    Fault(
        "max pooling is padded with zeros where values are negative",
        "lenet",
        ("conv1 .. conv2",),
        tf={"pool_value": 0.0},
    ),
    Fault(
        "max pooling forgets its padding's other side",
        "resnet_basic",
        ("bn1 .. layer1.0.conv1", "bn1 .. layer1.0.downsample.0", "bn1 .. layer1.0"),
        change=c.pool_uneven,
    ),
    Fault(
        "ceil_mode is ignored",
        "squeezenet",
        ("features.5", "features.4.expand3x3 .. features.6.squeeze"),
        change=c.ceil_ignored("features.5"),
    ),
    Fault(
        "zeros for reflected padding",
        "upscaler",
        ("entry",),
        change=c.padded_otherwise(2, "constant"),
    ),
    Fault(
        "symmetric for reflected padding",
        "upscaler",
        ("shuffle .. last", "expand .. last", "last"),
        change=c.padded_otherwise(1, "symmetric"),
    ),
    Fault(
        "dilation is ignored",
        "segmenter",
        ("aspp.convs.2.0",),
        change=c.undilated("aspp.convs.2.0"),
    ),
    Fault(
        "dilation is ignored (depthwise)",
        "mobilenet",
        ("features.3.block.1.0",),
        change=c.undilated("features.3.block.1.0"),
    ),
    Fault(
        "output padding is zeros",
        "generator",
        ("up1",),
        change=c.output_padded_with_zeros("up1"),
    ),
    Fault(
        "output padding is on the other side",
        "generator",
        ("up1",),
        change=c.output_padded_before("up1"),
    ),
    Fault(
        "average pooling does not count its padding",
        "inception",
        (
            "mixed",
            "mixed.branch3x3dbl_3.bn .. mixed.branch_pool.conv",
            "stem .. mixed.branch_pool.conv",
            "mixed.branch_pool.conv",
        ),
        change=c.padding_not_counted,
    ),
    Fault(
        "the mean over the image is over its height squared",
        "resnet_basic",
        ("layer4.0.bn2 .. fc", "layer4.0 .. fc", "layer4.0.downsample.1 .. fc"),
        change=c.mean_of_squares,
    ),
    Fault(
        "the mean over the image is a maximum",
        "vgg_sequential",
        ("5 .. 10",),
        change=c.maximum_for_mean,
    ),
    Fault(
        "squeeze is over the height alone",
        "mobilenet",
        ("features.1.block.2", "features.1.block.2.fc1", "features.1.block.1.1 .. features.1.block.2.fc1"),
        change=c.squeezed_by_height("features.1.block.2"),
    ),
    Fault(
        "align_corners is on",
        "unet_edges",
        ("bottom.bn2 .. up2", "bottom .. up2"),
        change=c.resized_otherwise({"mode": "bilinear", "align_corners": True}),
    ),
    Fault(
        "align_corners is off",
        "unet_corners",
        ("bottom.bn2 .. up2", "bottom .. up2"),
        change=c.resized_otherwise({"mode": "bilinear", "align_corners": False}),
    ),
    Fault(
        "pixels are not halved: the old bilinear of TensorFlow",
        "unet_edges",
        ("bottom.bn2 .. up2", "bottom .. up2"),
        change=c.resized_without_half_pixels,
    ),
    Fault(
        "nearest for bilinear",
        "segmenter",
        ("classifier .. output", "output"),
        change=c.grown_otherwise(None, "nearest"),
    ),
    Fault(
        "align_corners is on at the end",
        "segmenter",
        ("classifier .. output", "output"),
        change=c.grown_otherwise(None, "bilinear", align_corners=True),
    ),
    Fault(
        "bilinear for nearest",
        "pyramid",
        (
            "fpn",
            "fpn.inner_blocks.1.0 .. fpn.layer_blocks.1.0",
            "fpn.inner_blocks.0.0 .. fpn.layer_blocks.1.0",
        ),
        change=c.grown_otherwise("fpn", "bilinear", align_corners=False),
    ),
    Fault(
        "the map is flattened as it is",
        "lenet",
        ("conv2 .. fc1", "fc1"),
        tf={"flat": "as it is"},
    ),
    Fault(
        "the map is flattened by columns",
        "lenet",
        ("conv2 .. fc1", "fc1"),
        tf={"flat": "columns first"},
    ),
    Fault(
        "a vector becomes an image with channels last",
        "generator",
        ("project .. up1",),
        change=c.image_channels_last,
    ),
    Fault(
        "pixel shuffle has TensorFlow's order",
        "upscaler",
        ("shuffle",),
        change=c.depth_to_space,
    ),
    Fault(
        "the skip comes second",
        "unet",
        ("up2 .. merge2.conv1", "up2 .. merge2"),
        change=c.skip_second,
    ),
    Fault(
        "branches are joined in another order",
        "inception",
        ("mixed", "mixed.branch_pool.bn .. fc"),
        change=c.branches_reversed,
    ),
)

_ACTIVATIONS = (
    Fault(
        "GELU by tanh, a layer (ViT)",
        "timm_vit",
        ("blocks.0.mlp.act",),
        change=c.layer_computes("blocks.0.mlp.act", c.tanh_gelu),
    ),
    Fault(
        "GELU by tanh, a layer (ConvNeXt)",
        "convnext",
        ("features.3.0.block.4",),
        change=c.layer_computes("features.3.0.block.4", c.tanh_gelu),
    ),
    Fault(
        "GELU by tanh, a layer where gamma is a millionth",
        "convnext_tiny_gamma",
        ("features.1.1.block.4",),
        change=c.layer_computes("features.1.1.block.4", c.tanh_gelu),
        seen_by="layers",
    ),
    Fault(
        "GELU by tanh, a function between layers",
        "upscaler",
        ("norm1 .. conv2",),
        change=c.method(None, "between", lambda self, x: c.tanh_gelu(x)),
    ),
    Fault(
        "GELU by tanh, a function between layers, where gamma is zero",
        "upscaler_zero_gamma",
        ("norm1 .. conv2",),
        change=c.method(None, "between", lambda self, x: c.tanh_gelu(x)),
        seen_by="seeded",
    ),
    Fault(
        "GELU by tanh, a function between layers (BERT)",
        "bert",
        (f"{_B1}.intermediate.dense .. {_B1}.output.dense",),
        change=c.after_dense(_B1, c.tanh_gelu),
    ),
    Fault(
        "GELU by erf where torch has tanh (GPT-2)",
        "gpt2",
        (f"{_G0}.mlp.c_fc .. {_G0}.mlp.c_proj",),
        change=c.method(f"{_G0}.mlp", "between", lambda self, x: c.erf_gelu(x)),
    ),
    Fault(
        "GELU by tanh, a function between layers (encoder)",
        "encoder",
        (f"{_E1}.linear1 .. {_E1}.linear2",),
        change=c.encoder_gelu(_E1),
    ),
    Fault(
        "a ReLU is missing between layers",
        "unet",
        ("down2.bn1 .. down2.conv2", "down2"),
        change=c.relu_missing("down2"),
    ),
    Fault(
        "a ReLU is missing after the residual sum",
        "resnet_basic",
        ("layer2.0", "layer2.0.downsample.1 .. layer3.0.conv1"),
        change=c.method("layer2.0", "call", lambda self, x: self.branch(x) + self.shortcut(x)),
    ),
    Fault(
        "a ReLU is missing inside a layer",
        "vgg_sequential",
        ("0", "0 .. 3"),
        tf={"first": "linear"},
    ),
    Fault(
        "ReLU6 for ReLU",
        "keras_style",
        ("conv1", "conv1 .. conv2"),
        tf={"activations": ("relu6", "relu", "tanh", "relu", "softmax")},
    ),
    Fault(
        "ReLU for ReLU6",
        "generator",
        ("bn1 .. up2",),
        change=c.method(None, "clipped", lambda self, x: c.relu(3 * x)),
    ),
    Fault(
        "hard-swish for swish, a layer",
        "efficientnet",
        ("features.0.2",),
        change=c.layer_computes("features.0.2", c.hard_swish),
    ),
    Fault(
        "hard-swish for swish, a function",
        "generator",
        ("grouped .. last",),
        change=c.method(None, "smooth", lambda self, x: c.hard_swish(x)),
    ),
    Fault(
        "swish for hard-swish",
        "mobilenet",
        ("features.0.2",),
        change=c.layer_computes("features.0.2", c.swish),
    ),
    Fault(
        "hard-sigmoid of Keras 2",
        "mobilenet",
        ("features.1.block.2", "features.1.block.2.fc2 .. features.1.block.3.0"),
        change=c.old_hard_sigmoid("features.1.block.2"),
    ),
    Fault(
        "a slope of 0.3 for 0.2",
        "generator",
        ("bn2 .. depthwise",),
        change=c.method(None, "leaky", lambda self, x: c.leaky(x, 0.3)),
    ),
    Fault(
        "ReLU for tanh inside a layer",
        "keras_style",
        ("conv3", "conv3 .. fc1"),
        tf={"activations": ("relu", "relu", "relu", "relu", "softmax")},
    ),
    Fault(
        "the last softmax is missing, inside the layer",
        "keras_style",
        ("fc2", "fc2 .. output", "output"),
        tf={"activations": ("relu", "relu", "tanh", "relu", None)},
    ),
    Fault("the last softmax is missing", "lenet", ("fc2 .. output", "output"), tf={"softmax": False}),
    Fault(
        "the last sigmoid is missing",
        "generator",
        ("last .. output", "output"),
        change=c.method(None, "last_activation", lambda self, x: x),
    ),
    Fault(
        "the pooler's tanh is missing",
        "bert",
        ("pooler.dense .. pooled", "pooled"),
        change=c.pooler_without_tanh,
    ),
    Fault(
        "dropout is active (ViT)",
        "vit",
        (_V0, f"{_V0}.mlp.1 .. {_V0}.mlp.3", f"{_V0}.mlp.3"),
        change=c.training_at(f"{_V0}.mlp.2"),
    ),
    Fault(
        "dropout is active (segmentation)",
        "segmenter",
        ("aspp", "aspp.project", "aspp.project.1 .. classifier"),
        change=c.training_at("aspp.project.3"),
    ),
)

_WIRING = (
    Fault(
        "the residual is left out (ViT)",
        "timm_vit",
        ("blocks.0", "blocks.0.ls1 .. blocks.0.norm2"),
        change=c.method("blocks.0", "call", lambda self, x: c.plus_mlp(self, self.ls1(self.attn(self.norm1(x))))),
    ),
    Fault(
        "the residual is left out (ResNet)",
        "resnet_bottleneck",
        ("layer2.1", "layer2.1.bn3 .. layer3.0.conv1"),
        change=c.method("layer2.1", "call", lambda self, x: c.relu(self.branch(x))),
    ),
    Fault(
        "the residual is left out (inverted residual)",
        "efficientnet",
        ("features.2.1", "features.2.1.block.3.1 .. features.3.0.block.0.0"),
        change=c.attribute_at("features.2.1", "residual", False),
    ),
    Fault(
        "the residual is taken after the normalisation",
        "timm_vit",
        ("blocks.1", "blocks.1.ls1 .. blocks.1.norm2"),
        change=c.residual_after_norm("blocks.1"),
    ),
    Fault(
        "the residual is taken after the normalisation, where gamma is a millionth",
        "timm_vit_tiny_gamma",
        ("blocks.1", "blocks.1.ls1 .. blocks.1.norm2"),
        change=c.residual_after_norm("blocks.1"),
    ),
    Fault(
        "the residual is added twice",
        "convnext",
        ("features.1.1", "features.1.1.block.5 .. features.2.0"),
        change=c.method("features.1.1", "call", lambda self, x: x + x + self.branch(x)),
    ),
    Fault(
        "the residual of token mixing is left out",
        "mixer",
        ("blocks.1", "blocks.1.mlp_tokens.fc2 .. blocks.1.norm2"),
        change=c.method("blocks.1", "call", lambda self, x: c.mixed_without_residual(self, x)),
    ),
    Fault(
        "normalisation first in place of last",
        "encoder",
        (_E0, f"embed .. {_E0}.self_attn", f"{_E0}.self_attn"),
        tf={"norm_first": True},
    ),
    Fault(
        "normalisation last in place of first",
        "encoder_norm_first",
        (_E1, f"{_E0}.linear2 .. {_E1}.self_attn", f"{_E0}.linear2 .. {_E1}.norm1", f"{_E1}.self_attn"),
        change=c.attribute_at(_E1, "norm_first", False),
    ),
    Fault(
        "the shortcut takes the block's input after its first convolution",
        "resnet_bottleneck",
        ("layer3.0", "layer3.0.bn3 .. layer3.0.downsample.0", "layer3.0.downsample.0"),
        change=c.shortcut_of_half,
    ),
    Fault(
        "a bias is missing (convolution)",
        "unet",
        ("head",),
        change=c.attribute_at("head", "use_bias", False),
    ),
    Fault(
        "a bias is missing (linear)",
        "gpt2",
        (f"{_G0}.mlp.c_fc",),
        change=c.dense_without_bias(f"{_G0}.mlp.c_fc"),
    ),
    Fault(
        "a bias is added twice (convolution)",
        "squeezenet",
        ("features.0",),
        change=c.bias_twice("features.0"),
    ),
    Fault(
        "a bias is added twice (linear)",
        "swin",
        ("features.1.1.mlp.0",),
        change=c.bias_twice("features.1.1.mlp.0"),
    ),
    Fault(
        "LayerScale is ignored, where the checkpoint's gamma is 1",
        "timm_vit_ones",
        ("blocks.0.ls1",),
        change=c.layer_computes("blocks.0.ls1", lambda x: x),
        seen_by="seeded",
    ),
    Fault(
        "LayerScale is ignored",
        "convnext",
        ("features.3.0", "features.3.0.layer_scale", "features.3.0.block.5 .. classifier.0"),
        change=c.method("features.3.0", "branch", lambda self, x: c.chain(self.block, x)),
    ),
    Fault(
        "a ReLU is missing in a branch that is multiplied by zero",
        "resnet_zero_gamma",
        ("layer2.0.bn1 .. layer2.0.conv2", "layer2.0"),
        change=c.method("layer2.0", "branch", lambda self, x: self.bn2(self.conv2(self.bn1(self.conv1(x))))),
        seen_by="seeded",
    ),
    Fault(
        "a branch that is multiplied by zero is subtracted",
        "resnet_zero_gamma",
        ("layer3.0", "layer3.0.downsample.1 .. layer4.0.conv1", "layer3.0.bn2"),
        change=c.method("layer3.0", "call", lambda self, x: c.relu(self.shortcut(x) - self.branch(x))),
        seen_by="seeded",
    ),
    Fault(
        "a branch that is multiplied by zero is not added",
        "upscaler_zero_gamma",
        ("norm2 .. expand", "expand", "gamma"),
        change=c.method(
            None, "branch", lambda self, x: 0 * self.norm2(self.conv2(self.between(self.norm1(self.conv1(x)))))
        ),
        seen_by="seeded",
    ),
    Fault(
        "a trained bias is dropped, and Keras has none",
        "unet_edges",
        ("head", "head.bias"),
        tf={"head_bias": False},
        rows=dropped("head.bias"),
    ),
    Fault(
        "the trained shift of a normalisation is dropped, and Keras has none",
        "mixer",
        ("norm", "norm.bias"),
        tf={"center": False},
        rows=dropped("norm.bias"),
    ),
    Fault(
        "an output layer of its own is dropped, and Keras has the table",
        "gpt2_untied",
        ("transformer.ln_f .. output", "output", "lm_head.weight", "lm_head"),
        tf={"tied": True},
        rows=c.without_row("lm_head", dropped("lm_head.weight")),
    ),
    Fault(
        "a tied output layer reads the table turned around",
        "gpt2",
        ("transformer.ln_f .. output", "output"),
        change=c.table_turned,
    ),
    Fault(
        "a stage forgets an output when it is called alone",
        "pyramid",
        ("fpn",),
        change=c.fpn_returns(lambda maps: dict(list(maps.items())[:2])),
        seen_by="layers",
    ),
    Fault(
        "a stage returns nothing when it is called alone",
        "pyramid",
        ("fpn",),
        change=c.fpn_returns(lambda maps: []),
        seen_by="layers",
    ),
    Fault(
        "the model forgets an output",
        "pyramid",
        ("coarse", "output", "outputs", "fpn"),
        change=c.outputs_changed(lambda outputs: outputs[:2]),
    ),
    Fault(
        "two outputs are swapped",
        "two_heads",
        ("left", "right"),
        change=c.outputs_changed(lambda outputs: outputs[::-1]),
    ),
    Fault(
        "the padded tokens are averaged too",
        "encoder",
        (f"{_E1}.norm2 .. head", "head"),
        change=c.padding_averaged,
    ),
)

_RECURRENT = (
    Fault("the gates are in another order", "tagger", ("rnn",), change=c.gates_exchanged("rnn")),
    Fault(
        "the gates have Keras 1's hard sigmoid",
        "tagger",
        ("rnn",),
        change=c.attribute_at("rnn.cell", "recurrent_activation", c.hard_sigmoid),
    ),
    Fault("the sequence is read backwards", "tagger", ("rnn",), change=c.attribute_at("rnn", "go_backwards", True)),
    Fault(
        "forwards and backwards are exchanged",
        "tagger",
        ("both",),
        rows=rekinded("both", REVERSED),
    ),
    Fault(
        "the first state is read in place of the last",
        "tagger",
        ("both .. head", "rnn .. head", "tags .. head", "head"),
        change=c.method(None, "last", lambda self, states: states[:, 0]),
    ),
    Fault(
        "the backward states are not turned around",
        "tagger",
        ("both",),
        change=c.not_turned("both"),
    ),
)

FAULTS: tuple[Fault, ...] = (
    *_KERNELS,
    *_ATTENTION,
    *_NORMS,
    *_GEOMETRY,
    *_ACTIVATIONS,
    *_WIRING,
    *_RECURRENT,
)
