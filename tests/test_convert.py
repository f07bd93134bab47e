"""Conversion from end to end: every container and wrapping, the plan's errors, the file, the loaded model."""

import json
from copy import deepcopy

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

import converter
import tf_models
import torch_refs
from tests.support.checkpoints import prefixed, save
from tests.support.rule import assert_as_exact, last
from tests.support.seeded import seeded
from tests.support.small_sam import DECODER, OPTIONS, decoder_state
from torch_refs.sam.seeded_checkpoint import official_shapes, seeded_tensor


@pytest.fixture(scope="module")
def state():
    return decoder_state()


def computed_with(state):
    """The small decoder's inputs, channels last, and a computation of its outputs by torch in float64."""
    rng = np.random.default_rng(7)
    embeddings, pe, sparse, dense = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in [(1, 32, 5, 6), (1, 32, 5, 6), (3, 2, 32), (3, 32, 5, 6)]
    )
    model = torch_refs.create("sam_decoder", **DECODER).eval()
    model.load_state_dict(state)
    model.double()
    given = [torch.from_numpy(value).double() for value in (embeddings, pe, sparse, dense)]
    inputs = [np.moveaxis(embeddings, 1, -1), np.moveaxis(pe, 1, -1), sparse, np.moveaxis(dense, 1, -1)]
    return inputs, lambda: model(*given, multimask_output=True)


@pytest.fixture(scope="module")
def expected(state):
    return computed_with(state)


def assert_computes(model, expected):
    inputs, compute = expected
    assert_as_exact(model(*inputs, multimask_output=True), compute)


OTHERS = {"image_encoder.pos_embed": torch.zeros(2, 3), "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 4)}
WRAPPINGS = {
    "full model": lambda s: {**prefixed(s, "mask_decoder."), **OTHERS},
    "decoder alone": lambda s: s,
    "decoder alone, with the prefix": lambda s: prefixed(s, "mask_decoder."),
    "under model": lambda s: {"model": prefixed(s, "mask_decoder."), "epoch": 3},
    "under state_dict": lambda s: {"state_dict": s},
    "DataParallel": lambda s: prefixed({**prefixed(s, "mask_decoder."), **OTHERS}, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled inside": lambda s: prefixed(s, "mask_decoder._orig_mod."),
    "all at once": lambda s: {
        "model": {"state_dict": prefixed({**prefixed(s, "mask_decoder."), **OTHERS}, "module._orig_mod.model.")}
    },
}


# What is left of such a checkpoint, by the first word of its names there.
OUTSIDE = {
    "full model": {"image_encoder": 1, "prompt_encoder": 1},
    "DataParallel": {"module": 2},
    "all at once": {"module": 2},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_wrapping_is_taken_off(wrapping, legacy, state, tmp_path):
    checkpoint = save(WRAPPINGS[wrapping](state), tmp_path, _use_new_zipfile_serialization=not legacy)
    plan = converter.plan("auto", checkpoint, OPTIONS)
    assert plan.pair.name == "sam_decoder"
    assert {one.canonical for step in plan.steps for one in step.sources} == set(state)
    assert plan.tensors == len(plan.steps) == 120
    assert plan.config == DECODER
    assert plan.out_of_scope == OUTSIDE.get(wrapping, {})


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors", "sharded"])
def test_the_loaded_model_computes_what_torch_does(container, state, expected, tmp_path):
    full = {**prefixed(state, "mask_decoder."), **OTHERS}
    if container == "safetensors":
        checkpoint = tmp_path / "model.safetensors"
        safetensors.torch.save_file(full, checkpoint)
    elif container == "sharded":
        names = list(full)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, held in shards.items():
            safetensors.torch.save_file({name: full[name] for name in held}, tmp_path / shard)
        checkpoint = tmp_path / "model.safetensors.index.json"
        where = {name: shard for shard, held in shards.items() for name in held}
        checkpoint.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    else:
        checkpoint = save(full, tmp_path, _use_new_zipfile_serialization=container == "zip")
    output = tmp_path / "out.weights.h5"
    report = converter.convert("sam_decoder", checkpoint, output, options=OPTIONS)
    assert report.output == output
    assert report.lossless
    assert report.numerical
    assert report.out_of_scope == {"image_encoder": 1, "prompt_encoder": 1}
    assert_computes(tf_models.load(output), expected)


def test_keras_itself_loads_the_file(state, expected, tmp_path):
    output = tmp_path / "out.weights.h5"
    converter.convert("sam_decoder", save(state, tmp_path), output, verify="lossless", options=OPTIONS)
    model = tf_models.create("sam_decoder", **DECODER)
    model.load_weights(str(output))
    assert_computes(model, expected)


@pytest.fixture(scope="module")
def hugging_face():
    """A small SamModel of the transformers package, seeded."""
    from transformers import SamConfig, SamModel

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "mlp_dim": 40, "iou_head_hidden_dim": 24}
    # transformers computes the transformer's norms with epsilon 1e-6; the weights were trained with 1e-5.
    sizes["layer_norm_eps"] = 1e-5
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 32,
            "image_size": 64, "patch_size": 16, "global_attn_indexes": [0], "window_size": 2, "num_pos_feats": 16,
            "mlp_dim": 20,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config=sizes,
    )  # fmt: skip
    return seeded(SamModel(config))


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded", "folder", "folder of shards"])
def test_hugging_face(form, hugging_face, tmp_path):
    if form == "bin":
        checkpoint = save(hugging_face.state_dict(), tmp_path, "pytorch_model.bin")
    else:
        hugging_face.save_pretrained(tmp_path, max_shard_size="60KB" if "shard" in form else "5GB")
        name = "model.safetensors.index.json" if "shard" in form else "model.safetensors"
        checkpoint = tmp_path if "folder" in form else tmp_path / name
        assert (tmp_path / name).exists()
    output = tmp_path / "out.weights.h5"
    report = converter.convert("sam_decoder", checkpoint, output, verify="lossless", options=OPTIONS)
    assert report.dialect == "hugging_face"
    assert report.tensors == 120

    embeddings, pe, sparse, dense = (
        torch.randn(shape) for shape in [(1, 32, 4, 4), (1, 32, 4, 4), (1, 3, 2, 32), (1, 32, 4, 4)]
    )
    got = tf_models.load(output)(last(embeddings), last(pe), sparse[0].numpy(), np.repeat(last(dense), 3, axis=0))
    exact = deepcopy(hugging_face.mask_decoder).double()
    given = [value.double() for value in (embeddings, pe, sparse, dense)]
    assert_as_exact(got, lambda: [value[0] for value in exact(*given, multimask_output=True)[:2]])


def test_the_official_size_converts_with_full_proof(tmp_path):
    state = {
        name: seeded_tensor(name, shape, 0) if name.startswith("mask_decoder.") else torch.zeros(1)
        for name, shape in official_shapes("vit_b").items()
    }
    report = converter.convert("sam_decoder", save(state, tmp_path), tmp_path / "out.weights.h5")
    assert (report.model, report.tensors, report.variables) == ("sam_decoder", 120, 120)
    assert report.lossless
    assert report.numerical
    assert report.out_of_scope == {"image_encoder": 177, "prompt_encoder": 17}
    assert tf_models.load(tmp_path / "out.weights.h5").count_params() == 4_058_340


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_checkpoints_are_widened(dtype, state, tmp_path):
    halves = {name: tensor.to(dtype) for name, tensor in state.items()}
    output = tmp_path / "out.weights.h5"
    report = converter.convert("sam_decoder", save(halves, tmp_path), output, options=OPTIONS)
    assert report.lossless
    assert report.numerical
    assert report.narrowed == 0
    bias = tf_models.load(output).transformer.norm_final_attn.beta
    np.testing.assert_array_equal(bias, halves["transformer.norm_final_attn.bias"].float())


def test_double_checkpoints_are_narrowed_and_the_loss_is_reported(state, tmp_path):
    doubles = {name: tensor.double() * (1 + 2**-30) for name, tensor in state.items()}
    report = converter.convert("sam_decoder", save(doubles, tmp_path), tmp_path / "o.weights.h5", options=OPTIONS)
    assert report.lossless
    assert report.numerical
    assert report.narrowed == 120
    assert 0 < report.loss < 2**-24
    assert "narrowed" in str(report)


def test_half_precision_output(state, tmp_path):
    output = tmp_path / "out.weights.h5"
    report = converter.convert("sam_decoder", save(state, tmp_path), output, options=OPTIONS, dtype="float16")
    assert report.lossless
    assert report.numerical
    assert 0 < report.loss < 2**-10
    with h5py.File(output) as file:
        found = set()
        file.visititems(lambda _, node: found.add(str(node.dtype)) if hasattr(node, "dtype") else None)
    assert found == {"float16"}
    # What is stored in halves is computed with in float32.
    assert_computes(tf_models.load(output), computed_with({name: tensor.half() for name, tensor in state.items()}))
    assert converter.verify("sam_decoder", tmp_path / "ckpt.pth", output, level="lossless")


def test_a_value_too_large_for_half_precision_is_an_error(state, tmp_path):
    large = {**state, "transformer.norm_final_attn.bias": torch.full((32,), 1e6)}
    with pytest.raises(converter.ConversionError, match=r"norm_final_attn\.bias holds values too large for float16"):
        converter.convert(
            "sam_decoder", save(large, tmp_path), tmp_path / "o.weights.h5", options=OPTIONS, dtype="float16"
        )


def test_the_same_input_gives_the_same_bytes(state, tmp_path):
    checkpoint = save(state, tmp_path)
    outputs = [tmp_path / f"{i}" / "out.weights.h5" for i in range(2)]
    for output in outputs:
        converter.convert("sam_decoder", checkpoint, output, options=OPTIONS)
        tf_models.create("sam_decoder", **DECODER)  # shifts Keras's counters for automatic names
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_the_file_carries_its_provenance(state, tmp_path):
    import hashlib

    checkpoint, output = save(state, tmp_path), tmp_path / "out.weights.h5"
    report = converter.convert("sam_decoder", checkpoint, output, options=OPTIONS)
    about = converter.inspect(output).provenance
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert about["format"] == 1
    assert about["model"] == "sam_decoder"
    assert about["config"] == DECODER
    assert (about["source"], about["source_sha256"]) == ("ckpt.pth", digest)
    assert about["dialect"] == "official"
    assert about["version"]
    assert about["proof"]["lossless"] is True
    assert set(about["proof"]["numerical"]) == {"masks", "iou"}
    assert about["proof"]["numerical"]["masks"]["error"] == pytest.approx(report.numerical.outputs[0].error, rel=0.1)


def test_an_option_is_recorded_and_enforced(state, tmp_path):
    checkpoint, output = save(state, tmp_path), tmp_path / "out.weights.h5"
    converter.convert("sam_decoder", checkpoint, output, verify="none", options={"num_heads": 2})
    assert tf_models.load(output).get_config()["num_heads"] == 2
    assert converter.verify("sam_decoder", checkpoint, output), "the recorded option is used"
    with pytest.raises(converter.ConversionError, match="another configuration: num_heads differ"):
        converter.verify("sam_decoder", checkpoint, output, options={"num_heads": 8})


def test_other_half_of_a_plan(state, tmp_path):
    checkpoint = save({**prefixed(state, "mask_decoder."), **OTHERS}, tmp_path)
    plan = converter.plan("sam_decoder", checkpoint, options=OPTIONS)
    text = str(plan)
    assert "mask_decoder.output_upscaling.0.weight" in text
    assert "i o kh kw -> kh kw o i" in text
    assert "image_encoder.* 1" in text
    assert plan.out_of_scope == {"image_encoder": 1, "prompt_encoder": 1}
    as_json = json.loads(json.dumps(plan.to_dict()))
    assert len(as_json["steps"]) == 120
    assert list(tmp_path.iterdir()) == [checkpoint]


def without(name):
    return lambda s: {key: value for key, value in s.items() if key != name}


Q = "transformer.layers.0.self_attn.q_proj.weight"
K = "transformer.layers.0.self_attn.k_proj.weight"
BROKEN = {
    "missing": (without(Q), [f"missing: {Q}"]),
    "missing, and sizes are read from it": (without("mask_tokens.weight"), ["missing: mask_tokens.weight"]),
    "many missing": (
        lambda s: {k: v for k, v in s.items() if ".norm2." not in k},
        ["missing: transformer.layers.{0-1}.norm2.weight, transformer.layers.{0-1}.norm2.bias"],
    ),
    "unexpected": (
        lambda s: {**s, "transformer.extra.weight": torch.zeros(3)},
        ["unexpected: transformer.extra.weight"],
    ),
    "misspelt": (
        lambda s: {k.replace("layers.0.norm1", "layers.0.nrom1"): v for k, v in s.items()},
        [
            "missing: transformer.layers.0.norm1.weight",
            "unexpected: transformer.layers.0.nrom1.weight",
            "nearest known: transformer.layers.0.norm1",
        ],
    ),
    "wrong shape": (lambda s: {**s, Q: torch.zeros(32, 31)}, [f"wrong shape: {Q} is 32x31, expected 32x32"]),
    "wrong dtype": (lambda s: {**s, Q: torch.zeros(32, 32, dtype=torch.int64)}, ["wrong dtype (int64", Q]),
    "used twice": (lambda s: {**s, f"_orig_mod.{Q}": s[Q]}, ["used twice", f"_orig_mod.{Q}"]),
    "complex": (lambda s: {**s, Q: torch.zeros(32, 32, dtype=torch.complex64)}, ["complex64", Q]),
    "everything at once": (
        lambda s: {**without("iou_token.weight")(s), K: torch.zeros(1), "more": torch.zeros(2)},
        ["missing: iou_token.weight", "unexpected: more", f"wrong shape: {K}"],
    ),
    "sizes that make no model": (
        lambda s: {**without("iou_token.weight")(s), Q: torch.zeros(1)},
        ["missing: iou_token.weight", "cannot be built"],
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_plan_that_is_no_bijection_is_one_error(broken, state, tmp_path):
    change, told = BROKEN[broken]
    checkpoint = save(change(dict(state)), tmp_path)
    with pytest.raises(converter.PlanError) as caught:
        converter.convert("sam_decoder", checkpoint, tmp_path / "o.weights.h5", options=OPTIONS)
    problems = "; ".join(caught.value.problems)
    for words in told:
        assert words in problems
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth"]


def test_two_state_dicts_that_fit_need_a_choice(state, tmp_path):
    other = {name: tensor + 1 for name, tensor in state.items()}
    checkpoint = save({"model": state, "model_ema": other, "epoch": 1}, tmp_path)
    with pytest.raises(converter.ConversionError, match=r"model, model_ema; choose one with --key"):
        converter.plan("sam_decoder", checkpoint, OPTIONS)
    output = tmp_path / "o.weights.h5"
    converter.convert("sam_decoder", checkpoint, output, verify="lossless", options=OPTIONS, key="model_ema")
    beta = tf_models.load(output).transformer.norm_final_attn.beta
    np.testing.assert_array_equal(beta, other["transformer.norm_final_attn.bias"])
    with pytest.raises(converter.UsageError, match="no state dict at nowhere; it has: model, model_ema"):
        converter.plan("sam_decoder", checkpoint, OPTIONS, key="nowhere")


def test_a_checkpoint_of_another_network(tmp_path):
    checkpoint = save({"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, tmp_path)
    with pytest.raises(converter.ConversionError, match=r"no tensor of sam_decoder; its names start with: conv1 \(1\)"):
        converter.plan("sam_decoder", checkpoint)
    with pytest.raises(converter.ConversionError, match=r"no model fits.*sam_decoder.*--model"):
        converter.plan("auto", checkpoint)


def test_nan_is_refused_unless_allowed(state, tmp_path):
    broken = dict(state)
    broken[Q] = state[Q].clone()
    broken[Q][3, 4] = float("nan")
    checkpoint, output = save(broken, tmp_path), tmp_path / "o.weights.h5"
    with pytest.raises(converter.ConversionError, match=rf"{Q} holds NaN or Inf"):
        converter.convert("sam_decoder", checkpoint, output, options=OPTIONS)
    assert not output.exists()
    report = converter.convert(
        "sam_decoder", checkpoint, output, options=OPTIONS, verify="lossless", allow_nonfinite=True
    )
    assert any(Q in note for note in report.notes)


def test_what_is_asked_for_wrongly_is_a_usage_error(state, tmp_path):
    checkpoint = save(state, tmp_path)
    with pytest.raises(converter.UsageError, match=r"no model is named nobody; known: .*sam_decoder"):
        converter.plan("nobody", checkpoint)
    with pytest.raises(converter.UsageError, match=r"no option heads; known: num_heads \(attention heads"):
        converter.plan("sam_decoder", checkpoint, {"heads": 3})
    with pytest.raises(converter.UsageError, match=r"num_heads takes a whole number, not three"):
        converter.plan("sam_decoder", checkpoint, {"num_heads": "three"})
    with pytest.raises(converter.UsageError, match="verify is one of train, full-size, full, lossless, none"):
        converter.convert("sam_decoder", checkpoint, verify="some")


def test_inspect_lists_names_shapes_dtypes_and_bytes(state, tmp_path):
    held = converter.inspect(save(state, tmp_path))
    entry = next(one for one in held if one.name == Q)
    assert (entry.shape, entry.dtype, entry.nbytes) == ((32, 32), "float32", 4096)
    assert len(held) == 120
    converter.convert("sam_decoder", tmp_path / "ckpt.pth", tmp_path / "o.weights.h5", verify="none", options=OPTIONS)
    held = converter.inspect(tmp_path / "o.weights.h5")
    assert len(held) == 120
    assert held.container == "keras weights"
    assert sum(one.nbytes for one in held) == sum(4 * tensor.numel() for tensor in state.values())


def test_a_pair_cannot_take_a_built_in_name():
    from converter.families.sam.mask_decoder import SAM_DECODER

    with pytest.raises(converter.UsageError, match="built-in"):
        converter.register(SAM_DECODER)


def test_the_caller_s_dtype_policy_does_not_matter(state, tmp_path):
    import keras

    keras.config.set_dtype_policy("mixed_float16")
    try:
        report = converter.convert("sam_decoder", save(state, tmp_path), tmp_path / "o.weights.h5", options=OPTIONS)
        assert report.numerical
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
