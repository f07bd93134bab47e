"""Files by name: of this machine, or, where a name has a scheme (`gs://`), of a file system that Apache Beam knows."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

_HALF = ".partial"  # ending of a file that is being written


def remote(path: str) -> bool:
    """Whether the name has a scheme."""
    return "://" in path


def joined(folder: str, *names: str) -> str:
    """A name inside a folder."""
    return "/".join([folder.rstrip("/"), *names]) if remote(folder) else os.path.join(folder, *names)


def read(path: str) -> bytes:
    """The whole file.

    Raises:
        OSError: it cannot be read; FileNotFoundError where there is none.
    """
    if not remote(path):
        with open(path, "rb") as file:
            return file.read()
    if not exists(path):
        raise FileNotFoundError(path)
    with _systems().open(path, compression_type=_uncompressed()) as file:
        return file.read()


@contextlib.contextmanager
def at_hand(path: str) -> Iterator[str]:
    """The name of the file on this machine: its own, or that of a copy which is gone after the block.

    Raises:
        OSError: as `read`.
    """
    if not remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, path.rsplit("/", 1)[-1])
        write(local, read(path))
        yield local


def write(path: str, data: bytes) -> None:
    """Write a file that appears whole or not at all, in the place of an earlier one; folders are made.

    Raises:
        OSError: it cannot be written.
    """
    if remote(path):  # an object appears when it is closed
        with _systems().create(path, compression_type=_uncompressed()) as file:
            file.write(data)
        return
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}{_HALF}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def exists(path: str) -> bool:
    return _systems().exists(path) if remote(path) else os.path.exists(path)


def names_in(folder: str) -> list[str]:
    """The names of the files in a folder, sorted, but for half-written ones; none where there is no such folder."""
    if remote(folder):
        found = [name.rsplit("/", 1)[-1] for name in walk(folder) if "/" not in name]
    else:
        try:
            found = os.listdir(folder)
        except FileNotFoundError:
            return []
    return sorted(name for name in found if not name.startswith("."))


def walk(folder: str) -> Iterator[str]:
    """The names of all files below a folder, relative to it with slashes, in no certain order.

    Folders that are links are walked too, but none inside itself.
    """
    if remote(folder):
        start = folder.rstrip("/") + "/"
        for match in _systems().match([start + "**"]):
            for each in match.metadata_list:
                yield each.path[len(start) :]
        return
    yield from _below(folder, "", frozenset())


def _below(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _below(entry.path, f"{prefix}{entry.name}/", above | {(place.st_dev, place.st_ino)})
            else:
                yield prefix + entry.name


def remove_folder(folder: str) -> None:
    """Remove a folder with the files in it, if it is there."""
    import shutil

    if not remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif names_in(folder):
        _systems().delete([folder])


def remove_half_written(folder: str) -> None:
    """Remove what `write` had begun in a folder when it was killed; nobody may be writing there."""
    if remote(folder):  # there nothing is seen before it is whole
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(_HALF):
                os.remove(entry.path)


def _systems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _uncompressed() -> str:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED
