"""The rule of `converter.rounding` for tests: a result in low precision against torch's in float64."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from converter import rounding
from converter.torch_side.rounded import Exact, Rounded, exactly

Results = Sequence[Any] | Mapping[str, Any]


def assert_allowed(
    ours: Results, compute: Callable[[], Results], dtype: str = "float32", inside: str | None = None
) -> None:
    """Each of `ours` is as near to what `compute` gives as precision `dtype` allows.

    `compute` is a torch computation on float64 tensors; it is run exactly, which is the truth, and with roundings. Both
    give arrays or tensors of the same shapes, channels last, by place or by name. `inside` is the precision of the
    steps, where only their result is rounded to `dtype`.

    In a half type, what one value of a network may be off by is near the size of the values, and hides a fault. There
    the errors of all values together must also be no more than what roundings move them by, which is one standard
    deviation in the worst order of every sum.
    """
    with exactly(Exact()):
        truth = _named(compute())
    mine = _named(ours)
    assert mine.keys() == truth.keys()
    together = dtype in ("float16", "bfloat16") and inside is None
    runs = max(rounding.runs_for(min(value.size for value in truth.values())), 3 if together else 1)
    moved = [_rounded(compute, seed, inside or dtype) for seed in range(runs)]
    for name, true in truth.items():
        assert mine[name].shape == true.shape, name
        far = [one[name] - true for one in moved]
        found = rounding.judge(mine[name], true, far, rounding.UNITS[dtype])
        assert found, f"{name}: error {found.error:.2e}, allowed {found.allowed:.2e}"
        if together:
            error, allowed = _size(mine[name] - true), max(map(_size, far))
            assert error <= allowed, f"{name}: root mean square of errors {error:.2e}, allowed {allowed:.2e}"


def assert_same(ours: Callable[[], Results], theirs: Callable[[], Results]) -> None:
    """Two torch computations on float64 tensors give the same, whatever precision the code of either casts to.

    To 1e-12 of the largest number, which is 9000 roundings: what a formula makes wrong is larger.
    """
    with torch.no_grad():
        with exactly(Exact()):
            got = _named(ours())
        with exactly(Exact()):
            want = _named(theirs())
    assert got.keys() == want.keys()
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        scale = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=1e-12 * scale, err_msg=name)


def assert_as_exact(
    results: Iterable[Any], compute: Callable[[], Iterable[torch.Tensor]], dtype: str = "float32"
) -> None:
    """TensorFlow's results are as near as `dtype` allows to those that torch computes in float64, channels first."""
    with torch.no_grad():
        assert_allowed(list(results), lambda: [last(value) for value in compute()], dtype)


def last(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """An image (N, C, H, W) with the channels last; anything else as it is."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return np.moveaxis(value, 1, -1) if value.ndim == 4 else value


def as_held(module: torch.nn.Module, dtype: str) -> torch.nn.Module:
    """The module in float64, with the parameters that a layer of such a compute dtype multiplies by."""
    held = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in held.parameters():
            parameter.copy_(parameter.to(getattr(torch, dtype)))
    return held


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _rounded(compute: Callable[[], Results], seed: int, dtype: str) -> dict[str, np.ndarray]:
    with exactly(Rounded(seed, rounding.UNITS[dtype])) as mode:
        results = _named(compute())
    assert not mode.unknown, f"no rule for {sorted(mode.unknown)}"
    return results


def _named(results: Results) -> dict[str, np.ndarray]:
    items = results.items() if isinstance(results, Mapping) else enumerate(results)
    return {str(name): _numbers(value) for name, value in items}


def _numbers(value: Any) -> np.ndarray:
    return value.detach().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value, np.float64)
