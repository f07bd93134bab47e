"""Files and folders that people name and that are no checkpoint: what each is, and what to do, in one line."""

import json
import pickle
import zipfile

import keras
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.package import PackageExporter

import converter


def refused(path, *words):
    with pytest.raises(converter.ConversionError) as caught:
        converter.inspect(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def torch_script(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)


def exported(path):
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),)), path)


def package(path):
    with PackageExporter(path) as exporter:
        exporter.save_pickle("model", "model.pkl", {"a": 1})


def keras_model(path):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]).save(path)


def cut(path):
    torch.save(nn.Linear(20, 30).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


def zipped(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "")
        if name.endswith("/"):
            archive.writestr(f"{name}data.pkl", "")


def packed(path):
    torch.save(nn.Linear(2, 3).state_dict(), path.with_name("weights.pth"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("weights.pth"), "run/weights.pth")


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("m.pt", torch_script, ("TorchScript archive", "torch.save(model.state_dict(), path)")),
        ("m.pt2", exported, ("program of torch.export", "torch.export.load")),
        ("m.pt", package, ("torch.package archive", "holds code")),
        ("m.keras", keras_model, ("a Keras model", "torch's")),
        ("m.npz", lambda path: np.savez(path, a=np.zeros(2)), ("numpy arrays", "safetensors")),
        ("m.npy", lambda path: np.save(path, np.zeros(2)), ("one numpy array",)),
        ("m.zip", packed, ("an archive that holds run/weights.pth", "unpack it")),
        ("m.tflite", lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(20)), ("TensorFlow Lite model",)),
        ("m.gguf", lambda path: path.write_bytes(b"GGUF" + bytes(20)), ("GGUF", "safetensors")),
        ("m.onnx", lambda path: path.write_bytes(b"\x08\x07\x12\x04test"), ("an ONNX model",)),
        ("m.ckpt.index", lambda path: path.write_bytes(b"\0\0\1" + bytes(40)), ("part of a TensorFlow checkpoint",)),
        ("m.pth.xz", lambda path: path.write_bytes(b"\xfd7zXZ\0"), ("compressed with xz",)),
        (
            "m.png",
            lambda path: path.write_bytes(b"\x89PNG\r\n"),
            ("a picture, not a checkpoint", "segment WEIGHTS PICTURE"),
        ),
        ("m.gif", lambda path: path.write_bytes(b"GIF89a" + bytes(20)), ("a picture, not a checkpoint",)),
        ("m.webp", lambda path: path.write_bytes(b"RIFF\0\0\0\0WEBPVP8 "), ("a picture, not a checkpoint",)),
        ("m.tif", lambda path: path.write_bytes(b"MM\0*" + bytes(20)), ("a picture, not a checkpoint",)),
        ("m.bmp", lambda path: path.write_bytes(b"BM\1\0\0\0" + bytes(20)), ("a picture, not a checkpoint",)),
        ("m.html", lambda path: path.write_bytes(b"\n" * 20 + b"<html>"), ("a web page",)),
        ("m.tar", lambda path: path.write_bytes(bytes(257) + b"ustar" + bytes(300)), ("a tar archive",)),
        ("cut.pth", cut, ("its zip directory is damaged or cut off", "get it again")),
        ("m.zip", lambda path: zipped(path, "readme.txt"), ("none that torch.save writes: it holds readme.txt",)),
        ("m.pth", lambda path: zipped(path, "m/"), ("record m/ is a folder, which torch.save never writes",)),
        ("m.pkl", lambda path: path.write_bytes(pickle.dumps({"a": np.zeros(3)}, 1)), ("protocol 0 or 1",)),
        ("m.7z", lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c"), ("7z archive",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files(tmp_path, name, write, words):
    write(tmp_path / name)
    refused(tmp_path / name, *words)


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning", "ignore:TypedStorage:UserWarning")
def test_a_distributed_checkpoint(tmp_path):
    dcp.save({"model": nn.Linear(2, 3).state_dict()}, checkpoint_id=tmp_path / "step")
    refused(tmp_path / "step", "a distributed checkpoint of torch", "dcp_to_torch_save", str(tmp_path / "step"))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], ("zero_to_fp32.py",)),
        (["zero_to_fp32.py", "latest", "global_step10/x.pt"], ("DeepSpeed", "zero_to_fp32.py")),
        (["saved_model.pb", "variables/variables.index"], ("a TensorFlow model",)),
        (["model.ckpt.index", "model.ckpt.data-00000-of-00001"], ("a TensorFlow model",)),
        (["adapter_model.safetensors", "adapter_config.json"], ("an adapter alone (LoRA)",)),
        (["checkpoint-500/x", "checkpoint-1500/x", "trainer_state.json"], ("of a run", "checkpoint-1500")),
        (["best.pth", "optimizer.pt", "log.txt"], ("one file of weights, name it", "best.pth")),
        (["model.fp16.safetensors", "config.json"], ("one file of weights, name it", "model.fp16.safetensors")),
        (["diffusion_pytorch_model.safetensors"], ("diffusion_pytorch_model.safetensors",)),
        (["a.pth", "b.pth", "notes.md"], ("several files of weights", "a.pth, b.pth")),
        (["model_index.json", "unet/config.json", "vae/config.json"], ("several networks", "unet, vae")),
        (["checkpoints/e.ckpt", "hparams.yaml"], ("below it stands one, name it", "run/checkpoints/e.ckpt")),
        (["version_0/checkpoints/last.ckpt"], ("below it stands one, name it", "version_0/checkpoints/last.ckpt")),
        (["step-10/x", "step-9/x"], ("of a run", "step-10")),
        (["step_100/x", "step_20/x"], ("of a run", "step_100")),
        (["epoch_1/x", "epoch_12/x"], ("of a run", "epoch_12")),
        (["last/.metadata", "last/__0_0.distcp"], ("below it stands one, name it", "run/last")),
        (["snapshots/abc/model.safetensors", "refs/main"], ("below it stands one", "run/snapshots/abc")),
        (["sam.pth.tar"], ("one file of weights, name it", "sam.pth.tar")),
        (["SAM.PTH"], ("one file of weights, name it", "SAM.PTH")),
        (
            ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-00001-of-00001.safetensors"],
            ("a shard index, name it", "run/diffusion_pytorch_model.safetensors.index.json"),
        ),
        (["model.safetensors.index.fp16.json"], ("a shard index, name it", "model.safetensors.index.fp16.json")),
        (["model-00001-of-00002.safetensors"], ("shards without their index; get model.safetensors.index.json",)),
        (["flax_model.msgpack"], ("weights of Flax (flax_model.msgpack)", "torch's")),
        (["model.onnx"], ("weights of ONNX", "torch's")),
        (["a.weights.h5"], ("weights of Keras (a.weights.h5)", "torch's")),
        (["data.pkl", "version", "data/0"], ("was unpacked", "zip -0rDX one.pth run")),
        (["notes.md"], ("the folder holds no checkpoint (looked for model.safetensors",)),
        ([], ("the folder holds no checkpoint",)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_folders(tmp_path, files, words):
    for name in files:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(json.dumps({}))
    (tmp_path / "run").mkdir(exist_ok=True)
    refused(tmp_path / "run", *words)


def test_a_checkpoint_that_was_unpacked_and_zipped_again(tmp_path):
    """As `zip -0rDX` writes it: stored, without folders and extra fields."""
    state = nn.Linear(2, 3).state_dict()
    torch.save(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        source.extractall(tmp_path)
        for path in sorted((tmp_path / "a").rglob("*")):
            if path.is_file():
                target.write(path, path.relative_to(tmp_path))
    refused(tmp_path / "a", "it is a checkpoint of torch that was unpacked", "zip -0rDX one.pth a")
    assert [row.name for row in converter.inspect(tmp_path / "b.pth")] == [*state]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "place",
    [lambda one: one, lambda one: {"optimizer": one, "epoch": 3}, lambda one: {"optimizer_states": [one], "args": {}}],
    ids=["bare", "under a key", "in a list"],
)
def test_a_file_of_optimizers_is_told_as_that(place, named, tmp_path):
    """Those of newer programs have the parameters by name."""
    state = {"state": {"a.w" if named else 0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save(place(state), tmp_path / "o.pth")
    with pytest.raises(converter.ConversionError, match="it holds the state of an optimizer, not a state dict of weig"):
        converter.plan("auto", tmp_path / "o.pth")
    torch.save({**place(state), "model": {"a.w": torch.zeros(3)}}, tmp_path / "o.pth")
    assert any(row.name.endswith("a.w") for row in converter.inspect(tmp_path / "o.pth"))
    with pytest.raises(converter.ConversionError) as caught:
        converter.plan("sam_decoder", tmp_path / "o.pth")
    assert "optimizer, not" not in str(caught.value)


def test_the_state_of_an_optimizer(tmp_path):
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    for _ in range(2):  # without its tensors at first
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        with pytest.raises(converter.ConversionError, match="it holds the state of an optimizer, not a state dict"):
            converter.plan("auto", tmp_path / "optimizer.pt")
        layer(torch.ones(2)).sum().backward()
        optimizer.step()
    assert len(converter.inspect(tmp_path / "optimizer.pt")) == 6


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def scandir(_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run").mkdir()
    monkeypatch.setattr("os.scandir", scandir)
    refused(tmp_path / "run", "the folder holds no checkpoint")
    refused(tmp_path / "run" / "x.pth", "no such file")


def test_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam_vit_b.pth").write_bytes(b"x")
    refused("sam_vitb.pth", "no such file; did you mean sam_vit_b.pth?")
    refused("elsewhere/x.pth", "elsewhere/x.pth: no such file")
    refused("https://example.org/sam.pth", "it is an address: download the file")
    refused("file:///sam.pth", "file:///sam.pth: no such file; name it by its path alone")
    refused("facebook/sam-vit-base", "hf://facebook/sam-vit-base")
    refused("x.pth", "x.pth: no such file")


def test_a_link_to_nowhere_is_not_what_may_be_meant_by_itself(tmp_path):
    (tmp_path / "dang.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(converter.ConversionError, match=r"dang\.pth: no such file$"):
        converter.inspect(tmp_path / "dang.pth")
