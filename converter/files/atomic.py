"""An output file that appears whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ConversionError, printable
from tf_models.runtime.weights_format import SUFFIX

replaced = threading.Event()  # an output has taken its place: from then on a command cannot be taken back


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end of the block."""
    came: list[int] = []
    kept = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, lambda which, _frame: came.append(which))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for which in came[:1]:
            signal.raise_signal(which)


@dataclass(frozen=True)
class NewFile:
    """A file that a command is to write. It is refused when it is named, before any work; once more at the last moment.

    Attributes:
        path: its name.
        overwrite: it may take the place of a file.
        suffixes: one of which it ends in.
        sources: files that are read, which it may not replace.

    Raises:
        ConversionError: it has another ending, is a folder, a link or one of `sources`, or exists and is not to be
            replaced.
    """

    path: Path
    overwrite: bool
    suffixes: tuple[str, ...] = (SUFFIX,)
    sources: Sequence[Path] = ()

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Raise when it cannot be written, as things are now."""
        shown = printable(str(self.path), 160)
        if not self.path.name.lower().endswith(self.suffixes):
            raise ConversionError(f"the output {shown} must end in {' or '.join(self.suffixes)}")
        mode = _mode(self.path, "file")
        if mode is None:
            return
        if stat.S_ISDIR(mode):
            raise ConversionError(f"the output {shown} is a folder")
        if not stat.S_ISREG(mode):
            raise ConversionError(f"the output {shown} is not a regular file")
        for source in self.sources:
            with contextlib.suppress(OSError):  # one of them is gone
                if os.path.samefile(self.path, source):
                    raise ConversionError(f"the output {shown} is the file that is read; name another")
        if not self.overwrite:
            raise ConversionError(f"the output {shown} exists; --overwrite replaces it")

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """A temporary file that takes the name, whole and synced, when the block ends well.

        When it does not, nothing is left and a previous file is as it was. The file stands in a folder of its own
        beside the output, which a living run keeps locked (HDF5 locks the file itself); what a killed run left is
        removed first.

        Raises:
            ConversionError: it cannot be written, or someone else was first.
        """
        with _room(self.path) as room:
            temporary = room / self.path.name
            yield temporary
            self.look()
            _sync(temporary)
            with undisturbed():
                if self.overwrite:
                    os.replace(temporary, self.path)
                else:
                    self._link(temporary)
                replaced.set()
                _sync(self.path.parent)

    def _link(self, temporary: Path) -> None:
        """Give the file its name; unlike a rename, this fails when another converter was first."""
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            self.look()
            raise  # it is gone again
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            self.look()
            os.replace(temporary, self.path)  # a file system without hard links, as on many memory sticks


@dataclass(frozen=True)
class NewFolder:
    """The same for a folder. The block writes a file `mark` into it, by which a previous one is known as ours.

    Raises:
        ConversionError: it is something else, exists and is not to be replaced, or is not ours.
    """

    path: Path
    overwrite: bool
    mark: str

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Raise when it cannot be written, as things are now."""
        shown = printable(str(self.path), 160)
        mode = _mode(self.path, "folder")
        if mode is None:
            return
        if not stat.S_ISDIR(mode):
            raise ConversionError(f"the output {shown} is not a folder")
        if not self.overwrite:
            raise ConversionError(f"the output {shown} exists; --overwrite replaces it")
        if not (self.path / self.mark).is_file():
            raise ConversionError(
                f"the output {shown} is a folder without {self.mark}, so none of ours; it is left as it is"
            )

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """A temporary folder that takes the name, whole and synced, when the block ends well.

        Raises:
            ConversionError: it cannot be written, or someone else was first.
        """
        with _room(self.path) as room:
            temporary, previous = room / "new", room / "previous"
            temporary.mkdir()
            yield temporary
            self.look()
            for place, _, names in os.walk(temporary):
                for path in (*(Path(place, name) for name in names), Path(place)):
                    _sync(path)
            with undisturbed():
                if self.path.exists():
                    os.rename(self.path, previous)
                try:
                    os.rename(temporary, self.path)
                except OSError:
                    if previous.exists():
                        os.rename(previous, self.path)
                    raise
                replaced.set()
                _sync(self.path.parent)


@contextlib.contextmanager
def _room(output: Path) -> Iterator[Path]:
    """A folder to write in beside the output; what the disk says against it is told of the output."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folders(output.parent))
            yield stack.enter_context(scratch(output.parent, f".{output.name}"))
        except OSError as error:
            raise ConversionError(f"{printable(str(output), 160)} cannot be written: {_reason(error)}") from None


def _mode(output: Path, what: str) -> int | None:
    """The mode of what stands there, or None; a link is refused."""
    shown = printable(str(output), 160)
    if any(place.name == ".." and not os.path.exists(place) for place in output.parents):
        raise ConversionError(f"the output {shown} leads through a folder that does not exist")
    try:
        mode = os.lstat(output).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise ConversionError(f"{shown} cannot be written: {reason}") from None
    if stat.S_ISLNK(mode):
        raise ConversionError(f"the output {shown} is a symbolic link; name the {what} it points to")
    return mode


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or type(error).__name__


@contextlib.contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """Make the folder and those above it; those that were made, and are empty in the end, are removed again."""
    with contextlib.ExitStack() as made:
        with undisturbed():
            for place in reversed((folder, *folder.parents)):
                if not place.is_dir():
                    with contextlib.suppress(FileExistsError):  # another run may have been first
                        place.mkdir()
                        made.callback(_remove_empty, place)
        yield


@undisturbed()
def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A new folder of our own in `parent`, removed at the end.

    Those that killed runs left under `name` are removed first: a living run keeps its folder locked.
    """
    ours = re.compile(re.escape(name) + "[.][0-9a-f]{8}[.]partial")
    for entry in os.listdir(parent):
        if ours.fullmatch(entry):
            _remove_abandoned(parent / entry)
    with contextlib.ExitStack() as stack:
        with undisturbed():
            folder = None
            while folder is None:
                folder = _locked(parent / f"{name}.{secrets.token_hex(4)}.partial", stack)
        yield folder


def _locked(folder: Path, stack: contextlib.ExitStack) -> Path | None:
    """Make the folder, locked, and have the stack remove it; None when another run took it for abandoned first."""
    folder.mkdir(mode=0o700)
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    stack.callback(_remove, folder, lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder if folder.exists() else None


@undisturbed()
def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def _sync(path: Path) -> None:
    """Have the disk hold what the file or folder is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
