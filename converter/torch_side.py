"""The torch half of the numerical proof, in a process of its own.

A process that has imported TensorFlow aborts when it then imports what torchvision needs, and callers import in any
order. So torch never enters the caller's process: `main`, in a child, imports torch, waits for a byte on standard
input, and answers the request that then lies in the folder. It reads the checkpoint with torch's own
loader, so that the proof also covers how the converter itself read the file.
"""

import argparse
import copy
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from einops import rearrange

from converter.checkpoint import Checkpoint
from converter.registry import Probe

# Bytes of results that may wait for the caller to read them.
AHEAD = 256 << 20
# Bytes that a proof may take beyond the weights: so many, and so many for each byte of the files.
_ROOM, _ROOM_PER_BYTE = 256 << 20, 200


@dataclass(frozen=True)
class Source:
    """Where a tensor is: file, dotted path of the state dict, name there, and how to lay it out as torch does."""

    file: str
    key: str
    name: str
    axes: str | None


@dataclass
class Request:
    """What the torch side needs to know.

    Attributes:
        build: the reference's builder, or its registered name.
        sources: canonical name -> where the tensor is.
        dtype: what the values were written as; the reference computes with values rounded to it.
        ignored: canonical names that the mapping leaves out.
        modules: torch path -> factors for the recorded inputs, of each layer to record.
        stages: those of them that are stages.
        exact: compute the truth in float64; else torch's float32 results stand for it.
    """

    model: str
    build: str | Callable[..., Any]
    config: dict[str, Any]
    sources: dict[str, Source]
    dtype: str
    ignored: set[str]
    modules: dict[str, tuple[float, ...]]
    probes: list[Probe]
    stages: frozenset[str] = frozenset()
    exact: bool = True

    def recorded(self, probe: Probe) -> dict[str, tuple[float, ...]]:
        """The layers of the probe's part to record, with their factors."""
        return {
            path: factors
            for path, factors in self.modules.items()
            if (not probe.part or f"{path}.".startswith(f"{probe.part}."))
            and (path in self.stages or not probe.stages_only)
        }


@dataclass
class Call:
    """One call of a layer: its inputs, torch's float32 result, and the truth, in float64 for the same inputs."""

    path: str
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    truth: Any


@dataclass
class Run:
    """One probe at its end: the model's outputs in float32 and float64. None where the probe is for a part alone."""

    outputs: tuple | None
    truth: tuple | None


class ReferenceFailed(Exception):
    """The torch side cannot do what was asked, for a reason a user can act on."""


def main(folder: str) -> None:
    """Answer one request: each recorded Call in the order they are made, a Run at the end of each probe, then None.

    Each is a file of its own, `000000.pickle` and so on, whole once it has that name; the caller removes what it has
    read. A text instead of any of them is what went wrong.
    """
    import torch

    if not sys.stdin.buffer.read(1):
        return  # the caller has changed its mind
    request: Request = cloudpickle.loads(Path(folder, "request.pickle").read_bytes())
    send = _Sender(Path(folder))
    try:
        _answer(request, send, torch)
        send(None)
    except ReferenceFailed as error:
        send(str(error))


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


def _answer(request: Request, send: Callable[[Any], None], torch: Any) -> None:
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path computes without calling the layers
    model = _build(request).eval()
    _load(model, request, torch)
    with torch.no_grad():
        exact = copy.deepcopy(model).double() if request.exact else model
        files = {source.file for source in request.sources.values()}
        _end_beyond(_ROOM + _ROOM_PER_BYTE * sum(map(os.path.getsize, files)))
        for probe in request.probes:
            send(_run(model, exact, probe, request.recorded(probe), send, torch))


def _end_beyond(room: int) -> None:
    """End the process when it has taken `room` bytes more than now, where the system tells.

    A few bytes of weights can ask for windows or widths that no memory holds.
    """

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def watch() -> None:
        while resident() <= most:
            time.sleep(0.01)
        said = f"its layers want more than {room >> 20} MB, out of proportion to its file"
        print(f"{said} (--verify lossless does without)", file=sys.stderr, flush=True)
        os._exit(1)

    try:
        most = resident() + room
    except OSError:
        return
    threading.Thread(target=watch, daemon=True).start()


def _build(request: Request) -> Any:
    import torch_refs
    from converter.registry import locate

    build = request.build
    if build is None:
        return torch_refs.create(request.model, **request.config)
    return (locate(build) if isinstance(build, str) else build)(**request.config)


def _load(model: Any, request: Request, torch: Any) -> None:
    """Fill the reference with the checkpoint's values, rounded as they were written."""
    wanted: dict[tuple[str, str], dict[str, Source]] = {}  # (file, key) -> canonical -> source
    for canonical, source in request.sources.items():
        wanted.setdefault((source.file, source.key), {})[canonical] = source
    state = {}
    written = getattr(torch, request.dtype)
    for (file, key), sources in wanted.items():
        values = _values(file, key, [source.name for source in sources.values()], torch)
        for canonical, source in sources.items():
            tensor = values[source.name].detach()
            if source.axes is not None:
                tensor = rearrange(tensor, source.axes).contiguous()
            state[canonical] = tensor.to(written).to(torch.float32) if tensor.is_floating_point() else tensor
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ReferenceFailed(f"the torch reference has other shapes: {str(error).splitlines()[-1].strip()}") from None
    missing = [name for name in result.missing_keys if name not in request.ignored]
    if missing or result.unexpected_keys:
        shown = ", ".join((missing + list(result.unexpected_keys))[:5])
        raise ReferenceFailed(f"the torch reference and the mapping do not name the same tensors: {shown}")


def _values(file: str, key: str, names: list[str], torch: Any) -> Any:
    """The named tensors of the state dict at `key`, as torch or the safetensors library reads them."""
    with open(file, "rb") as stream:
        head = stream.read(9)
    if not head.startswith((b"PK", b"\x80")):
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(file, map_location="cpu", weights_only=True, mmap=head.startswith(b"PK"))
        return _descend(tree, key)
    except pickle.UnpicklingError:
        # torch declines company that our reader leaves aside, such as numpy scalars of a training run.
        with Checkpoint(file) as checkpoint:
            entries = checkpoint.states[key]
            return {name: torch.from_numpy(_as_float(checkpoint.read(entries[name]))) for name in names}


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


def _as_float(values: np.ndarray) -> np.ndarray:
    return values if values.dtype.kind == "f" and values.dtype.itemsize > 2 else values.astype(np.float32)


def _run(
    model: Any,
    exact: Any,
    probe: Probe,
    modules: dict[str, tuple[float, ...]],
    send: Callable[[Call], None],
    torch: Any,
) -> Run:
    """One probe: sends every recorded call."""
    inputs = {name: _tensors(value, torch) for name, value in probe.inputs.items()}
    seen: set[str] = set()

    def record(path: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple, kwargs: dict, result: Any) -> None:
            if path not in seen:
                seen.add(path)  # first, for the layer is called again
                for factor in modules[path]:
                    send(_call(path, layer, exact.get_submodule(path), args, kwargs, result, factor))

        return hook

    hooks = []
    for path in modules:
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ReferenceFailed(f"the torch reference has no module {path}, which the mapping names") from None
        hooks.append(module.register_forward_hook(record(path), with_kwargs=True))
    outputs = _tuple(model.get_submodule(probe.part)(**inputs, **probe.options))
    for hook in hooks:
        hook.remove()
    if probe.part:
        return Run(None, None)
    truth = outputs if exact is model else _tuple(exact(**_doubled(inputs), **probe.options))
    return Run(_numpy(outputs), _numpy(truth))


def _call(path: str, layer: Any, exact: Any, args: tuple, kwargs: dict, result: Any, factor: float) -> Call:
    """What `layer` made of its inputs times `factor`, and what it should have made; `result` is that of factor 1."""
    if factor != 1:
        args, kwargs = _scaled((args, kwargs), factor)
        result = layer(*_copied(args), **_copied(kwargs))
    truth = result
    if exact is not layer:
        doubled_args, doubled_kwargs = _doubled((args, kwargs))
        truth = exact(*doubled_args, **doubled_kwargs)
    given = _numpy(_batch_first(layer, args, kwargs))
    return Call(path, *given, *(_numpy(_batch_first_result(layer, each)) for each in (result, truth)))


def _tensors(value: Any, torch: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_tensors(part, torch) for part in value)
    return None if value is None else torch.from_numpy(np.ascontiguousarray(value))


def _batch_first(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Keras's attention has the batch first; torch's may have it second."""
    if getattr(layer, "batch_first", True) or (args + tuple(kwargs.values()))[0].ndim < 3:
        return args, kwargs
    return tuple(a.transpose(0, 1) for a in args[:3]) + tuple(args[3:]), {
        name: value.transpose(0, 1) if name in ("query", "key", "value") else value for name, value in kwargs.items()
    }


def _batch_first_result(layer: Any, result: Any) -> Any:
    if getattr(layer, "batch_first", True) or result[0].ndim < 3:
        return result
    return (result[0].transpose(0, 1), *result[1:])


def _scaled(value: Any, factor: float) -> Any:
    return _map(value, lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)


def _doubled(value: Any) -> Any:
    return _map(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _copied(value: Any) -> Any:
    return _map(value, lambda t: t.clone())


def _numpy(value: Any) -> Any:
    return _map(value, lambda t: t.detach().contiguous().numpy())


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        return (
            type(value)(_map(part, function) for part in value)
            if not hasattr(value, "_fields")
            else tuple(_map(part, function) for part in value)
        )
    if isinstance(value, dict):
        return {name: _map(part, function) for name, part in value.items()}
    return function(value) if hasattr(value, "is_floating_point") else value


def _tuple(value: Any) -> tuple:
    if isinstance(value, dict):
        return tuple(value.values())
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
