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
from collections.abc import Iterable, Iterator
from pathlib import Path

from converter.errors import ConversionError, printable
from tf_models.runtime.weights_format import SUFFIX

_WEIGHTS = (SUFFIX,)
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


@contextlib.contextmanager
def replacing(
    output: Path, overwrite: bool, suffixes: tuple[str, ...] = _WEIGHTS, sources: Iterable[Path] = ()
) -> Iterator[Path]:
    """A temporary file that takes `output`'s place, whole and synced, when the block ends well.

    When it does not, nothing is left and a previous output is as it was. The file stands in a folder of its own beside
    the output, which a living run keeps locked (HDF5 locks the file itself); what a killed run left is removed first.

    Raises:
        ConversionError: the output exists and is not to be replaced, is no file or one of `sources`, or cannot be
            written.
    """
    refuse(output, overwrite, suffixes, sources)
    shown = printable(str(output), 160)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folders(output.parent))
            temporary = stack.enter_context(scratch(output.parent, f".{output.name}")) / output.name
            yield temporary
            refuse(output, overwrite, suffixes, sources)
            _sync(temporary)
            with undisturbed():
                if overwrite:
                    os.replace(temporary, output)
                else:
                    _link(temporary, output, suffixes)
                replaced.set()
                _sync(output.parent)
        except OSError as error:
            raise ConversionError(f"{shown} cannot be written: {_reason(error)}") from None


@contextlib.contextmanager
def replacing_folder(output: Path, overwrite: bool, mark: str) -> Iterator[Path]:
    """The same for a folder. The block writes a file `mark` into it, by which a previous one is known as ours.

    Raises:
        ConversionError: the output exists and is not to be replaced, is not ours, or cannot be written.
    """
    refuse_folder(output, overwrite, mark)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_folders(output.parent))
            room = stack.enter_context(scratch(output.parent, f".{output.name}"))
            temporary, previous = room / "new", room / "previous"
            temporary.mkdir()
            yield temporary
            refuse_folder(output, overwrite, mark)
            for place, _, names in os.walk(temporary):
                for path in (*(Path(place, name) for name in names), Path(place)):
                    _sync(path)
            with undisturbed():
                if output.exists():
                    os.rename(output, previous)
                try:
                    os.rename(temporary, output)
                except OSError:
                    if previous.exists():
                        os.rename(previous, output)
                    raise
                replaced.set()
                _sync(output.parent)
        except OSError as error:
            raise ConversionError(f"{printable(str(output), 160)} cannot be written: {_reason(error)}") from None


def _link(temporary: Path, output: Path, suffixes: tuple[str, ...]) -> None:
    """Give the file its name; unlike a rename, this fails when another converter was first."""
    try:
        os.link(temporary, output)
    except FileExistsError:
        refuse(output, False, suffixes)
        raise  # it is gone again
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        refuse(output, False, suffixes)
        os.replace(temporary, output)  # a file system without hard links, as on many memory sticks


def refuse(output: Path, overwrite: bool, suffixes: tuple[str, ...] = _WEIGHTS, sources: Iterable[Path] = ()) -> None:
    """Raise when `output` cannot be the name of a new file.

    Raises:
        ConversionError: it has another ending, is a folder, a link or one of `sources`, or exists and is not to be
            replaced.
    """
    shown = printable(str(output), 160)
    if not output.name.lower().endswith(suffixes):
        raise ConversionError(f"the output {shown} must end in {' or '.join(suffixes)}")
    mode = _mode(output, "file")
    if mode is None:
        return
    if stat.S_ISDIR(mode):
        raise ConversionError(f"the output {shown} is a folder")
    if not stat.S_ISREG(mode):
        raise ConversionError(f"the output {shown} is not a regular file")
    for source in sources:
        with contextlib.suppress(OSError):  # one of them is gone
            if os.path.samefile(output, source):
                raise ConversionError(f"the output {shown} is the file that is read; name another")
    if not overwrite:
        raise ConversionError(f"the output {shown} exists; --overwrite replaces it")


def refuse_folder(output: Path, overwrite: bool, mark: str) -> None:
    """Raise when `output` cannot be the name of a new folder, or of one that holds `mark` where it is to be replaced.

    Raises:
        ConversionError: it is something else, or exists and is not to be replaced.
    """
    shown = printable(str(output), 160)
    mode = _mode(output, "folder")
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        raise ConversionError(f"the output {shown} is not a folder")
    if not overwrite:
        raise ConversionError(f"the output {shown} exists; --overwrite replaces it")
    if not (output / mark).is_file():
        raise ConversionError(f"the output {shown} is a folder without {mark}, so none of ours; it is left as it is")


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
