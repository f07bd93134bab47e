"""Every container and every way of laying out a tensor is read as torch itself reads it, bit for bit."""

import argparse
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import converter
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import printable
from converter.naming import fold
from tests.support.checkpoint_bytes import FOUR, P, checkpoint_legacy, checkpoint_zip, put, zip_bytes
from tests.support.checkpoints import without_checksums

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FORMATS = ("zip", "legacy", "safetensors")


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def save(state: object, path: Path, container: str = "zip") -> Path:
    if container == "safetensors":
        safetensors.torch.save_file(state, path)  # type: ignore[arg-type]
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    return path


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values, in its order, as whole numbers of the same width."""
    tensor = tensor.detach().resolve_neg().contiguous()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.reshape(-1).view(whole).numpy().reshape(tensor.shape)


def assert_read(path: Path, expected: dict[str, torch.Tensor], key: str = "") -> None:
    """Names, shapes, dtypes and bits of the state dict at `key` are those expected, in that order."""
    with Checkpoint(path) as checkpoint:
        state = checkpoint.states[key]
        assert list(state) == list(expected)
        for name, tensor in expected.items():
            entry, values = state[name], checkpoint.read(state[name])
            assert entry.shape == values.shape == tuple(tensor.shape), name
            assert f"torch.{entry.dtype}" == str(tensor.dtype), name
            assert entry.nbytes == values.nbytes == tensor.numel() * tensor.itemsize, name
            assert values.flags.c_contiguous, name
            np.testing.assert_array_equal(values.view(f"i{values.itemsize}"), bits(tensor), err_msg=name)


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_and_shapes(tmp_path, container, dtype):
    shapes = [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 1), (0,), (3, 0, 2)]
    state = {f"layer.{i}.weight": seeded(*shape, dtype=dtype) for i, shape in enumerate(shapes)}
    state["special"] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 6e4]).to(dtype)
    path = save(state, tmp_path / "ckpt", container)
    with Checkpoint(path) as checkpoint:
        assert checkpoint.container == container
    # safetensors sorts by dtype and name
    assert_read(path, dict(sorted(state.items())) if container == "safetensors" else state)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_views_are_read_as_torch_reads_them(tmp_path, container):
    base = seeded(6, 8, 10)
    image = seeded(2, 3, 5, 7).to(memory_format=torch.channels_last)
    state = {
        "base": base,
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "row": base[3],
        "column": base[:, 2, 5],
        "steps": base[::2, 1::3, ::4],
        "expanded": base[0, 0, :1].expand(4, 10),
        "diagonal": base[0].diagonal(),
        "channels_last": image,
        "fortran": torch.from_numpy(np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))),
        "overlapping": base.as_strided((4, 6), (1, 1)),
        "tail": base.reshape(-1)[-3:],
        "odd strides of ones": base.as_strided((1, 4, 1), (999, 2, 777)),
    }
    path = save(state, tmp_path / "ckpt.pth", container)
    assert_read(path, torch.load(path, weights_only=True))
    assert_read(path, state)


def test_a_view_that_picks_little_of_a_large_storage(tmp_path):
    base = torch.arange(3_000_000, dtype=torch.float32)
    state = {
        "far": base[:: 1 << 20],
        "grid": base[:2_000_000].reshape(1000, 2000)[::400, ::700],
        "two": base[::2_999_999],
    }
    path = save(state, tmp_path / "ckpt.pth")
    assert_read(path, state)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_tied_weights_and_parameters(tmp_path, container):
    weight = torch.nn.Parameter(seeded(4, 3))
    state = OrderedDict(encoder=weight, decoder=weight, part=weight.detach()[1:], buffer=seeded(3))
    path = save(state, tmp_path / "ckpt.pth", container)
    assert_read(path, {name: tensor.detach() for name, tensor in state.items()})


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_negative_bit(tmp_path, container):
    values = torch.view_as_complex(seeded(5, 2)).conj().imag
    assert values.is_neg()
    path = save({"negated": values, "plain": seeded(2)}, tmp_path / "ckpt.pth", container)
    assert_read(path, {"negated": values.resolve_neg(), "plain": seeded(2)})


def test_conjugate_and_complex_are_listed_but_not_read(tmp_path):
    values = torch.view_as_complex(seeded(5, 2))
    path = save({"complex": values, "conjugate": values.conj(), "real": seeded(2)}, tmp_path / "ckpt.pth")
    with Checkpoint(path) as checkpoint:
        for name in ("complex", "conjugate"):
            entry = checkpoint.states[""][name]
            assert (entry.shape, entry.dtype) == ((5,), "complex64")
            with pytest.raises(converter.ConversionError, match="complex"):
                checkpoint.read(entry)
        assert checkpoint.read(checkpoint.states[""]["real"]).shape == (2,)


def test_a_subclass_and_python_attributes(tmp_path):
    weight = torch.nn.Parameter(seeded(2, 3))
    weight.tag = "kept"  # type: ignore[attr-defined]
    path = save({"weight": weight}, tmp_path / "ckpt.pth")
    assert_read(path, {"weight": weight.detach()})


@pytest.mark.parametrize("kind", ["Float", "Double", "Half", "BFloat16"])
@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_big_endian_files(tmp_path, container, kind):
    """Zip archives have numbers in the order of the machine that wrote them; legacy files little-endian ones always."""
    values = torch.tensor([1.5, -2.25, 3e4, 0.0078125, 5.0, 6.0]).to(getattr(torch, f"{kind.lower()}"))
    data = bits(values).astype(f"{'>' if container == 'zip' else '<'}i{values.itemsize}").tobytes()
    storage = P.storage(count=6, kind=f"{kind}Storage")
    body = P.table(
        ("plain", P.tensor((6,), (1,), storage=storage)), ("view", P.tensor((2, 3), (1, 2), storage=storage))
    )
    if container == "zip":
        whole = checkpoint_zip(body, {"0": data}, byteorder=b"big")
    else:
        whole = checkpoint_legacy(body, {"0": data}, values.itemsize, little=b"\x89")
    assert_read(put(tmp_path, "big.pth", whole), {"plain": values, "view": values.reshape(3, 2).T})


def test_a_legacy_file_of_a_big_endian_machine_is_read_as_torch_reads_it(tmp_path):
    path = save({"w": seeded(3, 4)}, tmp_path / "ckpt.pth", "legacy")
    data = bytearray(path.read_bytes())
    true = data.index(0x88, data.index(b"little_endian"))
    data[true] = 0x89
    path.write_bytes(data)
    assert torch.equal(torch.load(path, weights_only=True)["w"], seeded(3, 4))
    assert_read(path, {"w": seeded(3, 4)})


VERSIONS = ["1", "3\n", "10", " \t+3", "0007", "3 and more", "3\0",
            "0", "11", "999", "-1", "-3", "0x3", "", "three", "3" * 30, "\u0663"]  # fmt: skip


@pytest.mark.parametrize("record", ["version", ".data/version"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_torch_does_not_know_is_refused_here_too(tmp_path, record, version):
    """The record under `.data` goes first, whatever the other says."""
    records = {record: version.encode()} if record == "version" else {record: version.encode(), "version": b"3\n"}
    path = put(tmp_path, "ckpt.pth", versioned(records))
    try:
        theirs = torch.load(path, weights_only=True)
    except (RuntimeError, IndexError):
        with pytest.raises(converter.ConversionError, match="version"):
            Checkpoint(path)
        assert VERSIONS.index(version) >= VERSIONS.index("0")
    else:
        assert_read(path, theirs)
        assert VERSIONS.index(version) < VERSIONS.index("0")


def test_the_version_under_data_goes_first_and_one_must_be_there(tmp_path):
    path = put(tmp_path, "ckpt.pth", versioned({".data/version": b"3\n", "version": b"999"}))
    assert_read(path, torch.load(path, weights_only=True))
    path = put(tmp_path, "none.pth", versioned({}))
    with pytest.raises(RuntimeError, match="version"):
        torch.load(path, weights_only=True)
    with pytest.raises(converter.ConversionError, match="does not say its version"):
        Checkpoint(path)


def test_a_legacy_file_of_another_version_is_refused_as_torch_refuses_it(tmp_path):
    whole = checkpoint_legacy(P.table(("w", P.tensor())))
    assert_read(put(tmp_path, "ckpt.pth", whole), {"w": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    path = put(tmp_path, "other.pth", whole.replace(P.whole(P.number(1001)), P.whole(P.number(1002))))
    with pytest.raises((RuntimeError, pickle.UnpicklingError), match="protocol version"):
        torch.load(path, weights_only=True)
    with pytest.raises(converter.ConversionError, match="version 1002, not 1001"):
        Checkpoint(path)


def versioned(records: dict[str, bytes]) -> bytes:
    """A checkpoint of one tensor with these records in place of its `version`."""
    body = P.whole(P.table(("w", P.tensor())))
    rest = {f"archive/{name}": data for name, data in records.items()}
    return zip_bytes({"archive/data.pkl": body, "archive/data/0": FOUR, **rest})


class Pipe(io.BytesIO):
    """What can only be written forwards: zipfile then puts CRC and lengths behind each record."""

    def seekable(self):
        return False

    def tell(self):
        raise OSError

    seek = tell


@pytest.mark.parametrize("target", [io.BytesIO, Pipe], ids=["file", "pipe"])
@pytest.mark.parametrize("large", [False, True], ids=["zip", "zip64"])
def test_an_archive_that_another_program_packed_again(tmp_path, monkeypatch, target, large):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1 if large else 1 << 16)  # more records: a directory of 64 bits
    packed = target()
    with zipfile.ZipFile(save({"w": seeded(3, 4)}, tmp_path / "once.pth")) as old, zipfile.ZipFile(packed, "w") as new:
        for info in old.infolist():
            with new.open(zipfile.ZipInfo(info.filename), "w", force_zip64=large) as record:
                record.write(old.read(info))
    assert (b"PK\6\7" in packed.getvalue()) == large
    path = put(tmp_path, "again.pth", packed.getvalue())
    assert torch.equal(torch.load(path, weights_only=True)["w"], seeded(3, 4))
    assert_read(path, {"w": seeded(3, 4)})


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_an_empty_storage_of_two_types(tmp_path, container):
    empty = torch.empty(0)
    state = {"w": seeded(3), "empty": empty, "again": empty.view(torch.float16)}
    assert_read(save(state, tmp_path / "ckpt.pth", container), state)


def test_training_checkpoint(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(seeded(5, 3)).sum().backward()
    optimizer.step()
    whole = {
        "model": model.state_dict(),
        "model_ema": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "best": np.float64(0.5),
        "history": np.arange(4),
        "args": argparse.Namespace(lr=1e-3, layers=[1, 2]),
        "rng": torch.get_rng_state(),
        0: "a key that is no name",
    }
    path = save(whole, tmp_path / "training.pth")
    with Checkpoint(path) as checkpoint:
        assert set(checkpoint.states) == {"", "model", "model_ema"}
        assert list(checkpoint.states[""]) == ["rng"]
        for key in ("model", "model_ema"):
            for name, tensor in whole[key].items():  # type: ignore[attr-defined]
                entry = checkpoint.states[key][name]
                if tensor.is_floating_point():
                    np.testing.assert_array_equal(checkpoint.read(entry), tensor.numpy())
                else:
                    assert entry.dtype == "int64"


def test_nested_dicts_are_found_by_their_path(tmp_path):
    whole = {"a": {"b": {"w": seeded(2)}}, "c": {"w": seeded(3), "again": None}}
    whole["c"]["again"] = whole["a"]["b"]
    with Checkpoint(save(whole, tmp_path / "ckpt.pth")) as checkpoint:
        assert {key: list(state) for key, state in checkpoint.states.items()} == {"c": ["w"], "a.b": ["w"]}


def test_the_container_is_told_by_its_bytes_not_its_name(tmp_path):
    state = {"w": seeded(3)}
    for container, name in (("zip", "a.safetensors"), ("legacy", "b.index.json"), ("safetensors", "c.pth")):
        assert_read(save(state, tmp_path / name, container), state)


def test_a_safetensors_header_as_long_as_the_magic_of_a_pickle(tmp_path):
    # 1 of 256 files has a header of such a length.
    state = {"w": seeded(3), "v" * 70: seeded(2)}
    path = tmp_path / "ckpt.safetensors"
    for padding in range(256):
        safetensors.torch.save_file(state, path, {"padding": "x" * 8 * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert_read(path, dict(sorted(state.items())))


def sharded(folder: Path, names: tuple[str, ...] = ("one.safetensors", "two.bin")) -> dict[str, torch.Tensor]:
    """An index with a shard of safetensors and one of torch's; returns all tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = {"a.weight": seeded(2, 3), "a.bias": seeded(2)}, {"b.weight": seeded(4)}
    save(first, folder / names[0], "safetensors")
    save(second, folder / names[1])
    table = {**dict.fromkeys(first, names[0]), **dict.fromkeys(second, names[1])}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return {**dict(sorted(first.items())), **second}


def test_shard_index_and_the_folder_that_holds_it(tmp_path):
    expected = sharded(tmp_path)
    for path in (tmp_path / "model.safetensors.index.json", tmp_path):
        assert_read(path, expected)
        with Checkpoint(path) as checkpoint:
            assert checkpoint.container == "sharded"
            assert [file.name for file in checkpoint.files] == [
                "model.safetensors.index.json", "one.safetensors", "two.bin"
            ]  # fmt: skip


def test_the_cache_of_hugging_face_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    expected = sharded(blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert_read(snapshot, expected)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file(tmp_path, name):
    state = {"w": seeded(3)}
    save(state, tmp_path / name, "safetensors" if name.endswith("safetensors") else "zip")
    assert_read(tmp_path, state)


def test_a_file_by_a_link_to_it(tmp_path):
    state = {"w": seeded(3)}
    save(state, tmp_path / "real.pth")
    (tmp_path / "link.pth").symlink_to("real.pth")
    assert_read(tmp_path / "link.pth", state)


def test_sha256_is_that_of_the_file(tmp_path):
    import hashlib

    path = save({"w": seeded(3)}, tmp_path / "ckpt.pth")
    with Checkpoint(path) as checkpoint:
        assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_that_look_alike_are_told_apart(tmp_path):
    names = ["caf\u00e9.w", "cafe\u0301.w", "Caf\u00e9.w", "layer.1.w", "layer.01.w", "layer.\u0661.w"]
    state = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    assert_read(save(state, tmp_path / "ckpt.pth"), state)
    assert len({printable(name) for name in names}) == len(names)
    assert fold(names) == names


def test_inspect_lists_what_is_there_without_reading_it(tmp_path):
    path = save({"model": {"w": seeded(2, 3)}, "ema": {"w": seeded(2, 3, dtype=torch.float16)}}, tmp_path / "ckpt.pth")
    rows = [(entry.name, entry.shape, entry.dtype, entry.nbytes) for entry in converter.inspect(path)]
    assert rows == [("model.w", (2, 3), "float32", 24), ("ema.w", (2, 3), "float16", 12)]


def test_only_the_bytes_of_a_contiguous_tensor_are_read(tmp_path, monkeypatch):
    import os

    whole = {"large": torch.zeros(1_000_000), "small": seeded(10)}
    path = save(whole, tmp_path / "ckpt.pth", "safetensors")
    with Checkpoint(path) as checkpoint:
        entry, count = checkpoint.states[""]["small"], 0
        preadv = os.preadv

        def counted(descriptor, buffers, offset):
            nonlocal count
            count += sum(map(len, buffers))
            return preadv(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", counted)
        checkpoint.read(entry)
    assert count == 40


def test_storages_without_checksums_are_noted(tmp_path):
    with without_checksums():
        path = save({"w": seeded(3)}, tmp_path / "ckpt.pth")
    with Checkpoint(path) as checkpoint:
        assert checkpoint.notes == []
        checkpoint.read(checkpoint.states[""]["w"])
        assert len(checkpoint.notes) == 1
        assert "checksums" in checkpoint.notes[0]


def test_damage_is_seen_every_time_it_is_read(tmp_path):
    path = save({"w": seeded(300), "view": seeded(300)[::2]}, tmp_path / "ckpt.pth")
    data = bytearray(path.read_bytes())
    place = data.index(struct.pack("<f", seeded(300)[7].item()))
    data[place] ^= 1
    path.write_bytes(data)
    with Checkpoint(path) as checkpoint:
        for _ in range(2):
            with pytest.raises(converter.ConversionError, match="w: its bytes do not match their checksum"):
                checkpoint.read(checkpoint.states[""]["w"])
