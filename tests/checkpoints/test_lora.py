"""LoRA beside a network's own tensors: merged into its kernels where that is asked for, and refused where it is not."""

import json
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
from converter.checkpoints.lora import merge_lora
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
    [('{"use_dora": true, "lora_alpha": 1}', "has use_dora, which is not merged here"), ("[1]", "is no table"),
     ("{", "cannot be read"), ('{"lora_alpha": 4, "fan_in_fan_out": true}', "square"),
     ('{"lora_alpha": 8}', "the scale of LoRA at .* is 2, says the adapter_config.json beside it, and not 1")],
)  # fmt: skip
def test_configurations_of_adapters_that_are_not_merged(config, told, tmp_path):
    torch.save(peft(DECODER, KERNEL), tmp_path / "ckpt.pth")
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(converter.ConversionError, match=told):
        read(tmp_path / "ckpt.pth", 1)


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
