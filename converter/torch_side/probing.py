"""The torch half of the numerical proof, in a process of its own.

A process that has imported TensorFlow aborts when it then imports what torchvision needs, and callers import in any
order. So torch never enters the caller's process: `main`, in a child, imports torch, waits for a byte on standard
input, and answers the request that then lies in the folder. It reads the checkpoint with torch's own
loader, so that the proof also covers how the converter itself read the file.
"""

import argparse
import contextlib
import copy
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from einops import rearrange

from converter import nested
from converter.blame import where_and_what
from converter.checkpoints.checkpoint import Checkpoint
from converter.errors import printable
from converter.naming import listed
from converter.proof.rounding import runs_for
from converter.tables.pair import Probe

# Bytes of results that may wait for the caller to read them.
AHEAD = 256 << 20
# Bytes that a proof may take beyond the weights: so many, and so many for each byte of the files.
_ROOM, _ROOM_PER_BYTE = 768 << 20, 200
WIDE = 8.0  # times what layers give, to take functions between them past their bends, as ReLU6's
MOST_CALLS = 64  # of one layer that are recorded: a decoder may call its head on every level
_GATE = 0.05  # a constant below it hides what lies behind it
_SHUT = 1e-4  # and so does any tensor that is no larger
_MOST_MOVED = 12  # runs of which it is kept what moved at the layers
_MOST_NAMES = 12  # of operations between two layers


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
        build: the reference's builder, or where to find it; None: the one that torch_refs has under `model`.
        sources: canonical name -> where the tensor is, of every tensor of the network that the checkpoint holds.
        dtype: what the values were written as; the reference computes with values rounded to it.
        ignored: canonical names that the table leaves out: the checkpoint or the reference may lack them.
        modules: torch path -> factors for the recorded inputs, of each layer to record.
        stages: those of them that are stages.
        probes: what to run.
        copied: a copy of the reference in float64 fits into memory; else each operation converts what it uses.
        train: also take steps of training.
        shared: canonical name -> the one whose values it has, of tensors that are one on the other side.
        folded: canonical names of tensors that are folded into others there: no change of one can be followed.
    """

    model: str
    build: str | Callable[..., Any] | None
    config: dict[str, Any]
    sources: dict[str, Source]
    dtype: str
    ignored: set[str]
    modules: dict[str, tuple[float, ...]]
    probes: list[Probe]
    stages: frozenset[str] = frozenset()
    copied: bool = True
    train: bool = False
    shared: dict[str, str] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()

    def recorded(self, probe: Probe) -> dict[str, tuple[float, ...]]:
        """The layers of the probe's part to record, with their factors."""
        return {
            path: factors
            for path, factors in self.modules.items()
            if (not probe.part or f"{path}.".startswith(f"{probe.part}."))
            and (path in self.stages or not probe.stages_only)
        }

    def alone(self, probe: Probe) -> dict[str, tuple[float, ...]]:
        """Those of them that are run on their own: of stages within one another the inner ones, where the run of the
        whole shows what joins them."""
        recorded = self.recorded(probe)
        outer = {
            path
            for path in recorded
            if path in self.stages and any(other.startswith(f"{path}.") for other in recorded if other in self.stages)
        }
        return {
            path: factors
            for path, factors in recorded.items()
            if path != probe.part and (probe.stages_only or path not in outer)
        }


@dataclass
class Call:
    """One call of a layer alone.

    Attributes:
        args, kwargs: its inputs, in float32.
        result: torch's float32 result.
        truth: the result in float64, for the same inputs.
        moved: what roundings moved the truth by, run by run.
        padded: the first input as the layer pads it itself before it computes, or None where it does not.
        batch_second: its sequences have the time first.
    """

    path: str
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    truth: Any
    moved: list[Any]
    padded: Any = None
    batch_second: bool = False


@dataclass
class Entry:
    """What reached a layer in a run of the whole (or the part), in the order in which torch enters the layers.

    Attributes:
        index: which call of this layer.
        args, kwargs: in float64.
        near: what roundings move (args, kwargs) by, run by run, where every layer before gives its true result; empty
            where it was not entered then.
        far: the same where the layers before round too.
        wide: (args, kwargs) where every layer before gives WIDE times its result, and `wide_near` what roundings move
            those by; None where that was not tried.
        result: what the layer gave, in float32; None for a stage.
        between: the operations since the layer before was left, by torch's names.
        padded, batch_second: as for `Call`.
    """

    path: str
    index: int
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    between: tuple[str, ...]
    padded: Any = None
    batch_second: bool = False
    near: list[Any] = field(default_factory=list)
    far: list[Any] = field(default_factory=list)
    wide: Any = None
    wide_near: list[Any] = field(default_factory=list)


@dataclass
class Run:
    """One probe at its end, of the whole or of its part.

    Attributes:
        outputs: in float32.
        truth: in float64.
        moved: what roundings moved the truth by, run by run.
        near: the same where every layer gave its true result, so that only what lies after them rounds.
        between: the operations since the last layer was left.
        wide, wide_near: truth and `near` where every layer gave WIDE times its result; None where not tried.
    """

    outputs: Any
    truth: Any
    moved: list[Any]
    near: list[Any]
    between: tuple[str, ...] = ()
    wide: Any = None
    wide_near: list[Any] = field(default_factory=list)


@dataclass
class Seeded:
    """From here on these tensors (canonical names, torch's axes) have other values: they were constant."""

    values: dict[str, np.ndarray]


@dataclass
class Note:
    """A sentence for the report."""

    text: str


@dataclass
class Failure:
    """What went wrong, in a line, and where, as Python tells it."""

    text: str
    trace: str


@dataclass
class Trained:
    """What training did to the reference, from the probe's inputs and the upstream gradients that are given.

    Attributes:
        probe: index of the probe.
        upstream: path of an output in the results -> a gradient for it.
        rates: canonical name -> learning rate.
        gradients: canonical name -> (torch's float32, truth, moved).
        buffers: the same for the statistics after one step in training mode.
        weights: the same for the parameters after the last step.
        steps: how many.
        batches: path of a batch normalisation -> how many values of a channel it saw, and its momentum.
        kept: canonical name -> the row of an embedding that gets no gradient (torch's `padding_idx`).
    """

    probe: int
    upstream: dict[str, np.ndarray]
    rates: dict[str, float]
    gradients: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    buffers: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    weights: dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]
    steps: int = 3
    batches: dict[str, tuple[int, float]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


Message = Call | Entry | Run | Seeded | Note | Trained
Send = Callable[[Any], None]


class ReferenceFailed(Exception):
    """The torch side cannot do what was asked, for a reason a user can act on."""


def main(folder: str) -> None:
    """Answer one request: the messages of `answer` in their order, then None.

    Each is a file of its own, `000000.pickle` and so on, whole once it has that name; the caller removes what it has
    read. A Failure instead of any of them is what went wrong.
    """
    import torch  # noqa: F401

    if not sys.stdin.buffer.read(1):
        return  # the caller has changed its mind
    request: Request = cloudpickle.loads(Path(folder, "request.pickle").read_bytes())
    send = _Sender(Path(folder))
    try:
        files = {source.file for source in request.sources.values()}
        answer(request, send, room=_ROOM + _ROOM_PER_BYTE * sum(map(os.path.getsize, files)))
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


def answer(request: Request, send: Send, room: int | None = None) -> None:
    """Send every message, in a process that has torch; each is to be taken at once, for torch goes on with its arrays.

    `room` is how many bytes the process may take beyond what it has.

    Raises:
        ReferenceFailed: it cannot be done, for a reason a user can act on.
    """
    import torch

    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path computes without calling the layers
    state = _state(request, send, torch)
    built: dict[str, Any] = {}
    with torch.no_grad():
        for probe in request.probes:
            reference = _reference(request, probe, state, built, torch)
            if room is not None:
                _end_beyond(room)
                room = None
            _Probing(request, probe, reference, send).run()
        seeds = _seeds(state, request)
        if seeds:
            send(Seeded(seeds))
            state.update({name: torch.from_numpy(value) for name, value in seeds.items()})
            shared = {name: kept for name, kept in request.shared.items() if name in state and kept in seeds}
            state.update({name: state[kept] for name, kept in shared.items()})
            built.clear()
            again = {path for path in request.modules if any(name.startswith(f"{path}.") for name in seeds)}
            layers = {path: factors for path, factors in request.modules.items() if path in again}
            seeded = copy.copy(request)
            seeded.modules = {path: factors for path, factors in layers.items() if path not in request.stages}
            for probe in request.probes:
                if not probe.stages_only:
                    reference = _reference(request, probe, state, built, torch)
                    _Probing(seeded, probe, reference, send, entries=request).run()
    if request.train:
        from converter.torch_side.training import trained

        trained(request, lambda probe: _reference(request, probe, state, {}, torch).single, send)


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


@dataclass
class _Reference:
    """The reference in float32, and what is run in float64: a copy, or itself."""

    single: Any
    exact: Any


def _reference(request: Request, probe: Probe, state: dict[str, Any], built: dict[str, Any], torch: Any) -> _Reference:
    """The reference of the probe's configuration, filled; the one before is given up for it."""
    config = {**request.config, **probe.config}
    key = repr(sorted(config.items(), key=str))
    if key not in built:
        built.clear()
        with torch.no_grad():  # weight_norm of old keeps a computed tensor, which with a gradient cannot be copied
            model = _build(request, config).eval()
            _fill(model, state, request, torch)
        built[key] = _Reference(model, copy.deepcopy(model).double() if request.copied else model)
    return built[key]


def _build(request: Request, config: dict[str, Any]) -> Any:
    import torch_refs
    from converter.tables.registry import locate

    build = request.build
    try:
        if build is None:
            return torch_refs.create(request.model, **config)
        return (locate(build) if isinstance(build, str) else build)(**config)
    except Exception as error:  # the builder is the user's own program
        raise ReferenceFailed(
            f"the torch builder of {request.model} (build_torch) failed at {where_and_what(error)}"
        ) from error


def _state(request: Request, send: Send, torch: Any) -> dict[str, Any]:
    """The checkpoint's values by canonical name, rounded as they were written."""
    wanted: dict[tuple[str, str], dict[str, Source]] = {}  # (file, key) -> canonical -> source
    for canonical, source in request.sources.items():
        wanted.setdefault((source.file, source.key), {})[canonical] = source
    state = {}
    written = getattr(torch, request.dtype)
    for (file, key), sources in wanted.items():
        values = _values(file, key, [source.name for source in sources.values()], send, torch)
        for canonical, source in sources.items():
            tensor = values[source.name].detach()
            if source.axes is not None:
                tensor = rearrange(tensor, source.axes).contiguous()
            state[canonical] = tensor.to(written).to(torch.float32) if tensor.is_floating_point() else tensor
    return state


def _fill(model: Any, state: dict[str, Any], request: Request, torch: Any) -> None:
    """Fill the reference with everything that it and the checkpoint have, also what the table leaves out."""
    known = model.state_dict()
    surplus = {name for name in request.ignored if name not in known}
    try:
        result = model.load_state_dict({n: v for n, v in state.items() if n not in surplus}, strict=False)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise ReferenceFailed(
            f"the torch reference has other shapes: {listed(map(printable, lines), 3, '; ')}"
        ) from None
    missing = [name for name in result.missing_keys if name not in request.ignored]
    if missing or result.unexpected_keys:
        names = missing + list(result.unexpected_keys)
        shown = listed(map(printable, names), 5)
        raise ReferenceFailed(f"the torch reference and the mapping do not name the same tensors: {shown}")


def _seeds(state: dict[str, Any], request: Request) -> dict[str, np.ndarray]:
    """New values for tensors that are constant, as a gate that starts at zero is: it hides all that lies behind it."""
    seeds: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if name in request.ignored | request.folded or not tensor.is_floating_point() or not tensor.numel():
            continue
        first, largest = tensor.reshape(-1)[0], float(tensor.abs().max())
        alike = bool((tensor == first).all()) and (tensor.numel() > 1 or first == 0)
        if not np.isfinite(largest) or not (alike or largest < _SHUT or bool((tensor == 0).any())):
            continue
        rng = np.random.default_rng([len(seeds), tensor.numel()])
        drawn = rng.uniform(0.6, 1.4, tuple(tensor.shape))
        signs = 1.0 if name.endswith("var") else rng.choice([-1.0, 1.0], drawn.shape)
        if (alike and abs(float(first)) < _GATE) or largest < _SHUT:  # as good as closed
            seeds[name] = (0.2 * signs * drawn).astype(np.float32)
        elif alike:
            seeds[name] = (float(first) * drawn).astype(np.float32)
        else:  # some are closed
            usual = float(tensor[tensor != 0].abs().mean())
            seeds[name] = np.where(tensor.numpy() == 0, usual * signs * drawn, tensor.numpy()).astype(np.float32)
    return seeds


def _values(file: str, key: str, names: list[str], send: Send, torch: Any) -> Any:
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
        send(
            Note(
                "torch's own loader refuses this file for what stands beside the weights, so that the values "
                "on the torch side were read by the converter's reader too"
            )
        )
        with Checkpoint(file) as checkpoint:
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


class _Probing:
    """One probe: layers alone, then the whole, exactly and with roundings."""

    def __init__(
        self, request: Request, probe: Probe, reference: _Reference, send: Send, entries: Request | None = None
    ) -> None:
        import torch

        self.torch = torch
        self.request, self.probe, self.send = request, probe, send
        self.single, self.exact = reference.single, reference.exact
        self.modules = request.alone(probe)
        self.entered = [p for p in (entries or request).recorded(probe) if p != probe.part]
        self.leaves = {path for path in self.entered if path not in request.stages}
        self.inputs = as_tensors(probe.inputs)
        self.first = entries is None  # with the checkpoint's own values
        self.seed = 0
        self.calls: dict[str, int] = {}  # of each layer in a run of the whole
        self.given: dict[str, Any] = {}  # what entered a layer the first time
        self.exactly = False  # whether this is a run in float64

    def run(self) -> None:
        hooks = (self._keep_inputs, self.modules, True), (self._record_call, self.modules, False)
        with self._hooked(self.single, *hooks[0]), self._hooked(self.single, *hooks[1]):
            outputs = self._called(self.single)
        entries: list[Entry] = []
        after: tuple[str, ...] = ()
        if self.probe.stages_only:
            truth = self._exactly(lambda: self._called(self.exact))
        else:
            truth, entries, after = self._entries()
        with self._hooked(self.exact, self._moved_into("far", entries), self.entered if entries else (), True):
            moved = self._moved(lambda: self._called(self.exact), truth)
        near, wide, wide_near = self._near(entries, truth) if entries else ([], None, [])
        for entry in entries:
            self.send(entry)
        outputs, truth, moved, near = (_numpy(each) for each in (outputs, truth, moved, near))
        self.send(Run(outputs, truth, moved, near, after, _numpy(wide), _numpy(wide_near)))

    def _moved_into(self, name: str, entries: list[Entry]) -> Callable[[str], Callable[..., None]]:
        """A hook that notes what enters a layer ("wide"), or how far that is from what its entry says, run by run."""
        known: dict[str, list[Entry]] = {path: [] for path in self.entered}
        for entry in entries:
            known[entry.path].append(entry)
        counts: dict[str, int] = {}

        def enter(path: str) -> Callable[..., None]:
            def hook(layer: Any, args: tuple, kwargs: dict) -> None:
                if not known[path]:
                    return
                run, index = divmod(counts.get(path, 0), self.calls.get(path, len(known[path])))
                counts[path] = counts.get(path, 0) + 1
                if run >= _MOST_MOVED or index >= len(known[path]):
                    return
                entry = known[path][index]
                if name == "wide":
                    entry.wide = _copied((args, kwargs))
                    return
                base = entry.wide if name == "wide_near" else (entry.args, entry.kwargs)
                getattr(entry, name).append(_numpy(_difference((args, kwargs), base)))

            return hook

        return enter

    def _called(self, model: Any) -> Any:
        inputs = _map(_copied(self.inputs), _double) if self.exactly else _copied(self.inputs)
        try:
            return model.get_submodule(self.probe.part)(**inputs, **self.probe.options)
        except ReferenceFailed:
            raise
        except Exception as error:  # the reference is the user's own program
            where = "float64" if self.exactly else "float32"
            raise ReferenceFailed(
                f"the torch reference of {self.request.model} (build_torch) fails on its probe inputs in {where}, at "
                f"{where_and_what(error)}"
            ) from error

    @contextlib.contextmanager
    def _hooked(self, model: Any, hook: Callable[..., Any], paths: Any, pre: bool = False) -> Iterator[None]:
        handles = []
        for path in paths:
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise ReferenceFailed(f"the torch reference has no module {path}, which the mapping names") from None
            if pre:
                handles.append(module.register_forward_pre_hook(hook(path), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(hook(path), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep_inputs(self, path: str) -> Callable[..., None]:
        """Before the layer, which may write into them."""

        def hook(layer: Any, args: tuple, kwargs: dict) -> None:
            if path not in self.given:
                self.given[path] = _copied((args, kwargs))

        return hook

    def _record_call(self, path: str) -> Callable[..., None]:
        seen: list[str] = []

        def hook(layer: Any, args: tuple, kwargs: dict, result: Any) -> None:
            if not seen:
                seen.append(path)  # first, for the layer is called again
                args, kwargs = self.given[path]
                for factor in self.modules[path]:
                    self.send(self._call(path, layer, args, kwargs, _copied(result), factor))
                self.given[path] = None  # the memory is needed

        return hook

    def _call(self, path: str, layer: Any, args: tuple, kwargs: dict, result: Any, factor: float) -> Call:
        """What `layer` made of its inputs times `factor`, and what it should have; `result` is that of factor 1."""
        if factor != 1:
            args, kwargs = _scaled((args, kwargs), _near_epsilon(layer, args, factor))
            result = layer(*_copied(args), **_copied(kwargs))
        exact = self.exact.get_submodule(path)
        args64, kwargs64 = _map((args, kwargs), _double)
        truth = self._exactly(lambda: exact(*_copied(args64), **_copied(kwargs64)))
        moved = self._moved(lambda: exact(*_copied(args64), **_copied(kwargs64)), truth)
        padded, second = _padded(layer, args, self.torch), _batch_second(layer, args, kwargs)
        single, true, *rounded = (_numpy(each) for each in (result, truth, *moved))
        return Call(path, _numpy(args), _numpy(kwargs), single, true, rounded, _numpy(padded), second)

    @contextlib.contextmanager
    def _in_float64(self, mode: Any) -> Iterator[None]:
        from converter.torch_side.rounded import exactly

        own = contextlib.nullcontext() if self.exact is not self.single else _doubled_in_turn(self.exact)
        self.exactly = True
        try:
            with own, exactly(mode):
                yield
        finally:
            self.exactly = False

    def _exactly(self, compute: Callable[[], Any]) -> Any:
        from converter.torch_side.rounded import Exact

        with self._in_float64(Exact()):
            return compute()

    def _moved(
        self, compute: Callable[[], Any], truth: Any, smallest: int | None = None, seen: Callable[[], Any] = tuple
    ) -> list[Any]:
        """By how much roundings move the result, in as many runs as its smallest part (or one of this size) needs.

        Where few values move, as of a picture that is sampled mostly outside, those few count; `seen` gives what else
        moved in the first run.
        """
        sizes = [tensor.numel() for tensor in _flat(truth) if tensor.is_floating_point() and tensor.numel()]
        cheap = smallest is not None
        runs = runs_for(min([*sizes, *([] if smallest is None else [smallest])], default=1), cheap)
        moved = [_difference(self._rounded(compute), truth)]
        arrays = [np.asarray(part) for _, part in nested.flat((_numpy(moved[0]), seen()))]
        moving = [int(np.count_nonzero(array)) for array in arrays if array.dtype.kind == "f" and array.any()]
        runs = max(runs, runs_for(min(moving, default=1 << 30), cheap))
        return moved + [_difference(self._rounded(compute), truth) for _ in range(runs - 1)]

    def _rounded(self, compute: Callable[[], Any]) -> Any:
        from converter.torch_side.rounded import Rounded

        self.seed += 1
        with self._in_float64(Rounded(self.seed)):
            return compute()

    def _entries(self) -> tuple[Any, list[Entry], tuple[str, ...]]:
        """A true run of the whole: its outputs, what entered each layer, and the operations after the last one."""
        from converter.torch_side.rounded import Exact

        entries: list[Entry] = []
        open_entries: dict[str, list[Entry]] = {path: [] for path in self.entered}
        mode = Exact()

        def enter(path: str) -> Callable[..., None]:
            def hook(layer: Any, args: tuple, kwargs: dict) -> None:
                self.calls[path] = self.calls.get(path, 0) + 1
                if len(open_entries[path]) < MOST_CALLS:
                    given, named = _copied((args, kwargs))
                    padded, second = _numpy(_padded(layer, args, self.torch)), _batch_second(layer, args, kwargs)
                    between = tuple(mode.names[-_MOST_NAMES:])
                    entry = Entry(path, len(open_entries[path]), given, named, None, between, padded, second)
                    open_entries[path].append(entry)
                    entries.append(entry)
                if path in self.leaves:
                    mode.names.clear()

            return hook

        def leave(path: str) -> Callable[..., None]:
            def hook(layer: Any, args: tuple, kwargs: dict, result: Any) -> None:
                if path in self.leaves:
                    mode.names.clear()
                    last = open_entries[path][-1]
                    if last.result is None:
                        last.result = _copied(result)

            return hook

        hooked = self._hooked
        float64 = self._in_float64(mode)
        with float64, hooked(self.exact, enter, self.entered, True), hooked(self.exact, leave, self.leaves):
            truth = self._called(self.exact)
        return truth, entries, tuple(mode.names[-_MOST_NAMES:])

    def _near(self, entries: list[Entry], truth: Any) -> tuple[list[Any], Any, list[Any]]:
        """Fill in what roundings move the entries by where every layer gives its true result; and the same of outputs.

        Then, with the checkpoint's own values, outputs where every layer gives WIDE times that, and what moves them.
        """
        # As they are handed to the other side: rounded once.
        results: dict[str, list[Any]] = {path: [] for path in self.leaves}
        for entry in entries:
            if entry.path in self.leaves:
                results[entry.path].append(_rounded_once(entry.result))
        sizes = [t.numel() for e in entries for t in _flat((e.args, e.kwargs)) if t.numel()]
        smallest = min(sizes, default=1)
        wide, wide_near = None, []
        hooked = self._hooked(self.exact, self._moved_into("near", entries), self.entered, True)
        with self._giving(results) as compute, hooked:
            near = self._moved(compute, truth, smallest, lambda: [entry.near for entry in entries])
        if self.first:
            larger = {path: [_scaled(one, WIDE) for one in several] for path, several in results.items()}
            with self._giving(larger) as compute:
                with self._hooked(self.exact, self._moved_into("wide", entries), self.entered, True):
                    wide = self._exactly(compute)
                with self._hooked(self.exact, self._moved_into("wide_near", entries), self.entered, True):
                    wide_near = self._moved(compute, wide, smallest, lambda: [entry.wide_near for entry in entries])
        for entry in entries:
            entry.args, entry.kwargs, entry.wide = _numpy(entry.args), _numpy(entry.kwargs), _numpy(entry.wide)
            if entry.result is not None:
                entry.result = _numpy(_map(entry.result, _single))
        return near, wide, wide_near

    @contextlib.contextmanager
    def _giving(self, results: dict[str, list[Any]]) -> Iterator[Callable[[], Any]]:
        """In the block layers give these results, call by call; the function runs the whole so."""
        counts: dict[str, int] = {}

        def forced(path: str, module: Any) -> Callable[..., Any]:
            usual = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                index = counts.get(path, 0)
                counts[path] = index + 1
                if index >= len(results[path]):
                    return usual(*args, **kwargs)
                return _copied(results[path][index])

            return forward

        def compute() -> Any:
            counts.clear()
            return self._called(self.exact)

        modules = {path: self.exact.get_submodule(path) for path in self.leaves}
        before = {path: vars(module).get("forward") for path, module in modules.items()}
        for path, module in modules.items():
            module.forward = forced(path, module)
        try:
            yield compute
        finally:
            for path, module in modules.items():
                if before[path] is None:
                    del module.forward
                else:
                    module.forward = before[path]


@contextlib.contextmanager
def _doubled_in_turn(model: Any) -> Iterator[None]:
    """In the block each module has its own tensors in float64 while it runs, where a copy of all does not fit."""
    from torch.utils._python_dispatch import _disable_current_modes

    kept: dict[int, Any] = {}

    def double(module: Any, args: tuple) -> None:
        with _disable_current_modes():  # in which the tensors would be float64 already
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point() and id(tensor) not in kept:
                    kept[id(tensor)] = tensor.data
                    tensor.data = tensor.data.double()

    def back(module: Any, args: tuple, result: Any) -> None:
        with _disable_current_modes():
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if id(tensor) in kept:
                    tensor.data = kept.pop(id(tensor))

    handles = []
    for module in model.modules():
        handles += [module.register_forward_pre_hook(double), module.register_forward_hook(back, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def as_tensors(value: Any) -> Any:
    """Nested inputs with a tensor in place of each array."""
    import torch

    def one(part: Any) -> Any:
        return torch.from_numpy(np.array(part)) if isinstance(part, (np.ndarray, np.generic)) else part

    return nested.each(one, value)


def _padded(layer: Any, args: tuple, torch: Any) -> Any:
    """The input of a convolution with the padding that it does itself, or None."""
    if not isinstance(layer, torch.nn.modules.conv._ConvNd) or layer.transposed or not args:
        return None
    widths = list(layer._reversed_padding_repeated_twice)
    if not any(widths):
        return None
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return torch.nn.functional.pad(args[0], widths, mode=mode)


def _batch_second(layer: Any, args: tuple, kwargs: dict) -> bool:
    """Whether this call has sequences with the time first; a single one, without a batch, has not."""
    told = (one.batch_first for one in layer.modules() if hasattr(one, "batch_first"))  # of a stage, its layers
    if next(told, True) is not False:
        return False
    first = next(iter(_flat((args, kwargs))), None)
    return first is not None and first.ndim > 2


def _near_epsilon(layer: Any, args: tuple, factor: float) -> float:
    """The factor, or a smaller one that brings the variance of the input down to where an epsilon shows."""
    epsilon = getattr(layer, "eps", None)
    if not isinstance(epsilon, float) or not epsilon > 0 or not args or not args[0].is_floating_point():
        return factor
    spread = float(args[0].double().std()) if args[0].numel() > 1 else 0.0
    return min(factor, 3 * max(epsilon, 1e-7) ** 0.5 / spread) if spread > 0 and np.isfinite(spread) else factor


def _rounded_once(value: Any) -> Any:
    return _map(value, lambda tensor: tensor.float().double() if tensor.is_floating_point() else tensor)


def _scaled(value: Any, factor: float) -> Any:
    return _map(value, lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)


def _double(tensor: Any) -> Any:
    return tensor.double() if tensor.is_floating_point() else tensor


def _single(tensor: Any) -> Any:
    return tensor.float() if tensor.is_floating_point() else tensor


def _copied(value: Any) -> Any:
    return _map(value, lambda t: t.clone())


def _numpy(value: Any) -> Any:
    """Plain arrays in plain tuples, lists and dicts; a complex number is two real ones, along a last axis."""

    def array(tensor: Any) -> Any:
        tensor = tensor.detach()
        if tensor.is_complex():
            tensor = _real(tensor)
        return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).contiguous().numpy()

    return nested.each(lambda part: array(part) if hasattr(part, "is_floating_point") else part, value, plain=True)


def _real(tensor: Any) -> Any:
    import torch

    return torch.view_as_real(tensor.resolve_conj())


def _flat(value: Any) -> list[Any]:
    return [part for _, part in nested.flat(value) if hasattr(part, "is_floating_point")]


def _difference(some: Any, other: Any) -> Any:
    """Tensor by tensor, of two results that are nested alike, in float32, which is enough for a difference."""
    theirs = iter(_flat(other))

    def minus(tensor: Any) -> Any:
        against = next(theirs)
        if tensor.is_complex():
            tensor, against = _real(tensor), _real(against)
        if not tensor.is_floating_point() or tensor.shape != against.shape:
            return tensor.new_zeros(against.shape).float()
        return (tensor - against).nan_to_num(0.0, 0.0, 0.0).float()

    return _map(some, minus)


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists and dicts."""
    return nested.each(lambda part: function(part) if hasattr(part, "is_floating_point") else part, value)
