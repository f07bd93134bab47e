"""Segment Anything's prompt encoder on both sides, for every sort of prompt, against segment-anything."""

from copy import deepcopy

import numpy as np
import pytest
import tensorflow as tf
import torch
from segment_anything.modeling import PromptEncoder as UpstreamPromptEncoder

from tests.support.carrying import twin
from tests.support.rule import as_held, assert_allowed, assert_as_exact, assert_same, last
from tests.support.seeded import seeded
from torch_refs.sam.prompt_encoder import build_prompt_encoder

CONFIG = {"image_size": 112, "patch_size": 16, "embed_dim": 24, "mask_in_chans": 16}  # a grid of 7 x 7
SORTS = [
    ("points",),
    ("boxes",),
    ("masks",),
    ("points", "boxes"),
    ("points", "masks"),
    ("boxes", "masks"),
    ("points", "boxes", "masks"),
    (),
]


def prompts(count=5, points=3):
    """Prompts of every sort; some places lie outside the image, and labels are 1, 0, -1 and one unknown."""
    rng = torch.Generator().manual_seed(count * 10 + points)
    labels = torch.randint(-1, 3, (count, points), generator=rng)
    return {
        "points": (140 * torch.rand(count, points, 2, generator=rng) - 10, labels),
        "boxes": 112 * torch.rand(count, 4, generator=rng),
        "masks": torch.randn(count, 1, 28, 28, generator=rng),
    }


def chosen(sorts, given):
    return {name: given[name] for name in sorts}


def double(value):
    if isinstance(value, tuple):
        return tuple(map(double, value))
    return value.double() if value.is_floating_point() else value


def in_float64(module, given):
    """A computation of the module's results in float64."""
    exact, doubled = deepcopy(module).double(), {name: double(value) for name, value in given.items()}
    return lambda: exact(**doubled)


def for_keras(inputs):
    return {
        name: tuple(map(last, value)) if isinstance(value, tuple) else last(value) for name, value in inputs.items()
    }


@pytest.fixture(scope="module")
def reference():
    return seeded(build_prompt_encoder(**CONFIG))


@pytest.fixture(scope="module")
def upstream(reference):
    encoder = UpstreamPromptEncoder(24, (7, 7), (112, 112), 16).eval()
    encoder.load_state_dict(reference.state_dict(), strict=True)
    return encoder.double()


@pytest.fixture(scope="module")
def model(reference):
    return twin("sam_prompt_encoder", CONFIG, reference.state_dict())


def test_the_state_dict_is_upstreams(reference, upstream):
    assert [(name, value.shape) for name, value in reference.state_dict().items()] == [
        (name, value.shape) for name, value in upstream.state_dict().items()
    ]


@pytest.mark.parametrize("sorts", SORTS, ids=lambda sorts: "+".join(sorts) or "nothing")
@pytest.mark.parametrize(("count", "points"), [(5, 3), (1, 1)])
def test_every_sort_of_prompt(reference, upstream, model, sorts, count, points):
    given = chosen(sorts, prompts(count, points))
    doubled = {name: double(value) for name, value in given.items()}
    assert_same(in_float64(reference, given), lambda: upstream(*map(doubled.get, ("points", "boxes", "masks"))))
    tokens = points * ("points" in sorts) + ("points" in sorts and "boxes" not in sorts) + 2 * ("boxes" in sorts)
    results = model(**for_keras(given))
    assert results[0].shape == (count if sorts else 1, tokens, 24)
    assert_as_exact(results, in_float64(reference, given))


def test_the_dense_positions(reference, upstream, model):
    exact = deepcopy(reference).double()
    assert_same(lambda: [exact.get_dense_pe()], lambda: [upstream.get_dense_pe()])
    assert_as_exact([model.get_dense_pe()], lambda: [exact.get_dense_pe()])


def test_one_graph_for_any_number_of_prompts(model, reference):
    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, 2)),
            tf.TensorSpec((None, None), tf.int32),
            tf.TensorSpec((None, 4)),
            tf.TensorSpec((None, 28, 28, 1)),
        ]
    )
    def encode(coords, labels, boxes, masks):
        return model((coords, labels), boxes, masks)

    for count, points in ((5, 3), (1, 0), (2, 7)):
        given = prompts(count, points)
        (coords, labels), boxes, masks = for_keras(given).values()
        assert_as_exact(encode(coords, labels.astype("i4"), boxes, masks), in_float64(reference, given))


def test_compiled(model, reference):
    compiled = tf.function(lambda **prompts: model(**prompts), jit_compile=True)
    given = {
        name: tuple(map(tf.constant, value)) if isinstance(value, tuple) else tf.constant(value)
        for name, value in for_keras(prompts()).items()
    }
    assert_as_exact(compiled(**given), in_float64(reference, prompts()))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_types_tell_pixels_apart(reference, policy):
    """Places are encoded in float32; they and the embeddings are rounded once, and so is the sum."""
    half, dtype = twin("sam_prompt_encoder", CONFIG, reference.state_dict(), dtype=policy), policy[6:]
    held = as_held(reference, dtype)
    for given in (chosen(("points", "boxes"), prompts()), {"boxes": torch.tensor([[110.3, 109.6, 111.9, 107.2]])}):
        result = half(**for_keras(given))[0]
        assert result.dtype == dtype
        with torch.no_grad():
            compute = in_float64(held, given)
            assert_allowed([tf.cast(result, "float64")], lambda: [compute()[0]], dtype, inside="float32")  # noqa: B023
    pe = tf.cast(half.get_dense_pe(), "float64")
    with torch.no_grad():
        assert_allowed([pe], lambda: [last(held.get_dense_pe())], dtype, inside="float32")


def test_it_is_rebuilt_from_its_configuration(model):
    again = type(model).from_config(model.get_config())
    again.build()
    again.set_weights(model.get_weights())
    given = for_keras(prompts())
    for result, expected in zip(again(**given), model(**given), strict=True):
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": (np.zeros((5, 3)), np.zeros((5, 3)))}, "point coordinates have shape"),
        ({"points": (np.zeros((5, 3, 2)), np.zeros((5, 2)))}, r"point labels have shape \(5, 2\); expected \(5, 3\)"),
        ({"boxes": np.zeros((4, 4))}, r"boxes have shape \(4, 4\); expected \(5, 4\)"),
        ({"masks": np.zeros((5, 27, 28, 1))}, "masks have shape"),
    ],
)
def test_shapes_that_do_not_fit(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**for_keras(prompts()), **change})
