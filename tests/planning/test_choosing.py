"""Where in a checkpoint a network stands, and that nothing is taken while another reading may be meant."""

import shlex

import pytest
import torch
from click.testing import CliRunner

import cli
import converter
import torch_refs
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.ignoring import ignore
from converter.naming import globs
from converter.pairs.registry import get
from converter.planning.choosing import Ambiguous, Choice, find_reading
from tests.support.checkpoints import prefixed
from tests.support.small_sam import OPTIONS, decoder_state, sam_state

SAM, DECODER = sam_state(), decoder_state()
DCN = torch_refs.create("dcn_v2", in_channels=4, out_channels=4, kernel_size=3).state_dict()
CONVOLUTIONS = {
    f"stem.{i}.{leaf}": tensor for i in range(20) for leaf, tensor in {"weight": torch.ones(4, 4, 3, 3)}.items()
}
WITHOUT_ENCODER = {name: tensor for name, tensor in SAM.items() if not name.startswith("image_encoder.")}


def reading(tmp_path, state, model="auto", options=OPTIONS, ignored=(), **choice):
    torch.save(state, tmp_path / "c.pth")
    with Checkpoint(tmp_path / "c.pth") as source:
        ignore(source, ignored)
        return find_reading(source, model, options, Choice(**choice))


def question(tmp_path, state, model="auto", options=OPTIONS, **choice):
    with pytest.raises(Ambiguous) as raised:
        reading(tmp_path, state, model, options, **choice)
    return str(raised.value), list(raised.value.choices)


@pytest.mark.parametrize(
    "prefix",
    [
        "sam.", "net.", "student.", "ema_model.", "model.sam.", "module.net.", "_fsdp_wrapped_module.", "decoder.",
        "_forward_module.", "_forward_module.module.net._orig_mod.", "a.0.b.1.c.d.",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("state", "model"), [(SAM, "sam"), (DECODER, "sam_decoder")], ids=["whole", "part"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_network_is_found_under_whatever_stands_before_its_names(tmp_path, prefix, state, model, asked):
    found = reading(tmp_path, prefixed(state, prefix), model if asked else "auto")
    assert (found.pair.name, found.fits, found.matched) == (model, True, len(state))
    words = [word for word in prefix.split(".") if word not in ("_fsdp_wrapped_module", "_forward_module", "_orig_mod")]
    assert found.scope == ".".join(words).rstrip(".")


@pytest.mark.parametrize("word", ["_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module"])
def test_what_wraps_a_module_inside_is_passed_through(tmp_path, word):
    state = {name.replace("blocks.1.", f"blocks.1.{word}."): tensor for name, tensor in SAM.items()}
    assert state.keys() != SAM.keys()
    found = reading(tmp_path, state)
    assert (found.pair.name, found.fits, found.matched) == ("sam", True, len(SAM))


def test_a_part_of_a_wrapped_whole_is_found(tmp_path):
    found = reading(tmp_path, prefixed(SAM, "sam."), "sam_decoder")
    assert (found.fits, found.matched, found.scope) == (True, len(DECODER), "sam.mask_decoder")
    assert reading(tmp_path, prefixed(SAM, "sam."), "sam_decoder", scope="sam").scope == "sam.mask_decoder"


def test_the_report_and_the_record_say_where_it_stood(tmp_path):
    torch.save({**prefixed(DECODER, "student."), "head.weight": torch.ones(3)}, tmp_path / "c.pth")
    report = converter.convert(
        "auto", tmp_path / "c.pth", tmp_path / "o.weights.h5", verify="lossless", options=OPTIONS
    )
    assert ("scope", "student") in report.lines()
    assert ("out of scope", "head.* 1") in report.lines()
    converter.restore(tmp_path / "o.weights.h5", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == [f"student.{name}" for name in DECODER]


TWICE = {
    "student and teacher": (
        {**prefixed(SAM, "student."), **prefixed(SAM, "teacher.")}, "auto", ["student", "teacher"]
    ),
    "model and module": ({**prefixed(DECODER, "model."), **prefixed(DECODER, "module.")}, "auto", ["model", "module"]),
    "bare and under its own name": (
        {**DECODER, **prefixed(DECODER, "mask_decoder.")}, "sam_decoder", ["", "mask_decoder"]
    ),
    "bare and averaged": ({**SAM, **prefixed(SAM, "ema_model.")}, "auto", ["", "ema_model"]),
    "wrapped and not": (
        {**prefixed(DECODER, "module.net."), **prefixed(DECODER, "net.")}, "auto", ["module.net", "net"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_two_sets_of_weights_are_asked_about_and_each_can_be_chosen(tmp_path, case):
    state, model, scopes = TWICE[case]
    told, choices = question(tmp_path, state, model)
    assert "choose one with --scope" in told
    assert [shlex.split(one) for one in choices] == [["--scope", scope] for scope in scopes]
    for scope in scopes:
        found = reading(tmp_path, state, model, scope=scope)
        assert (found.fits, found.scope, 2 * found.matched) == (True, scope, len(state))
        assert sum(found.out_of_scope.values()) == len(state) / 2


def test_choices_are_lines_to_copy(tmp_path):
    state, _, _ = TWICE["student and teacher"]
    torch.save(state, tmp_path / "c.pth")
    command = [str(tmp_path / "c.pth"), "--option", "num_heads=4", "--dry-run"]
    done = CliRunner().invoke(cli.convert, command)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[1:] == ["  --scope student", "  --scope teacher"]
    done = CliRunner().invoke(cli.convert, [*command, *done.stderr.splitlines()[2].split()])
    assert done.exit_code == 0, done.output
    assert "scope teacher" in done.output


def test_a_set_with_something_beside_it_may_be_meant_as_well(tmp_path):
    state = {**prefixed(SAM, "student."), **prefixed(SAM, "teacher."), "teacher.center": torch.ones(1)}
    _, choices = question(tmp_path, state)
    assert choices == ["--scope student", "--scope teacher --ignore teacher.center"]
    assert reading(tmp_path, state, scope="teacher", ignored=("teacher.center",)).fits


def test_a_part_is_not_taken_where_the_whole_nearly_fits(tmp_path):
    state = {**SAM, "loss_fn.weight": torch.ones(3)}
    told, choices = question(tmp_path, state)
    assert "sam fits all but 1 tensor; if the network does without it: --ignore loss_fn.weight" in told
    assert choices == [
        "--ignore loss_fn.weight", "--model sam_decoder", "--model sam_image_encoder", "--model sam_prompt_encoder"
    ]  # fmt: skip
    found = reading(tmp_path, state, ignored=("loss_fn.weight",))
    assert (found.pair.name, found.fits) == ("sam", True)
    assert reading(tmp_path, state, "sam_decoder").fits, "who names the part gets it"


def test_the_published_size_is_told(tmp_path):
    with torch.device("meta"):
        names = torch_refs.create("sam_vit_b").state_dict()
    state = {name: torch.empty(1).expand(tensor.shape) for name, tensor in names.items()}
    told, _ = question(tmp_path, {**state, "loss_fn.weight": torch.ones(3)}, options={})
    assert "sam_vit_b fits all but 1 tensor" in told
    del state["image_encoder.blocks.0.attn.proj.weight"]
    told, choices = question(tmp_path, state, options={})
    assert (
        "sam_vit_b fits all but 1 tensor: it lacks image_encoder.blocks.0.attn.proj.weight; see --model sam_vit_b"
        in told
    )
    del state["image_encoder.pos_embed"]
    told, _ = question(tmp_path, state, options={})
    assert "sam nearly fits: image_encoder.pos_embed is missing, and sizes are read from it; see --model sam" in told
    assert choices[0] == "--model sam_vit_b"


def test_what_a_network_has_beside_a_known_one_is_told_by_modules(tmp_path):
    """As in SAM-HQ, whose decoder has more heads."""
    more = {f"mask_decoder.hf_mlp.layers.{i}.{leaf}": torch.ones(3) for i in range(3) for leaf in ("weight", "bias")}
    more |= {"mask_decoder.hf_token.weight": torch.ones(1, 32)}
    _, choices = question(tmp_path, {**SAM, **more})
    assert choices[0] == "--ignore 'mask_decoder.hf_mlp.*' --ignore mask_decoder.hf_token.weight"
    patterns = tuple(shlex.split(choices[0])[1::2])
    assert reading(tmp_path, {**SAM, **more}, ignored=patterns).matched == len(SAM)


def test_parts_whose_whole_is_unknown_are_listed(tmp_path):
    """As in EdgeSAM, whose image encoder is another."""
    state = {**WITHOUT_ENCODER, **{f"image_encoder.features.{i}.weight": torch.ones(3) for i in range(200)}}
    told, choices = question(tmp_path, state)
    assert "several networks stand in this checkpoint" in told
    assert choices == [
        "--model sam_decoder --scope mask_decoder", "--model sam_prompt_encoder --scope prompt_encoder"
    ]  # fmt: skip
    assert reading(tmp_path, state, "sam_prompt_encoder", {}).fits


def test_one_part_of_something_unknown_is_not_taken_in_silence(tmp_path):
    state = {**prefixed(DECODER, "mask_decoder."), **{f"backbone.{i}.weight": torch.ones(3) for i in range(121)}}
    told, choices = question(tmp_path, state)
    assert f"sam_decoder fits {len(DECODER)} of its {len(state)} tensors" in told
    assert choices == ["--model sam_decoder"]
    assert reading(tmp_path, state, "sam_decoder").fits
    del state["backbone.7.weight"]
    assert reading(tmp_path, state).out_of_scope == {"backbone": 120}, "it is half of it"


def test_a_layer_of_a_larger_network_is_asked_about_and_found_by_its_name(tmp_path):
    state = {**prefixed(DCN, "backbone.layer4.0.conv2."), **CONVOLUTIONS}
    _, choices = question(tmp_path, state, options={})
    assert choices == ["--model dcn_v2", "--model deform_conv2d"]
    assert reading(tmp_path, state, "dcn_v2", {}).scope == "backbone.layer4.0.conv2"
    both = {**state, **prefixed(DCN, "backbone.layer4.1.conv2.")}
    _, choices = question(tmp_path, both, "dcn_v2", {})
    assert choices == ["--scope backbone.layer4.0.conv2", "--scope backbone.layer4.1.conv2"]


@pytest.mark.parametrize(
    "path", ["pcd_align.L3_dcnpack", "pcd_align.dcn_pack.l2", "pcd_alignment.cas_dcnpack", "backbone.dcpack_L2"]
)
@pytest.mark.parametrize("model", ["auto", "dcn_v2", "deform_conv2d"])
def test_layers_of_two_inputs_are_not_those_of_one_that_have_their_names(tmp_path, path, model):
    state = {**prefixed(DCN, f"{path}."), **CONVOLUTIONS}
    for choice in ({}, {"scope": path}):
        with pytest.raises(converter.ConversionError, match=r"its offsets come of a second input, as in EDVR and FaPN"):
            reading(tmp_path, state, model, {}, **choice)


def test_tensors_that_are_ignored_are_dropped_by_name(tmp_path):
    state = {**DECODER, "loss_fn.weight": torch.ones(3), "loss_fn.bias": torch.ones(3)}
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(converter.PlanError, match=r"unexpected: loss_fn.weight, loss_fn.bias.* --ignore 'loss_fn\.\*'"):
        converter.plan("sam_decoder", tmp_path / "c.pth", OPTIONS)
    output = tmp_path / "o.weights.h5"
    report = converter.convert(
        "sam_decoder", tmp_path / "c.pth", output, verify="lossless", options=OPTIONS, ignore=["loss_fn.*"]
    )
    assert report.dropped == dict.fromkeys(("loss_fn.weight", "loss_fn.bias"), "ignored, as asked")
    assert converter.verify(None, tmp_path / "c.pth", output, level="lossless"), "the file's record says what"
    converter.restore(output, tmp_path / "back.pth")
    assert torch.load(tmp_path / "back.pth", weights_only=True).keys() == DECODER.keys()


def test_what_is_ignored_must_be_there_and_what_is_needed_cannot_be(tmp_path):
    with pytest.raises(converter.UsageError, match=r"--ignore iou_token.weigt is .* did you mean iou_token.weight\?"):
        reading(tmp_path, DECODER, ignored=("iou_token.weigt",))
    with pytest.raises(converter.UsageError, match=r"did you mean student\.iou_token\.weight\?"):
        reading(tmp_path, prefixed(DECODER, "student."), ignored=("iou_token.weight",))
    with pytest.raises(converter.UsageError, match="--ignore passes over every tensor of the file"):
        reading(tmp_path, DECODER, ignored=("*",))
    with pytest.raises(converter.UsageError, match=r"no model has a dialect padle; did you mean paddle\?"):
        reading(tmp_path, DECODER, dialect="padle")
    torch.save(DECODER, tmp_path / "c.pth")
    with pytest.raises(converter.PlanError, match=r"missing: iou_token\.weight"):
        converter.plan("sam_decoder", tmp_path / "c.pth", OPTIONS, ignore=["iou_token.*"])


def lacking(state, word):
    return {name: tensor for name, tensor in state.items() if word not in name}


OTHERS = {f"layer.{i}.weight": torch.ones(3) for i in range(361)}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            {"model": {**SAM, "loss.w": torch.ones(1)}, "ema_decoder": DECODER},
            ["--model sam_decoder --key ema_decoder", "--model sam --key model --ignore loss.w"],
        ),
        (
            {"model": {**SAM, "loss.w": torch.ones(1)}, "ema": sam_state()},
            ["--key ema", "--key model --ignore loss.w"],
        ),
        ({"backbone": OTHERS, "head": DECODER}, ["--model sam_decoder --key head"]),
        (
            {**prefixed(SAM, "student."), **prefixed(lacking(SAM, "blocks.1.attn.proj"), "teacher.")},
            ["--scope student", "--scope teacher"],
        ),
        (
            {**DECODER, **prefixed(lacking(DECODER, "norm1.weight"), "mask_decoder.")},
            ["--scope ''", "--scope mask_decoder"],
        ),
    ],
    ids=["part in another dict", "whole in another dict", "other dicts", "lacking some", "bare and lacking some"],
)  # fmt: skip
def test_what_nearly_fits_is_asked_about_wherever_it_stands(tmp_path, file, expected):
    _, choices = question(tmp_path, file)
    assert choices == expected


def test_the_report_says_what_state_dict_was_read_and_what_was_not(tmp_path):
    state = {f"state.{i}.exp_avg": torch.ones(1) for i in range(500)}
    torch.save({"model": DECODER, "optimizer": state}, tmp_path / "c.pth")
    report = converter.convert(
        "auto", tmp_path / "c.pth", tmp_path / "o.weights.h5", verify="lossless", options=OPTIONS
    )
    assert ("key", "model; not read: optimizer") in report.lines()
    assert ", key model" in str(converter.plan("auto", tmp_path / "c.pth", OPTIONS))


@pytest.mark.parametrize("options", [{"num_heads": "seven"}, {"num_heads": 4, "image_size": "abc"}])
def test_a_wrong_option_is_told_and_not_that_parts_fit(tmp_path, options):
    with pytest.raises(converter.UsageError, match=r"takes a whole number, not (seven|abc)"):
        reading(tmp_path, SAM, options=options)


def test_a_place_that_is_named_needs_no_search(tmp_path):
    state = {**prefixed(DCN, "x.dcn."), **{f"{i}.conv_offset_mask.weight": torch.ones(1) for i in range(1100)}}
    state |= {f"{i}.weight": torch.ones(1) for i in range(1100)}
    with pytest.raises(converter.ConversionError, match=r"1101 places where it may stand; say which with --scope"):
        reading(tmp_path, state, "dcn_v2", {})
    assert reading(tmp_path, state, "dcn_v2", {}, scope="x.dcn").fits
    plain = {
        **prefixed(DCN, "x.dcn."),
        **{f"{i}.{leaf}": torch.ones(1) for i in range(1100) for leaf in ("weight", "bias")},
    }
    assert reading(tmp_path, plain, "dcn_v2", {}).scope == "x.dcn", "a weight alone shows no deformable convolution"


@pytest.mark.parametrize("model", ["auto", "sam_decoder"])
def test_a_scope_where_nothing_is_says_what_may_be_meant(tmp_path, model):
    with pytest.raises(converter.ConversionError, match=r"at techer \(did you mean teacher\?\)"):
        reading(tmp_path, prefixed(DECODER, "teacher."), model, scope="techer")


def test_a_layer_of_ones_own_by_a_name_like_theirs_is_one(tmp_path):
    assert reading(tmp_path, {**prefixed(DCN, "my.dcn_pack."), **CONVOLUTIONS}, "dcn_v2", {}).fits


def test_placeholders_among_whole_tensors_say_how_to_gather_them(tmp_path):
    """ZeRO-3 keeps small parameters whole on every machine."""
    state = {name: torch.empty(0) if tensor.numel() > 1000 else tensor for name, tensor in SAM.items()}
    assert 0.05 < sum(tensor.shape == (0,) for tensor in state.values()) / len(state) < 0.5
    with pytest.raises(converter.ConversionError, match=r"python zero_to_fp32.py \. one.pth"):
        reading(tmp_path, state)


def test_flat_parameters_say_how_to_gather_them(tmp_path):
    with pytest.raises(converter.ConversionError, match=r"those of FSDP, .*full_state_dict=True"):
        reading(tmp_path, {"_fsdp_wrapped_module._flat_param": torch.ones(8)})


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["a.w"], ["b.w"], ["a.w"]),
        (["a.w", "a.b"], ["b.w"], ["a.*"]),
        (["a.x.w", "a.x.b"], ["a.y.w"], ["a.x.*"]),
        ([f"l.{i}.q.w" for i in range(3)], ["l.0.k.w"], ["l.*.q.w"]),
        (["l.0.q.w", "l.1.q.w"], ["l.2.q.w"], ["l.0.q.w", "l.1.q.w"]),
        (["a[0].w"], [], ["a[[]0].w"]),
    ],
)
def test_patterns_match_what_is_meant_and_nothing_else(names, others, expected):
    assert globs(names, others) == expected


@pytest.mark.parametrize("model", ["auto", "sam"])
def test_copies_that_claim_more_than_the_file_holds_are_refused_unread(tmp_path, monkeypatch, model):
    """Of a matrix that a network shares, as Hugging Face writes it, both are compared."""
    hugging_face = next(one for one in get("sam").dialects if one.name == "hugging_face")
    state = {hugging_face.foreign(name): tensor for name, tensor in SAM.items()}
    copies = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("it was read"))
    claims = f"{copies[0]} claims 1,600,000,000 bytes, far more than the file holds"
    with pytest.raises(converter.ConversionError, match=claims):
        reading(tmp_path, {**state, **dict.fromkeys(copies, torch.zeros(1).expand(2, 200_000_000))}, model)
