"""A shard index names files of its own folder; each tensor stands in the one that the index says, and nowhere else."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch

import converter

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """An index with two good shards, and a good shard outside of its folder."""
    place = tmp_path / "model"
    place.mkdir()
    for file, name in (("one.safetensors", "a"), ("two.safetensors", "b"), ("../outside.safetensors", "a")):
        safetensors.torch.save_file({name: torch.ones(3)}, place / file)
    return place


def index(folder, table):
    (folder / INDEX).write_text(table if isinstance(table, str) else json.dumps({"weight_map": table}))
    return folder / INDEX


def test_the_good_one_is_read(folder):
    path = index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    assert [entry.name for entry in converter.inspect(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"a": "../outside.safetensors", "b": "two.safetensors"}, "not a file name in the index's own folder"),
        ({"a": "{parent}/outside.safetensors"}, "not a file name in the index's own folder"),
        ({"a": "sub/one.safetensors"}, "not a file name"),
        ({"a": "sub\\one.safetensors"}, "not a file name"),
        ({"a": ".."}, "not a file name"),
        ({"a": ""}, "not a file name"),
        ({"a": "one.safetensors\0"}, "not a file name"),
        ({"a": "three.safetensors"}, "no such file"),
        ({"a": INDEX}, "not a checkpoint"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, "holds a: the index places it in two.safetensors"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "1 tensors of the index are not in their shards, first b"),
        ({"b": "one.safetensors"}, "holds a: not in the index"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "holds b: not in the index"),
        ({"a": 1}, "not a shard index"),
        ({"a": ["one.safetensors"]}, "not a shard index"),
        ({}, "not a shard index"),
        ('{"weight_map": {"a": "one.safetensors", "a": "one.safetensors"}}', "stands twice"),
        ('{"weight_map": {"a": "one.safetensors"}, "weight_map": {}}', "stands twice"),
        ('{"weight_map": ', "not JSON"),
        ("{" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_index_is_refused(folder, table, reason):
    if isinstance(table, dict):
        table = {n: v.format(parent=folder.parent) if isinstance(v, str) else v for n, v in table.items()}
    with pytest.raises(converter.ConversionError, match=reason):
        converter.inspect(index(folder, table))


def test_a_tensor_in_two_shards_is_refused(folder):
    safetensors.torch.save_file({"b": torch.ones(3), "a": torch.zeros(3)}, folder / "two.safetensors")
    with pytest.raises(converter.ConversionError, match="tensor a stands there twice"):
        converter.inspect(index(folder, {"a": "one.safetensors", "b": "two.safetensors"}))


def test_a_shard_with_nested_state_dicts_is_refused(folder):
    torch.save({"model": {"a": torch.ones(3)}}, folder / "one.safetensors")
    with pytest.raises(converter.ConversionError, match="not a plain file of tensors"):
        converter.inspect(index(folder, {"a": "one.safetensors", "b": "two.safetensors"}))


@pytest.mark.parametrize("target", ["../outside.safetensors", "/dev/zero", "one.safetensors", "loop"])
def test_a_link_out_of_the_folder_is_refused(folder, target):
    (folder / "one.safetensors").unlink()
    if target == "loop":
        (folder / "loop").symlink_to("one.safetensors")
    (folder / "one.safetensors").symlink_to(target)
    with pytest.raises(converter.ConversionError, match=r"link out of|cannot be opened"):
        converter.inspect(index(folder, {"a": "one.safetensors", "b": "two.safetensors"}))


def test_only_the_cache_may_link_to_a_sibling_folder(tmp_path, folder):
    """The layout of the cache, but without its name: `blobs` is then any other folder."""
    blobs, other = tmp_path / "blobs", tmp_path / "other" / "rev"
    blobs.mkdir()
    other.mkdir(parents=True)
    shutil.copy(folder / "one.safetensors", blobs / "x")
    (other / "one.safetensors").symlink_to(blobs / "x")
    with pytest.raises(converter.ConversionError, match="link out of"):
        converter.inspect(index(other, {"a": "one.safetensors"}))


def test_a_pipe_for_a_shard_is_refused_at_once(folder):
    (folder / "one.safetensors").unlink()
    os.mkfifo(folder / "one.safetensors")
    with pytest.raises(converter.ConversionError, match="not a regular file"):
        converter.inspect(index(folder, {"a": "one.safetensors", "b": "two.safetensors"}))


def test_every_file_is_closed_again(folder):
    before = len(os.listdir("/proc/self/fd"))
    path = index(folder, {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"})
    for _ in range(50):
        with pytest.raises(converter.ConversionError):
            converter.inspect(path)
    assert len(os.listdir("/proc/self/fd")) == before
