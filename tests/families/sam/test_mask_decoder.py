"""The TensorFlow SAM mask decoder, against the torch reference in float64."""

import json
import subprocess
import sys
from copy import deepcopy

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import tf_models
from converter import Mapping, Row
from converter.families.sam.mask_decoder import decoder_mapping
from converter.kinds import CONV_TRANSPOSE_2D, DENSE
from converter.planning.variables import by_path, layer_at
from tests.support.carrying import alone, carry, laid_out
from tests.support.rule import as_held, assert_allowed, last
from tests.support.seeded import seeded
from tests.support.small_sam import OTHER_DECODER, decoder_inputs
from tf_models.layers import GELU, MLP, LayerNorm, PatchConv2DTranspose
from tf_models.sam.attention import ImageToTokenAttention, TokenToImageAttention
from tf_models.sam.mask_decoder import MaskDecoder, build_mask_decoder
from torch_refs.sam.attention import Attention as TorchAttention
from torch_refs.sam.mask_decoder import build_mask_decoder as build_torch

TINY = OTHER_DECODER | {"depth": 1, "num_multimask_outputs": 1, "iou_head_depth": 1}  # XLA compiles for seconds
# prompts, height, width, tokens. The attentions have one way for a few tokens and one for many: both are here.
SHAPES = [(1, 7, 5, 2), (5, 3, 8, 0), (3, 6, 4, 30)]


def outputs(compute) -> list[np.ndarray]:
    """What a torch computation gives, one or several, channels last."""
    with torch.inference_mode():
        results = compute()
    return [last(one) for one in (results if isinstance(results, tuple) else (results,))]


def doubled(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.double() for tensor in tensors]


class Case:
    """A torch decoder in float32 and float64 and the Keras model with the same weights."""

    def __init__(self, config: dict[str, int]) -> None:
        self.config = config
        self.torch = seeded(build_torch(**config))
        self.double = deepcopy(self.torch).double()
        self.model = build_mask_decoder(**config)
        carry(self.torch.state_dict(), self.model, decoder_mapping(self.model.get_config()))
        self.c = self.model.transformer_dim

    def check(self, call, args: list[torch.Tensor], multimask_output: bool = True) -> None:
        got = call(*map(last, args), multimask_output=multimask_output)
        self.judge(got, args, multimask_output)

    def judge(self, got, args: list[torch.Tensor], multimask_output: bool = True) -> None:
        """(masks, iou) are as near to the truth as the proof's rule demands."""
        ours = dict(zip(("masks", "iou"), got, strict=True))
        truth = lambda: outputs(lambda: self.double(*doubled(*args), multimask_output))  # noqa: E731
        assert_allowed(ours, lambda: dict(zip(("masks", "iou"), truth(), strict=True)))


@pytest.fixture(scope="module")
def sam():
    return Case({})


@pytest.fixture(scope="module")
def small():
    return Case(OTHER_DECODER)


@pytest.fixture(scope="module")
def tiny():
    return Case(TINY)


@pytest.fixture(scope="module", params=["sam", "small"])
def case(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eager_outputs(case, shape, multimask_output):
    args = decoder_inputs(case.c, *shape)
    case.check(case.model, args, multimask_output)
    masks, iou = case.model(*map(last, args), multimask_output=multimask_output)
    k = case.model.sizes["num_multimask_outputs"] if multimask_output else 1
    assert masks.shape == (shape[0], 4 * shape[1], 4 * shape[2], k)
    assert iou.shape == (shape[0], k)


def test_function_outputs(case):
    call = tf.function(case.model)
    case.check(call, decoder_inputs(case.c, *SHAPES[0]))
    case.check(call, decoder_inputs(case.c, *SHAPES[2]), multimask_output=False)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_jitted_outputs(tiny, shape):
    tiny.check(tf.function(tiny.model, jit_compile=True), decoder_inputs(tiny.c, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_jitted_outputs_at_sams_sizes(sam, shape):
    sam.check(tf.function(sam.model, jit_compile=True), decoder_inputs(sam.c, *shape))


@pytest.mark.parametrize("jit", [False, True])
def test_one_trace_serves_all_sizes(tiny, jit):
    c, traces = tiny.c, 0

    def counted(*args):
        nonlocal traces
        traces += 1
        return tiny.model(*args)

    shapes = [(None, None, None, c), (None, None, None, c), (None, None, c), (None, None, None, c)]
    call = tf.function(counted, input_signature=[tf.TensorSpec(shape) for shape in shapes], jit_compile=jit)
    for shape in SHAPES[1:]:
        tiny.check(lambda *args, multimask_output: call(*args), decoder_inputs(c, *shape))
    assert traces == 1


def test_official_sizes(sam):
    sam.check(tf.function(sam.model), decoder_inputs(256, 1, 64, 64, 2))


def test_every_layer_given_what_torchs_module_received(case):
    received: dict[str, tuple] = {}

    def record(name):
        def hook(module, args, output):
            received[name] = args

        return hook

    args = decoder_inputs(case.c, 3, 6, 5, 2)
    handles = [module.register_forward_hook(record(name)) for name, module in case.torch.named_modules() if name]
    with torch.inference_mode():
        case.torch(*args)
    for handle in handles:
        handle.remove()
    containers = {"output_upscaling"}  # a list on the Keras side: its members are proven
    assert {"output_upscaling.2", "output_upscaling.4", "transformer.layers.1.mlp.act"} < received.keys()
    for name in received.keys() - containers:
        module, layer, layer_args = case.double.get_submodule(name), layer_at(case.model, name), received[name]
        got = layer(*map(last, layer_args))
        truth = lambda: outputs(lambda: module(*doubled(*layer_args)))  # noqa: B023, E731
        try:
            assert_allowed(got if isinstance(got, tuple) else (got,), truth)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("tokens", [1, 8, 9, 40])
@pytest.mark.parametrize("layer_class", [TokenToImageAttention, ImageToTokenAttention])
def test_both_ways_of_an_attention(layer_class, tokens):
    module = TorchAttention(32, 4, 1).eval()
    layer = layer_class(32, 4, 1)
    layer.build()
    carry(module.state_dict(), layer, Mapping([Row("{q,k,v,out}_proj", DENSE)]))
    few, many = torch.randn(2, tokens, 32), torch.randn(2, 50, 32)
    args = (few, many, torch.randn(2, 50, 32)) if layer_class is TokenToImageAttention else (many, few, few + 1)
    assert bool(layer._is_few(few)) == (tokens <= 8)
    module.double()
    assert_allowed([layer(*map(last, args))], lambda: outputs(lambda: module(*doubled(*args))))


def test_an_image_per_prompt_and_one_dense_embedding_for_all(small):
    image, pe, sparse, dense = decoder_inputs(32, 3, 5, 4, 2)
    images = torch.randn(3, 32, 5, 4)
    small.check(small.model, [images, pe, sparse, dense])
    small.check(small.model, [image, pe, sparse, dense[:1]])
    small.check(small.model, [images, pe, sparse, dense[:1]])


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("prompts", [8, 9])
def test_many_prompts_are_decoded_in_groups(small, prompts, multimask_output):
    image, pe, sparse, dense = decoder_inputs(32, prompts, 5, 4, 2)
    images = torch.randn(prompts, 32, 5, 4)
    for args in ([image, pe, sparse, dense], [images, pe, sparse, dense], [image, pe, sparse, dense[:1]]):
        small.check(small.model, args, multimask_output)
    small.check(tf.function(small.model), [images, pe, sparse, dense], multimask_output)


@pytest.mark.parametrize("prompts", [3, 9])
def test_gradients_of_every_variable_are_torchs(prompts):
    """In float64, where only a wrong formula makes a difference; the loss weighs each output by its own factor."""
    args = decoder_inputs(32, prompts, 6, 5, 2)
    module = seeded(build_torch(**OTHER_DECODER)).double()
    model = build_mask_decoder(**OTHER_DECODER, dtype="float64")
    carry(module.state_dict(), model, decoder_mapping(OTHER_DECODER))
    outputs = module(*(arg.double() for arg in args))
    factors = [torch.randn(output.shape, dtype=torch.float64) for output in outputs]
    sum((factor * output).sum() for factor, output in zip(factors, outputs, strict=True)).backward()
    with tf.GradientTape() as tape:
        outputs = model(*(last(arg.double()) for arg in args))
        factors = [last(factor) for factor in factors]
        loss = sum(tf.reduce_sum(factor * output) for factor, output in zip(factors, outputs, strict=True))
    gradients = tape.gradient(loss, {path: variable.value for path, variable in by_path(model).items()})
    wanted = {name: parameter.grad for name, parameter in module.named_parameters()}
    for path, want in laid_out(wanted, model, decoder_mapping(OTHER_DECODER)).items():
        assert gradients[path] is not None, path
        np.testing.assert_allclose(gradients[path], want, rtol=1e-9, atol=1e-9, err_msg=path)


def test_gradients_under_jit(tiny):
    given = decoder_inputs(32, 2, 5, 4, 2)
    args = [tf.constant(last(arg)) for arg in given]

    def gradients():
        with tf.GradientTape() as tape:
            masks, iou = tiny.model(*args)
            loss = tf.reduce_sum(masks**2) + tf.reduce_sum(iou**2)
        return tape.gradient(loss, {path: variable.value for path, variable in by_path(tiny.model).items()})

    def compute():
        masks, iou = tiny.double(*doubled(*given))
        named = dict(tiny.double.named_parameters())
        found = torch.autograd.grad(masks.square().sum() + iou.square().sum(), list(named.values()))
        return laid_out(dict(zip(named, found, strict=True)), tiny.model, decoder_mapping(TINY))

    for function in (gradients, tf.function(gradients, jit_compile=True)):
        assert_allowed(function(), compute)


def test_mixed_float16(sam):
    half = build_mask_decoder(dtype="mixed_float16")
    carry(sam.torch.state_dict(), half, decoder_mapping(half.get_config()))
    assert {variable.dtype for variable in half.variables} == {"float32"}
    args = [arg.half().float() for arg in decoder_inputs(256, 2, 9, 7, 2)]
    got, held = half(*map(last, args)), as_held(sam.torch, "float16")
    assert all(one.dtype == tf.float16 for one in got)
    assert_allowed(got, lambda: outputs(lambda: held(*doubled(*args))), "float16")


def test_float64(small):
    model = build_mask_decoder(**OTHER_DECODER, dtype="float64")
    carry(small.double.state_dict(), model, decoder_mapping(OTHER_DECODER))
    args = [arg.double() for arg in decoder_inputs(32, 2, 4, 5, 3)]
    with torch.inference_mode():
        truth = small.double(*args)
    for got, want in zip(model(*map(last, args)), truth, strict=True):
        np.testing.assert_allclose(got, last(want), rtol=0, atol=1e-12)


SERVE = """
import json, sys
import numpy as np
import tensorflow as tf
served = tf.saved_model.load("exported")
arrays = np.load("args.npz")
for index in range(2):
    masks, iou = served.serve(*(tf.constant(arrays[f"{index}_{i}"]) for i in range(4)))
    np.savez(f"served{index}.npz", masks=masks.numpy(), iou=iou.numpy())
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] in ("tf_models", "keras", "torch"))))
"""


def test_exported_model_is_served_without_this_package(tiny, tmp_path):
    calls = [decoder_inputs(32, *shape) for shape in ((2, 5, 4, 3), (3, 4, 6, 0))]
    tiny.model(*map(last, calls[0]))  # Keras exports what was called
    tiny.model.export(str(tmp_path / "exported"), verbose=False)
    arrays = {f"{index}_{i}": array for index, args in enumerate(calls) for i, array in enumerate(map(last, args))}
    np.savez(tmp_path / "args.npz", **arrays)
    done = subprocess.run([sys.executable, "-c", SERVE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith(("tf_models", "torch")) for name in json.loads(done.stdout))
    for index, args in enumerate(calls):
        served = np.load(tmp_path / f"served{index}.npz")
        tiny.judge((served["masks"], served["iou"]), args)


def test_keras_file_round_trip(small, tmp_path):
    small.model.save(tmp_path / "decoder.keras")
    loaded = keras.saving.load_model(tmp_path / "decoder.keras")
    assert isinstance(loaded, MaskDecoder)
    assert len(loaded.variables) == len(small.model.variables)
    args = [last(arg) for arg in decoder_inputs(32, 2, 5, 4, 2)]
    for got, want in zip(loaded(*args), small.model(*args), strict=True):
        np.testing.assert_array_equal(got, want)


def test_weights_file_round_trip(small, tmp_path):
    small.model.save_weights(tmp_path / "decoder.weights.h5")
    fresh = build_mask_decoder(**OTHER_DECODER)
    fresh.load_weights(tmp_path / "decoder.weights.h5")
    for got, want in zip(fresh.variables, small.model.variables, strict=True):
        assert got.path.split("/")[-1] == want.path.split("/")[-1]
        np.testing.assert_array_equal(got, want)


def test_config_round_trip():
    model = build_mask_decoder(**OTHER_DECODER, dtype="mixed_float16", name="decoder")
    config = model.get_config()
    assert config.items() >= OTHER_DECODER.items()
    json.dumps(keras.saving.serialize_keras_object(model))
    assert MaskDecoder.from_config(config).get_config() == config


@pytest.mark.parametrize("layer", [MLP(5, 6, 7, 3), LayerNorm(epsilon=1e-6), PatchConv2DTranspose(3, (2, 2)), GELU()])
def test_layers_round_trip_through_their_configs(layer):
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(clone) is type(layer)
    assert clone.get_config() == layer.get_config()


def test_building_makes_every_variable_and_allocates_none():
    with keras.StatelessScope(initialize_variables=False):
        model = build_mask_decoder()
    assert len(model.variables) == 120
    assert all(variable._value is None for variable in model.variables)


def test_create_builds_sams_sizes():
    model = tf_models.create("sam_decoder")
    assert model.built
    assert len(model.variables) == 120
    assert model.count_params() == sum(parameter.numel() for parameter in build_torch().parameters())


@pytest.mark.parametrize(
    ("index", "shape", "name"),
    [
        (0, (5, 4, 32), "image_embeddings"),
        (0, (1, 5, 4, 31), "image_embeddings"),
        (0, (2, 5, 4, 32), "image_embeddings"),
        (1, (1, 4, 5, 32), "image_pe"),
        (1, (32, 5, 4), "image_pe"),
        (2, (3, 32), "sparse_prompt_embeddings"),
        (2, (3, 2, 8), "sparse_prompt_embeddings"),
        (3, (3, 32, 5, 4), "dense_prompt_embeddings"),
        (3, (2, 5, 4, 32), "dense_prompt_embeddings"),
        (3, (3, 20, 32), "dense_prompt_embeddings"),
    ],
)
def test_a_wrong_shape_is_named(small, index, shape, name):
    args = [last(arg) for arg in decoder_inputs(32, 3, 5, 4, 2)]
    args[index] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=rf"{name} has shape .*expected"):
        small.model(*args)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads"):
        build_mask_decoder(num_heads=7)


@pytest.mark.parametrize("kernel_size", [(2, 2), (3, 2), (1, 4)])
def test_patch_transpose_is_torchs_transposed_convolution(kernel_size):
    module = torch.nn.ConvTranspose2d(6, 5, kernel_size, stride=kernel_size)
    layer = PatchConv2DTranspose(5, kernel_size)
    x = torch.randn(2, 6, 4, 3)
    layer.build((None, None, None, 6))
    carry(module.state_dict(), layer, alone(CONV_TRANSPOSE_2D))
    module.double()
    assert_allowed([layer(last(x))], lambda: outputs(lambda: module(x.double())))


def test_layer_norm_keeps_its_digits_at_a_large_mean():
    x = torch.randn(7, 64) + 300
    norm = LayerNorm(epsilon=1e-5)
    # Centred before it is squared: what is off is the mean, by a few roundings of 300, which the variance does not see.
    assert_allowed([norm(x.numpy())], lambda: [torch.nn.functional.layer_norm(x.double(), (64,))])


def test_gelu_is_the_exact_one():
    x = torch.linspace(-6, 6, 1001)
    assert_allowed([GELU()(x.numpy())], lambda: [torch.nn.functional.gelu(x.double())])


def test_the_tensorflow_side_does_not_import_torch():
    code = "import sys, tf_models.sam.mask_decoder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("sam_decoder", {"num_heads": -4}, "num_heads: expected whole numbers from 1, got -4"),
        ("sam_decoder", {"depth": 2.0}, "depth: expected whole numbers from 1, got 2.0"),
        ("sam_image_encoder", {"image_size": 0}, "img_size: expected whole numbers from 1, got 0"),
        ("sam_image_encoder", {"image_size": 1024.0}, "img_size: expected whole numbers"),
        ("sam_image_encoder", {"image_size": 1000}, "patches of 16 pixels do not tile images of 1000 and 1000"),
        ("sam_image_encoder", {"depth": 3}, r"global_attn_indexes \[2, 5, 8, 11\] lie below depth \(3\)"),
        ("sam_image_encoder", {"global_attn_indexes": [-1]}, "global_attn_indexes: expected whole numbers from 0"),
        ("sam_image_encoder", {"num_heads": 7}, r"num_heads \(7\) divides embed_dim \(768\)"),
        ("sam_prompt_encoder", {"image_size": 1000, "patch_size": 16}, "do not tile an image of 1000"),
        ("sam_prompt_encoder", {"image_size": True}, "image_size: expected whole numbers from 1, got True"),
        ("mobile_sam", {"image_encoder": {"depths": [2, 2, 6, 0]}}, "depths: expected whole numbers from 1"),
    ],
)
def test_sizes_that_no_network_has_are_refused(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        tf_models.create(model, **sizes)
