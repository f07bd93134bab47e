"""DeformConv2d and DCNv2: the torch references against torchvision, the Keras layers against the references."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
import torchvision

import tf_models
import torch_refs
from converter.families.deform_conv import mapping
from converter.planning.variables import by_path
from tests.support.carrying import carry
from tests.support.judging import channels_first, channels_last
from tests.support.layer_parity import again, assert_equal, tf_results, torch_results
from tests.support.rule import as_held, assert_allowed, assert_same
from tests.support.seeded import seeded
from tf_models.deform_conv.model import DCNv2, DeformConv2d, build_dcn_v2, build_deform_conv2d
from torch_refs.deform_conv.model import DCNv2 as TorchDCNv2
from torch_refs.deform_conv.model import DeformConv2d as TorchDeformConv2d

MAPPING = mapping({})
# name -> (configuration, height and width)
CASES = {
    "as the module has it by default": ({}, (8, 6)),
    "odd sizes at stride 2": ({"stride": 2, "padding": 1}, (7, 9)),
    "even sizes at stride 2": ({"stride": 2, "padding": 1}, (8, 10)),
    "an even kernel": ({"kernel_size": (2, 4), "padding": (1, 2)}, (5, 7)),
    "one tap": ({"kernel_size": 1}, (4, 5)),
    "5x5 at stride 3": ({"kernel_size": 5, "stride": 3, "padding": 2}, (10, 8)),
    "dilated": ({"dilation": (2, 1), "padding": (2, 0), "stride": (1, 2)}, (7, 6)),
    "groups": ({"groups": 2, "offset_groups": 3, "padding": 1}, (5, 6)),
    "v1": ({"modulated": False, "padding": 1}, (6, 5)),
    "v1 in groups": ({"modulated": False, "offset_groups": 2, "groups": 3, "bias": False}, (6, 5)),
    "without bias": ({"bias": False, "padding": 1}, (5, 4)),
}


def case(name, dtype="float64", batch=2):
    config, size = CASES[name]
    config = {"in_channels": 6, "out_channels": 12, **config}
    module = seeded(TorchDeformConv2d(**config)).double()
    layer = build_deform_conv2d(**config, dtype=dtype)
    carry(module.state_dict(), layer, MAPPING)
    rng = np.random.default_rng(0)
    x = 1.5 * rng.standard_normal((batch, *size, 6))
    upstream = rng.standard_normal(layer(tf.constant(x, layer.variable_dtype)).shape)
    return layer, module, x, upstream


def torchs(module, layer, x, upstream):
    return torch_results(module, [x], upstream, layer, MAPPING, channels_first=True)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_torchvisions_module_after_its_convolution(name):
    _, module, x, _ = case(name)
    config, _ = CASES[name]
    geometry = {key: config.get(key, default) for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    upstream = torchvision.ops.DeformConv2d(
        6, 12, config.get("kernel_size", 3), groups=config.get("groups", 1), bias=config.get("bias", True), **geometry
    ).double()
    count = module.conv_offset_mask.out_channels
    offsets = torch.nn.Conv2d(6, count, config.get("kernel_size", 3), **geometry).double()
    state = module.state_dict()
    upstream.load_state_dict({key: state[key] for key in upstream.state_dict()})
    offsets.load_state_dict({key: state[f"conv_offset_mask.{key}"] for key in ("weight", "bias")})
    image = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    with torch.no_grad():
        predicted = offsets(image)
        count = 2 * count // (3 if module.modulated else 2)
        mask = predicted[:, count:].sigmoid() if module.modulated else None
        expected = upstream(image, predicted[:, :count], mask)
        assert torch.equal(module(image), expected)
        assert predicted[:, :count].abs().max() > 3, "samples leave the image"


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_torchs(name):
    layer, module, x, upstream = case(name)
    assert_equal(tf_results(layer, [x], upstream), torchs(module, layer, x, upstream))


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_near_to_the_truth_as_it_can_be(name):
    layer, module, x, upstream = case(name, "float32")
    x, upstream = (value.astype(np.float32).astype(np.float64) for value in (x, upstream))
    module.float().double()  # both sides have the weights in float32
    assert_allowed(
        tf_results(layer, [x], upstream),
        lambda: torchs(module, layer, x, upstream),
    )


@pytest.mark.parametrize("jit", [False, True])
def test_one_trace_serves_all_sizes_and_training(jit):
    layer, module, x, upstream = case("odd sizes at stride 2")
    call = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 6), tf.float64)], jit_compile=jit)
    assert_equal(tf_results(layer, [x], upstream, call), torchs(module, layer, x, upstream))
    other = np.random.default_rng(1).standard_normal((3, 11, 5, 6))
    expected = module(torch.from_numpy(np.moveaxis(other, -1, 1).copy())).detach().movedim(1, -1).numpy()
    assert_equal({"output": call(tf.constant(other)).numpy()}, {"output": expected})


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    layer, module, x, upstream = case("groups", policy)
    half = policy.removeprefix("mixed_")
    x = torch.from_numpy(x).to(getattr(torch, half)).double().numpy()
    module = as_held(module, half)
    output = layer(tf.constant(x, tf.float32))
    assert output.dtype == layer.compute_dtype
    assert {variable.dtype for variable in layer.variables} == {"float32"}
    # Offsets in half precision: the samples move, by a rounding of an offset of a few pixels.
    numbers = tf.cast(output, tf.float64).numpy()
    assert_allowed([numbers], lambda: [torchs(module, layer, x, upstream)["output"]], half)
    assert all(np.isfinite(value).all() for value in tf_results(layer, [x], upstream).values())


def test_a_step_of_training_is_torchs():
    layer, module, x, upstream = case("even sizes at stride 2")
    x, upstream = (value.astype(np.float32) for value in (x, upstream))  # in which Keras hands on what is fitted to
    layer.compile(optimizer=keras.optimizers.SGD(0.125), loss=keras.losses.MeanSquaredError(dtype="float64"))
    layer.fit(x, upstream, batch_size=2, epochs=1, verbose=0)
    image, target = (torch.from_numpy(np.moveaxis(value, -1, 1).copy()).double() for value in (x, upstream))
    optimizer = torch.optim.SGD(module.parameters(), 0.125)
    torch.nn.functional.mse_loss(module(image), target).backward()
    optimizer.step()
    trained = build_deform_conv2d(**layer.get_config() | {"dtype": "float64", "name": "trained"})
    carry(module.state_dict(), trained, MAPPING)
    ours, theirs = ({name: value.numpy() for name, value in by_path(one).items()} for one in (layer, trained))
    assert_equal(ours, theirs)


@pytest.mark.parametrize(("build", "reference"), [(build_deform_conv2d, TorchDeformConv2d), (build_dcn_v2, TorchDCNv2)])
def test_configuration_goes_round_and_a_saved_model_computes_the_same(build, reference, tmp_path):
    config = {
        "in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": 1, "dilation": (2, 1),
        "groups": 2, "offset_groups": 2, "bias": False,
    }  # fmt: skip
    layer, module = build(**config), seeded(reference(**config)).double()
    carry(module.state_dict(), layer, MAPPING)
    x = np.random.default_rng(0).standard_normal((2, 9, 8, 4)).astype(np.float32)
    made = again(layer)
    assert made.get_config() == layer.get_config()
    layer.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(loaded(x), layer(x))
    signature = [tf.TensorSpec((None, None, None, 4), tf.float32)]
    layer.export(tmp_path / "exported", verbose=False, input_signature=signature)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    module.float().double()  # the layer has the weights in float32
    assert_allowed([exported.serve(x)], lambda: [channels_last(module(channels_first(x.astype(np.float64))))])


def test_a_layer_of_a_larger_model():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, keras.layers.ReLU()(DCNv2(3, 5, padding=1)(inputs)))
    assert model(np.ones((2, 6, 7, 3), np.float32)).shape == (2, 6, 7, 5)
    assert len(model.trainable_variables) == 4


def test_a_fresh_dcn_v2_is_half_an_ordinary_convolution():
    layer = build_dcn_v2(in_channels=3, out_channels=4, padding=1)
    x = np.random.default_rng(0).standard_normal((2, 6, 5, 3)).astype(np.float32)
    image = channels_first(x.astype(np.float64))
    kernel = torch.from_numpy(layer.kernel.numpy().transpose(3, 2, 0, 1)).double()

    def half(kernel):
        return torch.nn.functional.conv2d(image, kernel, padding=1) / 2

    assert_allowed([layer(x)], lambda: [channels_last(half(kernel))])
    module = TorchDCNv2(3, 4, padding=1).double()
    assert_same(lambda: [module(image)], lambda: [half(module.weight)])


@pytest.mark.parametrize("name", ["deform_conv2d", "dcn_v2"])
def test_both_sides_start_from_the_same_distributions(name):
    config = {"in_channels": 32, "out_channels": 64, "groups": 2}
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)  # the largest of 54 numbers is another each time
    module, layer = torch_refs.create(name, **config), tf_models.create(name, **config)
    theirs = {path: value.detach().numpy() for path, value in module.named_parameters()}
    ours = {
        "weight": layer.kernel.numpy(),
        "bias": layer.bias.numpy(),
        "conv_offset_mask.weight": layer.conv_offset_mask.kernel.numpy(),
        "conv_offset_mask.bias": layer.conv_offset_mask.bias.numpy(),
    }
    for path, values in theirs.items():
        assert ours[path].size == values.size
        for measure in (np.max, np.min, np.std):
            assert measure(ours[path]) == pytest.approx(measure(values), rel=0.25, abs=1e-9), path


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"groups": 4}, "groups .4. must divide"),
        ({"offset_groups": 4}, "offset_groups .4. in_channels"),
        ({"padding": -1}, "padding"),
        ({"groups": 0}, "groups .0. and offset_groups .1. are at least 1"),
        ({"kernel_size": (3,)}, "kernel_size: expected a whole number from 1, or 2 of them"),
        ({"stride": (1, 0)}, "stride: expected a whole number from 1"),
    ],
)
def test_wrong_sizes(config, message):
    with pytest.raises(ValueError, match=message):
        DeformConv2d(6, 8, **config)
    with pytest.raises(ValueError, match="DCNv2 has masks"):
        DCNv2(3, 4, modulated=False)
    with pytest.raises(ValueError, match="DCNv2 has masks"):
        DCNv2(4, 4, 3, 1, 0, 1, 1, 1, True, False)
    assert DeformConv2d(6, 8, np.int64(5)).kernel_size == (5, 5)


def test_a_batch_of_nothing():
    layer, _, x, _ = case("odd sizes at stride 2")
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])
