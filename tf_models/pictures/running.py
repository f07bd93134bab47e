"""A task over a folder of pictures, from what a user names to finished results. Importing this needs no Apache Beam."""

import contextlib
import hashlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tf_models.pictures import listing, storage
from tf_models.pictures.reading import PictureError
from tf_models.pictures.results import Results, Summary
from tf_models.runtime.weights_format import printable

if TYPE_CHECKING:
    from tf_models.pictures.handler import Task

SHARD_SIZE = 64  # pictures whose results stand in one file


def over(
    task: "Task",
    weights: str,
    pictures: str,
    output: str,
    *,
    prompts: str | None = None,
    batch_size: int = 1,
    shard_size: int = SHARD_SIZE,
    retry: bool = False,
    options: Sequence[str] = (),
    progress: Any = None,
) -> Summary:
    """Do a task to very many pictures, or go on with it where an earlier run was stopped.

    Names are of this machine, or have a scheme that Apache Beam knows, as `gs://`.

    Args:
        task: what is done, as `tf_models.segmenting.task.Segmenting`.
        weights: a converted file.
        pictures: a folder, or a text file that names one a line.
        output: the folder of the results; see `tf_models.pictures.results`.
        prompts: a JSON lines file that names the pictures of the folder `pictures`, with what the task takes for each.
        batch_size: the most pictures of one size at once in the network.
        shard_size: pictures in a file of results.
        retry: try broken pictures of an earlier run again.
        options: of the pipeline, as on a command line; without `--runner` it runs in this process.
        progress: an object with `start(stage, total)`, `advance(count)` and `status(text)`.

    Raises:
        PictureError: a wrong name, an option that Beam does not know, results of something else or damaged ones, no
            Apache Beam, or a pipeline that stopped.
        ValueError: the weights are damaged, or none for the task, as its `check` says.
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise PictureError("a folder of pictures needs Apache Beam: pip install 'weightbridge[beam]'")
    is_list = not pictures.endswith("/") and (os.path.isfile(pictures) or pictures.endswith(".txt"))
    if is_list and prompts is not None:
        raise PictureError("prompts name their pictures themselves: give the folder that these are in, not a list")
    about = _about(task, weights, pictures)
    if options:
        from tf_models.pictures.pipeline import options_of

        options_of(options)
    if prompts is not None:
        entries = listing.with_prompts(prompts, task.keys)
    else:
        entries = listing.in_list(pictures) if is_list else listing.in_folder(pictures)
    results = Results(output, task.categories)
    with _written(output):
        results.begin(about)
    with _alone(output):
        with _written(output):
            results.plan(entries, shard_size, retry)

        def work() -> None:
            from tf_models.pictures.pipeline import run

            run(task, weights, None if is_list else pictures, results, batch_size, options)

        if results.missing():
            results.check_outcomes()
            _watched(work, results.counting(), progress, 30 if storage.remote(output) else 1)
        with _written(output):
            return results.end()


def _about(task: "Task", weights: str, pictures: str) -> dict[str, Any]:
    """What makes the results what they are."""
    digest = hashlib.sha256()
    try:
        with storage.at_hand(weights) as local:
            task.check(local)  # no folder needs to begin with a file that is none of ours
            with open(local, "rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
    except OSError as error:
        raise PictureError(f"{printable(weights)} cannot be read: {error.strerror or error}") from None
    return {
        "task": task.name,
        "options": task.options,
        "weights_sha256": digest.hexdigest(),
        "pictures": pictures if storage.remote(pictures) else os.path.abspath(pictures),
    }


@contextlib.contextmanager
def _written(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PictureError(f"{printable(output)} cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _alone(output: str) -> Iterator[None]:
    """Keep a second run on this machine away from the folder; elsewhere two may meet, and do the same work twice."""
    if storage.remote(output):
        yield
        return
    try:
        import fcntl
    except ImportError:
        raise PictureError("folders of pictures are segmented on Linux and macOS; on Windows use WSL") from None
    with open(storage.joined(output, "run.json"), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PictureError(f"another run is filling {printable(output)}; wait for it, or end it") from None
        yield


def _watched(work: Callable[[], None], count: Callable[[], tuple[int, int, int]], progress: Any, pause: float) -> None:
    """Do the work in a thread, so that a signal is heard, and tell meanwhile how far it is."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    total, before, _ = count()
    if progress is not None:
        progress.start("pictures", total)
        progress.advance(before)
    began, told = time.monotonic(), before
    thread.start()
    running = True
    while running:
        thread.join(pause)
        running = thread.is_alive()
        if progress is not None:
            _, finished, broken = count()
            speed = (finished - before) / (time.monotonic() - began)
            progress.status(f"{finished:,} of {total:,} pictures, {speed:.2g} a second, {broken:,} broken")
            progress.advance(finished - told)
            told = finished
    if raised:
        raise PictureError(_why(raised[0])) from raised[0]


def _why(error: BaseException) -> str:
    """What stopped a pipeline: Beam frames the worker's exception in its traceback as text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line.startswith("[while running")), type(error).__name__)
    return f"the run stopped, and can be started again: {printable(last, 300)}"
