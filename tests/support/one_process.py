"""The torch side of the proof in the process of the tests, which has imported torch before TensorFlow.

A child of its own spends three seconds on importing torch before it computes for a tenth of one. What only a child can
show - that it ends when it should, takes no more memory than it may, is not led astray by the current folder - is shown
by the tests that are marked `child`, and by those that run a command.
"""

import contextlib
import pickle
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import cloudpickle
import torch

from converter.errors import ConversionError, printable
from converter.torch_side.questions import Question
from converter.torch_side.reference import ReferenceFailed
from converter.torch_side.worker import Worker


class OneProcess:
    """What `converter.torch_side.process.TorchProcess` is to its caller, without a process.

    Everything is computed before the first answer is given and waits in memory: a big model wants the child.
    """

    def __init__(self) -> None:
        self._worker = Worker()
        self._question: bytes = b""

    def ask(self, question: Question) -> None:
        """Keep the question, as the child would get it."""
        self._question = cloudpickle.dumps(question)

    def answers(self) -> Iterator[Any]:
        """The answers, each as it would come out of the child's file.

        Raises:
            ConversionError: there is none; the message says why.
        """
        answers: deque[bytes] = deque()
        failure = None
        try:
            with _torch_as_imported():
                # Pickled at once, because torch goes on with the arrays that are sent.
                # Without the child's watch over the memory, which would end this process.
                question = cloudpickle.loads(self._question)
                self._worker.answer(question, lambda answer: answers.append(pickle.dumps(answer, 5)))
        except ReferenceFailed as error:
            failure = str(error)
        except Exception as error:
            words = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
            failure = f"the torch reference failed: {printable(words, 200)}"
        while answers:
            yield pickle.loads(answers.popleft())
        if failure is not None:
            raise ConversionError(failure)

    def close(self) -> None:
        """Forget the network."""
        self._worker = Worker()

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _torch_as_imported() -> Iterator[None]:
    """torch's settings are those of a new process; afterwards they are as they were."""
    grad, fast, rng = torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state()
    try:
        torch.set_grad_enabled(True)
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_rng_state(torch.Generator().get_state())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the child's end in its log
            yield
    finally:
        torch.set_grad_enabled(grad)
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_rng_state(rng)
