"""MobileSAM: the torch reference against timm's TinyViT, the Keras layers against it in float64, and the conversion."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from segment_anything.modeling.common import LayerNorm2d as UpstreamLayerNorm2d
from timm.models.tiny_vit import TinyVit as TimmTinyViT

import converter
import tf_models
import torch_refs
from converter import Mapping
from converter.errors import UsageError
from converter.families.sam.mobile_sam import tiny_vit_rows
from converter.planning.variables import layer_at
from tests.support.carrying import carry
from tests.support.checkpoints import save
from tests.support.rule import as_held, assert_allowed, last
from tests.support.seeded import seeded
from tests.support.small_mobile_sam import CONFIG, ENCODER, OPTIONS, mobile_state, seeded_encoder
from tf_models.sam import Predictor, tiny_vit
from torch_refs.sam.seeded_checkpoint import official_shapes, write_seeded_checkpoint
from torch_refs.sam.tiny_vit import TinyViT as TorchTinyViT

PUBLISHED = {  # of MobileSAM's `build_sam_vit_t`
    "embed_dims": (64, 128, 160, 320),
    "depths": (2, 2, 6, 2),
    "num_heads": (4, 5, 10),
    "window_sizes": (7, 14, 7),
}
# Height and width: windows tile neither, both, only the height, only the width of some stage.
SIZES = [(80, 112), (48, 96), (240, 16)]


def image(height: int, width: int, batch: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, 3, height, width, generator=rng)


# --- the torch reference ------------------------------------------------------------------------------------------


def timms_name(name: str) -> str:
    """What timm calls a tensor of ours, which has MobileSAM's name."""
    name = name.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("patch_embed.seq.2.", "patch_embed.conv2.")
    first, *rest = name.split(".")
    if first == "layers":
        stage = int(rest[0]) + (rest[1] == "downsample")  # timm's stages begin with the downsampling
        name = ".".join(["stages", str(stage), *rest[1:]])
    parts = name.split(".")
    if len(parts) > 1 and parts[-2] == "c":
        parts[-2] = "conv"
    return ".".join(parts)


def timms(ours: TorchTinyViT, sizes: dict) -> torch.nn.Module:
    """timm's TinyViT with the weights of ours, and with MobileSAM's stride of 1 in the last downsampling."""
    sizes = {name: value for name, value in sizes.items() if name != "out_chans"}
    # timm wants heads and windows of the first stage, which has no attention.
    sizes |= {name: (1, *sizes[name]) for name in ("num_heads", "window_sizes")}
    model = TimmTinyViT(**sizes, num_classes=0, drop_path_rate=0.0).eval()
    state = {timms_name(name): tensor for name, tensor in ours.state_dict().items() if not name.startswith("neck")}
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("head.") for name in result.missing_keys)
    model.stages[3].downsample.conv2.conv.stride = (1, 1)
    return model.to(ours.neck[0].weight.dtype)


def sams_neck(ours: TorchTinyViT) -> torch.nn.Module:
    """segment-anything's neck, written as in its `ImageEncoderViT`, with the weights of ours."""
    out_chans, width = ours.neck[0].weight.shape[:2]
    neck = torch.nn.Sequential(
        torch.nn.Conv2d(width, out_chans, kernel_size=1, bias=False),
        UpstreamLayerNorm2d(out_chans),
        torch.nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
        UpstreamLayerNorm2d(out_chans),
    )
    neck.load_state_dict(ours.neck.state_dict())
    return neck.to(ours.neck[0].weight.dtype)


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_the_reference_is_timms_with_sams_neck(size):
    ours = seeded_encoder().double()
    x = image(*size).double()
    with torch.inference_mode():
        got, want = ours(x), sams_neck(ours)(timms(ours, ENCODER).forward_features(x))
    assert got.shape == (2, 32, size[0] // 16, size[1] // 16)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert want.std() > 0.5


def test_the_reference_is_timms_at_the_published_sizes():
    ours = seeded(TorchTinyViT()).double()
    x = image(112, 64, batch=1).double()
    with torch.inference_mode():
        stages = ours.patch_embed(x)
        for layer in ours.layers:
            stages = layer(stages)
        want = timms(ours, PUBLISHED).forward_features(x)
    torch.testing.assert_close(stages, want, rtol=0, atol=1e-11)  # at a scale of 10
    assert want.std() > 1


def test_the_reference_trains_as_timms():
    ours = seeded_encoder().double()
    other, neck = timms(ours, ENCODER).train(), sams_neck(ours)
    x = image(80, 112).double()
    got, want = ours.train()(x), neck(other.forward_features(x))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    got.square().sum().backward()
    want.square().sum().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.startswith("neck"):
            torch.testing.assert_close(parameter.grad, theirs[timms_name(name)].grad, rtol=1e-9, atol=1e-9, msg=name)
    statistics = dict(other.named_buffers())
    for name, buffer in ours.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, statistics[timms_name(name)], rtol=0, atol=1e-12, msg=name)


def test_the_names_and_shapes_are_mobile_sams():
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in TorchTinyViT().state_dict().items()}
    assert len(shapes) == 298
    facts = {
        "patch_embed.seq.0.c.weight": (32, 3, 3, 3),
        "patch_embed.seq.2.bn.running_var": (64,),
        "layers.0.blocks.1.conv2.c.weight": (256, 1, 3, 3),
        "layers.0.downsample.conv1.c.weight": (128, 64, 1, 1),
        "layers.1.blocks.0.attn.attention_biases": (4, 49),
        "layers.1.blocks.0.attn.qkv.weight": (384, 128),
        "layers.1.downsample.conv2.bn.num_batches_tracked": (),
        "layers.2.blocks.5.attn.attention_biases": (5, 196),
        "layers.2.blocks.5.local_conv.c.weight": (160, 1, 3, 3),
        "layers.2.downsample.conv3.bn.bias": (320,),
        "layers.3.blocks.1.attn.attention_biases": (10, 49),
        "layers.3.blocks.1.mlp.norm.weight": (320,),
        "layers.3.blocks.1.mlp.fc1.weight": (1280, 320),
        "neck.0.weight": (256, 320, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
        "neck.3.bias": (256,),
    }
    assert facts.items() <= shapes.items()
    assert not any("attention_bias_idxs" in name for name in shapes)


def test_the_reference_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="multiples of 16"):
        seeded_encoder()(image(80, 104))
    with pytest.raises(ValueError, match="does not divide"):
        seeded_encoder(num_heads=(5, 2, 5))
    with pytest.raises(ValueError, match="four stages"):
        seeded_encoder(depths=(1, 2, 1))


# --- the Keras layers ---------------------------------------------------------------------------------------------


def built(module: TorchTinyViT, sizes: dict | None = None, **kwargs: object) -> tiny_vit.TinyViT:
    layer = tiny_vit.TinyViT(**(ENCODER if sizes is None else sizes), **kwargs)
    layer.build()
    return carry(module.state_dict(), layer, Mapping(tiny_vit_rows(layer.get_config())))


@pytest.fixture(scope="module")
def reference():
    return seeded_encoder()


@pytest.fixture(scope="module")
def double():
    return seeded_encoder().double()


@pytest.fixture(scope="module")
def encoder(reference):
    return built(reference)


@pytest.fixture(params=[1 << 20, 1 << 14], ids=["whole", "strips"])
def strips(request, monkeypatch):
    """Maps as a whole, and in strips of a row or a few."""
    monkeypatch.setattr(tiny_vit, "_STRIP", request.param)


def check(call, double, x: torch.Tensor) -> None:
    """As near to torch in float64 as the proof's rule demands."""
    with torch.inference_mode():
        assert_allowed([call(last(x))], lambda: [last(double(x.double()))])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs(encoder, double, size, strips):
    check(encoder, double, image(*size))


def test_outputs_in_a_graph(encoder, double, strips):
    check(tf.function(encoder), double, image(80, 112))


def test_outputs_with_jit(monkeypatch):
    monkeypatch.setattr(tiny_vit, "_STRIP", 1 << 15)
    sizes = {"depths": (1, 1, 1, 1)}
    reference = seeded_encoder(**sizes)
    call = tf.function(built(reference, ENCODER | sizes), jit_compile=True)
    check(call, seeded_encoder(**sizes).double(), image(48, 96))


def test_one_trace_serves_all_sizes(encoder, double):
    call = tf.function(encoder, input_signature=[tf.TensorSpec((None, None, None, 3))])
    for size in SIZES:
        check(call, double, image(*size))
    assert call.experimental_get_tracing_count() == 1


def test_outputs_at_the_published_sizes():
    reference = seeded(TorchTinyViT())
    double = seeded(TorchTinyViT()).double()
    check(tf.function(built(reference, {})), double, image(128, 96, batch=1))


@pytest.mark.slow
def test_outputs_at_the_published_image_size():
    reference = seeded(TorchTinyViT())
    double = seeded(TorchTinyViT()).double()
    check(tf.function(built(reference, {})), double, image(1024, 1024, batch=1))


def test_strips_are_cut_where_maps_are_large(encoder, monkeypatch):
    heights = []
    original = tiny_vit.MBConv.call

    def call(self, x, training=None):
        convolve = self.conv1.call
        self.conv1.call = lambda rows, **options: heights.append(rows.shape[1]) or convolve(rows, **options)
        return original(self, x, training)

    monkeypatch.setattr(tiny_vit, "_STRIP", 3000)
    monkeypatch.setattr(tiny_vit.MBConv, "call", call)
    encoder(last(image(80, 112, batch=1)))
    # 28 x 48 values a row, so 2 rows at once, and one more on either side for the 3 x 3 kernel.
    assert heights == [3, *[4] * 8, 3]


def test_blocks_given_what_torchs_received(encoder, reference, double):
    """Whole blocks, stages and mergings; single layers are proven on conversion."""
    received: dict[str, tuple] = {}

    def record(name):
        def hook(module, args, output):
            received.setdefault(name, args[0])

        return hook

    kinds = ("PatchEmbed", "MBConv", "PatchMerging", "TinyViTBlock", "Mlp", "ConvLayer", "BasicLayer", "ConvBN")
    modules = [(name, module) for name, module in reference.named_modules() if type(module).__name__ in kinds]
    handles = [module.register_forward_hook(record(name)) for name, module in modules]
    with torch.inference_mode():
        reference(image(80, 112))
    for handle in handles:
        handle.remove()
    assert len(received) == len(modules) == 38
    for name, x in received.items():
        module = double.get_submodule(name)
        # Some are channels last in torch too.
        arranged = torch.Tensor.numpy if type(module).__name__ in ("TinyViTBlock", "Mlp") else last
        with torch.inference_mode():
            truth = lambda: {name: arranged(module(x.double()))}  # noqa: B023, E731
            assert_allowed({name: layer_at(encoder, name)(arranged(x))}, truth)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_gradients_of_every_variable_are_torchs(training, strips):
    """In float64, where only a wrong formula makes a difference; in training also the batch's statistics."""
    module = seeded_encoder().double().train(training)
    layer = built(module, dtype="float64")
    x = image(80, 112).double()
    output = module(x)
    factors = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (factors * output).sum().backward()
    with tf.GradientTape() as tape:
        got = layer(last(x), training=training)
        loss = tf.reduce_sum(last(factors) * got)
    np.testing.assert_allclose(got, last(output), rtol=0, atol=1e-11)
    gradients = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    # A twin whose variables hold torch's gradients, laid out by the same carrying as the weights.
    for parameter in module.parameters():
        parameter.data = parameter.grad
    twin = built(module, dtype="float64")
    for variable, gradient, wanted in zip(layer.trainable_variables, gradients, twin.trainable_variables, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-8, atol=1e-9, err_msg=variable.path)
    before = built(seeded_encoder().double(), dtype="float64")
    variables = (layer.non_trainable_variables, before.non_trainable_variables, twin.non_trainable_variables)
    for statistic, *others in zip(*variables, strict=True):
        got, old, wanted = map(np.array, (statistic, *others))
        if not training:
            np.testing.assert_array_equal(got, old)
        elif statistic.name == "moving_mean":
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
        else:  # Keras keeps the variance of the batch, torch an estimate from its n pixels: n / (n - 1) times that
            ratio = (got - 0.9 * old) / (wanted - 0.9 * old)
            pixels = [2 * (80 // side) * (112 // side) for side in (2, 4, 8, 16)]
            assert any(np.allclose(ratio, (n - 1) / n, rtol=1e-9, atol=0) for n in pixels), statistic.path


def test_frozen_normalizations_keep_their_statistics(reference):
    layer = built(reference)
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.BatchNormalization):
            part.trainable = False
    before = [np.array(variable) for variable in layer.variables]
    x = last(image(80, 112))
    np.testing.assert_array_equal(layer(x, training=True), layer(x))
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_mixed_float16(reference):
    half = built(reference, dtype="mixed_float16")
    assert {variable.dtype for variable in half.variables} == {"float32"}
    x, held = image(80, 112).half().float(), as_held(reference, "float16")
    got = half(last(x))
    assert got.dtype == tf.float16
    with torch.inference_mode():
        assert_allowed([got], lambda: [last(held(x.double()))], "float16")


@pytest.mark.filterwarnings("ignore:(?s).*The structure of .inputs:UserWarning")  # Keras 3.10, of what it has loaded
def test_round_trips(encoder, double, tmp_path):
    config = keras.saving.serialize_keras_object(encoder)
    json.dumps(config)
    twin = keras.saving.deserialize_keras_object(config)
    assert twin.get_config() == encoder.get_config()
    inputs = keras.Input((80, 112, 3))
    keras.Model(inputs, encoder(inputs)).save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras")
    assert len(loaded.variables) == len(encoder.variables)
    x = last(image(80, 112))
    np.testing.assert_array_equal(loaded.layers[-1](x), encoder(x))
    with torch.inference_mode():
        assert_allowed([loaded(x)], lambda: [last(double(torch.from_numpy(x).movedim(-1, 1).double()))])


def test_keras_refuses_what_does_not_fit(encoder):
    with pytest.raises(ValueError, match="multiples of 16"):
        encoder(last(image(80, 104)))
    with pytest.raises(ValueError, match="does not divide"):
        tiny_vit.TinyViT(**ENCODER | {"num_heads": (5, 2, 5)})
    with pytest.raises(ValueError, match="four stages"):
        tiny_vit.TinyViT(**ENCODER | {"depths": (1, 2, 1)})


# --- the conversion -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(mobile_state(), tmp_path_factory.mktemp("mobile_sam"), "mobile_sam.pt")


@pytest.fixture(scope="module")
def converted(checkpoint):
    output = checkpoint.with_name("mobile_sam.weights.h5")
    report = converter.convert(None, checkpoint, output=output, options=OPTIONS)
    return report, output


def test_it_is_recognised_and_proven(converted):
    report, output = converted
    assert report.lossless
    assert report.numerical
    model = tf_models.load(output)
    assert type(model.image_encoder) is tiny_vit.TinyViT
    assert model.image_encoder.img_size == model.prompt_encoder.input_image_size == 80
    assert {
        name: tuple(value) if isinstance(value, list) else value for name, value in model.image_encoder.sizes.items()
    } == ENCODER | {"img_size": 80}


def test_converted_masks_are_torchs(converted):
    reference = seeded(torch_refs.create("mobile_sam", **CONFIG)).double()
    model = tf_models.load(converted[1])
    x = image(80, 80, batch=1)
    coords, labels = torch.tensor([[[30.0, 50.0], [7.0, 61.0]]]), torch.tensor([[1, 0]])
    got = tf.function(model)(last(x), coords.numpy(), labels.numpy())

    def compute():
        masks, iou = reference(x.double(), coords.double(), labels)
        return {"masks": last(masks), "iou": iou}

    with torch.inference_mode():
        assert_allowed(dict(zip(("masks", "iou"), got, strict=True)), compute)


def test_it_answers_prompts_about_a_picture(converted):
    picture = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)  # as long as the encoder's images
    predictor = Predictor(tf_models.load(converted[1]))
    predictor.set_image(picture)
    masks, iou, low = predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert (masks.shape, masks.dtype, iou.shape) == ((3, 50, 80), bool, (3,))
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    mean, std = mean.double(), std.double()
    double = seeded(torch_refs.create("mobile_sam", **CONFIG)).double()

    def compute():
        x = torch.nn.functional.pad((torch.from_numpy(picture).movedim(-1, 0) - mean) / std, (0, 0, 0, 30))[None]
        masks, quality = double(x, torch.tensor([[[30.0, 20.0]]], dtype=torch.float64), torch.tensor([[1]]))
        return {"low": masks[0].movedim(0, -1), "iou": quality[0]}

    with torch.inference_mode():
        assert_allowed({"low": np.moveaxis(low, 0, -1), "iou": iou}, compute)


@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_it_is_exported_in_its_parts(converted, tmp_path, format):
    report = converter.export(converted[1], tmp_path / "o", format)
    assert [one.part for one in report.parts] == ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert all(difference for one in report.parts for difference in one.differences), str(report)


def test_the_plan_says_why_it_drops(checkpoint, tmp_path):
    plan = converter.plan("mobile_sam", checkpoint, options=OPTIONS)
    dropped = {name: reason for name, reason in plan.dropped.items() if "num_batches" not in name}
    assert set(dropped) == {
        f"image_encoder.{name}" for name in ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")
    }
    assert all("classifier" in reason for reason in dropped.values())
    older = mobile_state() | {"image_encoder.layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(9, 9).long()}
    plan = converter.plan("mobile_sam", save(older, tmp_path), options=OPTIONS)
    assert "computed" in plan.dropped["image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"]


@pytest.mark.parametrize("model", ["sam_decoder", "sam_prompt_encoder"])
def test_a_part_converts_alone(checkpoint, tmp_path, model):
    options = {"num_heads": 4} if model == "sam_decoder" else {"image_size": 80}
    report = converter.convert(model, checkpoint, output=tmp_path / "part.weights.h5", options=options)
    assert report.lossless
    assert report.numerical


def test_image_size_is_checked(checkpoint):
    with pytest.raises(UsageError, match="multiple of 16"):
        converter.plan("mobile_sam", checkpoint, options=OPTIONS | {"image_size": 90})


def test_a_missing_tensor_is_named(tmp_path):
    state = mobile_state()
    del state["image_encoder.layers.2.blocks.0.local_conv.bn.running_var"]
    with pytest.raises(converter.ConversionError, match=r"missing: .*local_conv\.bn\.running_var"):
        converter.plan("mobile_sam", save(state, tmp_path), options=OPTIONS)


def test_the_seeded_checkpoint_has_the_published_layout(tmp_path):
    shapes = official_shapes("mobile_sam")
    # In the order of the published modules: the classifier stands before the neck, which was added to it.
    names = [name for name in shapes if name.startswith("image_encoder.")]
    assert names[-10:] == [
        f"image_encoder.{name}"
        for name in (
            "norm_head.weight",
            "norm_head.bias",
            "head.weight",
            "head.bias",
            "neck.0.weight",
            "neck.1.weight",
            "neck.1.bias",
            "neck.2.weight",
            "neck.3.weight",
            "neck.3.bias",
        )
    ]
    assert shapes["image_encoder.head.weight"] == (1000, 320)
    tensors = write_seeded_checkpoint(tmp_path / "mobile_sam.pt", "mobile_sam")
    assert tensors["image_encoder.patch_embed.seq.0.bn.num_batches_tracked"].dtype == torch.int64
    assert all((tensor > 0.5).all() for name, tensor in tensors.items() if name.endswith("running_var"))
    plan = converter.plan(None, tmp_path / "mobile_sam.pt")
    assert plan.pair.name == "mobile_sam"
    assert plan.config == plan.pair.fallback
    assert not plan.out_of_scope


def test_an_older_checkpoint_s_indices_must_be_those_that_are_computed(tmp_path):
    name = "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"
    reference = seeded_encoder()
    right = reference.layers[1].blocks[0].attn.attention_bias_idxs.clone()
    report = converter.convert(
        "mobile_sam",
        save(mobile_state() | {name: right}, tmp_path),
        tmp_path / "a.weights.h5",
        "lossless",
        options=OPTIONS,
    )
    assert report.lossless.equal == (name,)
    wrong = right.flip(0)
    with pytest.raises(converter.ProofError, match="attention_bias_idxs is dropped, but does not equal the table"):
        converter.convert(
            "mobile_sam",
            save(mobile_state() | {name: wrong}, tmp_path),
            tmp_path / "b.weights.h5",
            "lossless",
            options=OPTIONS,
        )
