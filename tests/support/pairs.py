"""Pairs of a test's own, known for as long as the test needs them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import converter
import tf_models
import torch_refs
from converter.pairs import registry


@contextmanager
def registered(*pairs: converter.Pair) -> Iterator[converter.Pair]:
    """Let the pairs be known by their names, and give the first of them; afterwards all is known that was before.

    A pair that stays known is one more that `auto` tries, and may fit what another test converts.
    """
    with forgetting():
        for pair in pairs:
            converter.register(pair)
        yield pairs[0]


@contextmanager
def forgetting() -> Iterator[None]:
    """Pairs that become known in the block are not after it."""
    homes: list[dict[str, Any]] = [registry._registered, tf_models._registered, torch_refs._registered]
    before = [dict(home) for home in homes]
    try:
        yield
    finally:
        for home, known in zip(homes, before, strict=True):
            home.clear()
            home.update(known)
