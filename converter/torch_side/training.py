"""The torch half of `--verify train`: gradients, moving statistics and a few steps, exactly and with roundings."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from converter.blame import where_and_what
from converter.pairs.pair import Probe
from converter.rounding import runs_for
from converter.torch_side.answers import Send, Trained
from converter.torch_side.questions import Proof
from converter.torch_side.reference import Filled, ReferenceFailed
from converter.torch_side.rounded import Exact, Rounded, exactly
from converter.torch_side.tensors import as_tensors

STEPS = 3
_SHARE = 0.01  # of its own size that a weight moves in the first step
_LEAST = 1e-6  # of the largest effect on the loss that a parameter's gradient has: below it there is none
_MOST_RUNS = 4
# What switches units off at random, by the names that libraries give it.
_RATES = (
    *(
        "p",
        "dropout",
        "drop_prob",
        "dropout_p",
        "dropout_prob",
        "drop_rate",
        "drop",
        "attn_drop",
        "proj_drop",
        "drop_path",
    ),
    *("attention_dropout", "hidden_dropout", "attn_dropout", "resid_dropout", "stochastic_depth_prob"),
)

Values = dict[str, np.ndarray]


def trained(question: Proof, filled: Filled, send: Send) -> None:
    """Train the reference on each probe of the whole, and send what that did to it.

    The loss is the sum of all outputs, each times a seeded upstream gradient; each parameter has a rate of its own, at
    which the first step moves it by a hundredth of its size. Dropout is off.

    Raises:
        ReferenceFailed: the reference cannot be trained so.
    """
    if all(probe.part or probe.stages_only for probe in question.probes):
        raise ReferenceFailed(
            f"`probes` of {question.reference.model} have none of the whole, so nothing can be trained"
        )
    for index, probe in enumerate(question.probes):
        if probe.part or probe.stages_only:
            continue
        filled.give_up()  # training changes it
        try:
            send(_trained(index, probe, filled.single(probe), question.folded))
        except ReferenceFailed:
            raise
        except Exception as error:  # the reference is the user's own program
            raise ReferenceFailed(
                f"the torch reference of {question.reference.model} (build_torch) fails in training mode, at "
                f"{where_and_what(error)}"
            ) from error


def _trained(index: int, probe: Probe, model: Any, folded: frozenset[str]) -> Trained:
    inputs = as_tensors(probe.inputs)
    with torch.no_grad():
        outputs = _outputs(model, inputs, probe)
    generator = np.random.default_rng(0)
    if not outputs:
        raise ReferenceFailed("no output of the torch reference is a float, so there is no gradient to train by")
    upstream = [generator.standard_normal(tuple(one.shape)).astype(np.float32) for _, one in outputs]
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(parameter.requires_grad and name not in folded)
    exact = copy.deepcopy(model).double()
    with exactly(Exact()):
        truth = _Training(exact, inputs, probe, upstream, None)
    rates = truth.rates
    smallest = min((value.size for value in truth.gradients.values()), default=1)
    single = _Training(copy.deepcopy(model), inputs, probe, upstream, rates)
    moved = []
    for seed in range(min(_MOST_RUNS, runs_for(smallest))):
        rounded = copy.deepcopy(model).double()
        with exactly(Rounded(seed)):
            moved.append(_Training(rounded, inputs, probe, upstream, rates))

    def each(name: str) -> dict[str, tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
        true, own = getattr(truth, name), getattr(single, name)
        return {
            key: (own[key], value, [getattr(one, name)[key] - value for one in moved]) for key, value in true.items()
        }

    given = dict(zip((name for name, _ in outputs), upstream, strict=True))
    found = each("gradients"), each("buffers"), each("weights")
    return Trained(index, given, rates, *found, STEPS, truth.batches, _padding(model))


def _padding(model: Any) -> dict[str, int]:
    """Name of an embedding's table -> its `padding_idx`, where it has one."""
    return {
        f"{path}.weight" if path else "weight": module.padding_idx
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    }


def _outputs(model: Any, inputs: dict[str, Any], probe: Probe) -> list[tuple[str, torch.Tensor]]:
    """(path, output) of every output that has gradients."""
    from converter import nested

    given = nested.each(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, inputs)
    args, kwargs = nested.arguments(given)
    results = model(*args, **kwargs, **probe.options)
    compared = None if probe.outputs is None else {path for path, _, _ in probe.outputs}
    return [
        (path, part)
        for path, part in nested.flat(results)
        if isinstance(part, torch.Tensor) and part.is_floating_point() and (compared is None or path in compared)
    ]


class _Training:
    """A model after its steps, and what was seen on the way."""

    def __init__(
        self,
        model: Any,
        inputs: dict[str, Any],
        probe: Probe,
        upstream: list[np.ndarray],
        rates: dict[str, float] | None,
    ) -> None:
        model.train()
        _without_dropout(model)
        self.batches: dict[str, tuple[int, float]] = {}
        hooks = [
            module.register_forward_hook(self._counting(path))
            for path, module in model.named_modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        ]
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        first = {id(value): name for name, value in parameters.items()}
        # A shared parameter has several names, and the mapping may know it by any of them.
        alike = {
            name: first[id(value)]
            for name, value in model.named_parameters(remove_duplicate=False)
            if id(value) in first
        }
        if not parameters:
            raise ReferenceFailed(
                "the torch reference has no parameters that are trained, so --verify train has nothing"
            )
        for step in range(STEPS):
            outputs = [one for _, one in _outputs(model, inputs, probe)]
            loss = sum(
                (one * torch.from_numpy(up).to(one.dtype)).sum() for one, up in zip(outputs, upstream, strict=True)
            )
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = {
                # That of an embedding may be sparse.
                name: torch.zeros_like(value) if gradient is None else gradient.to_dense()
                for (name, value), gradient in zip(parameters.items(), found, strict=True)
            }
            if step == 0:
                self.gradients = {name: _numbers(gradients[kept]) for name, kept in alike.items()}
                floats = ((name, value) for name, value in model.named_buffers() if value.is_floating_point())
                self.buffers = {name: _numbers(value) for name, value in floats}
                own = rates or _rates(parameters, gradients)
                self.rates = {name: own[kept] for name, kept in alike.items()}
            with torch.no_grad():
                for name, value in parameters.items():
                    value -= self.rates[name] * gradients[name]
        for hook in hooks:
            hook.remove()
        self.weights = {name: _numbers(parameters[kept]) for name, kept in alike.items()}

    def _counting(self, path: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple, result: torch.Tensor) -> None:
            if module.momentum is not None:
                self.batches.setdefault(path, (result.numel() // result.shape[1], module.momentum))

        return hook


def _rates(parameters: dict[str, Any], gradients: dict[str, torch.Tensor]) -> dict[str, float]:
    """A rate for each parameter; none for one whose gradient is zero but for roundings, as a bias's before a
    normalisation is: at its own size it would be thrown about."""
    sizes = {name: _size(value) or 1.0 for name, value in parameters.items()}
    slopes = {name: _size(value) for name, value in gradients.items()}
    effects = {name: sizes[name] * slopes[name] * parameters[name].numel() ** 0.5 for name in sizes}
    least = _LEAST * max(effects.values(), default=0.0)
    return {
        name: float(np.float32(_SHARE * sizes[name] / slopes[name])) if effects[name] > least else 0.0 for name in sizes
    }


def _size(value: torch.Tensor) -> float:
    return float(value.detach().double().square().mean().sqrt()) if value.numel() else 0.0


def _without_dropout(model: Any) -> None:
    for module, name in itertools.product(model.modules(), _RATES):
        if isinstance(vars(module).get(name), float) and 0 < vars(module)[name] < 1:
            setattr(module, name, 0.0)


def _numbers(value: torch.Tensor) -> np.ndarray:
    return value.detach().to_dense().double().numpy().copy()
