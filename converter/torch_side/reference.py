"""The torch network that a question names, built and filled with the checkpoint's values."""

import argparse
import copy
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import torch_refs
from converter.blame import where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import ConversionError, printable
from converter.kinds.axes import relaid
from converter.naming import listed
from converter.pairs.pair import Probe
from converter.pairs.registry import locate
from converter.torch_side.answers import Note, Send
from converter.torch_side.questions import Reference, Source
from converter.torch_side.seeded_network import seed


class ReferenceFailed(Exception):
    """The torch side cannot do what was asked, for a reason a user can act on."""


class Filled:
    """A network, filled, for inference.

    Attributes:
        wanted: what it was built of.
        state: canonical name -> value in the checkpoint.
    """

    def __init__(self, wanted: Reference, send: Send) -> None:
        self.wanted = wanted
        self.state = _state(wanted, send)
        self._config: dict[str, Any] | None = None
        self._single: Any = None
        self._exact: Any = None

    def single(self, probe: Probe | None = None) -> Any:
        """The network in float32, in the probe's configuration; that of another one before is given up for it."""
        config = {**self.wanted.config, **(probe.config if probe else {})}
        if self._single is None or config != self._config:
            self._single = self._exact = None
            with torch.no_grad():  # weight_norm of old keeps a computed tensor, which with a gradient cannot be copied
                self._single = _build(self.wanted, config).eval()
                if self.wanted.seeded:
                    seed(self._single)
                else:
                    _fill(self._single, self.state, self.wanted)
            self._config = config
        return self._single

    def exact(self, probe: Probe, copied: bool) -> Any:
        """The network to run in float64: a copy, or the one in float32, whose operations then convert what they use."""
        single = self.single(probe)
        if self._exact is None:
            with torch.no_grad():
                self._exact = copy.deepcopy(single).double() if copied else single
        return self._exact

    def with_values(self, values: dict[str, np.ndarray], shared: dict[str, str]) -> "Filled":
        """The same with other values for some tensors, and for those that share them."""
        other = copy.copy(self)
        other.state = {**self.state, **{name: torch.from_numpy(value) for name, value in values.items()}}
        other.state.update({n: other.state[kept] for n, kept in shared.items() if n in self.state and kept in values})
        other.give_up()
        return other

    def give_up(self) -> None:
        """Free the memory of the network; the next use builds it anew."""
        self._single = self._exact = None


def _build(wanted: Reference, config: dict[str, Any]) -> Any:

    build = wanted.build
    try:
        if build is None:
            return torch_refs.create(wanted.model, **config)
        return (locate(build) if isinstance(build, str) else build)(**config)
    except ConversionError as error:  # it tells itself what failed
        raise ReferenceFailed(str(error)) from error
    except Exception as error:  # the builder is the user's own program
        raise ReferenceFailed(
            f"the torch builder of {wanted.model} (build_torch) failed at {where_and_what(error)}"
        ) from error


def _state(wanted: Reference, send: Send) -> dict[str, Any]:
    """The checkpoint's values by canonical name, rounded as they were written."""
    factors: dict[tuple[str, str], list[str]] = {}  # (file, key) -> names of what is added to kernels
    by_file: dict[tuple[str, str], dict[str, Source]] = {}  # (file, key) -> canonical -> source
    for canonical, source in wanted.sources.items():
        by_file.setdefault((source.file, source.key), {})[canonical] = source
        for one in (factor for down, up, _ in source.added for factor in (down, up)):
            factors.setdefault((one.file, one.key), []).append(one.name)
    added = {place: _values(*place, names, send) for place, names in factors.items()}
    state = {}
    written = getattr(torch, wanted.dtype)
    for (file, key), sources in by_file.items():
        values = _values(file, key, [source.name for source in sources.values()], send)
        for canonical, source in sources.items():
            tensor = _merged(values[source.name].detach(), source, added)
            if source.axes is not None:
                numbers = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which numpy does not have
                tensor = torch.from_numpy(np.array(relaid(numbers.numpy(), source.axes)))
            state[canonical] = tensor.to(written).to(torch.float32) if tensor.is_floating_point() else tensor
    return state


def _merged(tensor: Any, source: Source, values: dict[tuple[str, str], Any]) -> Any:
    """The tensor with what is added to it, in float64 and rounded to its dtype."""
    if not source.added:
        return tensor
    total = tensor.double().clone()
    for down, up, part in source.added:
        a, b = (values[one.file, one.key][one.name].detach().double() for one in (down, up))
        product = part.scale * (b.flatten(1) @ a.flatten(1))
        target = total.chunk(part.blocks)[part.block]
        target += (product.T if part.transposed else product).reshape(target.shape)
    return total.to(tensor.dtype)


def _fill(model: Any, state: dict[str, Any], wanted: Reference) -> None:
    """Fill the reference with everything that it and the checkpoint have, also what the mapping drops."""
    known = model.state_dict()
    surplus = {name for name in wanted.ignored if name not in known}
    try:
        result = model.load_state_dict({n: v for n, v in state.items() if n not in surplus}, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ReferenceFailed(
            f"the torch reference has other shapes: {listed(map(printable, lines), 3, '; ')}"
        ) from None
    missing = [name for name in result.missing_keys if name not in wanted.ignored]
    if missing or result.unexpected_keys:
        names = missing + list(result.unexpected_keys)
        shown = listed(map(printable, names), 5)
        raise ReferenceFailed(f"the torch reference and the mapping do not name the same tensors: {shown}")


def _values(file: str, key: str, names: list[str], send: Send) -> Any:
    """The named tensors of the state dict at `key`, as torch or the safetensors library reads them."""
    with open(file, "rb") as stream:
        head = stream.read(9)
    if not head.startswith((b"PK", b"\x80")):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    try:
        torch.serialization.add_safe_globals([argparse.Namespace])
        tree = torch.load(file, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
        return _descend(tree, key)
    except pickle.UnpicklingError:
        # torch declines company that our reader leaves aside, such as numpy scalars of a training run.
        with Checkpoint(file) as checkpoint:
            why = (
                "torch has no loader for pickles of numpy arrays"
                if checkpoint.container == "numpy pickle"
                else "torch's own loader refuses this file for what stands beside the weights"
            )
            send(Note(f"{why}, so that the values on the torch side were read by the converter's reader too"))
            entries = checkpoint.states[key]
            return {name: torch.from_numpy(_numbers(checkpoint.read(entries[name]))) for name in names}


def _descend(node: Any, key: str) -> Any:
    """The dict at a dotted path of keys that may hold dots themselves."""
    if not key:
        return node
    for name, child in node.items():
        if isinstance(name, str) and isinstance(child, Mapping) and f"{key}.".startswith(f"{name}."):
            found = _descend(child, key[len(name) + 1 :])
            if found is not None:
                return found
    return None


def _numbers(values: np.ndarray) -> np.ndarray:
    """A copy that torch takes: halves of whatever sort as float32, whole numbers as they are."""
    if values.dtype.kind in "iub" or (values.dtype.kind == "f" and values.dtype.itemsize > 2):
        return np.array(values)
    return values.astype(np.float32)
