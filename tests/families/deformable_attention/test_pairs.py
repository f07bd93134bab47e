"""Checkpoints made by the `deformable-attention` package, through the command and the library."""

import numpy as np
import pytest
import torch

import converter
import tf_models
import torch_refs
from converter.families import deformable_attention as mappings
from tests.support.checkpoints import prefixed, save
from tests.support.deformable import OTHER, SMALL, inputs, reference, upstream
from tests.support.rule import assert_allowed
from tests.support.running import run

AXES = [1, 2, 3]
PAIRS = {
    1: mappings.DEFORMABLE_ATTENTION_1D,
    2: mappings.DEFORMABLE_ATTENTION_2D,
    3: mappings.DEFORMABLE_ATTENTION_3D,
}


def options(axes: int, **more):
    """What the state dict does not reveal of a module with these arguments."""
    given = {**SMALL[axes], **more}
    return {name: given[name] for name in PAIRS[axes].options if name in given}


def assert_computes(model, module, x):
    """As near to what torch's reference, which equals the package's module, gives in float64 as the rule demands."""
    double, image = module.double(), x.double()

    def compute():
        with torch.no_grad():
            return [double(image).movedim(1, -1)]

    assert_allowed([model(x.movedim(1, -1).contiguous().numpy())], compute)


@pytest.mark.parametrize("axes", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_command_converts_what_the_package_saved(axes, tmp_path):
    module = upstream(axes)
    checkpoint = save(module.state_dict(), tmp_path)
    strides = "x".join(map(str, np.atleast_1d(SMALL[axes]["downsample_factor"])))
    done = run("convert", checkpoint, "--option", f"downsample_factor={strides}", "-o", "out.weights.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"deformable_attention_{axes}d, {len(module.state_dict())} tensors" in done.stdout
    assert f"layers    {[12, 12, 12][axes - 1]} of" in done.stdout
    assert "output    vgrid: error" in done.stdout
    model = tf_models.load(tmp_path / "out.weights.h5")
    assert_computes(model, reference(axes, module), inputs(axes))


@pytest.mark.parametrize("axes", AXES)
def test_what_shapes_do_not_reveal_is_an_option_and_comes_back(axes, tmp_path):
    more = OTHER[axes] | {"dropout": 0.25}
    module = upstream(axes, **more)
    output = tmp_path / "out.weights.h5"
    wrapped = prefixed(module.state_dict(), "module.")
    report = converter.convert(None, save(wrapped, tmp_path), output, verify="lossless", options=options(axes, **more))
    assert report.model == f"deformable_attention_{axes}d"
    arguments = {**SMALL[axes], **more}
    groups = arguments["offset_groups"] or arguments["heads"]
    for name, value in {**arguments, "offset_groups": groups}.items():
        if name in report.config:  # a volume's offset_scale is a tensor
            assert report.config[name] == (list(value) if isinstance(value, tuple) else value), name
    model = tf_models.load(output)
    assert model.dropout.rate == 0.25
    assert_computes(model, reference(axes, module, **more), inputs(axes))


@pytest.mark.parametrize(
    ("axes", "variant"),
    [pytest.param(1, "zero_y", marks=pytest.mark.slow), (2, "xy_hw"), pytest.param(2, "ij_hw", marks=pytest.mark.slow)],
)
def test_the_grid_is_recorded_and_enforced(axes, variant, tmp_path):
    module = upstream(axes)
    checkpoint, output = save(module.state_dict(), tmp_path), tmp_path / "out.weights.h5"
    chosen = options(axes) | {"grid_variant": variant}
    report = converter.convert(PAIRS[axes].name, checkpoint, output, options=chosen)
    assert report.numerical
    model = tf_models.load(output)
    assert model.grid_variant == variant
    older = reference(axes, module, grid_variant=variant)
    assert_computes(model, older, inputs(axes, spatial=(13, 14) if axes == 2 else None))
    newest = {"grid_variant": PAIRS[axes].options["grid_variant"].default}
    with pytest.raises(converter.ConversionError, match="another configuration: grid_variant differ"):
        converter.verify(None, checkpoint, output, options=newest, level="lossless")


@pytest.mark.parametrize("axes", AXES)
def test_strides_that_are_not_said_are_one_number(axes, tmp_path):
    state = torch_refs.create(f"deformable_attention_{axes}d", dim=16, heads=2, dim_head=8).state_dict()
    plan = converter.plan(f"deformable_attention_{axes}d", save(state, tmp_path))
    assert plan.config["downsample_factor"] == 4


def test_wrong_values_are_refused(tmp_path):
    checkpoint = save(upstream(2).state_dict(), tmp_path)
    with pytest.raises(converter.UsageError, match="option grid_variant is one of xy_wh, xy_hw, ij_hw, not ij"):
        converter.plan("deformable_attention_2d", checkpoint, {"grid_variant": "ij"})
    with pytest.raises(converter.UsageError, match=r"offset_kernel_size \(5\) or an even number less, not 4"):
        converter.plan("deformable_attention_2d", checkpoint)
    with pytest.raises(converter.UsageError, match="option offset_scale takes a number, not far"):
        converter.plan("deformable_attention_2d", checkpoint, {"offset_scale": "far"})
    # Releases up to 0.0.12 projected keys and values together, over other groups: another network.
    packed = {name.replace("to_k", "to_kv"): tensor for name, tensor in upstream(2).state_dict().items()}
    with pytest.raises(converter.ConversionError, match="to_kv"):
        converter.plan("deformable_attention_2d", save(packed, tmp_path), options(2))


@pytest.mark.parametrize("axes", AXES)
def test_the_probes_samples_leave_the_image(axes):
    sizes = SMALL[axes] | {"dim": 96, "dim_head": 16}
    torch.manual_seed(0)
    module = reference(axes, **sizes)  # as fresh as it comes
    config = {**sizes, "grid_variant": PAIRS[axes].options["grid_variant"].default}
    small, large = PAIRS[axes].probes(config, np.random.default_rng(0))
    assert len({*small.inputs["x"].shape, sizes["heads"]}) == axes + 3, "two lengths are equal"
    vgrids = []
    for probe in (small, large):
        with torch.no_grad():
            vgrid = module(torch.from_numpy(probe.inputs["x"]), **probe.options)[1]
        vgrids.append(vgrid if axes > 1 else vgrid[:, None])
    lengths = torch.tensor(vgrids[0].shape[2:]).reshape(-1, *[1] * axes)
    outside = [((vgrid < 0) | (vgrid > lengths - 1)).any(1) for vgrid in vgrids]
    assert outside[0].any()
    assert 0.1 < outside[1].float().mean() < 1
    # Not only at the edges, where the grid itself touches the border.
    inner = vgrids[1][(..., *[slice(1, -1)] * axes)] if axes < 3 else vgrids[1]
    assert ((inner < 0) | (inner > lengths - 1)).any()
