"""A torch computation in float64, exactly or with a rounding of float32's size in each of its steps.

`Exact` sees every operation of torch below autograd and computes it in float64, whatever precision the tensors and the
code ask for. `Rounded` does the same and moves each result by what float32 may be off there, with a random sign for
each value:

- a sum of n terms by 0.2 sqrt(n) roundings of its value and of the sum of its terms' magnitudes: no order of adding up
  has a larger standard deviation;
- a function by 2 roundings of its value, at arguments that are off by one;
- a normalisation as its means, its variance and the terms that are subtracted may be off;
- a resampling also by what the coordinates, sums themselves, are off;
- what only moves or selects values by nothing.

Imported where torch is; `converter.rounding` has the rule that uses it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from converter.rounding import UNITS

_LOW = (torch.float32, torch.float16, torch.bfloat16)
_HALF = _LOW[1:]
# Roundings of a result that is the nearest number, uniform within one; of a function, by which libraries differ; and of
# a sum, for each root of the number of its terms, of its value and of what their magnitudes add up to (docs/proof.md).
_NEAREST, _FUNCTION, _SUM = 0.6, 2.0, 0.2
_POOL = 1 << 16
_SOME = 64  # terms of a sum that are looked at for whether they are alike
_NEAREST_PIXEL, _BICUBIC = 1, 2  # what torch calls them among the modes of grid_sample
_GENERATOR = torch.Generator().manual_seed(0)
# Signs, with sizes about 1 that differ so that no two cancel.
_SIGNS = (torch.randint(0, 2, (2 * _POOL,), generator=_GENERATOR).double() * 2 - 1) * (
    0.6 + 0.77 * torch.rand(2 * _POOL, generator=_GENERATOR, dtype=torch.float64)
)
_aten = torch.ops.aten


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What moves or selects values, and rounds none.
_MOVES = _words(
    """
    _unsafe_view unsafe_split unsafe_chunk split_with_sizes ne eq gt ge lt le sgn conj_physical softshrink
    hardshrink adaptive_max_pool2d clone cat stack copy index gather select slice constant_pad_nd
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    roll flip repeat where relu clamp clamp_min clamp_max maximum minimum amax amin max min
    max_pool2d_with_indices max_pool3d_with_indices max_pool1d topk sort embedding pixel_shuffle pixel_unshuffle
    channel_shuffle im2col neg abs sign floor ceil round trunc masked_fill scatter fill zeros ones full
    zeros_like ones_like full_like empty empty_like new_zeros new_ones new_full new_empty tril triu hardtanh
    threshold nan_to_num _unsafe_index _to_copy contiguous detach lift_fresh lift_fresh_copy lift native_dropout
    bernoulli arange scalar_tensor zero set_ select_scatter slice_scatter fill_ diagonal_scatter masked_select
    nonzero unfold_copy argmax argmin one_hot index_select take_along_dim take masked_scatter eq resize
    as_strided_scatter _prelu_kernel_select select_backward slice_backward threshold_backward
    max_pool2d_with_indices_backward isin constant_pad randn rand randint randn_like rand_like normal uniform
    randperm bucketize empty_strided new_empty_strided eye
    """
)
# What makes numbers of none, and rounds them; what is computed as the steps that torch's decomposition has.
_MADE = _words("linspace")
_APART = _words("affine_grid_generator")
# One rounding of the value.
_ARITHMETIC = _words(
    "add sub mul div rsub addcmul addcdiv lerp square reciprocal sqrt _prelu_kernel leaky_relu fmod remainder"
)
# Sums of products: linear in each of their tensors, so that magnitudes give the sum of magnitudes.
_PRODUCTS = _words("mm bmm mv dot addmm baddbmm addbmm addmv convolution _convolution")
_SUMS = _words(
    """
    sum mean nansum cumsum avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_avg_pool1d col2im index_add scatter_add embedding_dense_backward avg_pool2d_backward
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward avg_pool3d_backward
    index_put _index_put_impl _unsafe_index_put scatter_reduce trace
    slow_conv_transpose2d
    """
)
_RANDOM = _words(
    "bernoulli native_dropout normal normal_functional uniform rand randn rand_like randn_like randint randint_like "
    "randperm multinomial poisson exponential cauchy geometric log_normal random rrelu_with_noise alpha_dropout"
)
# Functions with a term of the size of 1, or of their argument, that cancels.
_NEAR_ONE = _words("elu celu selu softplus log_sigmoid_forward")
_TIMES_ARGUMENT = _words("gelu silu mish hardswish")
_RESIZES = ("upsample_", "_upsample_")
_STATISTICS = _words("var std var_mean std_mean")


class RandomNumbers(Exception):
    """The computation draws random numbers: two runs of it differ, and show nothing of roundings."""


# What code, or torch itself for an RMSNorm, asks of a dtype (`torch.finfo`) is float64's where
# a computation runs in that; the network's is float32's.
_LIMITS = {
    getattr(torch.finfo(torch.float64), name): getattr(torch.finfo(torch.float32), name)
    for name in ("eps", "tiny", "max", "min")
}


class Exact(TorchDispatchMode):
    """Every operation in float64. `names` notes what was computed, oldest first.

    Two things are as they are in float32: the limits of the dtype where the code uses them, and casts to half types,
    which round.

    Raises:
        RandomNumbers: an operation draws some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name.rstrip("_") in _RANDOM:
            raise RandomNumbers(f"it draws random numbers ({name}), so that no two runs of it are the same")
        if name.endswith("_") and not name.endswith("__"):
            return self._in_place(func, args, kwargs or {})
        self.names.append(name)
        args, kwargs = _doubled(args), _doubled(kwargs or {})
        dtype = kwargs.get("dtype")
        if dtype in _LOW:
            kwargs["dtype"] = torch.float64
        result = self._compute(name, func, args, kwargs)
        return result.to(dtype).double() if name == "_to_copy" and dtype in _HALF else result

    def _compute(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        return func(*args, **kwargs)

    def _in_place(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """What rounds is computed apart and then written."""
        name = func._schema.name.split("::")[1].rstrip("_")
        apart = getattr(getattr(_aten, name, None), func._overloadname, None)
        if apart is None or (name not in _RULES and name not in _FUNCTIONS):
            self.names.append(name)
            return func(*args, **kwargs)
        with self:
            result = apart(*args, **kwargs)
        torch.ops.aten.copy_.default(args[0], result)
        return args[0]


class Rounded(Exact):
    """Every operation in float64, its result moved by what it may be off in a precision of this unit roundoff.

    `unknown` collects the names of operations that no rule knows: their arguments and their value are moved by 8
    roundings each.
    """

    def __init__(self, seed: int, unit: float = UNITS["float32"]) -> None:
        super().__init__()
        self.unit = unit
        self.unknown: set[str] = set()
        self._random = torch.Generator().manual_seed(seed)

    def _compute(self, name: str, func: Any, args: tuple, kwargs: dict) -> Any:
        if name in _MOVES or func.is_view or not (_floats((args, kwargs)) or name in _MADE) or _empty(args):
            return func(*args, **kwargs)
        rule = _RULES.get(name)
        if rule is None and name.startswith(_RESIZES):
            rule = _resize_backward if name.endswith("_backward") else _resize
        if rule is not None:
            return rule(self, func, args, kwargs)
        apart = decomposition_table.get(func)
        if apart is not None and ("_backward" in name or name in _APART):
            with self:
                return apart(*args, **kwargs)
        if name in _FUNCTIONS:
            return _function(self, func, args, kwargs)
        with self:  # an operation that torch makes of others, called from within another's decomposition
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self.unknown.add(name)
        moved = _each(lambda value: self.relative(value, 8) if _is_float(value) else value, (args, kwargs))
        return _each(lambda value: self.relative(value, 8) if _is_float(value) else value, func(*moved[0], **moved[1]))

    def signs(self, shape: torch.Size) -> torch.Tensor:
        """A random sign for each value."""
        count = math.prod(shape)
        start = int(torch.randint(0, _POOL, (1,), generator=self._random))
        if count <= _POOL:
            return _SIGNS[start : start + count].view(shape)
        rolled = _SIGNS[start : start + _POOL]
        return rolled.repeat(-(-count // _POOL))[:count].view(shape)

    def by(self, value: torch.Tensor, amplitude: Any) -> torch.Tensor:
        """`value` moved by so much, up or down; what is infinite stays."""
        moved = value + amplitude * self.signs(value.shape)
        return torch.where(moved.isfinite(), moved, value)

    def summed(self, value: torch.Tensor, size: torch.Tensor, terms: float) -> torch.Tensor:
        """`value`, a sum of so many terms whose magnitudes add up to `size`, moved by what its order may do."""
        return self.by(value, _SUM * self.unit * math.sqrt(terms + 1) * (size + value.abs()))

    def relative(self, value: torch.Tensor, roundings: float = 1.0) -> torch.Tensor:
        """`value` moved by so many roundings of its own size."""
        return value * (1 + roundings * self.unit * self.signs(value.shape))


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _is_whole(value: Any) -> bool:
    return not isinstance(value, (float, int)) and not _is_float(value)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with the function applied to all in its tuples, lists and dicts, which are plain ones in an operation."""
    if type(value) in (tuple, list):
        return type(value)([_each(function, one) for one in value])
    if type(value) is dict:
        return {name: _each(function, one) for name, one in value.items()}
    return function(value)


def _floats(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_floats, value))
    return any(map(_floats, value.values())) if isinstance(value, dict) else _is_float(value)


def _empty(args: tuple) -> bool:
    return any(isinstance(one, torch.Tensor) and not one.numel() for one in args)


def _doubled(value: Any) -> Any:
    return _each(_as_float64, value)


def _as_float64(one: Any) -> Any:
    if isinstance(one, torch.Tensor):
        return one.double() if one.dtype in _LOW else one
    return _LIMITS.get(one, one) if isinstance(one, float) else one


def _magnitudes(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """The operation on the magnitudes of its arguments, for which float32 does."""
    least = _each(lambda one: one.abs().float() if _is_float(one) else one, (args, kwargs))
    with torch.no_grad():
        return func(*least[0], **least[1]).double()


def _alike(mode: Rounded, x: torch.Tensor, axes: list[int], value: torch.Tensor) -> torch.Tensor:
    """How many terms go with a term of a sum over `axes` that comes to `value`: from 1 to all.

    Terms that differ by less than the last digit of their sum, as those of a plain background do, are rounded alike
    when they are added one after another: so many are off by so many times what one is. Some of the terms tell how many
    pairs there are. Zeros are not rounded.
    """
    rest = [axis for axis in range(x.dim()) if axis not in axes]
    terms = x.permute(*rest, *axes).reshape(*(x.shape[axis] for axis in rest), -1)
    n = terms.shape[-1]
    some = terms[..., :: max(1, n // _SOME)].sort(-1)[0].contiguous()
    m = some.shape[-1]
    if m < 3 or not some.numel():
        return torch.ones(some.shape[:-1], dtype=x.dtype)
    parts = value.reshape(some.shape[:-1]).abs() + (n * some.square().mean(-1)).sqrt()  # the size of partial sums
    far = 2 * mode.unit * parts.unsqueeze(-1)
    with_one = torch.searchsorted(some, some + far, right=True) - torch.searchsorted(some, some - far) - 1
    return 1 + (n - 1) * (with_one * (some != 0)).sum(-1) / (m * (m - 1))


def _arithmetic(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """One rounding, but none of what is exact: pixels' indices are added up so, and cut to integers.

    An addition is a sum, whose terms may be added to others in another order: it rounds by their magnitudes.
    """
    result = func(*args, **kwargs)
    if func._schema.name.split("::")[1] in ("add", "sub", "rsub"):
        size = sum(one.abs() if _is_float(one) else abs(one) for one in args[:2] if not _is_whole(one))
        moved = mode.by(result, _SUM * mode.unit * 3**0.5 * (size + result.abs()))
    else:
        moved = mode.relative(result, _NEAREST)
    numbers = [torch.tensor(one, dtype=torch.float64) for one in args if isinstance(one, float)]
    if result.numel() > _POOL or not all(_short(one, mode.unit) for one in numbers):
        return moved
    return torch.where(_short(result, mode.unit), result, moved)


def _function(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    args = tuple(mode.relative(one) if _is_float(one) else one for one in args)
    return _each(lambda one: mode.relative(one, _FUNCTION) if _is_float(one) else one, func(*args, **kwargs))


def _times_argument(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    return mode.by(func(*args, **kwargs), _FUNCTION * mode.unit * args[0].abs())


def _near_one(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    result = func(*args, **kwargs)
    first = result[0] if isinstance(result, tuple) else result
    moved = mode.by(first, _FUNCTION * mode.unit * (1 + first.abs()))
    return (moved, *result[1:]) if isinstance(result, tuple) else moved


def _products(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Sums of products. What their magnitudes add up to is at most the product of the two lengths (Cauchy-Schwarz)."""
    name = func._schema.name.split("::")[1]
    result = func(*args, **kwargs)
    if name in ("convolution", "_convolution"):
        return mode.by(result, mode.unit * _lengths_of_convolution(args, result))
    given = args[1:3] if name.startswith(("add", "badd")) else args[:2]
    if name in ("mv", "dot", "addmv"):
        length = torch.linalg.vector_norm(given[0], dim=-1) * torch.linalg.vector_norm(given[1])
    else:
        length = torch.linalg.vector_norm(given[0], dim=-1).unsqueeze(-1) * torch.linalg.vector_norm(
            given[1], dim=-2
        ).unsqueeze(-2)
    terms = given[0].shape[-1] if given[0].dim() else 1
    if name == "addbmm":
        length, terms = length.sum(0), terms * len(length)
    if given is not args[:2] and len(args) > 2 and name.startswith(("add", "badd")):
        length = length * abs(kwargs.get("alpha", 1)) + args[0].abs() * abs(kwargs.get("beta", 1))
    return mode.by(result, mode.unit * _SUM * math.sqrt(terms + 1) * (length + result.abs()))


def _lengths_of_convolution(args: tuple, result: torch.Tensor) -> torch.Tensor:
    """The roundings of a convolution's result."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    squares = x.square().unflatten(1, (groups, -1)).sum(2)  # (N, groups, ...)
    ones = torch.ones((groups, 1, *weight.shape[2:]), dtype=x.dtype)
    windows = torch.ops.aten.convolution.default(
        squares, ones, None, stride, padding, dilation, transposed, output_padding, groups
    )
    if transposed:  # (I, O / groups, ...)
        lengths = weight.square().unflatten(0, (groups, -1)).flatten(3).sum((1, 3)).flatten()
        terms = weight.numel() // weight.shape[1] // groups
    else:
        lengths, terms = weight.square().flatten(1).sum(1), weight[0].numel()
    windows = windows.clamp_min(0).repeat_interleave(result.shape[1] // groups, 1)
    size = (windows * lengths.view(1, -1, *[1] * (x.dim() - 2))).sqrt()
    if bias is not None:
        size = size + bias.abs().view(1, -1, *[1] * (x.dim() - 2))
    return _SUM * math.sqrt(terms + 1) * (size + result.abs())


def _convolution_backward(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    gradient, _, weight = args[:3]
    results, sizes = func(*args, **kwargs), _each(lambda one: one.abs() if _is_float(one) else one, args)
    sizes = func(*sizes, **kwargs)
    here = gradient.numel() // gradient.shape[1]
    terms = (weight.numel(), here, here)
    moved = [
        None if result is None else mode.summed(result, size, n)
        for result, size, n in zip(results, sizes, terms, strict=True)
    ]
    if results[2] is not None:
        moved[2] = _of_bias(mode, gradient, results[2])
    return tuple(moved)


def _of_bias(mode: Rounded, gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The gradient of a bias: the sum of what arrives, over all axes but the channels'."""
    axes = [axis for axis in range(gradient.dim()) if axis != 1]
    size = gradient.abs().sum(axes)
    terms = gradient.numel() / max(len(size), 1) * _alike(mode, gradient, axes, result)
    return mode.by(result, _SUM * mode.unit * (terms + 1).sqrt() * (size + result.abs()))


def _sums(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    result = func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    given = sum(one.numel() for one in args if _is_float(one))
    if name in ("sum", "mean") and args[0].dim():
        axes = kwargs.get("dim", args[1] if len(args) > 1 else None) or range(args[0].dim())
        axes = [axis % args[0].dim() for axis in ([axes] if isinstance(axes, int) else axes)]
        size, n = _magnitudes(func, args, kwargs), given / max(result.numel(), 1)
        alike = _alike(mode, args[0], axes, result * n if name == "mean" else result).reshape(result.shape)
        return mode.by(result, _SUM * mode.unit * (n * alike + 1).sqrt() * (size + result.abs()))
    if name == "cumsum":
        terms: float = args[0].shape[args[1]] if args[0].dim() else 1
    elif name.startswith(("index", "scatter", "_index", "_unsafe", "embedding", "col2im")):
        terms = max(4.0, given / max(result.numel(), 1))
    else:
        terms = given / max(result.numel(), 1)
    return mode.summed(result, _magnitudes(func, args, kwargs), terms)


def _softmax(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    result = func(mode.relative(args[0], 2), *args[1:], **kwargs)
    n = args[0].shape[args[1]] if args[0].dim() else 1
    amplitude = mode.unit * (_FUNCTION + 2 * _SUM * math.sqrt(n))
    return mode.by(result, amplitude * (result.abs() if "log" not in func._schema.name else 1 + result.abs()))


def _statistics(mode: Rounded, x: torch.Tensor, axes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance over `axes`, kept as axes of length one, each as far off as it may be."""
    n = math.prod(x.shape[axis] for axis in axes)
    mean, size = x.mean(axes, keepdim=True), x.abs().mean(axes, keepdim=True)
    terms = n * _alike(mode, x, axes, mean * n).reshape(mean.shape)
    mean = mode.by(mean, _SUM * mode.unit * (terms + 1).sqrt() * (size + mean.abs()))
    variance = (x - mean).square().mean(axes, keepdim=True)
    return mean, mode.by(variance, mode.unit * (2 * _SUM * terms.sqrt() + _FUNCTION) * variance)


def _normalised(mode: Rounded, x: Any, mean: Any, variance: Any, epsilon: float, weight: Any, bias: Any) -> Any:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, also where it is computed as x * scale + shift."""
    factor = mode.relative(torch.rsqrt(variance + epsilon), _FUNCTION)
    factor = factor if weight is None else factor * weight
    result = (x - mean) * factor
    amplitude = (x.abs() + mean.abs()) * factor.abs() + result.abs()
    if bias is not None:
        result = result + bias
        amplitude = amplitude + bias.abs()
    return mode.by(result, mode.unit * amplitude), factor


def _layer_norm(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    x, shape, weight, bias, epsilon = args
    mean, variance = _statistics(mode, x, list(range(x.dim() - len(shape), x.dim())))
    return _normalised(mode, x, mean, variance, epsilon, weight, bias)[0], mean, torch.rsqrt(variance + epsilon)


def _group_norm(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    x, weight, bias, batch, channels, _, groups, epsilon = args
    grouped = x.reshape(batch, groups, channels // groups, -1)
    mean, variance = _statistics(mode, grouped, [2, 3])
    each = [None if one is None else one.view(1, groups, -1, 1) for one in (weight, bias)]
    result = _normalised(mode, grouped, mean, variance, epsilon, *each)[0].reshape(x.shape)
    return result, mean.view(batch, groups), torch.rsqrt(variance + epsilon).view(batch, groups)


def _batch_norm(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Every way in which torch names it: (x, weight, bias[, mean, variance][, training], momentum, epsilon)."""
    values = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    x, weight, bias = values["input"], values["weight"], values["bias"]
    mean, variance = values.get("running_mean"), values.get("running_var")  # None where it keeps none
    training = values.get("training", values.get("train", "no_training" not in func._schema.name))
    each = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    shaped = [None if one is None else one.view(each) for one in (weight, bias)]
    if not training and mean is not None and variance is not None:
        result, _ = _normalised(mode, x, mean.view(each), variance.view(each), values["eps"], *shaped)
        return (result, *func(*args, **kwargs)[1:])
    axes = [axis for axis in range(x.dim()) if axis != 1]
    here, spread = _statistics(mode, x, axes)
    n = x.numel() // x.shape[1]
    for running, value in ((mean, here), (variance, spread * n / max(n - 1, 1))):
        if running is not None:
            running.mul_(1 - values["momentum"]).add_(values["momentum"] * value.view(-1))
    result, _ = _normalised(mode, x, here, spread, values["eps"], *shaped)
    return result, here.view(-1), torch.rsqrt(spread + values["eps"]).view(-1)


def _variance(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    x = args[0]
    moved = mode.by(x, mode.unit * x.abs().mean() * math.sqrt(2))
    result = func(moved, *args[1:], **kwargs)
    first = result[0] if isinstance(result, tuple) else result
    n = x.numel() / max(first.numel(), 1)
    return _each(lambda one: mode.relative(one, 2 * _SUM * math.sqrt(n) + _FUNCTION), result)


def _vector_norm(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    result = func(*args, **kwargs)
    terms = args[0].numel() / max(result.numel(), 1)
    return mode.relative(result, 2 * _SUM * math.sqrt(terms) + _FUNCTION)


def _distances(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Distances of rows, by way of |x|^2 + |y|^2 - 2xy, which cancel."""
    result = func(*args, **kwargs)
    x, y = (each.square().sum(-1) for each in args)
    square = mode.summed(result.square(), 2 * (x[..., :, None] + y[..., None, :]), args[0].shape[-1] + 2)
    return mode.relative(square.clamp_min(0).sqrt())


def _resize(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """A resampling onto a grid: on each axis the source coordinate of a value is a number up to the source's length."""
    x, result = args[0], func(*args, **kwargs)
    if "nearest" in func._schema.name:
        return result
    size = _magnitudes(func, args, kwargs).abs()
    if size.dim() > 2 and size.shape[-1] > 2:  # some weights are negative; a neighbour's value says how large they are
        size = torch.nn.functional.max_pool1d(size.flatten(0, -2), 3, 1, 1).view(size.shape)
    return mode.by(result, mode.unit * (sum(x.shape[2:]) + 8) * size)


def _resize_backward(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """A sum over the values that used a number; that their weights are off by their coordinates adds up plainly."""
    gradient, result = args[0], func(*args, **kwargs)
    terms = max(1.0, gradient.numel() / max(result.numel(), 1)) + 4
    roundings = 8 + 2 * _SUM * math.sqrt(4 * terms)
    if "nearest" not in func._schema.name:
        roundings += sum(result.shape[2:])
    return mode.by(result, mode.unit * roundings * _magnitudes(func, args, kwargs).abs())


def _short(value: torch.Tensor, unit: float) -> torch.Tensor:
    """Where a number has half the digits of the precision or fewer: sums and products of such numbers are exact."""
    large = value * (2.0 ** (53 - round(-math.log2(unit)) // 2) + 1)  # Dekker's splitting
    return large - (large - value) == value


def _moved(mode: Rounded, coordinates: torch.Tensor, amplitude: torch.Tensor) -> torch.Tensor:
    """Coordinates as far off as they may be; those that are computed exactly stay where they are, as on an edge."""
    return torch.where(_short(coordinates, mode.unit), coordinates, mode.by(coordinates, amplitude))


def _grid_sample(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """A coordinate of a pixel is ((g + 1) * n - 1) / 2: two roundings of a number up to n."""
    x, grid, *more = args
    grid = _moved(mode, grid, 2 * mode.unit * (1 + grid.abs()))
    size = _sampled(func, x, grid, more, kwargs)
    return mode.by(func(x, grid, *more, **kwargs), 8 * mode.unit * size)


def _sampled(func: Any, x: torch.Tensor, grid: torch.Tensor, more: list, kwargs: dict) -> torch.Tensor:
    """What the magnitudes of a sample's terms add up to: of weights that are all positive, a sample of magnitudes."""
    if more[0] == _BICUBIC:  # the weights' magnitudes add up to 1.25 on an axis at most
        return 1.25**2 * x.abs().amax(dim=(2, 3), keepdim=True)
    return func(x.abs(), grid, *more, **kwargs)


def _grid_sample_backward(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Of an image's number: a sum over the samples that used it. Of a coordinate: a sum over channels, n / 2 times."""
    gradient, x, grid, *more = args
    grid = _moved(mode, grid, 2 * mode.unit * (1 + grid.abs()))
    results = func(gradient, x, grid, *more, **kwargs)
    of_image, of_grid = results
    if of_image is not None:
        size, weights = (
            func(one, torch.ones_like(x[:, : one.shape[1]]), grid, *more, **kwargs)[0].abs()
            for one in (gradient.abs(), torch.ones_like(gradient[:, :1]))
        )
        if more[0] == _BICUBIC:  # some weights are negative; those of a neighbour say how large they are
            size, weights = (1.25**2 * torch.nn.functional.max_pool2d(one, 5, 1, 2) for one in (size, weights))
        of_image = mode.by(of_image, mode.unit * (8 + 2 * _SUM * (4 * weights + 1).sqrt()) * size)
    if more[0] == _NEAREST_PIXEL:  # it does not depend on where in a pixel a sample lies
        return of_image, of_grid
    reach = max(x.shape[2:]) * x.abs().amax()
    bound = reach * gradient.abs().sum(1).unsqueeze(-1)
    of_grid = mode.by(of_grid, mode.unit * (8 + 2 * _SUM * math.sqrt(4 * x.shape[1])) * bound.expand_as(of_grid))
    return of_image, of_grid


def _deform_conv(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    x, weight, offset, mask, bias, *more = args
    offset = _moved(mode, offset, mode.unit * (max(x.shape[2:]) + offset.abs()))
    size = func(x.abs(), weight.abs(), offset, mask.abs(), bias.abs(), *more, **kwargs)
    result = func(x, weight, offset, mask, bias, *more, **kwargs)
    return mode.by(result, mode.unit * (8 + 2 * _SUM * math.sqrt(weight[0].numel() + 1)) * size)


def _deform_conv_backward(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Sums of products as the convolution is, but for the offsets: there pixels are subtracted from each other."""
    gradient, x, weight, offset, mask, bias, *more = args
    groups, parts = more[6:8]
    offset = _moved(mode, offset, mode.unit * (max(x.shape[2:]) + offset.abs()))
    results = func(gradient, x, weight, offset, mask, bias, *more, **kwargs)
    sizes = list(func(gradient.abs(), x.abs(), weight.abs(), offset, mask.abs(), bias.abs(), *more, **kwargs))
    # What arrives at each sample of each channel, at most; then at each sample, times twice the largest pixel.
    here = gradient.abs().flatten(2).unflatten(1, (groups, -1))  # (N, G, O / G, positions)
    there = weight.abs().flatten(1).unflatten(0, (groups, -1))  # (G, O / G, C / G * taps)
    arriving = torch.einsum("ngop,goc->ngcp", here, there)
    arriving = arriving.reshape(len(x), parts, -1, math.prod(weight.shape[2:]), *gradient.shape[2:]).sum(2)
    if more[-1]:
        arriving = arriving * mask.abs().view_as(arriving)
    sizes[2] = 2 * x.abs().amax() * arriving.flatten(1, 2).repeat_interleave(2, 1)
    filters, positions = weight.shape[0] // groups, gradient[:, 0].numel()
    channels = 4 * x.shape[1] / parts
    terms = (filters + 4 * weight[0, 0].numel(), positions, filters + channels, filters + channels, positions)
    return tuple(
        mode.by(one, mode.unit * (8 + 2 * _SUM * math.sqrt(n + 1)) * size) if one.numel() == size.numel() else one
        for one, size, n in zip(results, sizes, terms, strict=True)
    )


def _roi_align(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    x, boxes, scale, *more = args
    boxes = _boxes(mode, boxes, scale)
    size = func(x.abs(), boxes, scale, *more, **kwargs)
    return mode.by(func(x, boxes, scale, *more, **kwargs), mode.unit * (16 + max(x.shape[2:])) * size)


def _roi_align_backward(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """Of a number: a sum over the samples of every bin that used it."""
    gradient, boxes, scale, *more = args
    boxes = _boxes(mode, boxes, scale)
    size, weights = (func(one, boxes, scale, *more, **kwargs) for one in (gradient.abs(), torch.ones_like(gradient)))
    reach = 16 + max(more[4:6]) + 2 * _SUM * (16 * weights + 1).sqrt()
    # A sample that lies next to a pixel by a rounding of its place uses it too.
    size = torch.nn.functional.max_pool2d(size, 3, 1, 1)
    return mode.by(func(gradient, boxes, scale, *more, **kwargs), mode.unit * reach * size)


def _boxes(mode: Rounded, boxes: torch.Tensor, scale: float) -> torch.Tensor:
    """(index, x0, y0, x1, y1), each corner as far off as its place in the image may be."""
    corners = boxes[:, 1:]
    moved = mode.by(corners, 4 * mode.unit * (corners.abs() + 1 / scale))
    exact = _short(corners, mode.unit) & _short(corners * scale, mode.unit)
    return torch.cat([boxes[:, :1], torch.where(exact, corners, moved)], 1)


def _linspace(mode: Rounded, func: Any, args: tuple, kwargs: dict) -> Any:
    """A step is added up, as often as there are numbers; both ends are exact on one side only."""
    return mode.by(func(*args, **kwargs), mode.unit * max(abs(float(end)) for end in args[:2]))


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(_PRODUCTS, _products),
    **dict.fromkeys(_SUMS, _sums),
    **dict.fromkeys(_TIMES_ARGUMENT, _times_argument),
    **dict.fromkeys(_NEAR_ONE, _near_one),
    **dict.fromkeys(_STATISTICS, _variance),
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _softmax,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "linalg_vector_norm": _vector_norm,
    "convolution_backward": _convolution_backward,
    "grid_sampler_2d": _grid_sample,
    "grid_sampler_3d": _grid_sample,
    "grid_sampler_2d_backward": _grid_sample_backward,
    "grid_sampler_3d_backward": _grid_sample_backward,
    "deform_conv2d": _deform_conv,
    "_deform_conv2d_backward": _deform_conv_backward,
    "roi_align": _roi_align,
    "_roi_align_backward": _roi_align_backward,
    "linspace": _linspace,
    "_euclidean_dist": _distances,
}
# Functions of each value alone.
_FUNCTIONS = _words(
    """
    glu exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh sigmoid erf erfc erfinv
    rsqrt pow hardsigmoid logit hypot special_i0 lgamma digamma logaddexp logsumexp polar xlogy tanh_backward
    sigmoid_backward prod cumprod _cdist_forward
    """
)


@contextlib.contextmanager
def exactly(mode: Exact) -> Iterator[Exact]:
    """Compute under `mode`: numbers that the code makes are float64 too, and attention is made of its steps."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with sdpa_kernel(SDPBackend.MATH), mode:
            yield mode
    finally:
        torch.set_default_dtype(usual)
