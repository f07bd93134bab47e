"""Segment Anything as a whole: both sides against upstream and `transformers`, and its conversion."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import tensorflow as tf
import torch
from transformers import SamConfig, SamModel

import converter
import tf_models
from converter.checkpoints.checkpoint import Checkpoint
from converter.families.sam import SAM
from converter.planning.choosing import find_reading
from tests.support.carrying import twin
from tests.support.checkpoints import prefixed, save
from tests.support.pairs import registered
from tests.support.rule import as_held, assert_as_exact, assert_same, last
from tests.support.seeded import seeded
from tests.support.small_sam import CONFIG, IMAGE_ENCODER, OPTIONS, sam_state, upstream_sam
from tf_models.sam.relative_attention import RelativeAttention
from torch_refs.sam.sam import build_sam
from torch_refs.sam.seeded_checkpoint import official_shapes

SIZE, GRID = CONFIG["image_size"], CONFIG["image_size"] // IMAGE_ENCODER["patch_size"]
COPIES = ("prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")


def inputs(size=SIZE, grid=GRID):
    """One image and five prompts of every sort, in torch's layout."""
    rng = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(1, 3, size, size, generator=rng),
        "point_coords": size * torch.rand(5, 3, 2, generator=rng),
        "point_labels": torch.randint(0, 2, (5, 3), generator=rng),
        "boxes": size * torch.rand(5, 4, generator=rng),
        "mask_input": torch.randn(5, 1, 4 * grid, 4 * grid, generator=rng),
    }


def without(*names, given=None):
    return {name: value for name, value in (given or inputs()).items() if name not in names}


def in_float64(module, given, **options):
    """A computation of the module's results in float64."""
    doubled = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    exact = deepcopy(module).double()
    return lambda: exact(**doubled, **options)


def for_keras(given):
    return {name: tf.constant(last(value)) for name, value in given.items()}


@pytest.fixture(scope="module")
def state():
    return sam_state()


@pytest.fixture(scope="module")
def reference(state):
    sam = build_sam(**CONFIG)
    sam.load_state_dict(state)
    return sam


@pytest.fixture(scope="module")
def model(state):
    return twin("sam_vit_b", CONFIG, state)


@pytest.mark.parametrize("multimask_output", [True, False])
def test_the_reference_equals_upstream(reference, state, multimask_output):
    upstream = upstream_sam()
    upstream.load_state_dict(state, strict=True)
    upstream.pixel_mean.zero_()
    upstream.pixel_std.fill_(1)
    upstream.double()
    given = {name: value.double() if value.is_floating_point() else value for name, value in inputs().items()}
    record = {
        "image": given["image"][0],
        "original_size": (SIZE, SIZE),
        "point_coords": given["point_coords"],
        "point_labels": given["point_labels"],
        "boxes": given["boxes"],
        "mask_inputs": given["mask_input"],
    }

    def theirs():
        [want] = upstream([record], multimask_output)
        return want["low_res_logits"], want["iou_predictions"]

    ours = in_float64(reference, given, multimask_output=multimask_output)
    assert_same(ours, theirs)
    with torch.inference_mode():
        assert ours()[0].std() > 0.1


def test_tensorflow_against_the_reference(model, reference):
    absences = (), ("boxes", "mask_input"), ("point_coords", "point_labels", "mask_input"), ("mask_input",), ("boxes",)
    for absent, multimask_output in product(absences, (True, False)):
        given = without(*absent)
        results = model(**for_keras(given), multimask_output=multimask_output)
        assert_as_exact(results, in_float64(reference, given, multimask_output=multimask_output))


def test_an_encoded_image_is_decoded_with_many_prompts(model, reference):
    given = for_keras(without("mask_input"))
    embedding = model.image_encoder(given.pop("image"))
    assert_as_exact(model.decode(embedding, **given), in_float64(reference, without("mask_input")))


def test_compiled(model, reference):
    compiled = tf.function(lambda **given: model(**given), jit_compile=True)
    assert_as_exact(compiled(**for_keras(inputs())), in_float64(reference, inputs()))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_types(reference, state, policy):
    half, dtype = twin("sam_vit_b", CONFIG, state, dtype=policy), policy.removeprefix("mixed_")
    results = half(**for_keras(inputs()))
    assert all(result.dtype == dtype for result in results)
    given = {
        name: value.to(getattr(torch, dtype)) if name in ("image", "mask_input") else value
        for name, value in inputs().items()
    }
    results = [tf.cast(result, "float64") for result in results]
    assert_as_exact(results, in_float64(as_held(reference, dtype), given), dtype)


def test_it_is_rebuilt_from_its_configuration(model):
    again = type(model).from_config(model.get_config())
    for part in (again.image_encoder, again.prompt_encoder, again.mask_decoder):
        if not part.built:
            part.build()
    again.set_weights(model.get_weights())
    for result, expected in zip(again(**for_keras(inputs())), model(**for_keras(inputs())), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_it_is_exported_for_any_number_of_prompts(model, reference, tmp_path):
    signature = [
        tf.TensorSpec((1, SIZE, SIZE, 3)),
        tf.TensorSpec((None, None, 2)),
        tf.TensorSpec((None, None), tf.int32),
    ]
    module = tf.Module()
    module.model, module.call = model, tf.function(lambda *given: model(*given), input_signature=signature)
    tf.saved_model.save(module, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    for count in (1, 5, 9):
        given = {
            "image": inputs()["image"],
            "point_coords": SIZE * torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)),
            "point_labels": torch.ones(count, 2, dtype=torch.int32),
        }
        assert_as_exact(loaded.call(*for_keras(given).values()), in_float64(reference, given))


def test_converted_and_loaded(state, reference, tmp_path):
    report = converter.convert("sam_vit_b", save(state, tmp_path), tmp_path / "out.weights.h5", options=OPTIONS)
    assert report
    assert report.config == CONFIG
    layers = {one.name for one in report.numerical.layers}
    assert {"image_encoder", "image_encoder.patch_embed", "image_encoder.blocks.1", "image_encoder.neck"} <= layers
    assert "prompt_encoder.mask_downscaling" in layers
    assert {"prompt_encoder.0", "prompt_encoder.1", "mask_decoder.0", "mask_decoder.1"} <= layers
    assert {"image_encoder.blocks.1.attn.qkv", "mask_decoder"} <= {one.name for one in report.numerical.between}
    assert report.numerical.full
    assert_as_exact(tf_models.load(report.output)(**for_keras(inputs())), in_float64(reference, inputs()))


def test_another_image_size_is_recorded(state, tmp_path):
    """The tensors stay as they are; the positions are resized where they are used."""
    checkpoint, output = save(state, tmp_path), tmp_path / "out.weights.h5"
    report = converter.convert("sam_vit_b", checkpoint, output, "lossless", options={**OPTIONS, "image_size": 56})
    assert report.config["image_size"] == 56
    model = tf_models.load(output)
    assert (model.image_encoder.img_size, model.prompt_encoder.input_image_size) == (56, 56)
    reference = build_sam(**{**CONFIG, "image_size": 56})
    reference.load_state_dict(state)
    given = inputs(56, 7)
    assert_as_exact(model(**for_keras(given)), in_float64(reference, given))
    assert converter.verify("sam_vit_b", checkpoint, output, level="lossless").config == report.config
    with pytest.raises(converter.UsageError, match="image_size takes a multiple of 8"):
        converter.plan("sam_vit_b", checkpoint, {**OPTIONS, "image_size": 60})


@pytest.fixture(scope="module")
def hugging_face():
    """A `SamModel` of CONFIG's sizes with seeded weights, its decoder's epsilon that of SAM's training."""
    sizes, decoder = IMAGE_ENCODER, CONFIG["mask_decoder"]
    model = SamModel(
        SamConfig(
            vision_config={
                "hidden_size": sizes["embed_dim"],
                "num_hidden_layers": sizes["depth"],
                "num_attention_heads": sizes["num_heads"],
                "mlp_dim": sizes["mlp_dim"],
                "image_size": SIZE,
                "patch_size": sizes["patch_size"],
                "window_size": sizes["window_size"],
                "global_attn_indexes": sizes["global_attn_indexes"],
                "output_channels": sizes["out_chans"],
                "num_pos_feats": sizes["out_chans"] // 2,
            },
            prompt_encoder_config={
                "hidden_size": sizes["out_chans"],
                "image_size": SIZE,
                "patch_size": sizes["patch_size"],
                "mask_input_channels": CONFIG["prompt_encoder"]["mask_in_chans"],
            },
            mask_decoder_config={
                "hidden_size": sizes["out_chans"],
                "mlp_dim": decoder["mlp_dim"],
                "num_attention_heads": CONFIG["num_heads"],
                "iou_head_hidden_dim": decoder["iou_head_hidden_dim"],
                "layer_norm_eps": 1e-5,
            },
        )
    )
    state = seeded(model).state_dict()
    state[COPIES[1]].copy_(state[COPIES[0]])
    return model


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_hugging_faces_dialect(hugging_face, form, tmp_path):
    """The safetensors file holds the matrix of the positions once, a torch one twice."""
    if form == "safetensors":
        hugging_face.save_pretrained(tmp_path / "model")
        checkpoint = tmp_path / "model" / "model.safetensors"
    else:
        checkpoint = save(hugging_face.state_dict(), tmp_path, "pytorch_model.bin")
    report = converter.convert("sam_vit_b", checkpoint, tmp_path / "out.weights.h5", "lossless", options=OPTIONS)
    assert report.dialect == "hugging_face"
    assert not report.out_of_scope
    assert len(report.dropped) == (form == "bin")
    assert all("equal bit for bit" in reason for reason in report.dropped.values())

    given = without("mask_input")

    exact = deepcopy(hugging_face).double()

    def compute():
        found = exact(
            pixel_values=given["image"].double(),
            input_points=given["point_coords"].double()[None],
            input_labels=given["point_labels"][None],
            input_boxes=given["boxes"].double()[None],
        )
        return found.pred_masks[0], found.iou_scores[0]

    assert_as_exact(tf_models.load(report.output)(**for_keras(given)), compute)


@pytest.mark.parametrize("part", ["sam_image_encoder", "sam_prompt_encoder", "sam_decoder"])
def test_a_part_of_hugging_faces_dialect(hugging_face, part, tmp_path):
    hugging_face.save_pretrained(tmp_path / "model")
    options = {
        "sam_image_encoder": {},
        "sam_prompt_encoder": {"image_size": SIZE, "patch_size": IMAGE_ENCODER["patch_size"]},
        "sam_decoder": OPTIONS,
    }[part]
    checkpoint = tmp_path / "model" / "model.safetensors"
    plan = converter.plan(part, checkpoint, options)
    assert (plan.pair.name, plan.dialect.name) == (part, "hugging_face")


def test_copies_that_differ_are_an_error(hugging_face, tmp_path):
    state = dict(hugging_face.state_dict())
    state[COPIES[0]] = torch.nextafter(state[COPIES[0]], torch.tensor(9.0))
    with pytest.raises(converter.PlanError, match=f"used twice: .*{COPIES[0]}"):
        converter.plan("sam_vit_b", save(state, tmp_path), OPTIONS)


def hollow(variant, keep=""):
    """The official names and shapes without their bytes: every tensor is one number, repeated."""
    shapes = official_shapes(variant)
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if name.startswith(keep)}


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_a_published_checkpoint_is_recognised(variant, tmp_path):
    for state in (hollow(variant), prefixed(hollow(variant), "module.")):
        with Checkpoint(save(state, tmp_path)) as source:
            reading = find_reading(source, "auto", {})
        assert reading.pair.name == f"sam_{variant}"
        assert not reading.out_of_scope
        assert reading.config == reading.pair.fallback


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        ("mask_decoder.", "sam_decoder"),
        ("image_encoder.", "sam_image_encoder"),
        ("prompt_encoder.", "sam_prompt_encoder"),
    ],
)
def test_a_part_alone_is_recognised(keep, name, tmp_path):
    with Checkpoint(save(hollow("vit_l", keep), tmp_path)) as source:
        assert find_reading(source, None, {}).pair.name == name


def test_another_variant_is_named(tmp_path):
    with Checkpoint(save(hollow("vit_h"), tmp_path)) as source:
        reading = find_reading(source, "sam_vit_b", {})
    assert not reading.fits
    assert "its sizes are those of sam_vit_h" in reading.unsized


def test_unpublished_sizes_are_the_familys_and_may_go_by_any_variant(state, tmp_path):
    assert converter.plan("auto", save(state, tmp_path), OPTIONS).pair.name == "sam"
    assert converter.plan("sam_vit_l", save(state, tmp_path), OPTIONS).config["image_encoder"]["depth"] == 3


def test_windows_of_two_sizes_are_not_this_network(state, tmp_path):
    changed = {**state, "image_encoder.blocks.2.attn.rel_pos_h": torch.zeros(9, 12)}
    with pytest.raises(converter.PlanError, match="windows of 4 and of 5 patches"):
        converter.plan("sam_vit_b", save(changed, tmp_path), OPTIONS)


@pytest.mark.parametrize("fault", ["windows", pytest.param("positions", marks=pytest.mark.slow)])
def test_a_fault_is_named_between_two_layers(state, tmp_path, monkeypatch, fault):
    """No layer of the encoder differs, but the block that joins them."""
    attend = RelativeAttention._attend_in_strip

    def shifted(self, qkv, *rest):
        return attend(self, tf.roll(qkv, 1, axis=1), *rest)

    def transposed(self, qkv, columns, by_row, by_column):
        return attend(self, qkv, columns, by_column, by_row)

    monkeypatch.setattr(RelativeAttention, "_attend_in_strip", shifted if fault == "windows" else transposed)
    faulty = replace(
        SAM,
        name="faulty",
        variants=(),
        build_tf="tf_models.sam.sam:build_sam",
        build_torch="torch_refs.sam.sam:build_sam",
    )
    told = (
        r"the input of image_encoder\.blocks\.0\.attn\.proj does not "
        r"\(TensorFlow's has shape \(1, 3, 5, 48\), torch's \(2, 4, 4, 48\)\)"
    )
    with registered(faulty), pytest.raises(converter.ProofError, match=told):
        converter.convert(faulty.name, save(state, tmp_path), tmp_path / "out.weights.h5", options=OPTIONS)
