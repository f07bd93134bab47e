"""Torch's half of the numerical proof: layers alone, what enters them in runs of the whole, and the outputs."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from converter import nested
from converter.blame import where_and_what
from converter.pairs.pair import Probe
from converter.rounding import runs_for
from converter.torch_side.answers import MOST_CALLS, WIDE, Call, Entry, Seeded, Send, Whole
from converter.torch_side.questions import Proof
from converter.torch_side.reference import Filled, ReferenceFailed
from converter.torch_side.rounded import Exact, Rounded, exactly
from converter.torch_side.tensors import (
    as_arrays,
    as_tensors,
    copied,
    difference,
    double,
    each_tensor,
    rounded_once,
    scaled,
    single,
    tensors_of,
)

_GATE = 0.05  # a constant below it hides what lies behind it
_SHUT = 1e-4  # and so does any tensor that is no larger
_MOST_MOVED = 12  # runs of which it is kept what moved at the layers
_MOST_NAMES = 12  # of operations between two layers


def prove(question: Proof, filled: Filled, send: Send) -> None:
    """Measure every probe; then, where tensors are constant, once more with other values for them; then training."""
    with torch.no_grad():
        for probe in question.probes:
            _Probing(question, probe, filled, send).run()
        seeds = _seeds(filled.state, question)
        if seeds:
            send(Seeded(seeds))
            filled.give_up()
            filled = filled.with_values(seeds, question.shared)
            again = {path for path in question.modules if any(name.startswith(f"{path}.") for name in seeds)}
            layers = {path: factors for path, factors in question.modules.items() if path in again}
            seeded = copy.copy(question)
            seeded.modules = {path: factors for path, factors in layers.items() if path not in question.stages}
            for probe in question.probes:
                if not probe.stages_only:
                    _Probing(seeded, probe, filled, send, entries=question).run()
    if question.train:
        from converter.torch_side.training import trained

        trained(question, filled, send)


def _seeds(state: dict[str, Any], question: Proof) -> dict[str, np.ndarray]:
    """New values for tensors that are constant, as a gate that starts at zero is: it hides all that lies behind it."""
    seeds: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if name in question.reference.ignored | question.folded or not tensor.is_floating_point() or not tensor.numel():
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


class _Probing:
    """One probe: layers alone, then the whole, exactly and with roundings."""

    def __init__(self, question: Proof, probe: Probe, filled: Filled, send: Send, entries: Proof | None = None) -> None:
        self.question, self.probe, self.send = question, probe, send
        self.single, self.exact = filled.single(probe), filled.exact(probe, question.copied)
        self.modules = question.alone(probe)
        self.entered = [p for p in (entries or question).recorded(probe) if p != probe.part]
        self.leaves = {path for path in self.entered if path not in question.stages}
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
        outputs, truth, moved, near = (as_arrays(each) for each in (outputs, truth, moved, near))
        self.send(Whole(outputs, truth, moved, near, after, as_arrays(wide), as_arrays(wide_near)))

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
                    entry.wide = copied((args, kwargs))
                    return
                base = entry.wide if name == "wide_near" else (entry.args, entry.kwargs)
                getattr(entry, name).append(as_arrays(difference((args, kwargs), base)))

            return hook

        return enter

    def _called(self, model: Any) -> Any:
        inputs = each_tensor(copied(self.inputs), double) if self.exactly else copied(self.inputs)
        try:
            args, kwargs = nested.arguments(inputs)
            return model.get_submodule(self.probe.part)(*args, **kwargs, **self.probe.options)
        except ReferenceFailed:
            raise
        except Exception as error:  # the reference is the user's own program
            where = "float64" if self.exactly else "float32"
            raise ReferenceFailed(
                f"the torch reference of {self.question.reference.model} (build_torch) fails on its probe inputs in "
                f"{where}, at {where_and_what(error)}"
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
                self.given[path] = copied((args, kwargs))

        return hook

    def _record_call(self, path: str) -> Callable[..., None]:
        seen: list[str] = []

        def hook(layer: Any, args: tuple, kwargs: dict, result: Any) -> None:
            if not seen:
                seen.append(path)  # first, because the layer is called again
                args, kwargs = self.given[path]
                for factor in self.modules[path]:
                    self.send(self._call(path, layer, args, kwargs, copied(result), factor))
                self.given[path] = None  # the memory is needed

        return hook

    def _call(self, path: str, layer: Any, args: tuple, kwargs: dict, result: Any, factor: float) -> Call:
        """What `layer` made of its inputs times `factor`, and what it should have; `result` is that of factor 1."""
        if factor != 1:
            args, kwargs = scaled((args, kwargs), _near_epsilon(layer, args, factor))
            result = layer(*copied(args), **copied(kwargs))
        exact = self.exact.get_submodule(path)
        args64, kwargs64 = each_tensor((args, kwargs), double)
        truth = self._exactly(lambda: exact(*copied(args64), **copied(kwargs64)))
        moved = self._moved(lambda: exact(*copied(args64), **copied(kwargs64)), truth)
        padded, second = _padded(layer, args), _batch_second(layer, args, kwargs)
        single, true, *rounded = (as_arrays(each) for each in (result, truth, *moved))
        return Call(path, as_arrays(args), as_arrays(kwargs), single, true, rounded, as_arrays(padded), second)

    @contextlib.contextmanager
    def _in_float64(self, mode: Any) -> Iterator[None]:
        own = contextlib.nullcontext() if self.exact is not self.single else _doubled_in_turn(self.exact)
        self.exactly = True
        try:
            with own, exactly(mode):
                yield
        finally:
            self.exactly = False

    def _exactly(self, compute: Callable[[], Any]) -> Any:
        with self._in_float64(Exact()):
            return compute()

    def _moved(
        self, compute: Callable[[], Any], truth: Any, smallest: int | None = None, seen: Callable[[], Any] = tuple
    ) -> list[Any]:
        """By how much roundings move the result, in as many runs as its smallest part (or one of this size) needs.

        Where few values move, as of a picture that is sampled mostly outside, those few count; `seen` gives what else
        moved in the first run.
        """
        sizes = [tensor.numel() for tensor in tensors_of(truth) if tensor.is_floating_point() and tensor.numel()]
        cheap = smallest is not None
        runs = runs_for(min([*sizes, *([] if smallest is None else [smallest])], default=1), cheap)
        moved = [difference(self._rounded(compute), truth)]
        arrays = [np.asarray(part) for _, part in nested.flat((as_arrays(moved[0]), seen()))]
        moving = [int(np.count_nonzero(array)) for array in arrays if array.dtype.kind == "f" and array.any()]
        runs = max(runs, runs_for(min(moving, default=1 << 30), cheap))
        return moved + [difference(self._rounded(compute), truth) for _ in range(runs - 1)]

    def _rounded(self, compute: Callable[[], Any]) -> Any:
        self.seed += 1
        with self._in_float64(Rounded(self.seed)):
            return compute()

    def _entries(self) -> tuple[Any, list[Entry], tuple[str, ...]]:
        """A true run of the whole: its outputs, what entered each layer, and the operations after the last one."""
        entries: list[Entry] = []
        open_entries: dict[str, list[Entry]] = {path: [] for path in self.entered}
        mode = Exact()

        def enter(path: str) -> Callable[..., None]:
            def hook(layer: Any, args: tuple, kwargs: dict) -> None:
                self.calls[path] = self.calls.get(path, 0) + 1
                if len(open_entries[path]) < MOST_CALLS:
                    given, named = copied((args, kwargs))
                    padded, second = as_arrays(_padded(layer, args)), _batch_second(layer, args, kwargs)
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
                        last.result = copied(result)

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
                results[entry.path].append(rounded_once(entry.result))
        sizes = [t.numel() for e in entries for t in tensors_of((e.args, e.kwargs)) if t.numel()]
        smallest = min(sizes, default=1)
        wide, wide_near = None, []
        hooked = self._hooked(self.exact, self._moved_into("near", entries), self.entered, True)
        with self._giving(results) as compute, hooked:
            near = self._moved(compute, truth, smallest, lambda: [entry.near for entry in entries])
        if self.first:
            larger = {path: [scaled(one, WIDE) for one in several] for path, several in results.items()}
            with self._giving(larger) as compute:
                with self._hooked(self.exact, self._moved_into("wide", entries), self.entered, True):
                    wide = self._exactly(compute)
                with self._hooked(self.exact, self._moved_into("wide_near", entries), self.entered, True):
                    wide_near = self._moved(compute, wide, smallest, lambda: [entry.wide_near for entry in entries])
        for entry in entries:
            entry.args, entry.kwargs, entry.wide = as_arrays(entry.args), as_arrays(entry.kwargs), as_arrays(entry.wide)
            if entry.result is not None:
                entry.result = as_arrays(each_tensor(entry.result, single))
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
                return copied(results[path][index])

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


def _padded(layer: Any, args: tuple) -> Any:
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
    first = next(iter(tensors_of((args, kwargs))), None)
    return first is not None and first.ndim > 2


def _near_epsilon(layer: Any, args: tuple, factor: float) -> float:
    """The factor, or a smaller one that brings the variance of the input down to where an epsilon shows."""
    epsilon = getattr(layer, "eps", None)
    if not isinstance(epsilon, float) or not epsilon > 0 or not args or not args[0].is_floating_point():
        return factor
    spread = float(args[0].double().std()) if args[0].numel() > 1 else 0.0
    return min(factor, 3 * max(epsilon, 1e-7) ** 0.5 / spread) if spread > 0 and np.isfinite(spread) else factor
