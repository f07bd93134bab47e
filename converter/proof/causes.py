"""A guess at why two networks differ between two layers that agree: what would make the one value of the other."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

_NEAR = 1e-4  # of the scale: a guess needs no more than to stand out


def _erf(x: np.ndarray) -> np.ndarray:
    # Abramowitz and Stegun 7.1.26, good to 1.5e-7.
    t = 1 / (1 + 0.3275911 * np.abs(x))
    factors = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    return np.sign(x) * (1 - sum(a * t ** (i + 1) for i, a in enumerate(factors)) * np.exp(-x * x))


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "LeakyReLU (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "LeakyReLU (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "LeakyReLU (0.3)": lambda x: np.where(x > 0, x, 0.3 * x),
    "exact GELU": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "GELU approximated by tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "tanh": np.tanh,
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softmax over the last axis": lambda x: (
        np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)
    ),
}


def cause(
    ours: np.ndarray,
    theirs: np.ndarray,
    before: np.ndarray | None,
    earlier: Mapping[str, np.ndarray],
    between: Iterable[str],
) -> str:
    """A guess in a few words, or "".

    Args:
        ours, theirs: what reaches the layer on the two sides; channels last.
        before: what left the layer before, on which both agree.
        earlier: what reached each layer before.
        between: torch's operations since then.
    """
    with np.errstate(all="ignore"):
        for guess in (_function, _order, _sum, _factor, _border):
            found = guess(ours, theirs, before, earlier)
            if found:
                return found
    return operation(between)


def _near(some: np.ndarray, other: np.ndarray, near: float = _NEAR) -> bool:
    if some.shape != other.shape:
        return False
    return bool(np.abs(some - other).max(initial=0) <= near * np.abs(other).max(initial=0))


def _function(ours: np.ndarray, theirs: np.ndarray, before: np.ndarray | None, earlier: object) -> str:
    """Each side is some function of what left the layer before; GELU and its approximation differ by 5e-4."""
    if before is None or before.size != theirs.size:
        return ""
    before = before.reshape(theirs.shape)
    applied = []
    for side in (theirs, ours):
        off = {name: np.abs(function(before) - side).max(initial=0) for name, function in _FUNCTIONS.items()}
        name = min(off, key=lambda one: off[one])
        if off[name] > 3e-5 * max(np.abs(side).max(initial=0), 1e-30):
            return ""
        applied.append(name)
    return f"torch applies {applied[0]}, TensorFlow {applied[1]}" if applied[0] != applied[1] else ""


def _order(ours: np.ndarray, theirs: np.ndarray, before: object, earlier: object) -> str:
    if theirs.size > 1 and _near(np.sort(ours, None), np.sort(theirs, None), 1e-6):
        channels = _flattened(ours, theirs)
        if channels:
            return (
                f"the same values in another order: torch flattens ({channels} channels, h, w), TensorFlow (h, w, "
                f"{channels} channels): kinds.DENSE_FLATTENED.sized(h=..., w=...) lays a kernel out for that"
            )
        named = _shuffled(ours, theirs)
        if named:
            return named
        return "the same values in another order: a flatten, a reshape, a pixel shuffle, a transpose or a roll"
    return ""


def _flattened(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many channels come first in torch's rows and last in TensorFlow's, or 0."""
    if ours.shape != theirs.shape or ours.ndim != 2:
        return 0
    for channels in range(2, ours.shape[1]):
        if ours.shape[1] % channels == 0:
            turned = theirs.reshape(len(theirs), channels, -1).swapaxes(1, 2).reshape(theirs.shape)
            if _near(ours, turned, 1e-6):
                return channels
    return 0


def _shuffled(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Channels that a pixel shuffle takes or a pixel unshuffle gives, in the order of the other library."""
    if ours.shape != theirs.shape or ours.ndim != 4:
        return ""
    for factor in (2, 3, 4, 8):
        block, channels = factor * factor, ours.shape[-1]
        if channels % block == 0 and channels > block:
            unshuffled = theirs.reshape(*theirs.shape[:3], channels // block, block).swapaxes(3, 4)
            if _near(ours, unshuffled.reshape(theirs.shape), 1e-6):
                return (
                    "the same values in another order: torch's pixel unshuffle counts the channels (c, r, r), "
                    "TensorFlow's space_to_depth (r, r, c): kinds.CONV_2D_UNSHUFFLED, or "
                    "tf_models.layers.PixelUnshuffle"
                )
        grown = [n % factor for n in ours.shape[1:3]]
        if any(grown):
            continue
        batch, height, width, _ = ours.shape
        cells = (batch, height // factor, factor, width // factor, factor, channels)
        order = (0, 1, 3, 5, 2, 4)  # (N, H, W, c, r, r), as torch counts the channels
        mine, one = (value.reshape(cells).transpose(order) for value in (ours, theirs))
        flat = one.reshape(*one.shape[:3], block, channels).swapaxes(3, 4).reshape(one.shape)
        if channels > 1 and _near(mine, flat, 1e-6):
            return (
                "the same values in another order: torch's pixel shuffle counts the channels (c, r, r), TensorFlow's "
                "depth_to_space (r, r, c): kinds.CONV_2D_SHUFFLED, or tf_models.layers.PixelShuffle"
            )
    return ""


def _sum(ours: np.ndarray, theirs: np.ndarray, before: object, earlier: Mapping[str, np.ndarray]) -> str:
    for name, value in earlier.items():
        if value.shape == ours.shape and np.abs(value).max(initial=0) > 0:
            if _near(ours + value, theirs):
                return f"a sum is left out: what reaches {name} is added in torch"
            if _near(ours - value, theirs):
                return f"what reaches {name} is added in TensorFlow alone"
    return ""


def _factor(ours: np.ndarray, theirs: np.ndarray, before: object, earlier: object) -> str:
    scale = float((ours * theirs).sum() / max((ours * ours).sum(), 1e-300))
    if abs(scale - 1) > 1e-5 and np.isfinite(scale) and _near(scale * ours, theirs, 1e-5):
        return f"torch's is {scale:.6g} times TensorFlow's: a scale"
    return ""


def _border(ours: np.ndarray, theirs: np.ndarray, before: object, earlier: object) -> str:
    """The two differ along the edges of an image only."""
    if theirs.ndim not in (3, 4, 5) or min(theirs.shape[1:-1]) < 3:
        return ""
    off = np.abs(ours - theirs) > _NEAR * np.abs(theirs).max(initial=0)
    inner = off[(slice(None), *(slice(1, -1) for _ in theirs.shape[1:-1]))]
    return "they differ at the borders only: padding" if off.any() and not inner.any() else ""


_ACTIVATIONS = frozenset("relu hardtanh tanh sigmoid silu hardswish hardsigmoid leaky_relu elu gelu mish".split())


def operation(between: Iterable[str]) -> str:
    """What usually goes wrong with the one operation that stands there, if there is one."""
    usual = (
        ("upsample", "a resizing: align_corners, half pixels, or its kind"),
        ("grid_sampler", "a sampling: align_corners, padding, or the order of x and y"),
        ("max_pool", "a pooling: its padding (minus infinity in torch), or ceil_mode"),
        ("avg_pool", "a pooling: its padding, and whether that is counted"),
        ("softmax", "a softmax: its axis, its scale, or a mask"),
        ("_pad", "a padding: its kind, or on which sides"),
        ("mean", "a mean: over which axes"),
    )
    names = list(between)
    hits = [text for name, text in usual if any(name in word for word in names)]
    return hits[0] if len(hits) == 1 and not any(word.rstrip("_") in _ACTIVATIONS for word in names) else ""
