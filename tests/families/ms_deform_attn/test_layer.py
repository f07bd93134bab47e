"""MSDeformAttn: the torch reference against transformers' module, the Keras layer against the reference."""

import copy
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import tf_models
import torch_refs
from converter.families.ms_deform_attn import mapping
from tests.support.carrying import carry
from tests.support.layer_parity import again, assert_equal, tf_results, torch_results
from tests.support.rule import as_held, assert_allowed, assert_same
from tests.support.seeded import seeded
from tf_models.ms_deform_attn.model import MSDeformAttn, build_ms_deform_attn
from torch_refs.ms_deform_attn.model import MSDeformAttn as TorchMSDeformAttn

MAPPING = mapping({})
SHAPES = ((6, 4), (3, 2), (1, 5))
CONFIG = {"d_model": 12, "n_levels": 3, "n_heads": 2, "n_points": 2}
PIXELS = sum(height * width for height, width in SHAPES)


def arrays(coordinates=2, batch=2, queries=7):
    """Query, reference points, in and outside of the image, and feature maps; then a padding mask."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(-0.2, 1.2, (batch, queries, 3, coordinates))
    inputs = [rng.standard_normal((batch, queries, 12)), reference, rng.standard_normal((batch, PIXELS, 12))]
    return inputs, rng.random((batch, PIXELS)) < 0.3, rng.standard_normal((batch, queries, 12))


def both(dtype="float64"):
    module, layer = seeded(TorchMSDeformAttn(**CONFIG)).double(), build_ms_deform_attn(**CONFIG, dtype=dtype)
    carry(module.state_dict(), layer, MAPPING)
    return layer, module


def tf_options(mask):
    return {"input_spatial_shapes": SHAPES, "input_padding_mask": mask}


def torch_options(mask):
    mask = None if mask is None else torch.from_numpy(mask)
    return {"input_spatial_shapes": torch.tensor(SHAPES), "input_padding_mask": mask}


def truth_of(module, inputs):
    """A computation of the output in float64, without a mask, from weights that were rounded to float32."""
    module = copy.deepcopy(module).float().double()
    given = [torch.from_numpy(value).double() for value in inputs]
    return lambda: [module(*given, **torch_options(None))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_the_reference_is_that_of_transformers(coordinates, masked):
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr import modeling_deformable_detr as upstream

    config = DeformableDetrConfig(d_model=16, num_feature_levels=3, disable_custom_kernels=True)
    theirs = upstream.DeformableDetrMultiscaleDeformableAttention(config, num_heads=2, n_points=5)
    ours = TorchMSDeformAttn(16, 3, 2, 5)
    theirs.double().load_state_dict(seeded(ours).double().state_dict(), strict=True)
    rng = torch.Generator().manual_seed(1)
    query, maps = (torch.randn(2, size, 16, generator=rng).double() for size in (7, PIXELS))
    reference = torch.rand(2, 7, 3, coordinates, generator=rng).double() * 1.4 - 0.2
    mask = torch.rand(2, PIXELS, generator=rng) < 0.3 if masked else None
    shapes = torch.tensor(SHAPES)

    def expected():
        output, _ = theirs(
            query,
            attention_mask=None if mask is None else ~mask,
            encoder_hidden_states=maps,
            reference_points=reference,
            spatial_shapes=shapes,
            spatial_shapes_list=list(SHAPES),
            level_start_index=torch.tensor([0, 24, 30]),
        )
        return [output]

    assert_same(lambda: [ours(query, reference, maps, shapes, mask)], expected)
    assert expected()[0].std() > 0.1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_outputs_and_gradients_are_torchs(coordinates, masked):
    layer, module = both()
    inputs, mask, upstream = arrays(coordinates)
    mask = mask if masked else None
    ours = tf_results(layer, inputs, upstream, **tf_options(mask))
    assert_equal(ours, torch_results(module, inputs, upstream, layer, MAPPING, **torch_options(mask)))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_float32_is_as_near_to_the_truth_as_it_can_be(coordinates):
    layer, module = both("float32")
    inputs, mask, upstream = arrays(coordinates)
    *inputs, upstream = [value.astype(np.float32).astype(np.float64) for value in (*inputs, upstream)]
    module.float().double()
    ours = tf_results(layer, inputs, upstream, **tf_options(mask))
    assert_allowed(ours, lambda: torch_results(module, inputs, upstream, layer, MAPPING, **torch_options(mask)))


@pytest.mark.parametrize("jit", [False, True])
def test_one_trace_serves_all_lengths(jit):
    layer, module = both()
    specs = [tf.TensorSpec(shape, tf.float64) for shape in ((None, None, 12), (None, None, 3, 2), (None, None, 12))]

    @tf.function(input_signature=specs, jit_compile=jit)
    def call(query, reference, maps):
        return layer(query, reference, maps, SHAPES)

    for batch, queries in ((2, 7),) if jit else ((2, 7), (3, 5)):  # XLA takes seconds for each
        inputs, _, upstream = arrays(batch=batch, queries=queries)
        theirs = torch_results(module, inputs, upstream, layer, MAPPING, **torch_options(None))
        assert_equal(tf_results(layer, inputs, upstream, call), theirs)


@pytest.mark.parametrize("kind", [list, np.array, tf.constant], ids=["list", "numpy", "tensor"])
def test_spatial_shapes_of_any_kind(kind):
    layer, _ = both()
    inputs, mask, _ = arrays()
    expected = layer(*inputs, **tf_options(mask))
    np.testing.assert_array_equal(layer(*inputs, kind(SHAPES), mask), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_locations_in_full(policy):
    layer, module = both(policy)
    half = policy.removeprefix("mixed_")
    inputs, mask, upstream = arrays()
    inputs = [torch.from_numpy(value).to(getattr(torch, half)).double().numpy() for value in inputs]
    module = as_held(module, half)

    def truth():
        return [torch_results(module, inputs, upstream, layer, MAPPING, **torch_options(mask))["output"]]

    output = layer(*(tf.constant(value, tf.float32) for value in inputs), **tf_options(mask))
    assert output.dtype == layer.compute_dtype
    assert_allowed([tf.cast(output, tf.float64).numpy()], truth, half)
    # Where a map is wide, half precision would not tell neighbours apart: the points arrive as they were given.
    wide = MSDeformAttn(4, 1, 1, 1, dtype=policy)
    wide.build()
    for projection in (wide.value_proj, wide.output_proj):
        projection.kernel.assign(np.eye(4))
    wide.sampling_offsets.bias.assign(np.zeros(2))
    maps = np.zeros((1, 5000, 4), np.float32)
    maps[0, 4321] = 1
    at = np.array([[[[4321.5 / 5000, 0.5]]]], np.float32)
    sampled = np.asarray(tf.cast(wide(np.zeros((1, 1, 4), np.float32), at, maps, [(1, 5000)]), tf.float32))
    np.testing.assert_allclose(sampled, 1, atol=0.01)


def first_offsets(heads, levels, points):
    """Each head looks its own way, to the edge of a square, and its point k with k + 1 steps."""
    angle = torch.arange(heads).double() * (2 * math.pi / heads)
    way = torch.stack([angle.cos(), angle.sin()], -1)
    way = way / way.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, points + 1).double()[:, None]
    return [(way[:, None, None] * steps).expand(-1, levels, -1, -1).flatten()]


def test_both_sides_start_alike():
    config = {"d_model": 24, "n_levels": 2, "n_heads": 6, "n_points": 3}
    layer, module = build_ms_deform_attn(**config), TorchMSDeformAttn(**config)
    for bias in (layer.sampling_offsets.bias.numpy(), module.sampling_offsets.bias):
        assert_allowed([bias], lambda: first_offsets(6, 2, 3))
    bias = layer.sampling_offsets.bias.numpy().reshape(6, 2, 3, 2)
    np.testing.assert_array_equal(np.abs(bias).max(-1), np.broadcast_to([1, 2, 3], (6, 2, 3)))
    for ours, theirs in (
        (layer.sampling_offsets.kernel, module.sampling_offsets.weight),
        (layer.attention_weights.kernel, module.attention_weights.weight),
        (layer.attention_weights.bias, module.attention_weights.bias),
        (layer.value_proj.bias, module.value_proj.bias),
        (layer.output_proj.bias, module.output_proj.bias),
    ):
        assert not ours.numpy().any()
        assert not theirs.any()
    limit = (6 / 48) ** 0.5  # Xavier
    for values in (layer.value_proj.kernel.numpy(), layer.output_proj.kernel.numpy()):
        assert 0.9 * limit < np.abs(values).max() <= limit


def test_the_first_offsets_are_those_of_transformers():
    from transformers import DeformableDetrConfig, DeformableDetrModel

    config = DeformableDetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=8, decoder_ffn_dim=8, use_timm_backbone=True, use_pretrained_backbone=False,
        backbone="resnet18", num_feature_levels=2, num_queries=3,
    )  # fmt: skip
    theirs = DeformableDetrModel(config).encoder.layers[0].self_attn
    ours = build_ms_deform_attn(d_model=32, n_levels=2, n_heads=4, n_points=4)
    for bias in (ours.sampling_offsets.bias.numpy(), theirs.sampling_offsets.bias):
        assert_allowed([bias], lambda: first_offsets(4, 2, 4))


def test_configuration_goes_round_and_a_saved_model_computes_the_same(tmp_path):
    layer, module = both("float32")
    inputs, mask, _ = arrays()
    inputs = [value.astype(np.float32) for value in inputs]
    expected = layer(*inputs, **tf_options(mask))
    assert again(layer).get_config() == layer.get_config()
    layer.save_weights(tmp_path / "a.weights.h5")
    made = tf_models.create("ms_deform_attn", **CONFIG)
    made.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(made(*inputs, **tf_options(mask)), expected)

    archive = keras.export.ExportArchive()
    archive.track(layer)
    archive.add_endpoint(
        "serve",
        lambda query, reference, maps: layer(query, reference, maps, SHAPES),
        input_signature=[
            tf.TensorSpec(shape, tf.float32) for shape in ((None, None, 12), (None, None, 3, 2), (None, PIXELS, 12))
        ],
    )
    archive.write_out(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    assert_allowed([exported.serve(*map(tf.constant, inputs))], truth_of(module, inputs))


def test_wrong_arguments():
    layer, module = both()
    inputs, _, _ = arrays()
    with pytest.raises(ValueError, match=r"n_heads \(5\) must divide d_model \(12\)"):
        MSDeformAttn(12, 3, 5, 2)
    with pytest.raises(ValueError, match=r"reference_points: expected shape \(N, Lq, L, 2\)"):
        layer(inputs[0], inputs[1][..., :1], inputs[2], SHAPES)
    with pytest.raises(ValueError, match="value: expected shape"):
        layer(*inputs, [(6, 4), (3, 2), (1, 6)])
    with pytest.raises(ValueError, match="expected a last axis of 2 or 4"):
        module(*(torch.from_numpy(value) for value in (inputs[0], inputs[1][..., :1], inputs[2])), torch.tensor(SHAPES))
    assert torch_refs.create("ms_deform_attn").sampling_offsets.out_features == 256


def test_keras_exports_it(tmp_path):
    layer, module = both("float32")
    inputs, _, _ = arrays()
    inputs = [value.astype(np.float32) for value in inputs]
    layer.export(tmp_path, verbose=False)
    served = tf.saved_model.load(tmp_path)
    got = served.serve(*map(tf.constant, inputs), tf.constant(SHAPES, tf.int64))
    assert_allowed([got], truth_of(module, inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 7, 11)}, r"query: expected shape \(N, Lq, C\)"),
        ({"query": (1, 7, 12)}, r"input_flatten: expected shape \(N, S, C\) = \(1, \?, 12\)"),
        ({"reference_points": (2, 7, 1, 2)}, r"reference_points: expected shape \(N, Lq, L, 2\) = \(2, 7, 3, 2\)"),
        ({"reference_points": (1, 7, 3, 4)}, r"reference_points: expected shape \(N, Lq, L, 4\)"),
        ({"reference_points": (2, 7, 3, 3)}, r"reference_points: expected shape \(N, Lq, L, 2\)"),
        ({"input_padding_mask": (2, 1)}, rf"input_padding_mask: expected shape \(N, S\) = \(2, {PIXELS}\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    layer, _ = both("float32")
    shapes = {"query": (2, 7, 12), "reference_points": (2, 7, 3, 2), "input_flatten": (2, PIXELS, 12)} | change
    with pytest.raises(ValueError, match=message):
        layer(**{name: tf.zeros(shape) for name, shape in shapes.items()}, input_spatial_shapes=SHAPES)
