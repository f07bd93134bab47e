"""How values flow through a network that is to be matched: its tensors, its operations, and what they give."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from converter.blame import where_and_what
from converter.torch_side.answers import Held, Outputs, Send, Step, Value
from converter.torch_side.looking import traced
from converter.torch_side.questions import Dataflow, Fetch
from converter.torch_side.reference import Filled, ReferenceFailed
from converter.torch_side.seeded_network import calibrating, comes_of_its_name
from converter.torch_side.tensors import as_arrays, as_tensors, tensors_of


def dataflow(question: Dataflow, filled: Filled, send: Send) -> None:
    """Answer a `Dataflow`.

    Raises:
        ReferenceFailed: the network fails on its inputs, or gives another result the second time.
    """
    network = filled.single()
    args, kwargs = as_tensors(question.args), as_tensors(question.kwargs)
    if question.reference.seeded:
        with calibrating(network):
            _called(filled, network, args, kwargs)
    _held(network, send)
    with traced(network, (*args, kwargs), lambda step, given: send(step)):
        first = _called(filled, network, args, kwargs)
    again = _called(filled, network, args, kwargs)
    for one, other in zip(tensors_of(first), tensors_of(again), strict=False):
        if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise ReferenceFailed(
                "the torch network gives another result when it is called again on the same inputs: it draws random "
                "numbers, or keeps something from call to call, so nothing can be compared"
            )
    send(Outputs(as_arrays(first)))


def fetch(question: Fetch, filled: Filled, send: Send) -> None:
    """Answer a `Fetch`."""

    def tell(step: Step, given: list[Any]) -> None:
        if step.number in question.steps and given:
            send(Value(step.number, as_arrays(given[0].detach().clone())))

    network = filled.single()
    args, kwargs = as_tensors(question.args), as_tensors(question.kwargs)
    with traced(network, (*args, kwargs), tell):
        _called(filled, network, args, kwargs)


def _held(network: Any, send: Send) -> None:
    owners = {path: type(module).__name__ for path, module in network.named_modules(remove_duplicate=False)}
    saved = _saved_names(network)
    first: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        owner = owners.get(name.rpartition(".")[0], "")
        value = None if comes_of_its_name(network, name, tensor) else as_arrays(tensor.detach().clone())
        same_as = first.get(id(tensor))
        saved_as = saved.get(name) if same_as is None else None
        send(Held(name, tuple(tensor.shape), dtype, owner, same_as, saved_as, value))
        first.setdefault(id(tensor), name)


def _saved_names(network: Any) -> dict[str, str]:
    """Name -> the name that transformers writes into a file, where the two differ: since its version 5 it renames what
    it loads. The values tell, which are seeded and so all different."""
    if not (hasattr(network, "save_pretrained") and type(network).__module__.startswith("transformers.")):
        return {}
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            network.save_pretrained(folder)
        written = {name: one for file in Path(folder).glob("*.safetensors") for name, one in load_file(file).items()}
    live = network.state_dict()
    found = {}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in written.items():
        by_shape.setdefault(tuple(tensor.shape), []).append(name)
    for name, tensor in live.items():
        if name in written and torch.equal(written[name], tensor):
            continue
        same = [one for one in by_shape.get(tuple(tensor.shape), ()) if torch.equal(written[one], tensor)]
        if len(same) == 1:
            found[name] = same[0]
    return found


def _called(filled: Filled, network: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """
    Raises:
        ReferenceFailed: the network, which is the user's own program, fails.
    """
    try:
        with torch.no_grad():
            return network(*args, **kwargs)
    except Exception as error:
        raise ReferenceFailed(
            f"the torch network of {filled.wanted.model} fails on its inputs: {where_and_what(error)}"
        ) from error
