"""Checkpoints on the Hugging Face Hub, by address: `hf://ORGANISATION/NAME[@REVISION][/FILE]`.

What is needed of a repository (the weights, their shards, the configurations beside them) is brought into the cache
that `huggingface_hub` keeps, with its token and its offline mode.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from converter.checkpoints import adapter_config
from converter.checkpoints.other_files import FOLDER_NAMES, WEIGHTS, other_address, weights_among
from converter.checkpoints.safetensors_file import LONGEST_HEADER, json_object
from converter.errors import ConversionError, printable
from converter.naming import listed
from converter.progress import Progress, Silent

_INDEX = ".index.json"
_CONFIGS = ("config.json", adapter_config.NAME)
_FORM = "hf://ORGANISATION/NAME[@REVISION][/FILE]"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_ADDRESS = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<file>[^@]+))?",
    re.ASCII,
)


class Located(NamedTuple):
    """A checkpoint's path; of one on the hub, that in the cache, and its address with the commit and the file."""

    path: Path
    address: str


def is_address(checkpoint: str | os.PathLike) -> bool:
    """Whether it names one on the hub. A Path of such a name has lost a slash."""
    return os.fspath(checkpoint).startswith("hf:/")


def located(checkpoint: str | os.PathLike, progress: Progress | None = None) -> Located:
    """Where a checkpoint is; one on the hub is brought into the cache, if it is not there.

    Raises:
        ConversionError: the hub has none, it cannot be had, or the address is damaged; the message starts with it.
    """
    address = re.sub(r"^(\w{2,}):/(?!/)", r"\1://", os.fspath(checkpoint))
    if not is_address(checkpoint):
        if re.match(r"\w{2,}://", address) and not os.path.lexists(checkpoint):
            raise ConversionError(f"{printable(address, 160)}: {other_address(address)}")
        return Located(Path(checkpoint).expanduser(), "")
    match = _ADDRESS.fullmatch(address.rstrip("/"))
    try:
        if match is None or not {"", ".", ".."}.isdisjoint((match["file"] or "file").split("/")):
            raise ConversionError(f"it is no address of a checkpoint; {_FORM} is")
        if find_spec("huggingface_hub") is None:
            raise ConversionError("what reads the hub is not installed: pip install 'weightbridge[hf]'")
        repository = _Repository(match["repository"], unquote(match["revision"] or "main"), progress or Silent())
        with _silenced():
            return repository.fetched(match["file"] or "")
    except ConversionError as error:
        raise ConversionError(f"{printable(address, 160)}: {error}") from error.__cause__


class _Repository:
    """One revision of a repository."""

    def __init__(self, name: str, revision: str, progress: Progress):
        self._name, self._revision, self._progress = name, revision, progress

    def fetched(self, wanted: str) -> Located:
        """The file `wanted`, or the checkpoint in the folder of that name, and what belongs to it."""
        sizes = self._sizes()
        file = wanted if wanted in sizes else _chosen(wanted, sizes)
        folder, beside = PurePosixPath(file).parent, list(_CONFIGS)
        self._progress.start("fetching", sizes[file])
        path = self._download(file, self._revision)
        root = path.parents[len(folder.parts)]  # named by the commit
        if file.endswith(_INDEX):
            beside += sorted(_shards(path))
        more = [name for name in map(str, map(folder.joinpath, beside)) if name in sizes and name != file]
        self._progress.start("fetching", sum(sizes[name] for name in more))
        for name in more:
            self._download(name, root.name)
        return Located(path, f"hf://{self._name}@{root.name}/{file}")

    def _sizes(self) -> dict[str, int]:
        """Every file of the revision -> bytes: as the hub tells, or of those that the cache has, where it cannot."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            with self._explained():
                about = HfApi().model_info(self._name, revision=self._revision, files_metadata=True, timeout=10)
                return {one.rfilename: one.size or 0 for one in about.siblings or ()}
        except _NotReached as error:
            try:
                folder = snapshot_download(self._name, revision=self._revision, local_files_only=True)
            except LocalEntryNotFoundError as missing:
                folder = getattr(missing, "snapshot_path", None)  # where the cache has a part of it
                if folder is None:
                    raise ConversionError(f"{error}, and the cache does not have it") from None
            return {one.relative_to(folder).as_posix(): 0 for one in Path(folder).rglob("*") if one.is_file()}

    def _download(self, file: str, revision: str) -> Path:
        from huggingface_hub import hf_hub_download

        with self._explained():
            bar = _telling(self._progress)
            return Path(hf_hub_download(self._name, file, revision=revision, tqdm_class=bar))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in a line what the library raises."""
        from huggingface_hub import constants, errors

        try:
            yield
        # The errors of the library that it asks by are the base of its own.
        except (*errors.HfHubHTTPError.__bases__, errors.HFValidationError) as raised:
            within = isinstance(raised, errors.LocalEntryNotFoundError) and raised.__cause__
            raise self._told(within or raised, constants.ENDPOINT) from raised

    def _told(self, error: Any, endpoint: str) -> ConversionError:
        from huggingface_hub import errors

        if isinstance(error, errors.HFValidationError):
            return ConversionError(f"the hub has no repositories of such names; {_FORM} is an address")
        if isinstance(error, errors.GatedRepoError):
            return ConversionError(f"it is gated: ask for access at {endpoint}/{self._name}, then {_LOG_IN}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return ConversionError(f"the hub has no such repository, or a private one: see its name, or {_LOG_IN}")
        if isinstance(error, errors.RevisionNotFoundError):
            return ConversionError(f"the repository has no revision {printable(self._revision)}")
        if isinstance(error, errors.OfflineModeIsEnabled):
            return _NotReached("the hub is not asked, because HF_HUB_OFFLINE is set")
        if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
            return ConversionError(f"it cannot be put into the hub's cache ({printable(error.strerror)})")
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if status in (401, 403):
            return ConversionError(f"the hub does not let you read it ({status}): {_LOG_IN}")
        return _NotReached(f"the hub cannot be reached ({printable(str(error).split(chr(10))[0] or repr(error), 120)})")


class _NotReached(ConversionError):
    """The hub did not answer."""


def _chosen(wanted: str, files: dict[str, int]) -> str:
    """The checkpoint in a folder of a repository, the outermost one being ""."""
    within = [name for name in files if str(PurePosixPath(name).parent) == (wanted or ".")]
    if wanted and not within:
        known = weights_among(files)
        has = f"; it has {listed(map(printable, known), 4)}" if known else ", nor any weights"
        raise ConversionError(f"the repository has no file or folder {printable(wanted)}{has}")
    for name in FOLDER_NAMES:
        place = str(PurePosixPath(wanted, name))
        if place in within:
            return place
    weights = weights_among(within)
    if len({PurePosixPath(name).stem for name in weights}) == 1:  # one checkpoint, in one format or several
        return min(weights, key=lambda name: [name.lower().endswith(ending) for ending in WEIGHTS].index(True))
    known = weights or weights_among(files)
    if not known:
        raise ConversionError(f"it holds no checkpoint (looked for {', '.join(FOLDER_NAMES)})")
    raise ConversionError(
        f"no checkpoint under a usual name; add one of its files of weights: {listed(map(printable, known), 4)}"
    )


def _shards(index: Path) -> set[str]:
    """The files that an index names; what is wrong with it is told when it is opened."""
    with contextlib.suppress(ConversionError), open(index, "rb") as file:
        table = json_object(file.read(LONGEST_HEADER), "it is no JSON").get("weight_map")
        if isinstance(table, dict):
            return {name for name in table.values() if isinstance(name, str) and "/" not in name}
    return set()


def _telling(progress: Progress) -> type:
    """A bar of tqdm's that shows nothing, and tells how far a download is."""
    from tqdm.auto import tqdm

    class Telling(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

    return Telling


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """What the library would say beside its errors; those are told in our words."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module("huggingface_hub")  # which sets the level once
            logger.setLevel(logging.CRITICAL)
            yield
    finally:
        logger.setLevel(level)
