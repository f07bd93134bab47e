"""Checkpoints by their address on the Hugging Face Hub: what is fetched, what is recorded, and what is told."""

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import converter
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.lora import merge_lora
from converter.planning.config_json import ConfigFile
from tests.support.hub_server import serving
from tests.support.running import ROOT, run

ATTENTION = (ROOT / "tests" / "data" / "ms_deform_attn_0_1.safetensors").read_bytes()
SIZES = {"n_levels": 2, "n_heads": 2, "n_points": 2}
FORM = "hf://ORGANISATION/NAME[@REVISION][/FILE]"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub; `huggingface_hub` reads where it is, and where the cache is, when it is imported."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "huggingface_hub"}
    with pytest.MonkeyPatch.context() as patch, serving() as hub:
        for name in ours:
            patch.delitem(sys.modules, name)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        yield hub
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _forgotten(hub):
    yield
    hub.asked.clear()
    hub.status = None


def tensors(**names):
    return save({name: np.full(3, value, np.float32) for name, value in names.items()})


def pickled(folder, **names):
    torch.save({name: torch.full((3,), float(value)) for name, value in names.items()}, folder / "made.pth")
    return (folder / "made.pth").read_bytes()


def values(address):
    """Tensor -> its first value."""
    with Checkpoint(address) as checkpoint:
        return {entry.name: checkpoint.read(entry)[0] for entry in checkpoint.entries()}


def refused(address):
    with pytest.raises(converter.ConversionError) as error:
        converter.inspect(address)
    told = str(error.value)
    assert told.startswith(f"{address}: ")
    return told.removeprefix(f"{address}: ")


# --- What is taken ---------------------------------------------------------------------------------------------------


def test_safetensors_are_preferred_and_nothing_else_is_fetched(hub, tmp_path):
    config = b'{"model_type": "net", "width": 3}'
    files = {
        "pytorch_model.bin": pickled(tmp_path, w=1),
        "README.md": b"#",
        "tf_model.h5": b"h5",
        "config.json": config,
    }
    commit = hub.add("org/one", {**files, "model.safetensors": tensors(w=2)})
    with Checkpoint("hf://org/one") as checkpoint:
        assert checkpoint.address == f"hf://org/one@{commit}/model.safetensors"
        assert checkpoint.path.name == "model.safetensors"
        assert checkpoint.path.parent.name == commit
        assert ConfigFile.of(checkpoint).said == {"model_type": "net", "width": 3}
        assert [checkpoint.read(entry)[0] for entry in checkpoint.entries()] == [2]
        checkpoint.check_unchanged()
    assert hub.fetched() == ["config.json", "model.safetensors"]
    hub.asked.clear()
    assert values("hf://org/one") == {"w": 2}
    assert hub.fetched() == []  # the cache has them


def test_shards(hub):
    shards = {f"model-0000{n}-of-00002.safetensors": tensors(**{f"w{n}": n}) for n in (1, 2)}
    table = {"w1": "model-00001-of-00002.safetensors", "w2": "model-00002-of-00002.safetensors"}
    index = json.dumps({"weight_map": table}).encode()
    others = {"model-00001-of-00003.safetensors": b"x", "pytorch_model.bin.index.json": b"{}"}
    hub.add("org/shards", {**shards, **others, "model.safetensors.index.json": index})
    assert values("hf://org/shards") == {"w1": 1, "w2": 2}
    assert hub.fetched() == sorted([*shards, "model.safetensors.index.json"])


def test_an_index_that_is_damaged_or_names_what_is_not_there(hub):
    """The message names the address, and not where the cache is."""
    commit = hub.add("org/broken", {"model.safetensors.index.json": b'{"weight_map": '})
    at = f"hf://org/broken@{commit}/model.safetensors.index.json"
    with pytest.raises(converter.ConversionError, match=f"^{at}: .* but is not JSON"):
        converter.inspect("hf://org/broken")
    commit = hub.add("org/hole", {"model.safetensors.index.json": b'{"weight_map": {"w": "gone.safetensors"}}'})
    with pytest.raises(converter.ConversionError, match=f"^.*hf://org/hole@{commit}/gone.safetensors: no such file$"):
        converter.inspect("hf://org/hole")
    hub.add("org/out", {"model.safetensors.index.json": b'{"weight_map": {"w": "../../x", "v": 3}}', "x": b""})
    with pytest.raises(converter.ConversionError, match="it has no weight_map"):
        converter.inspect("hf://org/out")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sam_vit_b_01ec64.pth"])
def test_one_file_of_weights(hub, tmp_path, name):
    beside = {"training_args.bin": b"x", "optimizer.pt": b"x", "README.md": b"#"}
    commit = hub.add(f"org/{name}", {name: pickled(tmp_path, w=4), **beside})
    with Checkpoint(f"hf://org/{name}") as checkpoint:
        assert checkpoint.address == f"hf://org/{name}@{commit}/{name}"
    assert hub.fetched() == [name]


def test_one_checkpoint_in_two_formats(hub, tmp_path):
    hub.add("org/two", {"net.safetensors": tensors(w=5), "net.pth": pickled(tmp_path, w=6)})
    assert values("hf://org/two") == {"w": 5}
    assert values("hf://org/two/net.pth") == {"w": 6}


def test_revisions(hub):
    first = hub.add("org/old", {"model.safetensors": tensors(w=1)})
    second = hub.repositories["org/old"].commit({"model.safetensors": tensors(w=2)})
    hub.repositories["org/old"].commit({"model.safetensors": tensors(w=3)}, "refs/pr/1")
    hub.repositories["org/old"].commit({"model.safetensors": tensors(w=4)}, "a/branch")
    for revision, value in ((first, 1), (second, 2), ("main", 2), ("refs/pr/1", 3), ("a%2Fbranch", 4)):
        assert values(f"hf://org/old@{revision}") == {"w": value}
        assert values(f"hf://org/old@{revision}/model.safetensors") == {"w": value}


def test_a_branch_that_moves_on_is_followed(hub):
    hub.add("org/moving", {"model.safetensors": tensors(w=1)})
    assert values("hf://org/moving") == {"w": 1}
    hub.repositories["org/moving"].commit({"model.safetensors": tensors(w=2)})
    assert values("hf://org/moving") == {"w": 2}


def test_a_branch_that_moves_on_meanwhile_gives_no_part_of_what_it_has_then(hub):
    index = json.dumps({"weight_map": {"w": "one.safetensors"}}).encode()
    before, after = ({"model.safetensors.index.json": index, "one.safetensors": tensors(w=value)} for value in (1, 2))
    hub.add("org/moving", before)
    hub.then["model.safetensors.index.json"] = lambda: hub.repositories["org/moving"].commit(after)
    assert values("hf://org/moving") == {"w": 1}
    assert values("hf://org/moving") == {"w": 2}


def test_a_folder_of_a_repository(hub):
    files = {f"{name}/model.safetensors": tensors(**{name: 1}) for name in ("vae", "unet")}
    commit = hub.add(
        "org/pipeline", {**files, "unet/config.json": b"{}", "config.json": b"{}", "model_index.json": b"{}"}
    )
    for address in ("hf://org/pipeline/unet", "hf://org/pipeline/unet/", "hf://org/pipeline/unet/model.safetensors"):
        with Checkpoint(address) as checkpoint:
            assert checkpoint.address == f"hf://org/pipeline@{commit}/unet/model.safetensors"
            assert [entry.name for entry in checkpoint.entries()] == ["unet"]
    assert hub.fetched() == ["unet/config.json", "unet/model.safetensors"]


def test_the_configuration_of_an_adapter_comes_along(hub):
    """What it says is held against what is asked for, as it is of a folder."""
    rng = np.random.default_rng(0)
    arrays = {"l.weight": rng.random((4, 4)), "l.lora_A.weight": rng.random((2, 4)), "l.lora_B.weight": np.ones((4, 2))}
    config = json.dumps({"lora_alpha": 8, "r": 2, "fan_in_fan_out": True}).encode()
    commit = hub.add("org/lora", {"model.safetensors": save(arrays), "adapter_config.json": config})
    with Checkpoint("hf://org/lora") as checkpoint:
        with pytest.raises(converter.ConversionError, match="is square") as caught:
            merge_lora(checkpoint, True)
        assert str(caught.value).startswith(f"hf://org/lora@{commit}/model.safetensors: ")
        with pytest.raises(
            converter.ConversionError, match=r"is 4, says the adapter_config\.json beside it, and not 3"
        ):
            merge_lora(checkpoint, 3)
    assert hub.fetched() == ["adapter_config.json", "model.safetensors"]


# --- What is told ----------------------------------------------------------------------------------------------------


def test_several_weights_and_no_usual_name(hub):
    hub.add("org/many", {"a.pth": b"x", "b.pth": b"x", "sub/c.bin": b"x", "optimizer.bin": b"x", "a.txt": b"x"})
    told = "no checkpoint under a usual name; add one of its files of weights: "
    assert refused("hf://org/many") == f"{told}a.pth, b.pth"
    hub.add("org/deep", {"unet/net.safetensors": b"x", "vae/net.safetensors": b"x", "README.md": b""})
    assert refused("hf://org/deep") == f"{told}unet/net.safetensors, vae/net.safetensors"
    hub.add("org/none", {"README.md": b"", "tf_model.h5": b""})
    assert refused("hf://org/none").startswith("it holds no checkpoint (looked for model.safetensors, ")
    assert hub.fetched() == []


def test_no_such_repository_revision_or_file(hub):
    hub.add("org/there", {"model.safetensors": tensors(w=1), "b.pth": b""})
    lost = f"the hub has no such repository, or a private one: see its name, or {LOG_IN}"
    assert refused("hf://org/nowhere") == lost
    assert refused("hf://org/there@v2") == "the repository has no revision v2"
    assert refused("hf://org/there@v\x1b2/model.safetensors".replace("\x1b", "%1B")).endswith("no revision v\\x1b2")
    has = "it has b.pth, model.safetensors"
    assert refused("hf://org/there/nix.pth") == f"the repository has no file or folder nix.pth; {has}"
    hub.add("org/empty", {"README.md": b""})
    assert refused("hf://org/empty/nix.pth") == "the repository has no file or folder nix.pth, nor any weights"


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://org", "hf://org/", "hf:///org/net", "hf://org/net@", "hf://org/net/../../x", "hf://org/net//x",
     "hf://org/net@main@dev", "hf://o rg/net", "hf://org/n\u00e9t", "hf://org/net/./x"],
)  # fmt: skip
def test_a_damaged_address(hub, address):
    with pytest.raises(converter.ConversionError) as error:
        converter.inspect(address)
    assert str(error.value).endswith(f": it is no address of a checkpoint; {FORM} is")
    assert hub.asked == []


def test_a_name_that_no_repository_can_have(hub):
    assert refused("hf://org/net..git") == f"the hub has no repositories of such names; {FORM} is an address"


@pytest.mark.parametrize(
    ("name", "closed", "told"),
    [
        ("a", (403, "GatedRepo"), "it is gated: ask for access at {endpoint}/gated/a, then " + LOG_IN),
        ("b", (401, "GatedRepo"), "it is gated: ask for access at {endpoint}/gated/b, then " + LOG_IN),
        ("c", (403, ""), "the hub does not let you read it (403): " + LOG_IN),
    ],
)
def test_what_a_login_opens(hub, name, closed, told, monkeypatch):
    hub.add(f"gated/{name}", {"model.safetensors": tensors(w=9)}, closed=closed)
    assert refused(f"hf://gated/{name}") == told.format(endpoint=hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.repositories[f"gated/{name}"].token)
    assert values(f"hf://gated/{name}") == {"w": 9}


def test_offline_it_is_the_cache_that_is_read(hub, monkeypatch):
    shard = {"m-00001-of-00001.safetensors": tensors(w=7)}
    index = json.dumps({"weight_map": {"w": "m-00001-of-00001.safetensors"}}).encode()
    commit = hub.add("org/kept", {"model.safetensors.index.json": index, **shard, "config.json": b'{"a": 1}'})
    assert values("hf://org/kept") == {"w": 7}
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for address in ("hf://org/kept", f"hf://org/kept@{commit}", "hf://org/kept/model.safetensors.index.json"):
        with Checkpoint(address) as checkpoint:
            assert checkpoint.address == f"hf://org/kept@{commit}/model.safetensors.index.json"
            assert ConfigFile.of(checkpoint).said == {"a": 1}
            assert len(list(checkpoint.entries())) == 1
    away = "the hub is not asked, because HF_HUB_OFFLINE is set, and the cache does not have it"
    assert refused("hf://org/unknown") == away
    assert refused("hf://org/kept@dev") == away
    assert refused("hf://org/kept/other.pth").startswith("the repository has no file or folder other.pth")
    assert hub.asked == []


def test_a_hub_that_is_down(hub):
    hub.add("org/down", {"model.safetensors": tensors(w=8)})
    assert values("hf://org/down") == {"w": 8}
    hub.status = 503
    assert values("hf://org/down") == {"w": 8}
    told = refused("hf://org/away")
    assert told.startswith("the hub cannot be reached (")
    assert told.endswith("), and the cache does not have it")
    assert "503" in told


def test_a_full_disk(hub, monkeypatch):
    hub.add("org/large", {"model.safetensors": tensors(w=1)})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    assert refused("hf://org/large") == "it cannot be put into the hub's cache (No space left on device)"


def test_without_the_library(hub, monkeypatch):
    monkeypatch.setattr("converter.checkpoints.hub.find_spec", lambda name: None)
    assert refused("hf://org/net") == "what reads the hub is not installed: pip install 'weightbridge[hf]'"


# --- Where it is taken -----------------------------------------------------------------------------------------------


class Told:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.stages, self.count = [], 0

    def start(self, stage, total):
        self.stages.append((stage, total))

    def advance(self, count):
        self.count += count if self.stages[-1][0] == "fetching" else 0

    def say(self, text):
        pass


def test_every_function_takes_an_address(hub, tmp_path):
    commit = hub.add("org/attention", {"model.safetensors": ATTENTION})
    address, full = "hf://org/attention", f"hf://org/attention@{commit}/model.safetensors"
    output, told = tmp_path / "out.weights.h5", Told()
    report = converter.convert("auto", address, output, "lossless", options=SIZES, progress=told)
    assert report.source == report.to_dict()["source"] == full
    assert dict(report.lines())["source"].startswith(f"{full}, sha256 ")
    assert converter.inspect(output).provenance["source"] == full
    assert told.stages[:2] == [("fetching", len(ATTENTION)), ("fetching", 0)]
    assert told.count == len(ATTENTION)
    assert converter.verify("auto", address, output, level="lossless")
    assert converter.plan("auto", Path(address), SIZES).tensors == 8  # a Path loses a slash
    assert len(converter.inspect(Path(full))) == 8
    pair = converter.new_pair(address, tmp_path / "mine")
    assert pair.checkpoint == full
    assert f"convert --pair mine.pair:PAIR --verify lossless {full}" in (tmp_path / "mine" / "README.md").read_text()
    with pytest.raises(converter.ConversionError, match=f"^{full}: it holds no tensor of sam_decoder"):
        converter.convert("sam_decoder", address, tmp_path / "no.weights.h5", "lossless")


def test_the_commands_take_one(hub, tmp_path):
    commit = hub.add("org/told", {"model.safetensors": ATTENTION, "config.json": b"{}"})
    full = f"hf://org/told@{commit}/model.safetensors"
    done = run("weightbridge", "inspect", full, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "safetensors: 8 tensors, 720 bytes" in done.stdout
    done = run("weightbridge", "new-pair", "hf://org/told", "-o", "mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--verify lossless {full}\n" in done.stdout
    done = run("convert", "hf://org/told", "--model", "sam_decoder", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {full}: it holds no tensor of sam_decoder; ")
    assert done.stderr.count("\n") == 1
    done = run("weightbridge", "verify", "hf://org/lost", "o.weights.h5", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: hf://org/lost: the hub has no such repository, or a private one: ")
    assert done.stderr.count("\n") == 1


def test_no_network(hub, tmp_path, monkeypatch):
    hub.add("org/seen", {"model.safetensors": ATTENTION})
    assert len(converter.inspect("hf://org/seen")) == 8
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run("weightbridge", "inspect", "hf://org/seen", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("weightbridge", "inspect", "hf://org/unseen", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: hf://org/unseen: the hub cannot be reached (")
    assert done.stderr.endswith("), and the cache does not have it\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("https://huggingface.co/org/name", "hf://org/name"),
        ("https://huggingface.co/org/name/", "hf://org/name"),
        ("https://www.huggingface.co/org/name/tree/main", "hf://org/name"),
        ("http://hf.co/org/name/blob/v2/sub/a%20b.pth", "hf://org/name@v2/sub/a b.pth"),
        ("https://huggingface.co/org/name/resolve/main/m.safetensors?download=true", "hf://org/name/m.safetensors"),
        ("https://huggingface.co/org/name/resolve/refs/pr/1/m.bin", "hf://org/name@refs/pr/1/m.bin"),
        ("HF://org/name@v2/m.bin", "hf://org/name@v2/m.bin"),
        ("org/name@v1.0", "hf://org/name@v1.0"),
        ("org/name@main/m.bin", "hf://org/name@main/m.bin"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_nearly_an_address(address, meant, kind):
    with pytest.raises(converter.ConversionError) as caught:
        converter.inspect(kind(address))
    given = address.rstrip("/") if kind is Path else address  # which a Path loses
    told = (
        str(caught.value)
        .removeprefix(f"{given}: no such file; ")
        .removeprefix("if it is a name on the Hugging Face Hub: ")
    )
    assert told == f"did you mean {meant}?"


@pytest.mark.parametrize(
    "address", ["s3://bucket/a.pth", "gs://bucket/a.pth", "https://huggingface.co/datasets/o/n", "https://a.org/b.pth"]
)
def test_other_addresses(address, tmp_path):
    told = f"{address}: no such file; it is an address: download the file, and name that"
    for given in (address, Path(address)):
        with pytest.raises(converter.ConversionError) as caught:
            converter.inspect(given)
        assert str(caught.value) == told
    done = run("convert", address, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {told}\n")


def test_a_name_without_hf(tmp_path):
    with pytest.raises(converter.ConversionError, match=r"did you mean hf://facebook/sam-vit-base\?$"):
        converter.inspect("facebook/sam-vit-base")
    assert not os.path.exists("facebook")
