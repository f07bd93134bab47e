"""Files that change while they are read, and values that are not finite or not to be narrowed."""

import os
import struct

import numpy as np
import pytest
import torch

import converter
from converter.checkpoints.checkpoint import Checkpoint
from tests.support import smallest_pair
from tests.support.checkpoints import without_checksums
from tests.support.pairs import registered


@pytest.fixture(scope="module", autouse=True)
def _vector():
    with registered(smallest_pair.PAIR):
        yield


def save(tmp_path, values, **options):
    path = tmp_path / "ckpt.pth"
    torch.save({"w": torch.as_tensor(values)}, path, **options)
    return path


@pytest.mark.parametrize("view", ["whole", "strided"])
def test_a_file_that_shrinks_is_an_error_not_a_crash(tmp_path, view):
    base = torch.arange(400_000.0)
    path = save(tmp_path, base if view == "whole" else base[::2])
    with Checkpoint(path) as checkpoint:
        os.truncate(path, 100_000)
        with pytest.raises(converter.ConversionError, match="the file ends at byte 100000"):
            checkpoint.read(checkpoint.states[""]["w"])
        with pytest.raises(converter.ConversionError, match="changed while it was read"):
            checkpoint.check_unchanged()


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_a_file_that_changed_is_noticed(tmp_path, how):
    path = save(tmp_path, [1.0, 2.0, 3.0, 4.0])
    with Checkpoint(path) as checkpoint:
        checkpoint.check_unchanged()
        data = path.read_bytes()
        if how == "written":
            os.utime(path, ns=(0, 0))
        else:
            path.unlink()
        if how == "replaced":
            path.write_bytes(data)
        with pytest.raises(converter.ConversionError, match="changed while it was read"):
            checkpoint.check_unchanged()


def test_a_conversion_of_a_file_that_changes_writes_nothing(tmp_path, monkeypatch):
    path = save(tmp_path, [1.0, 2.0, 3.0, 4.0])
    read = Checkpoint.read

    def meddled(self, entry, scratch=None):
        values = read(self, entry, scratch)
        os.utime(path, ns=(0, 0))
        return values

    monkeypatch.setattr(Checkpoint, "read", meddled)
    with pytest.raises(converter.ConversionError, match="changed while it was read"):
        converter.convert("vector", path, tmp_path / "out" / "v.weights.h5", "lossless")
    assert os.listdir(tmp_path) == ["ckpt.pth"]


def test_a_digest_that_is_not_needed_any_more_is_given_up(tmp_path):
    path = save(tmp_path, [1.0, 2.0, 3.0, 4.0])
    with Checkpoint(path) as checkpoint:
        os.truncate(path, 1 << 42)  # a hole of 4 terabytes, which would take an hour
        checkpoint.stop()
        checkpoint.sha256()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_unless_allowed(tmp_path, value):
    path = save(tmp_path, [1.0, value, 3.0, 4.0])
    output = tmp_path / "v.weights.h5"
    with pytest.raises(converter.ConversionError, match="w holds NaN or Inf; --allow-nonfinite"):
        converter.convert("vector", path, output, "lossless")
    assert not output.exists()
    report = converter.convert("vector", path, output, "lossless", allow_nonfinite=True)
    assert report.lossless
    assert any("1 tensors hold NaN or Inf, as allowed: w" in note for note in report.notes)


@pytest.mark.parametrize(("values", "dtype"), [([1.0, 1e39, 3.0, 4.0], "float32"), ([1.0, 1e5, 3.0, 4.0], "float16")])
def test_overflow_when_narrowing_is_an_error(tmp_path, values, dtype):
    path = save(tmp_path, torch.tensor(values, dtype=torch.float64))
    with pytest.raises(converter.ConversionError, match=f"w holds values too large for {dtype}"):
        converter.convert("vector", path, tmp_path / "v.weights.h5", "lossless", dtype=dtype)
    assert os.listdir(tmp_path) == ["ckpt.pth"]


def test_missing_checksums_are_said_in_the_report(tmp_path):
    with without_checksums():
        path = save(tmp_path, [1.0, 2.0, 3.0, 4.0])
    report = converter.convert("vector", path, tmp_path / "v.weights.h5", "lossless")
    assert any("checksums" in note for note in report.notes)


def test_a_value_with_a_wrong_checksum_is_refused(tmp_path):
    path = save(tmp_path, [1.0, 2.0, 3.0, 1234.5])
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<f", 1234.5), struct.pack("<f", 1234.625)))
    with pytest.raises(converter.ConversionError, match="do not match their checksum"):
        converter.convert("vector", path, tmp_path / "v.weights.h5", "none")
    assert os.listdir(tmp_path) == ["ckpt.pth"]


def test_of_several_state_dicts_that_fit_one_must_be_chosen(tmp_path):
    path = tmp_path / "ckpt.pth"
    state = {"w": torch.arange(4.0)}
    other = {"w": torch.arange(4.0) + 1}
    torch.save({"model": state, "model_ema": other, "unrelated": {"v": torch.ones(3)}}, path)
    for model in ("vector", "auto"):
        with pytest.raises(converter.ConversionError, match="fit vector: model, model_ema; choose one with --key"):
            converter.plan(model, path)
        assert converter.plan(model, path, key="model_ema").key == "model_ema"
    with pytest.raises(converter.UsageError, match="no state dict at ema; it has: model, model_ema"):
        converter.plan("vector", path, key="ema")
    torch.save({"model": state, "unrelated": {"v": torch.ones(3)}}, path)
    assert converter.plan("vector", path).key == "model"
