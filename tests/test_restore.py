"""The way back: what `restore` writes is the checkpoint that was converted, bit for bit, in any dialect."""

import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

import cli
import converter
import tf_models
import torch_refs
from converter import Dialect, Drop, Mapping, Pair, Probe, Row, kinds
from converter.checkpoints.checkpoint import Checkpoint
from converter.kinds import BATCH_NORM, CONV_2D, CONV_2D_HWIO, DENSE, DENSE_IN_OUT, MULTIHEAD_ATTENTION
from converter.pairs.dialects import CANONICAL
from converter.pairs.registry import pairs
from converter.planning.origin import Origin
from tests.support import networks, small_mobile_sam, small_sam
from tests.support.checkpoints import prefixed, save
from tests.support.deformable import SMALL, reference
from tests.support.pairs import registered
from tests.support.seeded import seeded
from tf_models import layers
from tf_models.runtime.weights_format import DIGEST, PREFIX, SEAL, datasets, provenance, seal
from torch_refs.sam.sam import build_sam

DCN = {"in_channels": 6, "out_channels": 10, "kernel_size": (3, 2), "offset_groups": 2, "groups": 2}
ATTENTION = {"d_model": 24, "n_levels": 2, "n_heads": 3, "n_points": 4}


def spatial(axes):
    return lambda: reference(axes), {"downsample_factor": SMALL[axes]["downsample_factor"]}


def fresh(name, config):
    return lambda: torch_refs.create(name, **config)


# pair -> torch's module of small sizes, options
CASES = {
    "dcn_v2": (fresh("dcn_v2", DCN), {"stride": 2}),
    "deform_conv2d": (fresh("deform_conv2d", DCN), {}),
    "deformable_attention_1d": spatial(1),
    "deformable_attention_2d": spatial(2),
    "deformable_attention_3d": spatial(3),
    "ms_deform_attn": (fresh("ms_deform_attn", ATTENTION), {"n_heads": 3, "n_levels": 2}),
    "mobile_sam": (fresh("mobile_sam", small_mobile_sam.CONFIG), small_mobile_sam.OPTIONS),
    "sam_decoder": (fresh("sam_decoder", small_sam.DECODER), small_sam.OPTIONS),
    "sam_image_encoder": (lambda: build_sam(**small_sam.CONFIG).image_encoder, {}),
    "sam_prompt_encoder": (lambda: build_sam(**small_sam.CONFIG).prompt_encoder, {}),
    "sam": (lambda: build_sam(**small_sam.CONFIG), small_sam.OPTIONS),
}
SPELLED = [(pair, dialect) for pair in pairs() for dialect in (CANONICAL, *pair.dialects)]


def state_of(name):
    """Every value is drawn, so that no tensor is all zeros or ones; some are what only a bit pattern tells apart."""
    make, _ = CASES[name]
    state = seeded(make()).state_dict()
    for tensor in state.values():
        tensor.reshape(-1)[0] = -0.0
    return state


def spelled(state, dialect):
    """The official tensors as the dialect has them: names by `foreign`, axes by the kinds' patterns, turned round."""
    result = {}
    for name, tensor in state.items():
        axes = dialect.axes(name)
        if axes is not None:
            theirs, ours = axes.split("->")
            tensor = rearrange(tensor, f"{ours} -> {theirs}").contiguous()
        result[dialect.foreign(name)] = tensor
    return result


def bits(state):
    """Name -> (dtype, shape, bytes)."""
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in state.items()
    }


def there(model, state, folder, **more):
    """The weights file of a state dict."""
    weights = folder / "w.weights.h5"
    options = CASES[model][1] if model in CASES else {}
    converter.convert(model, save(state, folder), weights, verify="none", overwrite=True, options=options, **more)
    return weights


def back(weights, output, *key, **more):
    """What torch, or the safetensors library, reads of the restored file."""
    report = converter.restore(weights, output, **more)
    if output.suffix == ".safetensors":
        return report, load_file(output)
    plain, mapped = (torch.load(output, weights_only=True, mmap=mmap) for mmap in (False, True))
    for word in key:
        plain, mapped = plain[word], mapped[word]
    assert bits(plain) == bits(mapped)
    return report, plain


def test_every_pair_is_tried():
    assert {pair.name for pair in pairs() if pair.build_tf is None} == set(CASES)


@pytest.mark.parametrize(("pair", "dialect"), SPELLED, ids=lambda one: one.name)
def test_every_pair_goes_there_and_back_in_every_dialect(pair, dialect, tmp_path):
    official = state_of(pair.name)
    state = spelled(official, dialect)
    weights = there(pair.name, state, tmp_path, dialect=dialect.name)
    report, found = back(weights, tmp_path / "back.pth")
    assert bits(found) == bits(state)
    assert (report.dialect, report.notes) == (dialect.name, [])
    for other in (CANONICAL, *pair.dialects):
        _, found = back(weights, tmp_path / f"{other.name}.safetensors", dialect=other.name)
        assert bits(found) == bits(spelled(official, other))


class Net(nn.Module):
    """A dense layer, a norm that counts its batches, packed attention, and a table that TensorFlow does not need."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (2, 3))
        self.bn = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 5)
        self.register_buffer("flags", torch.tensor([[True, False, True]]))
        self.register_buffer("table", torch.arange(2000))


class KerasNet(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(8, (2, 3))
        self.bn = [keras.layers.BatchNormalization() for _ in range(2)]
        self.attention = keras.layers.MultiHeadAttention(2, 4)
        self.head = keras.layers.Dense(5)
        self.conv.build((None, None, None, 3))
        for norm in self.bn:
            norm.build((None, None, None, 8))
        self.attention.build((None, None, 8), (None, None, 8))
        self.head.build((None, 8))
        self.built = True


HANDMADE = Dialect(
    "handmade",
    (("w", "conv.weight"), ("b", "conv.bias"), ("norm{i}", "bn.{i}"), ("fc", "head")),
    (("conv", CONV_2D_HWIO), ("head", DENSE_IN_OUT)),
)
NAMELESS = Dialect("nameless", (("head.weight", "conv.weight"),))
MISLAID = Dialect("mislaid", kinds=(("bn.{i}", DENSE_IN_OUT),))
NET = Pair(
    "net",
    lambda config: Mapping(
        [
            Row("conv", CONV_2D),
            Row("bn.{0-1}", BATCH_NORM),
            Row("attention", MULTIHEAD_ATTENTION),
            Row("head", DENSE),
            Drop("{flags,table}", "not needed"),
        ]
    ),
    lambda config, rng: [],
    build_tf=KerasNet,
    scopes=("", "backbone."),
    dialects=(HANDMADE, NAMELESS, MISLAID),
)


@pytest.fixture
def net():
    """The pair's name, and a state dict of it."""
    state = seeded(Net()).state_dict()
    state["bn.1.num_batches_tracked"] = torch.tensor(70_000_000_000)
    with registered(NET):
        yield "net", dict(state)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_prefix_key_counts_and_dtypes_come_back(net, ending, tmp_path):
    name, state = net
    del state["table"]
    state["head.weight"] = state["head.weight"].bfloat16()
    state["conv.bias"] = state["conv.bias"].half()
    state = prefixed(state, "_orig_mod.module.backbone.")
    state["_orig_mod.module.backbone.head._orig_mod.bias"] = state.pop("_orig_mod.module.backbone.head.bias")
    state["other.weight"] = torch.ones(3)
    nested = {"epoch": 3, "ema": {"state_dict": state, "decay": 0.5}}
    weights = there(name, nested, tmp_path)
    report, found = back(weights, tmp_path / f"back.{ending}", "ema", "state_dict")
    del state["other.weight"]
    assert bits(found) == bits(state)
    assert report.notes[0] == "1 tensors of the checkpoint are not of this model and do not come back"
    assert len(report.notes) == (1 if ending == "pth" else 2)
    assert report.kept == 3
    record = provenance(weights)["origin"]
    assert record["prefix"] == "_orig_mod.module.backbone."
    assert record["dtypes"] == {"float16": ["conv.bias"], "bfloat16": ["head.weight"]}
    assert [row[3] for row in record["kept"]] == [["flags"], ["bn.0.num_batches_tracked"], ["bn.1.num_batches_tracked"]]


def test_a_state_dict_in_half_comes_back(net, tmp_path):
    """Every bit pattern there is, NaNs among them."""
    name, state = net
    for dtype in (torch.bfloat16, torch.float16):
        halves = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
        patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        rng = torch.Generator().manual_seed(2)
        for tensor in halves.values():
            if tensor.dtype == dtype:
                tensor.copy_(patterns[torch.randint(65536, tensor.shape, generator=rng)])
        halves["conv.weight"].view(-1)[:3] = torch.tensor([0x7F81, 0x7FFF, -1], dtype=torch.int16).view(dtype)
        weights = there(name, halves, tmp_path, allow_nonfinite=True)
        report, found = back(weights, tmp_path / "back.pth", overwrite=True)
        del halves["table"]
        assert bits(found) == bits(halves)
        assert report.notes == [
            "1 tensors that the model does not need do not come back, because they have more than 1024 bytes or could "
            "not be read: table"
        ]


def test_digits_that_were_lost_are_told(net, tmp_path):
    name, state = net
    del state["table"]
    doubles = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    report, found = back(there(name, doubles, tmp_path), tmp_path / "exact.pth")
    assert bits(found) == bits(doubles), "these float64 values are float32's"
    assert report.notes == []
    doubles["head.bias"] += 1e-12
    report, found = back(there(name, doubles, tmp_path), tmp_path / "rounded.pth")
    assert report.notes == ["1 tensors lost digits when they were converted to float32, and come back rounded"]
    assert found["head.bias"].dtype == torch.float64
    assert torch.equal(found["head.bias"], doubles["head.bias"].float().double())
    halved = there(name, state, tmp_path, dtype="float16")
    report, found = back(halved, tmp_path / "halved.pth")
    assert "converted to float16, and come back rounded" in report.notes[0]
    assert torch.equal(found["head.weight"], state["head.weight"].half().float())


def test_trained_values_that_a_half_type_does_not_hold_are_told_as_such(net, tmp_path):
    name, state = net
    del state["table"]
    state["head.bias"] = state["head.bias"].half()
    model = tf_models.load(there(name, state, tmp_path))
    model.head.bias.assign(model.head.bias + 1e6)
    tf_models.save(model, tmp_path / "grown.weights.h5")
    with pytest.raises(converter.ConversionError) as caught:
        converter.restore(tmp_path / "grown.weights.h5", tmp_path / "back.pth")
    assert str(caught.value) == "head.bias holds values too large for float16, as the checkpoint has it"
    assert not (tmp_path / "back.pth").exists()


def test_the_restored_file_converts_to_the_same_weights_and_loads_in_torch(net, tmp_path):
    name, state = net
    weights = there(name, state, tmp_path)
    _, found = back(weights, tmp_path / "back.pth", dialect="handmade")
    assert found["w"].shape == (2, 3, 3, 8)
    assert found["fc.weight"].shape == (8, 5)
    assert found["norm1.num_batches_tracked"] == 70_000_000_000
    again = tmp_path / "again.weights.h5"
    converter.convert(name, tmp_path / "back.pth", again, verify="lossless")
    with h5py.File(weights) as one, h5py.File(again) as other:
        for (place, ours), (_, theirs) in zip(datasets(one), datasets(other), strict=True):
            assert ours[()].tobytes() == theirs[()].tobytes(), place
    converter.restore(again, tmp_path / "official.pth", dialect="official")
    missing = Net().load_state_dict(torch.load(tmp_path / "official.pth", weights_only=True), strict=False)
    assert missing.missing_keys == ["table"]


def without_origin(weights):
    """As an older converter wrote it."""
    with h5py.File(weights, "r+") as file:
        del file.attrs[PREFIX + "origin"]
        said = {name.removeprefix(PREFIX): value for name, value in file.attrs.items() if name.startswith(PREFIX)}
        said = {
            name: value.decode() if isinstance(value, bytes) else int(value)
            for name, value in said.items()
            if name != SEAL
        }
        digests = {place: int(dataset.attrs[DIGEST]) for place, dataset in datasets(file)}
        file.attrs[PREFIX + SEAL] = seal(said, digests)


def test_older_files_load_and_are_restored_with_a_note(tmp_path):
    state = state_of("dcn_v2")
    weights = there("dcn_v2", prefixed(state, "module."), tmp_path)
    assert len(tf_models.load(weights).weights) == len(state)
    without_origin(weights)
    assert "origin" not in provenance(weights)
    assert len(tf_models.load(weights).weights) == len(state)
    report, found = back(weights, tmp_path / "back.pth")
    assert bits(found) == bits(state), "the prefix is not known"
    assert report.notes == [
        "the file is an older converter's: prefix, key and dtypes of the checkpoint are not recorded, "
        "nor what the model does not need"
    ]


def test_the_archive_is_as_torch_writes_it(tmp_path):
    weights = there("dcn_v2", state_of("dcn_v2"), tmp_path)
    converter.restore(weights, tmp_path / "back.pth")
    with open(tmp_path / "back.pth", "rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
            assert (start % 64, info.compress_type) == (0, zipfile.ZIP_STORED), info.filename
    first = (tmp_path / "back.pth").read_bytes()
    converter.restore(weights, tmp_path / "back.pth", overwrite=True)
    assert (tmp_path / "back.pth").read_bytes() == first


def test_empty_tensors_and_odd_names_are_written_too(tmp_path):
    from converter.checkpoints.writing import Named, write_checkpoint

    arrays = {"a.é": np.zeros((0, 3), np.float32), "": np.float64(2).reshape(()), "x" * 300: np.ones((70, 5), np.int8)}
    tensors = [Named(name, str(array.dtype), array.shape) for name, array in arrays.items()]
    for ending in ("pth", "safetensors"):
        path = tmp_path / f"odd.{ending}"
        write_checkpoint(path, "", tensors, arrays.values())
        found = torch.load(path, weights_only=True) if ending == "pth" else load_file(path)
        assert bits(found) == bits({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
        with Checkpoint(path) as checkpoint:
            assert {e.name: e.shape for e in checkpoint.entries()} == {name: a.shape for name, a in arrays.items()}


def test_lengths_beyond_32_bits_are_pickled():
    from converter.checkpoints.writing import _whole

    for number in (0, 255, 2**31 - 1, 2**31, 2**40):
        assert pickle.loads(b"\x80\x02" + _whole(number) + b".") == number


def test_the_command_restores_and_says_so(tmp_path):
    state = state_of("dcn_v2")
    weights = there("dcn_v2", state, tmp_path)
    output = tmp_path / "new" / "back.safetensors"
    done = CliRunner().invoke(cli.main, ["restore", str(weights), "-o", str(output), "--dialect", "keras_yolov4"])
    assert done.exit_code == 0, done.output
    heads = [line.split()[0] for line in done.output.splitlines()]
    assert heads == ["model", "source", "lossless", "written"]
    assert "dcn_v2, 4 tensors" in done.output
    assert load_file(output)["offset_w"].shape == (3, 2, 6, 36)
    again = ["restore", str(weights), "-o", str(output)]
    refused = CliRunner().invoke(cli.main, again)
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "exists; --overwrite replaces it" in refused.output
    quiet = CliRunner().invoke(cli.main, [*again, "--overwrite", "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")
    told = json.loads(CliRunner().invoke(cli.main, [*again, "--overwrite", "--json"]).output)
    assert (told["tensors"], told["dialect"], told["notes"]) == (4, "official", [])


def test_wrong_requests_are_one_line_and_leave_nothing(net, tmp_path):
    name, state = net
    weights = there(name, state, tmp_path)
    before = sorted(tmp_path.iterdir())
    output = tmp_path / "back.pth"
    with pytest.raises(converter.UsageError, match="net has no dialect keras; it has: official, handmade, nameless"):
        converter.restore(weights, output, "keras")
    with pytest.raises(converter.ConversionError, match=r"must end in \.pth or \.pt or \.bin or \.safetensors"):
        converter.restore(weights, tmp_path / "back.npz")
    with pytest.raises(
        converter.ConversionError, match=r"in the dialect nameless: .*there is no name for 'head.weight'"
    ):
        converter.restore(weights, output, "nameless")
    with pytest.raises(
        converter.ConversionError, match=r"in the dialect mislaid: .*DENSE_IN_OUT is no layout of BATCH"
    ):
        converter.restore(weights, output, "mislaid")
    with pytest.raises(converter.ConversionError, match="no such file"):
        converter.restore(tmp_path / "none.weights.h5", output)
    plain = tmp_path / "plain.weights.h5"
    KerasNet().save_weights(plain)
    with pytest.raises(converter.ConversionError, match="carries no provenance"):
        converter.restore(plain, output)
    plain.unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_value_is_noticed(tmp_path):
    weights = there("dcn_v2", state_of("dcn_v2"), tmp_path)
    with h5py.File(weights, "r+") as file:
        next(dataset for _, dataset in datasets(file))[...] += 1
    with pytest.raises(converter.ConversionError, match="does not match its digest"):
        converter.restore(weights, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


def test_an_unknown_model_is_named(tmp_path):
    class Tiny(keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = keras.layers.Dense(3)
            self.fc.build((None, 4))
            self.built = True

    state = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)}
    with registered(
        Pair("forgotten", lambda config: Mapping([Row("fc", DENSE)]), lambda config, rng: [], build_tf=Tiny)
    ):
        weights = there("forgotten", state, tmp_path)
        _, found = back(weights, tmp_path / "back.pt")
    assert bits(found) == bits(state)
    with pytest.raises(converter.UsageError, match=r"no model is named forgotten; known: .*dcn_v2"):
        converter.restore(weights, tmp_path / "other.pt")


@pytest.mark.parametrize("record", [
    {"key": 3},
    {"prefix": ["a"]},
    {"names": {"a": 1}},
    {"dtype": "int64"},
    {"dtypes": {"float16": "conv.bias"}},
    {"dtypes": {"float16": ["{0-99999}"]}},
    {"lost": [["a"]]},
    {"narrowed": -1},
    {"out_of_scope": True},
    {"kept": [["int64", [], "AAAA", ["a"]]]},
    {"kept": [["int64", [2**40, 2**40], "AAAAAAAAAAA=", ["a"]]]},
    {"kept": [["int64", [], "AAAAAAAAAAA=", "a"]]},
    {"kept": [["object", [], "AAAAAAAAAAA=", ["a"]]]},
    {"kept": [["int64", [], "é", ["a"]]]},
    {"kept": ["int64"]},
    {"kept": [["int64", [], "AAAAAAAAAAA=", [f"a{i}.{{0-9998}}"]] for i in range(3)]},
])  # fmt: skip
def test_a_record_from_a_stranger_is_checked(record):
    with pytest.raises(converter.ConversionError, match="not as the converter writes it"):
        Origin.from_dict(record)


def test_a_record_goes_there_and_back_and_stays_short():
    kept = {f"bn.{i}.num_batches_tracked": _count(7) for i in range(300)}
    origin = Origin("model", "module.", {"a": "b"}, "float16", {"c.0": "float64", "c.1": "float64"}, kept, ["d"], 5, 2)
    record = json.loads(json.dumps(origin.to_dict(2)))
    assert Origin.from_dict(record) == origin
    assert Origin.from_dict({**record, "copies": {"later": 1}}) == origin, "a later converter may record more"
    assert len(json.dumps(record)) < 400
    assert Origin().to_dict(0) == {}
    many = Origin(names={f"a{'b' * i}": "c" * 900 for i in range(99)})
    assert many.to_dict(0) == {"unrecorded": ["names"]}


def _count(number):
    from converter.planning.origin import Kept

    return Kept("int64", (), np.int64(number).tobytes())


def test_safetensors_come_back_in_the_other_format(tmp_path):
    state = state_of("ms_deform_attn")
    save_file(state, tmp_path / "in.safetensors")
    weights = tmp_path / "w.weights.h5"
    converter.convert("ms_deform_attn", tmp_path / "in.safetensors", weights, verify="none",
                      options=CASES["ms_deform_attn"][1], dialect="official")  # fmt: skip
    _, found = back(weights, tmp_path / "back.bin")
    assert bits(found) == bits(state)


def shared_pair():
    """One table under three names, and two linear layers of which one is dropped as the other: all above 1 KB."""

    def torchs():
        made = networks.net(
            lambda self, x: self.second(self.first(self.head(self.embed(x)))),
            embed=nn.Embedding(300, 40),
            again=nn.Embedding(300, 40),
            head=nn.Linear(40, 300, bias=False),
            first=nn.Linear(300, 300),
            second=nn.Linear(300, 300),
        )
        made.again.weight = made.head.weight = made.embed.weight
        made.second.weight, made.second.bias = made.first.weight, made.first.bias
        return made

    def call(self, x):
        x = keras.ops.matmul(self.embed(x), keras.ops.transpose(self.embed.embeddings))
        return self.first(self.first(x))

    def build():
        return networks.Model(call, embed=(keras.layers.Embedding(300, 40), (None,)), first=networks.dense(300, 300))

    rows = [
        Row("embed", kinds.EMBEDDING, tied="head.weight"),
        Drop("again.weight", "the table once more", equals="head.weight"),
        Row("first", kinds.DENSE),
        Drop("second.weight", "shared", equals="first.weight"),
        Drop("second.bias", "shared", equals="first.bias"),
    ]
    return networks.pair(build, torchs, rows, lambda config, rng: [Probe({"x": rng.integers(0, 300, (2, 3))})])


def test_every_name_of_a_shared_tensor_comes_back_whatever_its_size(tmp_path):
    one = shared_pair()
    networks.there_and_back(one, tmp_path)


def test_a_dropped_tensor_that_is_another_after_all_is_not_restored_as_it(tmp_path):
    """Without a proof nothing has compared them."""
    one = shared_pair()
    state = one.build_torch().state_dict()
    state["second.weight"] = state["second.weight"] + 1
    report = networks.converted(one, state, tmp_path, verify="none")
    back = networks.restored(one, report, tmp_path)
    assert sorted(set(state) - set(back)) == ["second.weight"]
    assert torch.equal(back["second.bias"], state["second.bias"])
