"""The torch references against the `deformable-attention` package, and against the definition in numpy."""

import numpy as np
import pytest
import torch

import torch_refs
from converter.torch_side.rounded import Exact, exactly
from tests.support.deformable import OTHER, SPATIAL, VARIANTS, defined, inputs, reference, upstream
from tests.support.rule import assert_same

AXES = [1, 2, 3]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("changed", [False, True])
def test_state_dict_and_results_are_upstreams(axes, changed):
    more = OTHER[axes] if changed else {}
    theirs, x = upstream(axes, **more), inputs(axes)
    ours = reference(axes, theirs, **more)
    shapes = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert_same(lambda: results(ours.double(), x), lambda: results(theirs.double(), x))
    assert torch.equal(ours(x.double()), ours(x.double(), return_vgrid=True)[0])


def results(module, x):
    """Outputs and gradients by name."""
    leaf = x.double().requires_grad_()
    parameters = dict(module.named_parameters())
    with torch.enable_grad():
        output, vgrid = module(leaf, return_vgrid=True)
        loss = output.square().sum() + vgrid.sum()
        gradients = torch.autograd.grad(loss, [leaf, *parameters.values()])
    return {"output": output, "vgrid": vgrid} | dict(zip(("x", *parameters), gradients, strict=True))


@pytest.mark.parametrize("axes", AXES)
def test_defaults_are_upstreams(axes):
    sizes = {"downsample_factor": (4, 4, 4), "offset_kernel_size": (6, 6, 6)} if axes == 3 else {}
    theirs = type(upstream(axes))(dim=32, **sizes)
    ours = torch_refs.create(f"deformable_attention_{axes}d", dim=32)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, *(4 * n for n in range(2, 2 + axes)))
    assert_same(lambda: [ours.double()(x.double())], lambda: [theirs.double()(x.double())])


@pytest.mark.parametrize(("axes", "variant"), [(axes, variant) for axes in AXES for variant in VARIANTS[axes]])
def test_every_released_grid(axes, variant):
    """The package in hand has the newest; the others are judged by the definition, which the newest proves right."""
    module, spatial = upstream(axes), (13, 14) if variant == "xy_hw" else SPATIAL[axes]
    x = inputs(axes, spatial=spatial)
    want = defined(module, x, variant)
    with torch.no_grad():
        got = reference(axes, module, grid_variant=variant).double()(x.double()).numpy()
        with exactly(Exact()):  # it keeps a sequence's queries at float32 positions
            newest = module.double()(x.double()).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    if variant == VARIANTS[axes][0]:
        np.testing.assert_allclose(newest, want, rtol=0, atol=1e-12)
    else:
        assert np.abs(newest - want).max() > 1e-3 * np.abs(newest).max()


def test_the_grid_of_0_0_17_is_the_newest_on_squares_and_fits_nothing_else():
    module = upstream(2)
    older = reference(2, module, grid_variant="xy_hw")
    square = inputs(2, spatial=(15, 15))
    assert_same(lambda: [older.double()(square.double())], lambda: [module.double()(square.double())])
    with pytest.raises(RuntimeError, match="must match"):
        older(inputs(2, spatial=(12, 18)).double())


def test_the_old_sequence_grid_reads_only_the_middle():
    module = reference(1, upstream(1), grid_variant="zero_y")
    x = inputs(1, spatial=(23,)).requires_grad_()
    points = torch.linspace(-1.5, 1.5, 9).reshape(1, 9, 1)
    module.sample(x[:1], points).sum().backward()
    assert x.grad[0].abs().sum(0).nonzero().ravel().tolist() == [11]


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="grid_variant is one of xy_wh, xy_hw, ij_hw, not 'ij'"):
        reference(2, grid_variant="ij")
    with pytest.raises(ValueError, match=r"offset_groups \(4\) does not divide heads \(6\)"):
        reference(2, offset_groups=4)
    with pytest.raises(ValueError, match=r"offset_kernel_size .* an even number more"):
        reference(2, downsample_factor=4)
    with pytest.raises(ValueError, match="one for each of 3 axes"):
        reference(3, downsample_factor=(2, 3))
