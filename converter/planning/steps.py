"""A step of a plan: tensors of the checkpoint, or a constant, into variables of the model, and back."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.blame import blaming
from converter.checkpoints.tensors import Entry
from converter.errors import printable
from converter.kinds import Kind, Leaf


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: its name there, the torch reference's name for it, and where its values are."""

    name: str
    canonical: str
    entry: Entry


@dataclass(frozen=True)
class Target:
    """A Keras variable, by its attribute path."""

    path: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Tensors of the checkpoint and the variables that they fill together: usually one of each, or none and one.

    Attributes:
        kind: the kind of their module, as the checkpoint's dialect lays it out.
        leaf: how the axes go over.
        pair: name of the pair.
    """

    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    kind: Kind
    leaf: Leaf
    pair: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors' values in the checkpoint."""
        return sum(source.entry.nbytes for source in self.sources)

    @property
    def name(self) -> str:
        """What a person is told of it: its first tensor's name, or that of a variable which no tensor fills."""
        return self.sources[0].name if self.sources else self.targets[0].path

    def lay_out(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The targets' values (views where numpy can make them).

        Raises:
            PairError: the leaf's fold, or its constant, failed.
        """
        with self._folding():
            return self.leaf.to_keras(values, [target.shape for target in self.targets])

    def undo(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tensors out of the targets' values.

        Raises:
            ValueError: a fold that cannot be undone.
            PairError: it failed.
        """
        with self._folding(ValueError):
            return self.leaf.to_torch(values)

    def _folding(self, *passing: type[Exception]) -> contextlib.AbstractContextManager[None]:
        """What goes wrong in a fold or a constant, which may be a user's own, is told as its fault."""
        if self.leaf.constant is not None:
            return blaming(self.pair, f"the constant of the kind {self.kind} for {printable(self.name, 60)}")
        if self.leaf.fold is None:
            return contextlib.nullcontext()
        names = " and ".join(printable(source.name, 60) for source in self.sources)
        return blaming(self.pair, f"the fold {self.leaf.fold} of the kind {self.kind} for {names}", passing)
