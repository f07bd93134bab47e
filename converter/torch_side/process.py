"""The child process that runs the torch side of the proof, as the caller sees it."""

import contextlib
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle

from converter.errors import ConversionError, printable
from converter.files.atomic import scratch
from converter.torch_side.probing import Failure, Message, Request

_BOOT = (
    "import sys; sys.path = [path for path in sys.path if path]; import ast; sys.path = ast.literal_eval(sys.argv[1]); "
    "from converter.torch_side import probing as torch_side; torch_side.main(sys.argv[2])"
)


class InChild(Exception):
    """What happened in the child, as its Python told it."""


class TorchProcess:
    """The process that runs the torch reference. Started early, it imports torch while the caller does other work."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(scratch(Path(tempfile.gettempdir()), "weightbridge"))
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        self._log = self._stack.enter_context(open(self._folder / "log", "w+b"))  # noqa: SIM115
        self._process = subprocess.Popen(
            # Neither -m nor PYTHONPATH: both would let a `torch.py` in the current folder run.
            [
                sys.executable,
                "-c",
                _BOOT,
                repr([str(path) if path else os.getcwd() for path in sys.path]),
                str(self._folder),
            ],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the caller, which ends this process
        )

    def ask(self, request: Request) -> None:
        """Send the request; `answers` gives what comes of it."""
        assert self._process.stdin is not None
        # A file, because a pipe holds little, and the process reads only when torch is there.
        (self._folder / "request.pickle").write_bytes(cloudpickle.dumps(request))
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.close()

    def answers(self) -> Iterator[Message]:
        """What the torch side measures, as it comes: the calls and entries of a probe, then its Run, and so on.

        Raises:
            ConversionError: it failed; the message says how.
        """
        for number in itertools.count():
            place = self._folder / f"{number:06}.pickle"
            while not place.exists():
                if self._process.poll() is not None and not place.exists():
                    raise ConversionError(f"the torch reference failed: {self._last_words()}")
                time.sleep(0.005)
            with open(place, "rb") as file:
                message = pickle.load(file)
            place.unlink()
            if isinstance(message, Failure):
                raise ConversionError(message.text) from InChild(message.trace)
            if message is None:
                return
            yield message

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1], 200) if lines else f"exit code {self._process.returncode}"

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._stack.close()

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
