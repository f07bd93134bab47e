"""The torch SAM mask decoder and the seeded checkpoint, against the segment-anything package."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from segment_anything import sam_model_registry

import torch_refs
from converter.families.sam.mask_decoder import PUBLISHED_DECODER
from tests.support.rule import assert_as_exact, assert_same, last
from tests.support.seeded import seeded
from tests.support.small_sam import OTHER_DECODER, decoder_inputs, upstream_mask_decoder
from torch_refs.sam.attention import Attention
from torch_refs.sam.mask_decoder import build_mask_decoder
from torch_refs.sam.seeded_checkpoint import VARIANTS, official_shapes, seeded_tensor, write_seeded_checkpoint


@pytest.fixture(scope="module", params=[PUBLISHED_DECODER, OTHER_DECODER], ids=["sam", "small"])
def both(request):
    """The reference and the upstream decoder with the same seeded weights, in float64."""
    config = request.param
    ours, upstream = seeded(build_mask_decoder(**config)), upstream_mask_decoder(config)
    upstream.load_state_dict(ours.state_dict(), strict=True)
    return ours.double(), upstream.double(), config["transformer_dim"]


def test_state_dict_is_the_official_one():
    ours, upstream = build_mask_decoder().state_dict(), upstream_mask_decoder(PUBLISHED_DECODER).state_dict()
    assert len(ours) == 120
    assert [(name, tensor.shape) for name, tensor in ours.items()] == [
        (name, tensor.shape) for name, tensor in upstream.items()
    ]


def test_the_defaults_are_sams_and_create_builds_it():
    state = torch_refs.create("sam_decoder").state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in build_mask_decoder(**PUBLISHED_DECODER).state_dict().items()
    }


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize(
    ("prompts", "height", "width", "tokens"),
    [(1, 64, 64, 2), (1, 7, 5, 3), (2, 1, 9, 1), (3, 6, 4, 0), (4, 3, 8, 7), (5, 11, 2, 30)],
)
def test_outputs_equal_upstreams(both, prompts, height, width, tokens, multimask_output):
    ours, upstream, c = both
    args = [arg.double() for arg in decoder_inputs(c, prompts, height, width, tokens)]
    assert_same(lambda: ours(*args, multimask_output), lambda: upstream(*args, multimask_output))
    with torch.inference_mode():
        assert upstream(*args, multimask_output)[0].std() > 0.1  # not a comparison of zeros


def test_float64(both):
    """Float64 stays float64, and float32 is as near to it as the rule of the proof demands."""
    ours, _, c = both
    args = decoder_inputs(c, 2, 5, 6, 2)
    single = deepcopy(ours).float()
    doubled = [arg.double() for arg in args]
    with torch.inference_mode():
        assert {output.dtype for output in ours(*doubled)} == {torch.float64}
        assert_as_exact(map(last, single(*args)), lambda: ours(*doubled))


def test_one_image_per_prompt_equals_one_call_per_prompt(both):
    ours, _, c = both
    _, pe, sparse, dense = (arg.double() for arg in decoder_inputs(c, 3, 5, 4, 2))
    images = decoder_inputs(c, 3, 5, 4, 1)[3].double()

    def apart():
        each = [ours(images[i : i + 1], pe, sparse[i : i + 1], dense[i : i + 1]) for i in range(3)]
        return [torch.cat(outputs) for outputs in zip(*each, strict=True)]

    assert_same(lambda: ours(images, pe, sparse, dense), apart)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads"):
        Attention(32, num_heads=5)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name in sam_model_registry])
def test_official_shapes_are_segment_anythings(variant):
    with torch.device("meta"):
        official = sam_model_registry[variant]().state_dict()
    assert list(official_shapes(variant).items()) == [(name, tuple(tensor.shape)) for name, tensor in official.items()]


def test_vit_h_has_594_tensors():
    assert len(official_shapes("vit_h")) == 594


def test_unknown_variant():
    with pytest.raises(ValueError, match="vit_b, vit_l, vit_h"):
        official_shapes("vit_x")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "new" / "vit_b.pth"
    command = [sys.executable, "-m", "torch_refs.sam.seeded_checkpoint", "vit_b", str(path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return path, printed


def test_the_command_says_in_one_line_what_it_wrote(written):
    path, printed = written
    assert printed == f"{path}  vit_b  314 tensors  374.9 MB  seed 0\n"


def test_seeded_checkpoint_loads_into_segment_anything(written):
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]()
    sam.load_state_dict(torch.load(written[0], weights_only=True), strict=True, assign=True)
    with torch.inference_mode():
        image_pe = sam.prompt_encoder.get_dense_pe()
        points = torch.tensor([[[300.0, 700.0]]]), torch.ones(1, 1)
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        image = torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(0))
        masks, iou = sam.mask_decoder(image, image_pe, sparse, dense, True)
    assert 0.2 < masks.std() < 5
    assert 0.05 < iou.abs().max() < 5


def test_seeded_checkpoint_has_no_idle_tensor_and_no_two_alike(written):
    tensors = torch.load(written[0], weights_only=True, mmap=True)
    fingerprints = set()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all(), name
        assert ((tensor == 0) | (tensor == 1)).double().mean() < 1e-4, name  # a normal draw may be 0
        fingerprints.add(tuple(tensor.flatten()[:4].tolist()))
    assert len(fingerprints) == len(tensors)


def test_weights_depend_on_the_seed_and_are_repeatable():
    shape = (3, 5)
    assert torch.equal(seeded_tensor("a.weight", shape, 1), seeded_tensor("a.weight", shape, 1))
    assert not torch.equal(seeded_tensor("a.weight", shape, 1), seeded_tensor("a.weight", shape, 2))
    assert not torch.equal(seeded_tensor("a.weight", shape, 1), seeded_tensor("b.weight", shape, 1))


def test_writing_twice_gives_the_same_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("torch_refs.sam.seeded_checkpoint.official_shapes", lambda variant: {"a.weight": (3, 5)})
    for name in ("one", "two"):
        write_seeded_checkpoint(tmp_path / name, "vit_b", seed=7)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert torch.equal(one["a.weight"], two["a.weight"])
