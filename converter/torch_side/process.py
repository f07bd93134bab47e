"""The child process that has torch, as its caller sees it."""

import contextlib
import os
import pickle
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import cloudpickle

from converter.errors import ConversionError, printable
from converter.files.atomic import scratch
from converter.python import python
from converter.torch_side.answers import Answer, Failure
from converter.torch_side.questions import Question

_PROGRAM = "from converter.torch_side import worker; worker.main(sys.argv[2])"


class InChild(Exception):
    """What happened in the child, as its Python told it."""


def check_torch(without: str) -> None:
    """See that torch is installed; `without` names the choice that needs none.

    Raises:
        ConversionError: it is not.
    """
    if find_spec("torch") is None:
        raise ConversionError(
            f"the numerical proof needs torch, which is not installed: pip install 'weightbridge[torch]', or {without}"
        )


class TorchProcess:
    """The process that runs torch's side. Started early, it imports torch while the caller does other work."""

    def __init__(self) -> None:
        self._asked = self._answered = self._read = 0  # questions, those of them that are done, answers
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(scratch(Path(tempfile.gettempdir()), "weightbridge"))
        # Threads that spin while they wait for one another take the time of those that compute, where other programs
        # run on the machine: with one of two cores taken, a proof of 10 s took 70.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        self._log = self._stack.enter_context(open(self._folder / "log", "w+b"))  # noqa: SIM115
        self._process = subprocess.Popen(
            python(_PROGRAM, str(self._folder)),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the caller, which ends this process
        )

    def ask(self, question: Question) -> None:
        """Send a question; `answers` gives what comes of it, and is read to its end before the next one."""
        assert self._process.stdin is not None
        assert self._answered == self._asked, "the last question's answers are not read to their end"
        # A file, because a pipe holds little, and the process reads only when torch is there.
        (self._folder / f"question-{self._asked:03}.pickle").write_bytes(cloudpickle.dumps(question))
        self._asked += 1
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def answers(self) -> Iterator[Answer]:
        """The answers to the last question, as they come.

        Raises:
            ConversionError: there is none; the message says why.
        """
        while True:
            place = self._folder / f"{self._read:06}.pickle"
            while not place.exists():
                if self._process.poll() is not None and not place.exists():
                    raise ConversionError(f"the torch reference failed: {self._last_words()}")
                time.sleep(0.005)
            with open(place, "rb") as file:
                answer = pickle.load(file)
            place.unlink()
            self._read += 1
            if answer is None or isinstance(answer, Failure):
                self._answered = self._asked
            if isinstance(answer, Failure):
                raise ConversionError(answer.text) from InChild(answer.trace)
            if answer is None:
                return
            yield answer

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
