"""The TensorFlow deformable attention against torch's: outputs, gradients, precisions, compilation, export."""

import copy
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import tf_models
import torch_refs
from converter.pairs.registry import get
from converter.planning.variables import by_path
from tests.support.carrying import laid_out, twin
from tests.support.deformable import OTHER, SMALL, SPATIAL, VARIANTS, defined, inputs, reference, upstream
from tests.support.rule import as_held, assert_allowed
from tf_models.deformable_attention import model as attention

AXES = [1, 2, 3]
# Where a case takes long, images stand for all three by default.
IMAGES_FIRST = [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.detach().numpy(), 1, -1))


def carried(axes: int, module, dtype="float32", **more):
    """The Keras model with the module's weights."""
    return twin(f"deformable_attention_{axes}d", {**SMALL[axes], **more}, module.state_dict(), dtype=dtype)


def by_torch(axes: int, module, model, tensors) -> dict[str, np.ndarray]:
    """Attribute path -> array, of tensors in place of the module's own, as the model lays those out."""
    return laid_out(module.state_dict() | tensors, model, get(f"deformable_attention_{axes}d").mapping(SMALL[axes]))


def trained(model) -> list[str]:
    """Attribute paths of the trained variables, in the model's order."""
    paths = {id(variable): path for path, variable in by_path(model).items()}
    return [paths[id(variable)] for variable in model.trainable_variables]


def truth_of(module, x):
    """A computation of torch's (output, vgrid) in float64, channels last."""
    double = copy.deepcopy(module).double()

    def compute():
        with torch.no_grad():
            results = double(x.double(), return_vgrid=True)
        return [channels_last(t) if t.ndim > 2 else t.numpy() for t in results]

    return compute


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("changed", [False, True])
def test_outputs(axes, changed):
    more = OTHER[axes] if changed else {}
    module, x = reference(axes, upstream(axes, **more), **more), inputs(axes)
    model = carried(axes, module, **more)
    got = model(channels_last(x), return_vgrid=True)
    assert_allowed(got, truth_of(module, x))
    truth = truth_of(module, x)()
    cells = np.array(truth[1].shape[1:4][:axes])
    vgrid = truth[1] if axes > 1 else truth[1][..., None]
    assert ((vgrid < -0.5) | (vgrid > cells - 0.5)).any(-1).mean() > 0.2, "few samples leave the image"
    np.testing.assert_array_equal(model(channels_last(x)), got[0])


@pytest.mark.parametrize(("axes", "variant"), [(axes, variant) for axes in (1, 2) for variant in VARIANTS[axes][1:]])
def test_grids_of_older_releases(axes, variant):
    module, spatial = upstream(axes), (13, 14) if variant == "xy_hw" else SPATIAL[axes]
    x = inputs(axes, spatial=spatial)
    model = carried(axes, module, "float64", grid_variant=variant)
    want = np.moveaxis(defined(module, x, variant), 1, -1)
    np.testing.assert_allclose(model(channels_last(x.double())), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", AXES)
def test_chunks_of_the_position_bias_make_no_difference(axes, monkeypatch):
    module, x = upstream(axes), channels_last(inputs(axes).double())
    model = carried(axes, module, "float64")
    whole, d_whole = gradients(model, x)
    monkeypatch.setattr(attention, "_CHUNK", 100 * 3)  # rows of three hidden numbers; the last chunk is not full
    pieces, d_pieces = gradients(model, x)
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-13)
    for a, b in zip(d_pieces, d_whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def gradients(model, x):
    """The output, and the gradients to `x` and every trained variable of the sum of squares."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        output = model(x)
        loss = tf.reduce_sum(output**2)
    return output, tape.gradient(loss, [x, *(v.value for v in model.trainable_variables)])


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("changed", [False, True])
def test_gradients_are_torchs(axes, changed):
    """In float64, where only a wrong formula makes a difference."""
    more = OTHER[axes] if changed else {}
    module = reference(axes, upstream(axes, **more), **more).double()
    x = inputs(axes).double().requires_grad_()
    model = carried(axes, module, "float64", **more)
    module(x).square().sum().backward()
    _, (d_x, *d_variables) = gradients(model, channels_last(x))
    np.testing.assert_allclose(d_x, channels_last(x.grad), rtol=1e-9, atol=1e-9)
    wanted = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert len(wanted) == len(d_variables)
    wanted = by_torch(axes, module, model, wanted)
    for path, gradient in zip(trained(model), d_variables, strict=True):
        np.testing.assert_allclose(gradient, wanted[path], rtol=1e-9, atol=1e-9, err_msg=path)


@pytest.mark.parametrize("axes", IMAGES_FIRST)
@pytest.mark.parametrize("jit", [False, True])
def test_compiled_outputs_and_gradients(axes, jit, monkeypatch):
    monkeypatch.setattr(attention, "_CHUNK", 2000 * 3)
    module, x = reference(axes, upstream(axes)), inputs(axes)
    model = carried(axes, module)
    step = tf.function(lambda x: gradients(model, x), jit_compile=jit, autograph=False)
    output, got = step(channels_last(x))
    names = trained(model)
    double = copy.deepcopy(module).double()

    def compute():
        image = x.double().requires_grad_()
        result = double(image)
        found = torch.autograd.grad(result.square().sum(), [image, *double.parameters()])
        wanted = dict(zip((name for name, _ in double.named_parameters()), found[1:], strict=True))
        wanted = by_torch(axes, double, model, wanted)
        return {"output": channels_last(result), "x": channels_last(found[0]), **{path: wanted[path] for path in names}}

    assert_allowed({"output": output, **dict(zip(("x", *names), got, strict=True))}, compute)


@pytest.mark.parametrize("axes", AXES)
def test_one_trace_serves_all_sizes(axes):
    module = reference(axes, upstream(axes))
    model = carried(axes, module)
    shape = (None,) * (axes + 1)
    call = tf.function(model, input_signature=[tf.TensorSpec((*shape, 12))])
    for spatial in (SPATIAL[axes], tuple(n + 4 for n in SPATIAL[axes])):
        x = inputs(axes, 3, spatial)
        compute = truth_of(module, x)
        assert_allowed([call(channels_last(x))], lambda: compute()[:1])  # noqa: B023
    assert call(tf.zeros((0, *SPATIAL[axes], 12))).shape == (0, *SPATIAL[axes], 12)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(axes, policy):
    """As near to float64 as the half type allows; positions are never rounded to it."""
    half = policy.removeprefix("mixed_")
    module, x = reference(axes, upstream(axes)), inputs(axes)
    model = carried(axes, module, policy)
    held = as_held(module, half)
    compute = truth_of(held, x.to(getattr(torch, half)))
    output, vgrid = model(channels_last(x), return_vgrid=True)
    assert output.dtype == half
    assert vgrid.dtype == tf.float32
    assert_allowed([tf.cast(output, tf.float64)], lambda: compute()[:1], half)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.cast(model(channels_last(x)), tf.float32) ** 2)
    got = tape.gradient(loss, model.trainable_variables)
    assert all(g is not None and np.isfinite(g).all() for g in got)


@pytest.mark.parametrize("axes", AXES)
def test_it_is_rebuilt_from_its_configuration(axes, tmp_path):
    model = carried(axes, upstream(axes), **({"grid_variant": VARIANTS[axes][1]} if axes < 3 else {}))
    x = channels_last(inputs(axes, spatial=(13, 14) if axes == 2 else None))
    again = type(model).from_config(model.get_config())
    again.build(x.shape)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(x), model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.grid_variant == model.grid_variant
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize("axes", IMAGES_FIRST)
def test_export(axes, tmp_path):
    module, image = reference(axes, upstream(axes)), inputs(axes)
    model, x = carried(axes, module), channels_last(image)
    shape = (None,) * (axes + 1)
    model.export(
        str(tmp_path / "saved"), input_signature=[keras.InputSpec(shape=(*shape, 12), dtype="float32")], verbose=False
    )
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    compute = truth_of(module, image)
    assert_allowed([saved.serve(x)], lambda: compute()[:1])


@pytest.mark.parametrize("axes", AXES)
def test_initial_values_are_drawn_as_torch_draws_them(axes):
    """Both sides draw from the same intervals: the largest of many numbers is close under the bound, and none above."""
    sizes = SMALL[axes] | {"dim": 96, "dim_head": 64, "heads": 6}
    model = tf_models.create(f"deformable_attention_{axes}d", **sizes)
    module = torch_refs.create(f"deformable_attention_{axes}d", **sizes)

    def bound(name):
        """1 / sqrt(fan in), of the weight and of the bias beside it."""
        return 1 / math.sqrt(math.prod(module.get_parameter(f"{name.rpartition('.')[0]}.weight").shape[1:]))

    bounds = {name: torch.full_like(value, bound(name)) for name, value in module.named_parameters()}
    theirs, bounds = by_torch(axes, module, model, {}), by_torch(axes, module, model, bounds)
    for path, variable in by_path(model).items():
        got, want = np.abs(variable.numpy()), np.abs(theirs[path])
        if path.endswith(".scale"):
            np.testing.assert_array_equal(got, want)
            continue
        assert (want <= bounds[path] * (1 + 1e-6)).all()
        assert (got <= bounds[path] * (1 + 1e-6)).all()
        assert got.max() > bounds[path].max() * (1 - 10 / got.size), path


def test_dropout_is_of_the_attention_and_in_training_only():
    module, x = upstream(2, dropout=0.4), channels_last(inputs(2))
    model = carried(2, module, dropout=0.4)
    np.testing.assert_array_equal(model(x), carried(2, module)(x))
    keras.utils.set_random_seed(0)
    seen = []
    model.dropout.call = lambda attention, training=False: seen.append((attention.shape, training)) or attention
    model(x, training=True)
    assert seen == [((2, 6, 13 * 18, 4 * 6), True)]
    fresh = carried(2, module, dropout=0.4)
    many = np.mean([fresh(x, training=True) for _ in range(60)], 0)
    spread = np.abs(fresh(x, training=True) - fresh(x)).mean()
    assert spread > 0
    assert np.abs(many - fresh(x)).mean() < 0.4 * spread, "what is kept is not scaled up"


def test_it_trains():
    keras.utils.set_random_seed(0)
    model = tf_models.create("deformable_attention_2d", **SMALL[2])
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    x = channels_last(inputs(2, 4))
    target = np.roll(x, 2, 2)
    losses = model.fit(x, target, epochs=8, batch_size=2, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="grid_variant is one of xy_wh, xy_hw, ij_hw, not 'ij'"):
        attention.DeformableAttention2D(12, grid_variant="ij")
    with pytest.raises(ValueError, match=r"offset_groups \(4\) does not divide heads \(6\)"):
        attention.DeformableAttention2D(12, heads=6, offset_groups=4)
    with pytest.raises(ValueError, match=r"offset_kernel_size .* an even number more"):
        attention.DeformableAttention1D(12, downsample_factor=3)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 12\); expected \(B, H, W, 12\)"):
        carried(2, upstream(2))(np.zeros((2, 5, 12), np.float32))
