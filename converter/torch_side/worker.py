"""Torch's end of the process: it imports torch, then answers questions until its caller has no more.

A process that has imported TensorFlow aborts when it then imports what torchvision needs, and callers import in any
order. So torch never enters the caller's process. The checkpoint is read with torch's own loader here, so that a proof
also covers how the converter itself read the file.
"""

import math
import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from converter.torch_side import flowing, looking, probing
from converter.torch_side.answers import Failure, Send
from converter.torch_side.questions import Dataflow, Fetch, Inventory, Proof, Question, Record, Run, Trace
from converter.torch_side.reference import Filled, ReferenceFailed

# Bytes of answers that may wait for the caller to read them.
AHEAD = 256 << 20
# Bytes that a question may take: so many, and so many for each byte of the network's files.
_ROOM, _ROOM_PER_BYTE = 768 << 20, 200

_ANSWERING: dict[type, Any] = {
    Inventory: looking.inventory,
    Trace: looking.trace,
    Record: looking.record,
    Run: looking.run,
    Dataflow: flowing.dataflow,
    Fetch: flowing.fetch,
    Proof: probing.prove,
}


class Worker:
    """Answers questions; the network of the last one stays filled for the next."""

    def __init__(self) -> None:
        self._filled: Filled | None = None
        self._wanted = b""

    def answer(self, question: Question, send: Send) -> None:
        """Send every answer; each is to be taken at once, because torch goes on with its arrays.

        Raises:
            ReferenceFailed: it cannot be done, for a reason a user can act on.
        """
        torch.manual_seed(0)
        torch.backends.mha.set_fastpath_enabled(False)  # the fast path computes without calling the layers
        wanted = cloudpickle.dumps(question.reference)
        if self._filled is None or wanted != self._wanted:
            self._filled = None  # before the next one takes memory
            self._filled, self._wanted = Filled(question.reference, send), wanted
        _ANSWERING[type(question)](question, self._filled, send)


def main(folder: str) -> None:
    """Answer the questions `question-000.pickle` and so on, of which each line on standard input announces one.

    Every answer is a file of its own, `000000.pickle` and so on, whole once it has that name, and after the last of a
    question comes None; the caller removes what it has read. A Failure instead of any of them is what went wrong.
    """
    worker, send, watch = Worker(), _Sender(Path(folder)), _Watch()
    for number, _ in enumerate(sys.stdin.buffer):
        place = Path(folder, f"question-{number:03}.pickle")
        question: Question = cloudpickle.loads(place.read_bytes())
        place.unlink()
        files = {source.file for source in question.reference.sources.values()}
        # Of a network without a file nothing is known but that its user wants it.
        room = math.inf if question.reference.seeded else _ROOM + _ROOM_PER_BYTE * sum(map(os.path.getsize, files))
        watch.allow(room)
        try:
            worker.answer(question, send)
            send(None)
        except ReferenceFailed as error:
            send(Failure(str(error), traceback.format_exc()))


class _Sender:
    """Hands messages over, a few ahead of their reader."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._waiting: dict[Path, int] = {}  # what the caller has not removed yet -> bytes
        self._parent = os.getppid()

    def __call__(self, message: Any) -> None:
        while sum(self._waiting.values()) > AHEAD:
            if os.getppid() != self._parent:
                raise SystemExit(1)  # nobody reads any more
            time.sleep(0.01)
            self._waiting = {place: nbytes for place, nbytes in self._waiting.items() if place.exists()}
        place = self._folder / f"{self._count:06}.pickle"
        partial = place.with_suffix(".partial")
        with open(partial, "wb") as file:
            pickle.dump(message, file, protocol=5)
            self._waiting[place] = file.tell()
        os.replace(partial, place)
        self._count += 1


class _Watch:
    """Ends the process when it takes more than it may, where the system tells.

    A few bytes of weights can ask for windows or widths that no memory holds.
    """

    def __init__(self) -> None:
        self._most, self._room, self._watching = math.inf, 0.0, False

    def allow(self, room: float) -> None:
        """From here on the process may take so many bytes more than it has now."""
        try:
            self._most, self._room = _resident() + room, room
        except OSError:
            return
        if not self._watching and room < math.inf:
            self._watching = True
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while _resident() <= self._most:
            time.sleep(0.01)
        said = f"its layers want more than {int(self._room) >> 20} MB, out of proportion to its file"
        print(f"{said} (--verify lossless does without)", file=sys.stderr, flush=True)
        os._exit(1)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
