"""Segment Anything's image encoder on both sides, against segment-anything, and at sizes it was not trained for."""

from copy import deepcopy

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling.image_encoder import Block as UpstreamBlock
from timm.layers.pos_embed import resample_abs_pos_embed_nhwc

import tf_models
import torch_refs
from converter.mappings.sam_image_encoder import PUBLISHED_IMAGE_ENCODER
from tests.sam_parts import (
    IMAGE_ENCODER,
    assert_as_exact,
    keras_twin,
    last,
    seeded,
    upstream_image_encoder,
)
from tf_models.sam import relative_attention
from torch_refs.sam.image_encoder import Block, ImageEncoderViT, RelativeAttention
from torch_refs.sam.seeded_checkpoint import official_shapes

SIZE = IMAGE_ENCODER["trained_img_size"]


def image(*shape):
    """(B, 3, H, W), seeded."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def reference():
    encoder = ImageEncoderViT(img_size=SIZE, **IMAGE_ENCODER).eval()
    encoder.load_state_dict(seeded(encoder))
    return encoder


@pytest.fixture(scope="module")
def exact(reference):
    return deepcopy(reference).double()


@pytest.fixture(scope="module")
def model(reference):
    return keras_twin("sam_image_encoder", {"image_size": SIZE, **IMAGE_ENCODER}, reference.state_dict())


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_the_state_dict_is_the_official_one(variant):
    with torch.device("meta"):
        state = torch_refs.create(f"sam_{variant}").state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == list(official_shapes(variant).items())


@pytest.mark.parametrize(("dim", "heads"), [(768, 12), (1024, 16), (1280, 16)], ids=["b", "l", "h"])
def test_the_reference_equals_upstream_at_the_published_widths(dim, heads):
    """Two blocks, one in windows of 14 that do not divide the grid of 15, one global."""
    sizes = {
        **IMAGE_ENCODER,
        "patch_size": 16,
        "embed_dim": dim,
        "num_heads": heads,
        "mlp_dim": 4 * dim,
        "depth": 2,
        "window_size": 14,
        "trained_img_size": 240,
    }
    ours, upstream = ImageEncoderViT(img_size=240, **sizes).eval(), upstream_image_encoder(sizes)
    state = seeded(upstream)
    for encoder in (ours, upstream):
        encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        got, want = ours(image(1, 3, 240, 240)), upstream(image(1, 3, 240, 240))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert want.std() > 0.5


@pytest.mark.slow
def test_the_reference_equals_upstream_in_full():
    ours = torch_refs.create("sam_image_encoder")
    upstream = sam_model_registry["vit_b"]().image_encoder.eval()
    state = seeded(upstream)
    for encoder in (ours, upstream):
        encoder.load_state_dict(state, strict=True)
    with torch.inference_mode():
        got, want = ours(image(1, 3, 1024, 1024)), upstream(image(1, 3, 1024, 1024))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    model = keras_twin("sam_image_encoder", PUBLISHED_IMAGE_ENCODER, state)
    np.testing.assert_allclose(tf.function(model)(last(image(1, 3, 1024, 1024))), last(want), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 5), (4, 9), (10, 10), (13, 3)])
@pytest.mark.parametrize("window", [0, 4])
def test_a_block_of_another_size_equals_upstreams(size, window):
    """Upstream's blocks resize the relative positions themselves; only its absolute ones are of one size."""
    ours = Block(48, 4, 96, window, window or 10).eval()
    norm = lambda dim: torch.nn.LayerNorm(dim, eps=1e-6)  # noqa: E731
    upstream = UpstreamBlock(48, 4, 2.0, norm_layer=norm, use_rel_pos=True, window_size=window, input_size=(10, 10))
    state = seeded(ours)
    for block in (ours, upstream.eval()):
        block.load_state_dict(state, strict=True)
    x = torch.randn(2, *size, 48, generator=torch.Generator().manual_seed(size[0]))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), upstream(x), rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [(96, 56), (40, 120)])
def test_absolute_positions_are_resized_bicubically(reference, size):
    """Upstream with its positions resized by another library equals the reference as it is."""
    upstream = upstream_image_encoder()
    upstream.load_state_dict(reference.state_dict())
    grid = [side // IMAGE_ENCODER["patch_size"] for side in size]
    resized = resample_abs_pos_embed_nhwc(upstream.pos_embed.data, grid, antialias=False)
    upstream.pos_embed = torch.nn.Parameter(resized)
    with torch.inference_mode():
        torch.testing.assert_close(reference(image(1, 3, *size)), upstream(image(1, 3, *size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, SIZE, SIZE), (2, 3, 48, 64), (1, 3, 8, 120), (3, 3, 32, 32)])
def test_tensorflow_against_the_reference(model, reference, exact, shape):
    given = image(*shape)
    assert_as_exact([model(last(given))], lambda: [exact(given.double())])
    with torch.inference_mode():
        assert reference(given).std() > 0.5


def test_attention_in_pieces_equals_attention_at_once(model, exact, monkeypatch):
    """Pieces that do not divide the rows, in a graph and compiled."""
    given = image(2, 3, 88, 56)
    monkeypatch.setattr(relative_attention, "_SCORES", 77 * 7 * 3)
    for jit_compile in (False, True):
        function = tf.function(model, jit_compile=jit_compile)
        assert_as_exact([function(tf.constant(last(given)))], lambda: [exact(given.double())])


def test_a_graph_for_images_of_unknown_number_and_size(model):
    function = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, None))])
    for count in (1, 3):
        x = last(image(count, 3, SIZE, SIZE))
        np.testing.assert_allclose(function(x), model(x), rtol=0, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(last(image(1, 3, 48, 64)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(model, reference, policy):
    state, x = reference.state_dict(), last(image(1, 3, 48, 64))
    other = keras_twin("sam_image_encoder", {"image_size": SIZE, **IMAGE_ENCODER}, state, dtype=policy)
    result, expected = other(x), model(x)
    assert result.dtype == keras.DTypePolicy(policy).compute_dtype
    # Half types round 2^-11 and 2^-8 of a value at each of some twenty layers.
    tolerance = {"mixed_float16": 0.02, "mixed_bfloat16": 0.15, "float64": 1e-5}[policy]
    np.testing.assert_allclose(tf.cast(result, "float32"), expected, rtol=0, atol=tolerance)


def test_it_is_rebuilt_from_its_configuration(model):
    again = type(model).from_config(model.get_config())
    again.build()
    again.set_weights(model.get_weights())
    x = last(image(1, 3, SIZE, SIZE))
    np.testing.assert_array_equal(again(x), model(x))


def test_it_is_exported(model, tmp_path):
    function = tf.function(model, input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3))])
    module = tf.Module()
    module.model, module.call = model, function
    tf.saved_model.save(module, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    x = tf.constant(last(image(2, 3, SIZE, SIZE)))
    np.testing.assert_allclose(loaded.call(x), model(x), rtol=0, atol=1e-5)


def test_errors(model):
    for shape in ((1, SIZE, SIZE + 1, 3), (1, SIZE, SIZE, 4), (SIZE, SIZE, 3)):
        with pytest.raises(ValueError, match="multiples of 8"):
            model(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="num_heads"):
        RelativeAttention(48, 5, 4)
    with pytest.raises(ValueError, match="num_heads"):
        relative_attention.RelativeAttention(48, 5, 4)


def test_the_defaults_are_vit_bs():
    assert tf_models.create("sam_image_encoder").count_params() == sum(
        int(np.prod(shape)) for name, shape in official_shapes("vit_b").items() if name.startswith("image_encoder.")
    )
