"""An output appears whole or not at all, whatever stands in its way."""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from converter import ConversionError
from converter.files.atomic import NewFile, NewFolder, scratch


def write(output: Path, data: bytes = b"new", overwrite: bool = False) -> None:
    with NewFile(output, overwrite).written() as temporary:
        temporary.write_bytes(data)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "w.weights.h5"


def test_it_appears_whole_and_alone(output):
    with NewFile(output, False).written() as temporary:
        temporary.write_bytes(b"new")
        assert not output.exists()
        assert temporary.stat().st_dev == output.parent.stat().st_dev
    assert output.read_bytes() == b"new"
    assert os.listdir(output.parent) == [output.name]
    assert stat.S_IMODE(output.stat().st_mode) & 0o077 == 0o044  # as any new file under the usual umask


def test_a_previous_output_is_replaced_only_when_that_is_wanted(output):
    write(output, b"old")
    with pytest.raises(ConversionError, match="exists; --overwrite replaces it"):
        write(output)
    assert output.read_bytes() == b"old"
    write(output, overwrite=True)
    assert output.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_failure_leaves_everything_as_it_was(output, error):
    write(output, b"old")

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(error), NewFile(output, True).written() as temporary:
        fail(temporary)
    assert output.read_bytes() == b"old"
    assert os.listdir(output.parent) == [output.name]


def test_folders_that_were_made_are_removed_after_a_failure(tmp_path):
    output = tmp_path / "a" / "b" / "w.weights.h5"
    with pytest.raises(ValueError, match="failed"), NewFile(output, False).written():
        raise ValueError("failed")
    assert os.listdir(tmp_path) == []
    write(output)
    assert output.read_bytes() == b"new"


def test_folders_are_removed_up_to_one_that_could_not_be_made(tmp_path):
    with pytest.raises(ConversionError, match="File name too long"):
        write(tmp_path / "a" / ("b" * 300) / "w.weights.h5")
    assert os.listdir(tmp_path) == []


def test_no_folder_is_made_to_be_left_again(tmp_path):
    with pytest.raises(ConversionError, match="through a folder that does not exist"):
        write(tmp_path / "new" / ".." / "w.weights.h5")
    assert os.listdir(tmp_path) == []
    (tmp_path / "old").mkdir()
    write(tmp_path / "old" / ".." / "new" / "w.weights.h5")
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
def test_what_is_read_is_never_replaced(tmp_path, output, link):
    output.write_bytes(b"source")
    source = output if link is None else tmp_path / "ckpt.pth"
    if link is not None:
        link(output, source)
    for overwrite in (False, True):
        with pytest.raises(ConversionError, match="is the file that is read"):
            NewFile(output, overwrite, sources=[tmp_path / "gone", source])


def test_what_is_read_is_not_replaced_when_it_takes_the_name_meanwhile(tmp_path, output):
    source = tmp_path / "ckpt.pth"
    source.write_bytes(b"source")
    with pytest.raises(ConversionError, match="file that is read"), NewFile(output, True, (".h5",), [source]).written():
        os.link(source, output)
    assert output.read_bytes() == b"source"


class Signal(BaseException):
    pass


@pytest.fixture
def signalled(monkeypatch):
    """Have a function of os raise a signal once it is done, the first time."""

    def stop(*_: object) -> None:
        raise Signal

    def patch(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments, **options):
            result = real(*arguments, **options)
            monkeypatch.setattr(os, name, real)
            signal.raise_signal(signal.SIGTERM)
            return result

        monkeypatch.setattr(os, name, call)

    kept = signal.signal(signal.SIGTERM, stop)
    yield patch
    signal.signal(signal.SIGTERM, kept)


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_a_signal_while_a_folder_is_made_or_removed_leaves_nothing(tmp_path, signalled, call):
    def fail(temporary):
        temporary.write_bytes(b"half")
        signalled(call)
        raise ValueError("failed")

    with pytest.raises(Signal), NewFile(tmp_path / "a" / "b" / "w.weights.h5", False).written() as temporary:
        fail(temporary)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_signal_while_the_folders_are_made_leaves_nothing(tmp_path, signalled, call):
    signalled(call)
    with pytest.raises(Signal), NewFile(tmp_path / "a" / "b" / "w.weights.h5", False).written():
        pass
    assert os.listdir(tmp_path) == []


def test_a_signal_between_the_two_steps_of_replacing_a_folder_waits(tmp_path, signalled):
    output = tmp_path / "f"
    for content in ("old", "new"):
        with pytest.raises(Signal) if content == "new" else contextlib.nullcontext():  # noqa: SIM117
            with NewFolder(output, True, "mark").written() as temporary:
                (temporary / "mark").write_text(content)
                if content == "new":
                    signalled("rename")
    assert (output / "mark").read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="failed"), NewFile(tmp_path / "a" / "w.weights.h5", False).written():
        raise ValueError("failed")
    assert os.listdir(tmp_path) == ["a"]


def test_what_the_output_must_not_be(tmp_path, output):
    (tmp_path / "folder.weights.h5").mkdir()
    (tmp_path / "link.weights.h5").symlink_to("target.weights.h5")
    os.mkfifo(tmp_path / "pipe.weights.h5")
    (tmp_path / "file").write_bytes(b"")
    for name, reason in (
        ("folder.weights.h5", "is a folder"),
        ("link.weights.h5", "is a symbolic link"),
        ("pipe.weights.h5", "is not a regular file"),
        ("weights.pth", "must end in .weights.h5"),
        ("x" * 250 + ".weights.h5", "cannot be written: File name too long"),
        ("a\0b.weights.h5", "cannot be written: .*null"),
        ("file/w.weights.h5", "cannot be written"),
    ):
        with pytest.raises(ConversionError, match=reason):
            write(tmp_path / name, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.weights.h5", "link.weights.h5", "pipe.weights.h5"]


def test_a_link_that_appears_meanwhile_is_not_followed(tmp_path, output):
    target = tmp_path / "target"

    def meanwhile(temporary):
        temporary.write_bytes(b"new")
        target.write_bytes(b"old")
        output.symlink_to(target)

    with pytest.raises(ConversionError, match="symbolic link"), NewFile(output, True).written() as temporary:
        meanwhile(temporary)
    assert target.read_bytes() == b"old"


def test_another_converter_that_was_first_is_not_overwritten(output, monkeypatch):
    last_look, looks = NewFile.look, []

    def look(self):
        last_look(self)
        looks.append(self)
        if len(looks) == 2:
            output.write_bytes(b"first")

    monkeypatch.setattr(NewFile, "look", look)
    with pytest.raises(ConversionError, match="exists; --overwrite"):
        write(output, b"late")
    assert output.read_bytes() == b"first"


def test_a_file_system_without_hard_links(output, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    write(output)
    assert output.read_bytes() == b"new"
    with pytest.raises(ConversionError, match="exists"):
        write(output, b"again")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EROFS, "Read-only file system")],
)
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_what_the_disk_refuses(output, monkeypatch, number, reason, call):
    write(output, b"old")

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refused)
    with pytest.raises(ConversionError, match=reason):
        write(output, overwrite=True)
    monkeypatch.undo()
    assert output.read_bytes() == b"old"
    assert os.listdir(output.parent) == [output.name]


def test_the_file_and_its_folder_are_synced_in_this_order(output, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("replace", str(b))), replace(a, b)))
    with NewFile(output, True).written() as temporary:
        temporary.write_bytes(b"new")
    assert events == [("sync", str(temporary)), ("replace", str(output)), ("sync", str(output.parent))]


def abandoned(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "half").write_bytes(b"half")
    return folder


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path, output):
    gone = abandoned(tmp_path, f".{output.name}.0123abcd.partial")
    kept = [
        abandoned(tmp_path, name)
        for name in (
            ".other.weights.h5.0123abcd.partial",
            f".{output.name}.mine.partial",
            f".{output.name}.0123abcd.partial.keep",
            f"{output.name}.0123abcd.partial",
        )
    ]
    outside = abandoned(tmp_path, "outside")
    (tmp_path / f".{output.name}.00000000.partial").symlink_to(outside)
    os.mkfifo(tmp_path / f".{output.name}.11111111.partial")
    write(output)
    assert not gone.exists()
    assert all((folder / "half").exists() for folder in (*kept, outside))


def test_what_a_living_run_uses_stays(tmp_path):
    with scratch(tmp_path, "x") as mine, scratch(tmp_path, "x") as theirs:
        assert mine != theirs
        assert mine.exists()
        assert theirs.exists()
    assert os.listdir(tmp_path) == []


def test_a_folder_taken_for_abandoned_just_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    flock, first = fcntl.flock, []

    def removed(lock, how):
        if not first:
            first.append(os.readlink(f"/proc/self/fd/{lock}"))
            os.rmdir(first[0])
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", removed)
    with scratch(tmp_path, "x") as folder:
        assert folder.exists()
        assert str(folder) != first[0]


def test_a_pipe_is_refused_without_waiting(tmp_path):
    began = time.monotonic()
    os.mkfifo(tmp_path / "p.weights.h5")
    with pytest.raises(ConversionError):
        NewFile(tmp_path / "p.weights.h5", True)
    assert time.monotonic() - began < 1
