"""What a person sees who gives the commands something bad: one line, exit code 1, and everything else as it was."""

import errno
import os

import pytest

import converter
from tests.support.checkpoint_bytes import P, checkpoint_zip
from tests.support.running import run


def refused(folder, *command, reason, code=1):
    """Run a command that must fail; the folder and the output that was there stay as they were."""
    previous = folder / "previous.weights.h5"
    previous.write_bytes(b"previous")
    before = sorted(os.listdir(folder))
    done = run(*command, cwd=folder, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    line = done.stderr.removesuffix("\n")
    assert line.isprintable(), line
    assert line.isascii()
    assert 10 < len(line) <= 500
    assert line.startswith("error: ")
    assert reason in line
    assert sorted(os.listdir(folder)) == before
    assert previous.read_bytes() == b"previous"


def converting(folder, path, reason):
    command = ("convert", "--model", "sam_decoder", path, "-o", "previous.weights.h5", "--overwrite")
    refused(folder, *command, reason=reason)


BAD = {
    "text": (b"hello\n", "not a checkpoint"),
    "empty": (b"", "the file is empty"),
    "code": (checkpoint_zip(P.call("posix.system", P.text("touch executed"))), "class posix.system"),
    "module": (checkpoint_zip(P.call("torch.nn.modules.conv.Conv2d")), "torch.save(model.state_dict(), path)"),
    "terabytes": (
        checkpoint_zip(P.table(("mask_decoder.iou_token.weight", P.tensor((1 << 40,), (0,))))),
        "claim 4,398,046,511,104",
    ),
    "escapes": (checkpoint_zip(P.table(("\x1b]0;title\x07\n\u202e" * 30, P.tensor()))), r"\x1b]0;title\x07"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    data, reason = BAD[name]
    (tmp_path / "ckpt.pth").write_bytes(data)
    converting(tmp_path, "ckpt.pth", reason)
    assert not (tmp_path / "executed").exists()


def test_a_name_of_a_file_that_is_not_printable(tmp_path):
    name = "evil\x1b[31m\n\u202e" + "x" * 200 + ".pth"
    (tmp_path / name).write_bytes(b"hello")
    converting(tmp_path, name, r"evil\x1b[31m\n\u202e")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    converting(tmp_path, "pipe.pth", "not a regular file")
    converting(tmp_path, "/dev/zero", "not a regular file")
    converting(tmp_path, "nowhere.pth", "no such file")
    (tmp_path / "loop").symlink_to("loop")
    converting(tmp_path, "loop", "cannot be opened")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "again").symlink_to(tmp_path / "folder")
    converting(tmp_path, "folder", "the folder holds no checkpoint")
    (tmp_path / "folder" / "model.safetensors").symlink_to(tmp_path / "folder")
    converting(tmp_path, "folder", "not a regular file")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def forbidden(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", forbidden)  # a test that runs as root may read everything
    with pytest.raises(converter.ConversionError, match=r"secret.pth: cannot be opened \(Permission denied\)"):
        converter.inspect(tmp_path / "secret.pth")


def test_inspect_and_verify_refuse_alike(tmp_path):
    (tmp_path / "ckpt.pth").write_bytes(BAD["code"][0])
    refused(tmp_path, "weightbridge", "inspect", "ckpt.pth", reason="class posix.system")
    refused(tmp_path, "weightbridge", "inspect", "previous.weights.h5", reason="not a checkpoint")
    refused(tmp_path, "weightbridge", "verify", "ckpt.pth", "previous.weights.h5", reason="class posix.system")
