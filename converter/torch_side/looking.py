"""A network without a proof: what it consists of, what a run of it does, and what comes in and out."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from converter import nested
from converter.blame import where_and_what
from converter.pairs.pair import Probe
from converter.torch_side.answers import Module, Outputs, Recorded, Send, Step
from converter.torch_side.questions import Inventory, Record, Run, Trace
from converter.torch_side.reference import Filled, ReferenceFailed
from converter.torch_side.rounded import Exact, exactly
from converter.torch_side.tensors import as_arrays, as_tensors, copied, double, each_tensor, tensors_of


def inventory(question: Inventory, filled: Filled, send: Send) -> None:
    """Answer an `Inventory`."""
    first: dict[int, str] = {}
    for path, module in filled.single().named_modules(remove_duplicate=False):
        unsaved = module._non_persistent_buffers_set
        send(
            Module(
                path,
                f"{type(module).__module__}.{type(module).__qualname__}",
                _described(module._parameters),
                _described({name: value for name, value in module._buffers.items() if name not in unsaved}),
                first.get(id(module)),
                {name: value for name, value in vars(module).items() if name[0] != "_" and _simple(value)},
            )
        )
        first.setdefault(id(module), path)


def _simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) <= 8 and all(map(_simple, value))
    return value is None or type(value) in (bool, int, float, str)


def _described(tensors: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in tensors.items()
        if tensor is not None
    }


def run(question: Run, filled: Filled, send: Send) -> None:
    """Answer a `Run`."""
    inputs = as_tensors(question.probe.inputs)
    if not question.exact:
        send(Outputs(as_arrays(_called(filled, question.probe, inputs))))
        return
    network = filled.exact(question.probe, copied=True).get_submodule(question.probe.part)
    try:
        with torch.no_grad(), exactly(Exact()):
            send(Outputs(as_arrays(_given(network, question.probe, each_tensor(inputs, double)))))
    except Exception as error:
        raise ReferenceFailed(f"it does not run in float64: {where_and_what(error)}") from error


def record(question: Record, filled: Filled, send: Send) -> None:
    """Answer a `Record`."""
    network = filled.single(question.probe)
    open_calls: list[tuple[tuple, dict[str, Any]]] = []  # of modules within one another
    counts: dict[str, int] = {}

    def enter(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        open_calls.append(copied((args, kwargs)))  # before the call, which may write into them

    def leave(path: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
            args, kwargs = open_calls.pop()
            index = counts[path] = counts.get(path, -1) + 1
            send(Recorded(path, index, as_arrays(args), as_arrays(kwargs), as_arrays(copied(result))))

        return hook

    with contextlib.ExitStack() as hooks:
        for path in sorted(question.paths):
            try:
                module = network.get_submodule(path)
            except AttributeError:
                raise ReferenceFailed(f"the torch reference has no module {path}") from None
            for handle in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave(path), with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        _called(filled, question.probe, as_tensors(question.probe.inputs))


def trace(question: Trace, filled: Filled, send: Send) -> None:
    """Answer a `Trace`."""
    inputs = as_tensors(question.probe.inputs)
    with traced(filled.single(question.probe), inputs, lambda step, given: send(step)):
        _called(filled, question.probe, inputs)


@contextlib.contextmanager
def traced(network: Any, inputs: Any, tell: Callable[[Step, list[Any]], None]) -> Iterator[None]:
    """In the block, `tell` every operation of a run of the network on these inputs, and the tensors that it gave."""
    known = WeakIdKeyDictionary()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        known[tensor] = name
    for path, part in nested.flat(inputs):
        if isinstance(part, torch.Tensor):
            known[part] = f"input {path}"
    with _within(network) as inside, _Steps(known, inside, tell):
        yield


class _Steps(TorchDispatchMode):
    """Tells every operation below autograd; `known` has whatever gave each tensor."""

    def __init__(self, known: WeakIdKeyDictionary, inside: list[str], tell: Callable[[Step, list[Any]], None]) -> None:
        super().__init__()
        self._known, self._inside, self._tell, self._count = known, inside, tell, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        reads = tuple(self._known.get(tensor) for tensor in tensors_of((args, kwargs or {})))
        results = func(*args, **(kwargs or {}))
        given = tensors_of(results)
        name = func._schema.name.split("::")[-1]
        self._tell(Step(self._count, name, self._inside[-1], reads, tuple(tuple(one.shape) for one in given)), given)
        for tensor in given:  # also one that was written into
            self._known[tensor] = self._count
        self._count += 1
        return results


@contextlib.contextmanager
def _within(network: Any) -> Iterator[list[str]]:
    """In the block the paths of the modules that run, the innermost last."""
    inside = [""]

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: inside.append(path)

    def leave(*_: Any) -> None:  # what a hook returns takes the place of the result
        inside.pop()

    with contextlib.ExitStack() as hooks:
        for path, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(enter(path)).remove)
            hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield inside


def _called(filled: Filled, probe: Probe, inputs: dict[str, Any]) -> Any:
    """
    Raises:
        ReferenceFailed: the network, which is the user's own program, fails.
    """
    part = filled.single(probe).get_submodule(probe.part)
    try:
        with torch.no_grad():
            return _given(part, probe, inputs)
    except Exception as error:
        raise ReferenceFailed(
            f"the torch reference of {filled.wanted.model} (build_torch) fails on its inputs, at "
            f"{where_and_what(error)}"
        ) from error


def _given(part: Any, probe: Probe, inputs: dict[str, Any]) -> Any:
    args, kwargs = nested.arguments(inputs)
    return part(*args, **kwargs, **probe.options)
