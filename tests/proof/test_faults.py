"""The proof must be able to fail: each classic fault is put in, and must be caught and named."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

import converter
from converter.families.sam.mask_decoder import SAM_DECODER, decoder_mapping
from converter.kinds import ACTIVATION_2D, DENSE, LAYER_NORM, Kind, leaf
from converter.pairs import registry
from converter.pairs.mapping import Mapping, Row
from tests.support.checkpoints import save
from tests.support.small_sam import OPTIONS, decoder_state
from tf_models.sam.mask_decoder import build_mask_decoder

LAYER = "transformer.layers.0"


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """Other tests of the process do not find the faulty pair among those that may fit."""
    yield
    registry._registered.pop("faulty", None)


def faulty(**changes) -> converter.Pair:
    """The decoder's pair under another name, with a fault."""
    pair = dataclasses.replace(
        SAM_DECODER,
        name="faulty",
        build_tf=changes.pop("build_tf", build_mask_decoder),
        build_torch="torch_refs.sam.mask_decoder:build_mask_decoder",
        **changes,
    )
    return converter.register(pair)


def remapped(*rows: Row):
    """The decoder's mapping with some modules under other rows."""

    def mapping(config):
        replaced = {path for row in rows for path, _ in row.modules()}
        kept = [
            Row(path, kind, keras_path)
            for path, keras_path, kind in decoder_mapping(config).modules()
            if path not in replaced
        ]
        return Mapping([*kept, *rows])

    return mapping


def altered(change):
    """A builder of the decoder that changes the model after it is built."""

    def build(**config):
        model = build_mask_decoder(**config)
        change(model)
        return model

    return build


UNTRANSPOSED = Kind("UNTRANSPOSED", (leaf("weight", "kernel", "o i -> o i"), leaf("bias", "bias", "o -> o")))


def tanh_gelu(model):
    layer = model.output_upscaling[2]
    layer.call = lambda x: keras.activations.gelu(x, approximate=True)


def epsilon(where, value):
    def change(model):
        where(model).epsilon = value

    return change


FAULTS = {
    "a square kernel is not transposed": (
        {"mapping": remapped(Row(f"{LAYER}.self_attn.q_proj", UNTRANSPOSED))},
        f"{LAYER}.self_attn.q_proj",
    ),
    "q and k are swapped": (
        {
            "mapping": remapped(
                Row(f"{LAYER}.self_attn.q_proj", DENSE, f"{LAYER}.self_attn.k_proj"),
                Row(f"{LAYER}.self_attn.k_proj", DENSE, f"{LAYER}.self_attn.q_proj"),
            )
        },
        None,  # each layer at its swapped path computes what torch's does: only the outputs can tell
    ),
    "norm1 and norm2 are swapped": (
        {
            "mapping": remapped(
                Row(f"{LAYER}.norm1", LAYER_NORM, f"{LAYER}.norm2"),
                Row(f"{LAYER}.norm2", LAYER_NORM, f"{LAYER}.norm1"),
            )
        },
        None,
    ),
    "GELU is approximated by tanh": ({"build_tf": altered(tanh_gelu)}, "output_upscaling.2"),
    "epsilon 1e-6 for 1e-5": (
        {"build_tf": altered(epsilon(lambda m: m.transformer.layers[1].norm3, 1e-6))},
        "transformer.layers.1.norm3",
    ),
    "epsilon 1e-3, Keras's own": (
        {"build_tf": altered(epsilon(lambda m: m.transformer.norm_final_attn, 1e-3))},
        "transformer.norm_final_attn",
    ),
    "epsilon 1e-5 for LayerNorm2d's 1e-6": (
        {"build_tf": altered(epsilon(lambda m: m.output_upscaling[1], 1e-5))},
        "output_upscaling.1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_and_named(fault, tmp_path):
    changes, first_layer = FAULTS[fault]
    checkpoint = save(decoder_state(), tmp_path)
    output = tmp_path / "out.weights.h5"
    output.write_bytes(b"previous")
    before = sorted(path.name for path in tmp_path.iterdir())
    pair = faulty(**changes)

    with pytest.raises(converter.ProofError) as caught:
        converter.convert(pair.name, checkpoint, output, overwrite=True, options=OPTIONS)

    report = caught.value.report
    assert report.lossless, "every fault here is one that the lossless proof cannot see"
    assert not report.numerical
    if first_layer is None:
        assert not all(report.numerical.outputs)
    else:
        assert report.numerical.first_difference.name == first_layer
        assert first_layer in str(caught.value)
    assert output.read_bytes() == b"previous"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_without_a_fault_it_passes(tmp_path):
    report = converter.convert(
        faulty().name, save(decoder_state(), tmp_path), tmp_path / "out.weights.h5", options=OPTIONS
    )
    assert report.lossless
    assert report.numerical
    assert {one.name for one in report.numerical.outputs} == {"masks", "iou"}
    assert len(report.numerical.layers) == 61
    assert report.numerical.full, report.numerical.unproven


def test_lossless_sees_one_changed_bit(tmp_path):
    import h5py

    checkpoint, output = save(decoder_state(), tmp_path), tmp_path / "out.weights.h5"
    converter.convert("sam_decoder", checkpoint, output, verify="none", options=OPTIONS)
    assert converter.verify("sam_decoder", checkpoint, output, level="lossless").lossless
    with h5py.File(output, "r+") as file:
        dataset = file["transformer/norm_final_attn/vars/1"] if "transformer" in file else _some_bias(file)
        values = dataset[()]
        values.view(np.uint32)[3] ^= 1
        dataset[...] = values
    report = converter.verify("sam_decoder", checkpoint, output, level="lossless")
    assert not report
    assert len(report.lossless.differing) == 1


def _some_bias(file):
    found = []
    file.visititems(lambda _, node: found.append(node) if getattr(node, "shape", ()) == (32,) else None)
    return found[0]


def test_layers_without_a_partner_are_named(tmp_path):
    def renamed(config):
        rows = [Row(p, k, q) for p, q, k in decoder_mapping(config).modules() if p != "output_upscaling.2"]
        return Mapping([*rows, Row("output_upscaling.2", ACTIVATION_2D, "output_upscaling.nowhere")])

    pair = faulty(mapping=renamed)
    with pytest.raises(converter.ProofError, match=r"output_upscaling\.2: the TensorFlow model has no layer there"):
        converter.convert(pair.name, save(decoder_state(), tmp_path), tmp_path / "o.weights.h5", options=OPTIONS)
    assert not Path(tmp_path, "o.weights.h5").exists()
