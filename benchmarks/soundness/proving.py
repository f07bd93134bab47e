"""One proof in this process: both frameworks are loaded once, so that it takes about a second."""

import functools
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from converter.errors import ConversionError, ProofError
from tests.support.one_process import OneProcess
from tests.support.pairs import registered

FIRST_SEED = 20_240_229  # what the proof's own probes are seeded with


@contextmanager
def in_process() -> Iterator[None]:
    """In the block, proofs run their torch side in this process. torch must have been imported before TensorFlow."""
    import torch
    import torchvision  # noqa: F401

    import converter.api

    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with mock.patch.object(converter.api, "TorchProcess", OneProcess):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass(frozen=True)
class Outcome:
    """What came of one proof.

    Attributes:
        passed: it was accepted.
        text: what was refused, or "".
        worst: the largest error over what is allowed, and `where` that was.
    """

    pair: str
    seed: int
    size: int
    passed: bool
    text: str
    worst: float
    where: str
    seconds: float


def prove(
    pair: Any, state: dict[str, Any], options: dict[str, Any] | None = None, verify: str = "full", seed: int = 0
) -> tuple[bool, str, float, str, float]:
    """Convert a checkpoint of the state dict with the pair: (passed, text, worst, where, seconds)."""
    import torch

    import converter
    from converter.proof import asking

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "checkpoint.pth")
        torch.save(state, checkpoint)
        report: Any = None
        text = ""
        try:
            with registered(pair), mock.patch.object(asking, "SEED", FIRST_SEED + seed):
                report = converter.convert(
                    pair.name, checkpoint, Path(folder, "out.weights.h5"), verify, options=options or {}
                )
        except ProofError as error:
            report, text = error.report, error.report.failure() or str(error)  # type: ignore[attr-defined]
        except ConversionError as error:
            text = f"{type(error).__name__}: {error}"
    worst, where = _worst(report)
    return not text, text, worst, where, time.monotonic() - began


def _worst(report: Any) -> tuple[float, str]:
    """The largest error over what is allowed, and the name of what had it."""
    if report is None:
        return float("nan"), ""
    found = report.numerical
    every = getattr(found, "comparisons", None) or (*found.layers, *found.outputs)
    ratios = [(one.error / one.allowed if one.allowed else float(one.error > 0), one.name) for one in every]
    return max(ratios, default=(float("nan"), ""))


def jitted(build: Callable[..., Any]) -> Callable[..., Any]:
    """The builder of a model that is compiled by XLA when it is called as a whole."""

    def made(**config: Any) -> Any:
        import tensorflow as tf

        model = build(**config)
        right = model.call
        compiled = tf.function(right, jit_compile=True, autograph=False)

        @functools.wraps(right)
        def call(*args: Any, **kwargs: Any) -> Any:
            # A layer that the proof watches must see values, and not a graph.
            if any("call" in vars(layer) for layer in model._flatten_layers(include_self=False)):
                return right(*args, **kwargs)
            return compiled(*args, **kwargs)

        model.call = call
        return model

    return made


# --- places -----------------------------------------------------------------------------------------------------------


# What a tensor or a variable of a layer is called.
_LEAVES = r"(?:\w+_)?(?:weight|bias|kernel|gamma|beta|mean|variance|var|embeddings)"


def named(text: str, known: list[str]) -> list[str]:
    """Which of the known paths and outputs the sentence about the first difference names, in its order.

    A tensor's name is its module's.
    """
    text = re.split(r"; outputs that differ|: look |; suspect ", text)[0]
    found = []
    for path in known:
        match = re.search(rf"(?<![\w.]){re.escape(path)}(?:\.(?:{_LEAVES}))?(?![\w]|\.\w)", text)
        if match:
            found.append((match.start(), path))
    return [path for _, path in sorted(found)]


def rightly_named(text: str, places: tuple[str, ...], known: list[str]) -> bool:
    """The sentence names one of the places. The input of a stage is that of its first layer."""
    found = named(text, known)
    agreeing = re.match(r"(\S+) agrees", text)
    blamed = [path for path in found if agreeing is None or path != agreeing[1]]
    for place in places:
        parts = place.split(" .. ")
        if len(parts) == 1 and place in blamed:
            return True
        if len(parts) == 2 and all(any(_within(part, path) for path in found) for part in parts):
            return True
    return False


def _within(path: str, stage: str) -> bool:
    return f"{path}.".startswith(f"{stage}.")
