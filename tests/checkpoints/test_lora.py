"""LoRA beside a network's own tensors: merged into its kernels where that is asked for, and refused where it is not."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import nn

import cli
import converter
import torch_refs
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.ignoring import ignore
from converter.checkpoints.lora import merge_lora
from converter.checkpoints.tensors import Entry
from tests.support.seeded import seeded

DECODER = seeded(torch_refs.create("sam_decoder")).state_dict()
SIZES = {"n_heads": 3, "n_levels": 2}
OPTIONS = ("--option", "n_heads=3", "--option", "n_levels=2")
ATTENTION = seeded(torch_refs.create("ms_deform_attn", d_model=24, n_points=4, **SIZES)).state_dict()
KERNEL = "transformer.layers.0.self_attn.q_proj"
OTHER = "transformer.layers.1.mlp.lin1"


def factors(kernel: torch.Tensor, rank: int = 4, seed: int = 0):
    """A and B for a kernel (out, in)."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, kernel.shape[1], generator=rng) / 8
    return a, torch.randn(kernel.shape[0], rank, generator=rng) / 8


def merged(kernel: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    return (kernel.double() + scale * (b.double() @ a.double())).to(kernel.dtype)


def loralib(state, *paths):
    added = {}
    for i, path in enumerate(paths):
        a, b = factors(state[f"{path}.weight"], seed=i)
        added |= {f"{path}.lora_A": a, f"{path}.lora_B": b}
    return {**state, **added}


def peft(state, *paths, base="base_layer."):
    """As PeftModel.state_dict() spells it."""
    renamed = {}
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        renamed[f"base_model.model.{path}.{base if path in paths else ''}{leaf}"] = tensor
    for i, path in enumerate(paths):
        a, b = factors(state[f"{path}.weight"], seed=i)
        renamed |= {
            f"base_model.model.{path}.lora_A.default.weight": a,
            f"base_model.model.{path}.lora_B.default.weight": b,
        }
    return renamed


def diffusers(state, *paths, alpha):
    added = {}
    for i, path in enumerate(paths):
        a, b = factors(state[f"{path}.weight"], seed=i)
        added |= {f"{path}.lora_down.weight": a, f"{path}.lora_up.weight": b, f"{path}.alpha": torch.tensor(alpha)}
    return {**state, **added}


def expected(state, scale, *paths):
    new = {f"{path}.weight": merged(state[f"{path}.weight"], *factors(state[f"{path}.weight"], seed=i), scale)
           for i, path in enumerate(paths)}  # fmt: skip
    return {**state, **new}


def read(path, wanted, key=None):
    """What the checkpoint holds after merging."""
    with Checkpoint(path) as checkpoint:
        merge_lora(checkpoint, wanted, key)
        (state,) = checkpoint.states.values()
        return {name: checkpoint.read(entry) for name, entry in state.items()}, checkpoint.merged


def assert_equal(found, state):
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), name)


SPELLED = {
    "loralib": (loralib, 0.5, 0.5),
    "peft": (peft, 2.0, 2.0),
    "peft of old": (lambda state, *paths: peft(state, *paths, base=""), 2.0, 2.0),
    "diffusers": (lambda state, *paths: diffusers(state, *paths, alpha=8.0), True, 2.0),
    "wrapped": (lambda state, *paths: {f"module.{n}": t for n, t in loralib(state, *paths).items()}, 1, 1.0),
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_merged_in_every_spelling(spelling, tmp_path):
    spell, wanted, scale = SPELLED[spelling]
    torch.save(spell(DECODER, KERNEL, OTHER), tmp_path / "ckpt.pth")
    found, told = read(tmp_path / "ckpt.pth", wanted)
    assert_equal({n.removeprefix("module."): v for n, v in found.items()}, expected(DECODER, scale, KERNEL, OTHER))
    assert len(told) == 1
    assert told[0].startswith("LoRA merged into 2 kernels, in float64 and rounded once: ")
    assert told[0].endswith(f"; scale {scale:g}")


def test_queries_and_values_of_a_fused_kernel(tmp_path):
    """As SAMed keeps them: qkv became a layer that holds qkv."""
    encoder = seeded(torch_refs.create("sam_vit_b").image_encoder.blocks[0].attn.qkv).state_dict()
    kernel = encoder["weight"]
    (aq, bq), (av, bv) = factors(kernel[:768]), factors(kernel[:768], seed=1)
    state = {
        "blocks.0.attn.qkv.qkv.weight": kernel, "blocks.0.attn.qkv.qkv.bias": encoder["bias"],
        "blocks.0.attn.qkv.linear_a_q.weight": aq, "blocks.0.attn.qkv.linear_b_q.weight": bq,
        "blocks.0.attn.qkv.linear_a_v.weight": av, "blocks.0.attn.qkv.linear_b_v.weight": bv,
    }  # fmt: skip
    torch.save(state, tmp_path / "ckpt.pth")
    found, told = read(tmp_path / "ckpt.pth", True)
    whole = torch.cat([merged(kernel[:768], aq, bq, 1), kernel[768:1536], merged(kernel[1536:], av, bv, 1)])
    assert_equal(found, {"blocks.0.attn.qkv.weight": whole, "blocks.0.attn.qkv.bias": encoder["bias"]})
    assert "scale 1" in told[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_sum_is_rounded_once_to_the_kernels_dtype(dtype, tmp_path):
    layer = {"l.weight": torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)}
    a, b = factors(layer["l.weight"])
    torch.save({**layer, "l.lora_A": a, "l.lora_B": b}, tmp_path / "ckpt.pth")
    found, _ = read(tmp_path / "ckpt.pth", 0.7)
    exact = layer["l.weight"].double() + 0.7 * (b.double() @ a.double())
    values, limits = found["l.weight"].astype(np.float64), np.abs(exact.numpy()) * torch.finfo(dtype).eps / 2
    assert found["l.weight"].dtype == {torch.bfloat16: ml_dtypes.bfloat16}.get(dtype, str(dtype).removeprefix("torch."))
    assert (np.abs(values - exact.numpy()) <= limits * (1 + 1e-9) + 1e-14).all()


def test_what_bfloat16_rounds_is_rounded_once(tmp_path):
    """A sum that float32 rounds to the middle of two numbers of bfloat16, and that lies on one side of it."""
    step = 2.0**-7
    torch.save(
        {"l.weight": torch.ones(1, 2, dtype=torch.bfloat16), "l.lora_A": torch.ones(1, 2, dtype=torch.float64),
         "l.lora_B": torch.full((1, 1), step / 2 + 2.0**-40, dtype=torch.float64)},
        tmp_path / "ckpt.pth",
    )  # fmt: skip
    found, _ = read(tmp_path / "ckpt.pth", 1)
    assert found["l.weight"].astype(float).tolist() == [[1 + step] * 2]


def test_kernels_of_convolutions_and_those_that_lie_the_other_way(tmp_path):
    rng = torch.Generator().manual_seed(0)
    conv, turned = torch.randn(6, 4, 3, 3, generator=rng), torch.randn(5, 7, generator=rng)
    a, b = torch.randn(2, 4, 3, 3, generator=rng), torch.randn(6, 2, 1, 1, generator=rng)
    la, lb = torch.randn(2 * 3, 4 * 3, generator=rng), torch.randn(6 * 3, 2 * 3, generator=rng)
    ta, tb = torch.randn(2, 5, generator=rng), torch.randn(7, 2, generator=rng)
    state = {
        "peft.weight": conv, "peft.lora_A.weight": a, "peft.lora_B.weight": b,
        "loralib.weight": conv, "loralib.lora_A": la, "loralib.lora_B": lb,
        "turned.weight": turned, "turned.lora_A": ta, "turned.lora_B": tb,
    }  # fmt: skip
    torch.save(state, tmp_path / "ckpt.pth")
    found, _ = read(tmp_path / "ckpt.pth", 1)
    by_conv = torch.einsum("rihw,or->oihw", a.double(), b.double()[..., 0, 0])
    np.testing.assert_allclose(found["peft.weight"], conv + by_conv, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["loralib.weight"], conv + (lb @ la).reshape(6, 4, 3, 3), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["turned.weight"], turned + (tb @ ta).T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "wanted", "scale"),
    [({"lora_alpha": 16, "r": 4}, True, 4.0), ({"lora_alpha": 16, "use_rslora": True}, True, 8.0),
     ({"lora_alpha": 16}, 4, 4.0), ({}, 3, 3.0)],
)  # fmt: skip
def test_the_scale_is_in_the_configuration_of_the_adapter(config, wanted, scale, tmp_path):
    safetensors.torch.save_file(peft(DECODER, KERNEL), tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found, _ = read(tmp_path / "model.safetensors", wanted)
    assert_equal(found, expected(DECODER, scale, KERNEL))


def test_modules_that_were_trained_whole_take_the_place_of_the_original_ones(tmp_path):
    state = peft(DECODER, KERNEL)
    name = "base_model.model.iou_token"
    own, trained = state.pop(f"{name}.weight"), torch.full((1, 256), 0.25)
    state |= {f"{name}.original_module.weight": own, f"{name}.modules_to_save.default.weight": trained}
    torch.save(state, tmp_path / "ckpt.pth")
    found, _ = read(tmp_path / "ckpt.pth", 1)
    assert_equal(found, {**expected(DECODER, 1, KERNEL), "iou_token.weight": trained})


WEIGHT = torch.zeros(6, 8)
A, B = torch.zeros(2, 8), torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("state", "wanted", "told"),
    [
        ({"l.lora_A": A, "l.lora_B": B, "l.weight": WEIGHT}, True,
         "nothing tells the scale of LoRA at l; --lora-scale says it"),
        ({"l.lora_A": A, "l.lora_B": B}, 1, r"stands there without the kernel it adds to \(l.weight\); merge it into"),
        ({"l.lora_A": A, "l.weight": WEIGHT}, 1, "one of the two factors of LoRA at l is missing"),
        ({"l.lora_A": A, "l.lora_B": B.T, "l.weight": WEIGHT}, 1,
         r"of shapes .* at l does not fit the kernel of \(6, 8\)"),
        ({"l.lora_A": A, "l.lora_B": B, "l.weight": torch.zeros(6, 9)}, 1, "does not fit the kernel"),
        (
            {"l.lora_A.x.weight": A, "l.lora_B.x.weight": B, "l.lora_A.y.weight": A, "l.lora_B.y.weight": B,
             "l.weight": WEIGHT},
            1,
            "several adapters of LoRA: x, y; keep one",
        ),
        ({"l.lora_magnitude_vector.default.weight": A, "l.weight": WEIGHT}, 1,
         "magnitude_vector.default.weight: not merged"),
        (
            {"l.lora_A": torch.zeros(2, 6), "l.lora_B": torch.zeros(8, 2), "l.weight": WEIGHT,
             "m.lora_A": A, "m.lora_B": torch.zeros(8, 2), "m.weight": torch.zeros(8, 8)},
            1,
            "m.weight is square, so that nothing shows whether LoRA is to be added transposed",
        ),
        ({"l.lora_down.weight": A, "l.lora_up.weight": B, "l.alpha": torch.tensor(4.0), "l.weight": WEIGHT}, 3,
         "the scale of LoRA at l is 2, says l.alpha, and not 3"),
        ({"w_a_000": A, "w_b_000": B, "l.weight": WEIGHT}, 1, "w_a_000, w_b_000: not merged here"),
    ],
)  # fmt: skip
def test_what_is_not_merged_and_why(state, wanted, told, tmp_path):
    torch.save(state, tmp_path / "ckpt.pth")
    with pytest.raises(converter.ConversionError, match=told) as caught:
        read(tmp_path / "ckpt.pth", wanted)
    assert str(caught.value).startswith(str(tmp_path / "ckpt.pth"))


@pytest.mark.parametrize(
    ("config", "told"),
    [('{"use_dora": true, "lora_alpha": 1}', "has use_dora, which is not merged here"), ("[1]", "is no JSON object"),
     ("{", "cannot be read"), ('{"lora_alpha": 1, "peft_type": "ADALORA"}', "is of ADALORA, which is not merged here"),
     ('{"lora_alpha": 4, "r": 8}', "is of rank 4, and the adapter_config.json beside it says r is 8"),
     (" " * (1 << 20) + "{}", "is far too long"), ('{"lora_alpha": 4, "fan_in_fan_out": true}', "square"),
     ('{"lora_alpha": 8}', "the scale of LoRA at .* is 2, says the adapter_config.json beside it, and not 1")],
)  # fmt: skip
def test_configurations_of_adapters_that_are_not_merged(config, told, tmp_path):
    torch.save(peft(DECODER, KERNEL), tmp_path / "ckpt.pth")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(converter.ConversionError, match=told):
        read(tmp_path / "ckpt.pth", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, value) for name in ("lora_alpha", "r") for value in (10**400, math.nan, math.inf, True, "4", [4])),
     ("r", 0.5), ("r", 0), ("r", -1)],
)  # fmt: skip
def test_what_is_no_number_in_a_configuration(name, value, tmp_path):
    torch.save(peft(DECODER, KERNEL), tmp_path / "ckpt.pth")
    (tmp_path / "adapter_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(converter.ConversionError, match=f"says {name} is .*, which is not a (whole )?number"):
        read(tmp_path / "ckpt.pth", 1)


def test_the_scale_of_a_convolution_of_loralib_is_of_its_rank_and_not_of_its_rows(tmp_path):
    """Its factors have r * k rows and columns, k being the kernel's width."""
    rng = torch.Generator().manual_seed(0)
    kernel = torch.randn(32, 32, 3, 3, generator=rng)
    a, b = torch.randn(2 * 3, 32 * 3, generator=rng), torch.randn(32 * 3, 2 * 3, generator=rng)
    torch.save({"l.weight": kernel, "l.lora_A": a, "l.lora_B": b}, tmp_path / "ckpt.pth")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 2}')
    found, told = read(tmp_path / "ckpt.pth", True)
    assert told[0].endswith("scale 2")
    exact = kernel.double() + 2 * (b.double() @ a.double()).view(kernel.shape)
    np.testing.assert_allclose(found["l.weight"], exact, rtol=1e-6, atol=1e-6)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 4, "r": 6}')
    with pytest.raises(converter.ConversionError, match=r"is of rank 2, and the .* says r is 6"):
        read(tmp_path / "ckpt.pth", True)


@pytest.mark.parametrize(
    "leaf",
    ["dora_scale", "scaling", "ranknum", "lora_E", "lora_mid.weight", "lora_magnitude_vector.default.weight",
     "hada_w1_a", "lokr_w1", "vera_lambda_b.default", "oft_blocks", "ia3_l.default"],
)  # fmt: skip
def test_what_changes_what_lora_adds_is_refused_also_where_it_is_ignored(leaf, tmp_path):
    """Without it, the sum would be another network's."""
    state = {**loralib(DECODER, OTHER), f"{OTHER}.{leaf}": torch.ones(1)}
    torch.save(state, tmp_path / "ckpt.pth")
    with pytest.raises(converter.ConversionError, match=re.escape(f"{OTHER}.{leaf}") + ".* not merged here; merge it"):
        read(tmp_path / "ckpt.pth", 1)
    with pytest.raises(converter.ConversionError, match=re.escape(leaf) + " changes what LoRA beside it adds, and is"):
        converter.plan("sam_decoder", tmp_path / "ckpt.pth", ignore=[f"*.{leaf}"], merge_lora=1)


def test_of_several_adapters_one_is_kept_by_ignoring_the_others(tmp_path):
    state = peft(DECODER, KERNEL)
    a, b = factors(DECODER[f"{KERNEL}.weight"], seed=7)
    path = f"base_model.model.{KERNEL}"
    torch.save({**state, f"{path}.lora_A.x.weight": a, f"{path}.lora_B.x.weight": b}, tmp_path / "ckpt.pth")
    with Checkpoint(tmp_path / "ckpt.pth") as checkpoint:
        ignore(checkpoint, ["*.x.weight"])
        merge_lora(checkpoint, 1)
        name = f"{KERNEL}.weight"
        expect = expected(DECODER, 1, KERNEL)[name].numpy()
        np.testing.assert_array_equal(checkpoint.read(checkpoint.states[""][name]), expect)


@pytest.mark.parametrize("wanted", [False, True, 1])
@pytest.mark.parametrize("leaf", ["hada_w1_a", "lokr_w1", "vera_lambda_b.default", "oft_blocks", "ia3_l", "dora_scale"])
def test_other_adapters_are_named(leaf, wanted, tmp_path):
    torch.save({**DECODER, f"{KERNEL}.{leaf}": torch.ones(1)}, tmp_path / "ckpt.pth")
    with pytest.raises(
        converter.ConversionError, match=re.escape(f"{KERNEL}.{leaf}: of an adapter that is not merged")
    ):
        read(tmp_path / "ckpt.pth", wanted)


def test_diffusers_processors_are_named(tmp_path):
    torch.save({**DECODER, "attn.processor.to_q_lora.down.weight": A}, tmp_path / "ckpt.pth")
    with pytest.raises(converter.ConversionError, match=r"to_q_lora\.down\.weight: not merged here"):
        read(tmp_path / "ckpt.pth", 1)


@pytest.mark.parametrize("above", ["", "model."])
@pytest.mark.parametrize(("leaf", "wanted"), [("lora_A.weight", False), ("lora_magnitude_vector", 1), ("hada_a", 1)])
def test_of_another_network_in_the_file_it_can_be_passed_over(leaf, wanted, above, tmp_path):
    other = {"text_encoder.0.weight": torch.ones(8, 8), f"text_encoder.0.{leaf}": torch.ones(2, 8)}
    state = {f"{above}{name}": tensor for name, tensor in {**other, **DECODER}.items()}
    torch.save(state, tmp_path / "ckpt.pth")
    with pytest.raises(converter.ConversionError) as caught:
        converter.plan("sam_decoder", tmp_path / "ckpt.pth", merge_lora=wanted)
    pattern = f"{above}text_encoder.*"
    told = f"; where it is of another network in the file, pass that over: --ignore '{pattern}'"
    assert str(caught.value).endswith(told)
    assert converter.plan("sam_decoder", tmp_path / "ckpt.pth", ignore=[pattern]).tensors == len(DECODER)


NOTHING = torch.zeros(1)


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ({"lora_A": NOTHING.expand(3_000_000, 256), "lora_B": NOTHING.expand(256, 3_000_000)},
         f"LoRA at {KERNEL} is of rank 3000000, far beyond its kernel"),
        ({"lora_down.weight": torch.ones(4, 256), "lora_up.weight": torch.ones(256, 4),
          "alpha": NOTHING.expand(600_000_000)}, f"{KERNEL}.alpha is no number"),
        ({"lora_down.weight": torch.ones(4, 256), "lora_up.weight": torch.ones(256, 4),
          "alpha": torch.tensor(float("nan"))}, f"{KERNEL}.alpha is no number"),
    ],
)  # fmt: skip
def test_what_claims_more_than_it_can_be_is_refused_unread(added, told, tmp_path, monkeypatch):
    torch.save({**DECODER, **{f"{KERNEL}.{name}": tensor for name, tensor in added.items()}}, tmp_path / "ckpt.pth")
    sizes = []
    right = Entry.read
    monkeypatch.setattr(Entry, "read", lambda self, *rest: sizes.append(self.nbytes) or right(self, *rest))
    with pytest.raises(converter.ConversionError, match=told):
        read(tmp_path / "ckpt.pth", True)
    assert max(sizes, default=0) < 1000


def test_a_rank_above_the_shorter_side_of_a_small_kernel_is_merged(tmp_path):
    """As where every layer of a network was given one rank."""
    state = {"l.weight": torch.ones(2, 8), "l.lora_A": torch.ones(16, 8), "l.lora_B": torch.ones(2, 16)}
    torch.save(state, tmp_path / "ckpt.pth")
    found, _ = read(tmp_path / "ckpt.pth", 1)
    assert (found["l.weight"] == 17).all()


def test_what_factors_claim_counts_as_what_tensors_do(tmp_path):
    state = dict(DECODER)
    for name in [name for name, tensor in DECODER.items() if name.endswith(".weight") and tensor.ndim == 2]:
        out, into = DECODER[name].shape
        path = name.removesuffix(".weight")
        state |= {f"{path}.lora_A": NOTHING.expand(1024, into), f"{path}.lora_B": NOTHING.expand(out, 1024)}
    torch.save(state, tmp_path / "ckpt.pth")
    with pytest.raises(converter.PlanError, match=r"its tensors claim .* bytes, but the file holds"):
        converter.plan("sam_decoder", tmp_path / "ckpt.pth", merge_lora=1)


def run(command, *arguments):
    return CliRunner().invoke(command, [str(one) for one in arguments])


def test_it_is_not_left_out_unasked(tmp_path):
    torch.save(loralib(DECODER, KERNEL), tmp_path / "ckpt.pth")
    output = tmp_path / "o.weights.h5"
    for command in ((cli.convert,), (cli.main, "convert")):
        done = run(*command, tmp_path / "ckpt.pth", "-m", "sam_decoder", "-o", output)
        assert done.exit_code == 1
        told = f"2 of its tensors are LoRA's ({KERNEL}.lora_A, {KERNEL}.lora_B); --merge-lora adds them"
        assert told in done.output
        assert not output.exists()
    for wanted in (float("nan"), "1"):
        with pytest.raises(converter.UsageError, match="True or a number"):
            converter.plan("sam_decoder", tmp_path / "ckpt.pth", merge_lora=wanted)
    done = run(cli.convert, tmp_path / "ckpt.pth", "--lora-scale", 2)
    assert (done.exit_code, "--lora-scale is for --merge-lora" in done.output) == (2, True)
    torch.save(DECODER, tmp_path / "plain.pth")
    done = run(cli.convert, tmp_path / "plain.pth", "--merge-lora")
    assert done.exit_code == 2
    assert "plain.pth holds no tensors of LoRA, so there is nothing to merge" in done.output


def test_merged_converted_proven_and_given_back(tmp_path):
    checkpoint, output = tmp_path / "ckpt.pth", tmp_path / "o.weights.h5"
    torch.save({"model": peft(ATTENTION, "value_proj", "output_proj")}, checkpoint)
    flags = ("-m", "ms_deform_attn", *OPTIONS, "--merge-lora", "--lora-scale", 2)
    told = re.compile(r"LoRA merged into 2 kernels, in float64 and rounded once: .*; scale 2")
    plan = run(cli.convert, checkpoint, *flags, "--dry-run")
    assert (plan.exit_code, bool(told.search(plan.output))) == (0, True), plan.output
    done = run(cli.convert, checkpoint, *flags, "-o", output)
    assert done.exit_code == 0, done.output
    assert told.search(done.output)
    assert "4 of 4 agree with torch" in done.output
    assert told.search(run(cli.main, "inspect", output).output)
    back = run(cli.main, "restore", output, "-o", tmp_path / "back.pth")
    assert back.exit_code == 0, back.output
    assert "the merged weights come back, and not what they were made of: LoRA merged into 2 kernels" in back.output
    for name, tensor in expected(ATTENTION, 2, "value_proj", "output_proj").items():
        np.testing.assert_array_equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"][name], tensor)
    checked = run(cli.main, "verify", checkpoint, output, "--level", "lossless", *flags[-3:])
    assert checked.exit_code == 0, checked.output
    other = run(cli.main, "verify", checkpoint, output, "--level", "lossless", "--merge-lora", "--lora-scale", 1)
    assert other.exit_code == 1
    assert "2 tensors differ in the file" in other.output


def test_the_numerical_proof_merges_on_torchs_side_by_itself(tmp_path, monkeypatch):
    """A merge that is wrong here is found there."""
    from converter.checkpoints import lora

    torch.save(loralib(ATTENTION, "value_proj"), tmp_path / "ckpt.pth")
    right = lora.Merge.__call__
    monkeypatch.setattr(
        lora.Merge, "__call__", lambda self, values: right(self, [values[0], *(1.1 * v for v in values[1:])])
    )
    with pytest.raises(converter.ProofError, match="value_proj"):
        converter.convert(
            "ms_deform_attn", tmp_path / "ckpt.pth", tmp_path / "o.weights.h5", options=SIZES, merge_lora=1
        )


def test_nn_linear_as_loralib_computes_it():
    """What is merged computes what the layer of LoRA does."""
    layer, x = nn.Linear(8, 6), torch.randn(3, 8)
    a, b = factors(layer.weight)
    alone = layer(x) + 0.5 * (x @ a.T @ b.T)
    with torch.no_grad():
        layer.weight.copy_(merged(layer.weight, a, b, 0.5))
    torch.testing.assert_close(layer(x), alone)
