"""Conversions that are killed, run out of disk, or run two at a time: no wrong file, nothing left. See the counts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.hardening.interrupting import one_line
from tests.support import converted
from tests.support.running import BIN, environment

ROOT = Path(__file__).parent.parent.parent
NEVER = ("wrong files", "wrong message", "wrong exit code", "wrong exit codes", "left", "left by what could clean up",
         "left after the next run")  # fmt: skip


def rounds(what: str, count: int, seed: int = 0) -> dict[str, int]:
    """Run so many rounds in a process of their own; what must never happen did not. Returns and prints the counts."""
    command = [sys.executable, "-m", "tests.hardening.interrupting", what, str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(f"{what}: {seen}")
    assert {name: number for name, number in seen.items() if name in NEVER and number} == {}
    assert seen["rounds"] == count
    return seen


def test_killed_at_random_moments():
    seen = rounds("kill", 18)
    assert sum(seen[f"{name}: ended"] for name in ("SIGKILL", "SIGINT", "SIGTERM")) >= 6


@pytest.mark.slow
def test_killed_at_many_random_moments():
    seen = rounds("kill", 300, 1)
    assert min(seen[f"{name}: ended"] for name in ("SIGKILL", "SIGINT", "SIGTERM")) >= 20
    assert seen["half a file left in its folder"] >= 1  # and the next run removed it


def test_killed_at_the_moments_that_matter():
    seen = rounds("moments", 1)
    assert {name: number for name, number in seen.items() if ":" in name} == {
        "mkdir: 130": 1, "mkdir: 143": 1, "replace: 0": 2, "unlink: 130": 1, "unlink: 143": 1,
    }  # fmt: skip


def test_a_full_disk_at_every_stage():
    assert rounds("full", 12)["refused"] == 12


@pytest.mark.slow
def test_a_full_disk_at_many_stages():
    assert rounds("full", 200)["refused"] == 200


def test_two_writers_on_one_output():
    seen = rounds("writers", 10)
    assert seen["both wrote"] == seen["one wrote, the other was told"] == 5


@pytest.mark.slow
def test_two_writers_on_one_output_50_rounds():
    rounds("writers", 50)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_whole_of_a_conversion(tmp_path, name):
    """With the proof's own process, which ends as well; its folder in the temporary directory is removed."""
    torch.save(converted.state(), tmp_path / "ckpt.pth")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "w.weights.h5").write_bytes(b"previous")
    pair = ("--pair", "tests.support.converted:PAIR")
    command = [str(BIN / "convert"), "ckpt.pth", *pair, "-o", "w.weights.h5", "--overwrite"]
    child = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (begun := os.listdir(tmp_path / "tmp")) and child.poll() is None:
        time.sleep(0.02)
    assert begun, child.communicate()
    time.sleep(1)
    child.send_signal(getattr(signal, name))
    output, error = child.communicate(timeout=60)
    assert child.returncode == {"SIGINT": 130, "SIGTERM": 143}[name]
    assert output == ""
    assert one_line(error), error
    assert (tmp_path / "w.weights.h5").read_bytes() == b"previous"
    assert sorted(os.listdir(tmp_path)) == ["ckpt.pth", "tmp", "w.weights.h5"]
    assert os.listdir(tmp_path / "tmp") == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, where this machine lets one be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_disk_that_is_really_full_or_read_only(small_disk):
    from converter import ConversionError
    from converter.files.atomic import NewFile

    output = small_disk / "w.weights.h5"
    output.write_bytes(b"previous")
    with pytest.raises(ConversionError, match="the disk is full"), NewFile(output, True).written() as temporary:
        temporary.write_bytes(bytes(200_000))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConversionError, match="Read-only file system"), NewFile(output, True).written():
        pass
    assert output.read_bytes() == b"previous"
    assert os.listdir(small_disk) == [output.name]


def test_what_the_proof_left_in_the_temporary_folder_after_a_kill_is_removed_by_the_next(tmp_path, monkeypatch):
    import tempfile

    from converter.torch_side.process import TorchProcess

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "weightbridge.0123abcd.partial"
    left.mkdir()
    (left / "request.pickle").write_bytes(b"half")
    with contextlib.closing(TorchProcess()):
        assert not left.exists()
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []
