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
from converter.families.sam.image_encoder import PUBLISHED_IMAGE_ENCODER
from converter.torch_side.rounded import Exact, exactly
from tests.support.carrying import twin
from tests.support.rule import as_held, assert_allowed, assert_as_exact, assert_same, last
from tests.support.seeded import seeded
from tests.support.small_sam import IMAGE_ENCODER, upstream_image_encoder
from tf_models.sam import relative_attention
from torch_refs.sam.image_encoder import Block, ImageEncoderViT, RelativeAttention
from torch_refs.sam.seeded_checkpoint import official_shapes

SIZE = IMAGE_ENCODER["trained_img_size"]


def image(*shape):
    """(B, 3, H, W), seeded."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def reference():
    return seeded(ImageEncoderViT(img_size=SIZE, **IMAGE_ENCODER))


@pytest.fixture(scope="module")
def exact(reference):
    return deepcopy(reference).double()


@pytest.fixture(scope="module")
def model(reference):
    return twin("sam_image_encoder", {"image_size": SIZE, **IMAGE_ENCODER}, reference.state_dict())


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
    state = seeded(upstream).state_dict()
    for encoder in (ours, upstream):
        encoder.load_state_dict(state, strict=True)
        encoder.double()
    x = image(1, 3, 240, 240).double()
    assert_same(lambda: [ours(x)], lambda: [upstream(x)])
    with torch.inference_mode():
        assert upstream(x).std() > 0.5


@pytest.mark.slow
def test_the_reference_equals_upstream_in_full():
    ours = torch_refs.create("sam_image_encoder")
    upstream = sam_model_registry["vit_b"]().image_encoder.eval()
    state = seeded(upstream).state_dict()
    for encoder in (ours, upstream):
        encoder.load_state_dict(state, strict=True)
        encoder.double()
    x = image(1, 3, 1024, 1024).double()
    assert_same(lambda: [ours(x)], lambda: [upstream(x)])
    model = twin("sam_image_encoder", PUBLISHED_IMAGE_ENCODER, state)
    assert_as_exact([tf.function(model)(last(x.float()))], lambda: [upstream(x)])


@pytest.mark.parametrize("size", [(7, 5), (4, 9), (10, 10), (13, 3)])
@pytest.mark.parametrize("window", [0, 4])
def test_a_block_of_another_size_equals_upstreams(size, window):
    """Upstream's blocks resize the relative positions themselves; only its absolute ones are of one size."""
    ours = Block(48, 4, 96, window, window or 10).eval()
    norm = lambda dim: torch.nn.LayerNorm(dim, eps=1e-6)  # noqa: E731
    upstream = UpstreamBlock(48, 4, 2.0, norm_layer=norm, use_rel_pos=True, window_size=window, input_size=(10, 10))
    state = seeded(ours).state_dict()
    for block in (ours, upstream.eval()):
        block.load_state_dict(state, strict=True)
        block.double()
    x = torch.randn(2, *size, 48, generator=torch.Generator().manual_seed(size[0])).double()
    assert_same(lambda: [ours(x)], lambda: [upstream(x)])


@pytest.mark.parametrize("size", [(96, 56), (40, 120)])
def test_absolute_positions_are_resized_bicubically(reference, exact, size):
    """Upstream with its positions resized by another library equals the reference as it is."""
    upstream = upstream_image_encoder().double()
    upstream.load_state_dict(reference.state_dict())
    grid = [side // IMAGE_ENCODER["patch_size"] for side in size]
    # In float64: it resizes in float32 and casts back, whatever it is given.
    with exactly(Exact()):
        resized = resample_abs_pos_embed_nhwc(upstream.pos_embed.data, grid, antialias=False)
    upstream.pos_embed = torch.nn.Parameter(resized)
    x = image(1, 3, *size).double()
    assert_same(lambda: [exact(x)], lambda: [upstream(x)])


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


def test_a_graph_for_images_of_unknown_number_and_size(model, exact):
    function = tf.function(model, input_signature=[tf.TensorSpec((None, None, None, None))])
    for count in (1, 3):
        x = image(count, 3, SIZE, SIZE)
        assert_as_exact([function(last(x))], lambda: [exact(x.double())])  # noqa: B023
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(last(image(1, 3, 48, 64)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(reference, exact, policy):
    state, x = reference.state_dict(), image(1, 3, 48, 64)
    other = twin("sam_image_encoder", {"image_size": SIZE, **IMAGE_ENCODER}, state, dtype=policy)
    result = other(last(x))
    dtype = keras.DTypePolicy(policy).compute_dtype
    assert result.dtype == dtype
    result = tf.cast(result, "float64")
    if dtype == "float64":  # no worse than float32, in which Keras computes some of it
        assert_as_exact([result], lambda: [exact(x.double())])
    else:
        half = x.to(getattr(torch, dtype)).double()
        held = as_held(reference, dtype)
        assert_as_exact([result], lambda: [held(half)], dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_step_by_step(reference, dtype):
    """Each step given what the one before it made: what the whole may be off by hides positions left out."""
    config = {"image_size": SIZE, **IMAGE_ENCODER}
    half = twin("sam_image_encoder", config, reference.state_dict(), dtype=f"mixed_{dtype}")
    held = as_held(reference, dtype)

    def check(result, compute):
        with torch.no_grad():
            assert_allowed([tf.cast(result, "float64")], lambda: [compute()], dtype)
        return result, torch.from_numpy(tf.cast(result, "float64").numpy())

    given = image(2, 3, SIZE, SIZE).to(getattr(torch, dtype)).double()
    x = half.patch_embed(tf.cast(last(given), dtype)) + tf.cast(half.pos_embed, dtype)
    x, exact = check(x, lambda: held.patch_embed(given).movedim(1, -1) + held.pos_embed)
    for ours, block in zip(half.blocks, held.blocks, strict=True):
        x, exact = check(ours(x), lambda: block(exact))  # noqa: B023
    for layer in half.neck:
        x = layer(x)
    check(x, lambda: held.neck(exact.movedim(-1, 1)).movedim(1, -1))
    whole = half(tf.cast(last(given), dtype))
    np.testing.assert_array_equal(tf.cast(whole, "float32"), tf.cast(x, "float32"))


def test_it_is_rebuilt_from_its_configuration(model):
    again = type(model).from_config(model.get_config())
    again.build()
    again.set_weights(model.get_weights())
    x = last(image(1, 3, SIZE, SIZE))
    np.testing.assert_array_equal(again(x), model(x))


def test_it_is_exported(model, exact, tmp_path):
    function = tf.function(model, input_signature=[tf.TensorSpec((None, SIZE, SIZE, 3))])
    module = tf.Module()
    module.model, module.call = model, function
    tf.saved_model.save(module, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    x = image(2, 3, SIZE, SIZE)
    assert_as_exact([loaded.call(tf.constant(last(x)))], lambda: [exact(x.double())])


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
