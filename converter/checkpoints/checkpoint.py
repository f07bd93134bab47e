"""Open a checkpoint, whatever its container: names, shapes and dtypes at once, values one tensor at a time.

The container is told by the first bytes of the file, never by its name. Nothing in the file is run.
"""

import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from converter.checkpoints.hub import located
from converter.checkpoints.other_files import FOLDER_NAMES, no_file, other_file, other_folder
from converter.checkpoints.safetensors_file import LONGEST_HEADER, json_object, read_bytes, read_safetensors
from converter.checkpoints.tensors import Entry, Scratch, Storage, dense_strides, read_into
from converter.checkpoints.torch_file import read_pickles, read_zip
from converter.checkpoints.tree import OPTIMIZER, Beside
from converter.errors import SAVE, ConversionError, printable
from converter.naming import fold, listed
from converter.progress import Progress

# Beyond any real checkpoint (the largest mixtures of experts have 90,000 tensors), within what is handled in seconds.
_MOST_TENSORS = 100_000
_MOST_STATES = 1_000
_LONGEST_NAME = 1_000
_CHUNK = 1 << 24
# Tensors may be views that repeat values (expanded ones), but not claim far more than there is.
_ROOM_FOR_VIEWS = 64 << 20
_NO_CHECKSUMS = "checksums: torch did not compute them when it wrote the file, so damage would not be noticed"


class Checkpoint:
    """An open checkpoint.

    Attributes:
        path: the path that was asked for; of an address on the hub, where its file is in the cache.
        address: on the hub, with the commit and the file; "" of what is not from there.
        container: "zip", "legacy", "numpy pickle", "safetensors" or "sharded".
        files: every file that belongs to it, the index first.
        states: dotted path of each state dict inside the file ("" when the file is one) -> name -> Entry.
        bare: tensors without names, of a file that has no others.
        objects: dotted path of a state dict -> name there -> what stands there that is no tensor.
        notes: what a user should know of it.
        unlisted: what stands in the file and is none of its entries, a line each.
        ignored: dotted path of a state dict -> names that were taken out of it (`converter.checkpoints.ignoring`).
        merged: what was put into other tensors (`converter.checkpoints.lora`), a sentence each.
    """

    def __init__(self, path: str | os.PathLike, named: bool = True, *, progress: Progress | None = None):
        """Open `path`: a file, a shard index, a folder that holds one as Hugging Face names it, or an address there.

        `progress` is told of what is fetched. A file of tensors without names is refused, if they are to be `named`.

        Raises:
            ConversionError: it cannot be read as a checkpoint; the message starts with the file's name.
        """
        self.path, self.address = located(path, progress)
        self.files: list[Path] = []
        self.notes: list[str] = []
        self.ignored: dict[str, list[str]] = {}
        self.merged: list[str] = []
        self.states: dict[str, dict[str, Entry]] = {}
        self._beside = Beside()
        self._descriptors: list[int] = []
        self._identities: list[tuple[int, ...]] = []
        self._stopped = False
        self._checked: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        try:
            self.container, entries = self._open(_resolve(self.path))
            try:
                self._sort(entries, named)
            except ConversionError as error:
                raise ConversionError(f"{self.shown()}: {error}") from None
        except BaseException:
            self.close()
            raise

    def _sort(self, entries: list[Entry], named: bool) -> None:
        """Put every entry in its state dict, and say what else there is."""
        beside = self._beside
        self.bare, self.objects, self.unlisted = beside.bare, beside.objects, beside.unlisted
        inside = [f"{count} in {printable(name, 60)}" for name, count in beside.aside.inside.most_common()]
        if named and beside.what == OPTIMIZER:
            raise ConversionError(f"it holds {OPTIMIZER}, not a state dict of weights; {SAVE}")
        if not entries and not (self.bare and not named):
            if self.bare:
                raise ConversionError(f"it holds {beside.what}, not a state dict of named ones; {SAVE}")
            told = f", but tensors inside objects that are not built ({listed(inside, 3)}); {SAVE}" if inside else ""
            raise ConversionError(f"it holds no named tensors{told}")
        if beside.aside.classes:
            self.notes.append(
                f"not read, and nothing of it run: what is of the classes {_classes(beside.aside.classes)}"
            )
        if beside.aside.dicts:
            self.notes.append(f"read as plain dicts: objects of {_classes(beside.aside.dicts)}")
        if inside:
            self.notes.append(f"not read: tensors inside objects that are not built: {listed(inside, 4)}")
        extra = [name for name in _names(entries, self.objects) if is_extra(name)]
        if extra:
            told = listed([printable(name, 60) for name in fold(extra)], 3)
            self.notes.append(f"passed over: {told}, where torch keeps what a module has besides tensors")
            entries = [entry for entry in entries if not is_extra(entry.name)]
        if len(entries) + len(self.bare) > _MOST_TENSORS:
            raise ConversionError(f"it names {len(entries)} tensors; at most {_MOST_TENSORS} are read")
        for entry in entries:
            state = self.states.setdefault(entry.key, {})
            if len(entry.name) > _LONGEST_NAME:
                raise ConversionError(f"a name has {len(entry.name)} characters: {printable(entry.name)}")
            if entry.name in state:
                raise ConversionError(f"tensor {printable(entry.name)} stands there twice")
            state[entry.name] = entry
        if len(self.states) > _MOST_STATES:
            raise ConversionError(f"its tensors stand in {len(self.states)} different dicts")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; entries cannot be read any more."""
        self.stop()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def shown(self, file: str | os.PathLike = "") -> str:
        """The checkpoint, or one of its files, as a message names it: its path, or its address on the hub."""
        if not self.address:
            return printable(str(file or self.path), 160)
        folder, _, name = self.address.rpartition("/")
        return printable(f"{folder}/{os.path.basename(file) or name}", 160)

    @property
    def room(self) -> int:
        """Bytes that tensors may claim in all: what the files hold, and room for views that repeat values."""
        return sum(os.fstat(descriptor).st_size for descriptor in self._descriptors) + _ROOM_FOR_VIEWS

    def stop(self) -> None:
        """Have a digest that is being computed in another thread given up."""
        self._stopped = True

    def entries(self) -> Iterator[Entry]:
        """Every tensor of every state dict in the file."""
        for state in self.states.values():
            yield from state.values()

    def read(self, entry: Entry, scratch: Scratch | None = None) -> np.ndarray:
        """The entry's values, C-contiguous, in its own dtype, after its record's checksum was found right.

        With `scratch`, the array is good until the thread's next read.

        Raises:
            ConversionError: the file cannot be read or its bytes are damaged.
        """
        if entry.made is not None:
            return entry.made.how([self.read(one) for one in entry.made.of])
        try:
            values = entry.read(scratch)
            self._check_crc(entry, values)
            return values
        except (OSError, ValueError, MemoryError) as error:
            raise ConversionError(f"{self.shown(entry.file)}: tensor {printable(entry.name)}: {error}") from None

    def _check_crc(self, entry: Entry, values: np.ndarray) -> None:
        storage = entry.storage
        if storage is None or storage.crc is None:
            return
        place = (storage.descriptor, storage.start)
        with self._lock:
            if place in self._checked:
                return
            if storage.crc == 0 and storage.nbytes:
                if _NO_CHECKSUMS not in self.notes:
                    self.notes.append(_NO_CHECKSUMS)
                return
        whole = values.nbytes == storage.nbytes and entry.strides == dense_strides(entry.shape)
        if whole and not storage.big_endian and not entry.negated:
            crc = zlib.crc32(values.reshape(-1).view(np.uint8).data)
        else:
            crc = _crc_of(storage)
        if crc != storage.crc:
            raise ValueError("its bytes do not match their checksum; the file is damaged, get it again")
        with self._lock:
            self._checked.add(place)

    def check_unchanged(self) -> None:
        """See that the files are still those that were opened.

        Raises:
            ConversionError: one was written to, or another stands in its place.
        """
        for path, descriptor, identity in zip(self.files, self._descriptors, self._identities, strict=True):
            try:
                same = identity == _identity(os.fstat(descriptor)) == _identity(os.stat(path))
            except OSError:
                same = False
            if not same:
                raise ConversionError(f"{self.shown(path)}: it changed while it was read; convert it again")

    def sha256(self) -> str:
        """SHA-256 of the file, as `sha256sum` prints it; of several files, that of their digests in order."""
        digests = [self._sha256(descriptor) for descriptor in self._descriptors]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _sha256(self, descriptor: int) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_CHUNK))
        done = 0
        while not self._stopped and (count := os.preadv(descriptor, [buffer], done)):
            digest.update(buffer[:count])
            done += count
        return digest.hexdigest()

    def _open(self, path: Path, is_shard: bool = False) -> tuple[str, list[Entry]]:
        """The file's container, told by its first bytes, and its entries."""
        descriptor = self._descriptor(path)
        head = os.pread(descriptor, 512, 0)
        try:
            # First, because its first bytes are a length, which may look like the others' magic.
            if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:
                return "safetensors", read_safetensors(descriptor, path.name)
            if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                return "zip", read_zip(descriptor, path.name, self._beside)
            if head.startswith(b"\x80"):
                return read_pickles(descriptor, path.name, self._beside)
            if head.lstrip().startswith(b"{") and not is_shard:
                return "sharded", self._open_shards(path, descriptor)
            raise ConversionError(other_file(head, path.name))
        except ConversionError as error:
            raise ConversionError(f"{self.shown(path)}: {error}") from None
        except OSError as error:
            raise ConversionError(f"{self.shown(path)}: it cannot be read ({error.strerror or error})") from None

    def _descriptor(self, path: Path) -> int:
        """Open for reading, without ever waiting on a pipe or a device."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise ConversionError(f"{self.shown(path)}: {'no such file' if self.address else no_file(path)}") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConversionError(f"{self.shown(path)}: cannot be opened ({reason})") from None
        self._descriptors.append(descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConversionError(f"{self.shown(path)}: it is not a regular file")
        self.files.append(path)
        self._identities.append(_identity(status))
        return descriptor

    def _open_shards(self, path: Path, descriptor: int) -> list[Entry]:
        """A `*.index.json`: every shard beside it, each tensor in the shard that the index names, and no others."""
        size = os.fstat(descriptor).st_size
        if size > LONGEST_HEADER:
            raise ConversionError("it starts like a shard index, but is far too long for one")
        index = json_object(read_bytes(descriptor, 0, size), "it starts like a shard index, but is not JSON")
        table = index.get("weight_map")
        if not isinstance(table, dict) or not table or not all(isinstance(v, str) for v in table.values()):
            raise ConversionError("it is JSON, but not a shard index: it has no weight_map of names to files")
        found: dict[str, Entry] = {}
        for shard in sorted(set(table.values())):
            if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
                raise ConversionError(f"shard {printable(shard)} is not a file name in the index's own folder")
            place = path.parent / shard
            if place.is_symlink() and not _stays(place):
                raise ConversionError(f"shard {printable(shard)} is a link out of the index's folder")
            _, entries = self._open(place, is_shard=True)
            if any(entry.key for entry in entries):
                raise ConversionError(f"shard {printable(shard)} is not a plain file of tensors")
            for entry in entries:
                name = entry.name
                if name in found:
                    raise ConversionError(f"tensor {printable(name)} stands there twice")
                if table.get(name) != shard:
                    where = f"the index places it in {printable(table[name])}" if name in table else "not in the index"
                    raise ConversionError(f"shard {printable(shard)} holds {printable(name)}: {where}")
                found[name] = entry
        missing = [name for name in table if name not in found]
        if missing:
            raise ConversionError(
                f"{len(missing)} tensors of the index are not in their shards, first {printable(missing[0])}"
            )
        return list(found.values())


def _resolve(path: Path) -> Path:
    """The checkpoint file that `path` means."""
    if not os.path.isdir(path):
        return path
    for name in FOLDER_NAMES:
        if os.path.lexists(path / name):
            return path / name
    raise ConversionError(f"{printable(str(path), 160)}: {other_folder(path)}")


def _stays(link: Path) -> bool:
    """Whether a link in a folder leads into the same folder, or where Hugging Face's cache keeps its contents.

    There, `snapshots/REVISION/NAME` is a link to `blobs/DIGEST`.
    """
    folder, target = Path(os.path.realpath(link.parent)), Path(os.path.realpath(link))
    return target.parent == folder or (
        folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
    )


def _classes(names: set[str]) -> str:
    return listed([printable(name, 60) for name in sorted(names)], 4)


def _names(entries: list[Entry], objects: dict[str, dict[str, str]]) -> Iterator[str]:
    yield from (entry.name for entry in entries)
    for table in objects.values():
        yield from table


def is_extra(name: str) -> bool:
    """Whether torch keeps under this name what a module has besides tensors (`torch.nn.Module.get_extra_state`)."""
    return name.rpartition(".")[2] == "_extra_state"


def _crc_of(storage: Storage) -> int:
    crc, done = 0, 0
    while done < storage.nbytes:
        chunk = np.empty(min(_CHUNK, storage.nbytes - done), np.uint8)
        read_into(storage.descriptor, storage.start + done, chunk)
        crc = zlib.crc32(chunk.data, crc)
        done += chunk.size
    return crc


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
