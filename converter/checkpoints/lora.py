"""LoRA beside a network's own tensors, merged into the kernels that it adds to: W + scale * B @ A.

Done on a checkpoint's entries, so that all that comes after sees the merged kernels and nothing of LoRA. The sum is in
float64, a product of a column and a row at a time, so that it is the same bits on every machine, and is rounded once to
the kernel's dtype.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, prod

import numpy as np

from converter.checkpoints.adapter_config import NAME, AdapterConfig
from converter.checkpoints.checkpoint import Checkpoint
from converter.checkpoints.tensors import FLOATS, Entry, Made
from converter.errors import ConversionError, UsageError, printable
from converter.naming import fold, globs, listed

_PEFT = "base_model.model."
# How libraries name a factor: peft with and without the adapter's name, loralib, diffusers, SAMed over fused kernels.
_FACTORS = (
    re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])(\.(?P<adapter>[^.]+))?\.weight"),
    re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])"),
    re.compile(r"(?P<path>.+)\.lora_(?P<side>down|up)\.weight"),
    re.compile(r"(?P<path>.+)\.linear_(?P<side>[ab])_(?P<part>[qkv])\.weight"),
)
_ANY = re.compile(r"(?:.*\.)?(?:lora_\w+|linear_[ab]_[qkv]|(?:\w+_)?lora\.(?:down|up))(?:\..*)?|(?:.*\.)?w_[ab]_\d{3}")
# What other adapters keep beside a kernel: kohya's DoRA; LoHa, LoKr, VeRA, OFT and (IA)3.
_OTHER = re.compile(r"(?P<path>.+)\.(?:dora_scale|(?:hada|lokr|vera|oft|ia3)_\w+)(?:\..*)?")
# What changes that which a pair of factors adds, where it stands beside them.
_COMPANION = re.compile(r"(?:dora_scale|scaling|ranknum|(?:lora|hada|lokr|vera|oft|ia3)_\w+)(?:\..*)?")
_KERNELS = ("base_layer.weight", "weight")
_MOST_HEADS = 20  # modules that are told of
_MOST_RANK = 1024  # beyond what is trained; a kernel may have a shorter side, as the last one of a head
_TRAINED = re.compile(r"(?P<path>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)")
_WHERE = "--lora-scale says it: alpha / r, as its training had them"


@dataclass(frozen=True)
class Part:
    """What one pair of factors adds: to which of how many equal blocks of rows, how often, and whether transposed."""

    scale: float
    block: int = 0
    blocks: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Merge:
    """A kernel and (A, B) of each part -> the kernel with all of them added."""

    parts: tuple[Part, ...] = ()

    def __call__(self, values: list[np.ndarray]) -> np.ndarray:
        kernel, *factors = values
        if not self.parts:
            return kernel
        total = kernel.astype(np.float64)
        for part, down, up in zip(self.parts, factors[::2], factors[1::2], strict=True):
            rows = total.shape[0] // part.blocks
            target = total[part.block * rows : (part.block + 1) * rows]
            columns, lines = up.reshape(-1, _rank(down)).T, down.reshape(_rank(down), -1)
            added = np.zeros((columns.shape[1], lines.shape[1]))
            for column, line in zip(columns.astype(np.float64), lines.astype(np.float64), strict=True):
                added += np.multiply.outer(column, line)
            added *= part.scale
            target += (added.T if part.transposed else added).reshape(target.shape)
        return _rounded(total, kernel.dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float64 rounded once to `dtype`."""
    if dtype.itemsize > 2 or dtype == np.float16:
        return values.astype(dtype)
    # bfloat16 is cut from float32: what that rounds to the middle of two of them is moved to its own side.
    single = values.astype(np.float32)
    middle = (single.view(np.uint32) & 0xFFFF) == 0x8000
    aside = np.nextafter(single, np.where(values > single, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(middle & (values != single), aside, single).astype(dtype)


@dataclass
class _Pair:
    """The two factors of one kernel, or of a block of its rows."""

    path: str
    part: str = ""
    adapter: str = ""
    down: Entry | None = None
    up: Entry | None = None


@dataclass
class _Found:
    """What of a state dict is LoRA's."""

    pairs: list[_Pair] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def of_lora(state: dict[str, Entry]) -> list[str]:
    """Names of the tensors that are LoRA's."""
    return [name for name in state if _ANY.fullmatch(name)]


def of_others(state: dict[str, Entry]) -> list[str]:
    """Names of the tensors that other adapters keep beside the kernels of a state dict."""
    found = []
    for name in state:
        match = _OTHER.fullmatch(name)
        if match is not None and any(f"{match['path']}.{leaf}" in state for leaf in _KERNELS):
            found.append(name)
    return found


def merge_lora(checkpoint: Checkpoint, wanted: bool | float, key: str | None = None) -> None:
    """Put merged kernels into the checkpoint's state dicts, or into the one at `key`, in the place of LoRA's tensors.

    `wanted` is the scale (alpha / r) where the checkpoint does not tell it, True where it does, or False.

    Raises:
        UsageError: the scale is no number, or there is nothing to merge.
        ConversionError: there is LoRA and it is not wanted, its scale is not known, or it does not fit its kernels.
    """
    if wanted is not True and wanted is not False and not (isinstance(wanted, (int, float)) and isfinite(wanted)):
        raise UsageError(f"merge_lora is True or a number (alpha / r), not {printable(wanted)}")
    states = {at: state for at, state in checkpoint.states.items() if key in (None, at)}
    names = {at: found for at, state in states.items() if (found := of_lora(state))}
    others = [name for state in states.values() for name in of_others(state)]
    if others:
        raise ConversionError(
            f"{checkpoint.shown()}: {_first(others)}: of an adapter that is not merged here; "
            f"merge it in its own library{_aside(others, states)}"
        )
    if not names:
        if wanted is not False and states:
            raise UsageError(
                f"{printable(checkpoint.path.name)} holds no tensors of LoRA, so there is nothing to merge"
            )
        return
    if wanted is False:
        first = next(iter(names.values()))
        raise ConversionError(
            f"{checkpoint.shown()}: {len(first)} of its tensors are LoRA's ({_first(first)}); --merge-lora adds them "
            f"to the kernels they belong to{_aside([name for found in names.values() for name in found], states)}"
        )
    try:
        scale, config = (None if wanted is True else float(wanted)), AdapterConfig.beside(checkpoint.files[0])
        for at in names:
            merging = _Merging(scale, config, checkpoint.ignored.get(at, []), checkpoint.read)
            checkpoint.states[at], told = merging.merged(states[at])
            where = f"{printable(at, 40)}: " if len(names) > 1 and at else ""
            checkpoint.merged.append(f"{where}{told}")
    except ConversionError as error:
        raise type(error)(f"{checkpoint.shown()}: {error}") from None


def _first(names: list[str]) -> str:
    return listed((printable(name, 70) for name in fold(names)), 2)


def _aside(names: list[str], states: dict[str, dict[str, Entry]]) -> str:
    """How to pass over what holds tensors of these names, where that is no part of the network that is wanted."""
    every = [name.split(".") for state in states.values() for name in state]
    for depth in range(1, max(map(len, every)) + 1):
        heads = {tuple(name.split(".")[:depth]) for name in names}
        if len(heads) > _MOST_HEADS:
            break
        inside = [".".join(words) for words in every if tuple(words[:depth]) in heads]
        if len(inside) < len(every):
            others = [".".join(words) for words in every if tuple(words[:depth]) not in heads]
            patterns = (f"--ignore {shlex.quote(printable(one, 200))}" for one in globs(inside, others))
            return f"; where it is of another network in the file, pass that over: {listed(patterns, 2, ' ')}"
    return ""


@dataclass
class _Merging:
    """What is known of a state dict's LoRA beside its tensors.

    Attributes:
        given: the scale that the user gave.
        ignored: names that were taken out of the state dict.
        read: gives the values of an entry.
    """

    given: float | None
    config: AdapterConfig
    ignored: list[str]
    read: Callable[[Entry], np.ndarray]

    def merged(self, state: dict[str, Entry]) -> tuple[dict[str, Entry], str]:
        """The state dict with merged kernels, and what was done, in a sentence."""
        found = _found(state)
        if found.unknown:
            aside = _aside(found.unknown, {"": state})
            raise ConversionError(f"{_first(found.unknown)}: not merged here; merge it in its own library{aside}")
        companions = list(_companions(found.pairs, [*state, *self.ignored]))
        if companions:
            raise ConversionError(
                f"{_first(companions)} changes what LoRA beside it adds, and is not merged here; "
                f"merge it in its own library{_aside(companions, {'': state})}"
            )
        adapters = sorted({pair.adapter for pair in found.pairs})
        if len(adapters) > 1:
            raise ConversionError(f"it holds several adapters of LoRA: {listed(map(printable, adapters), 6)}; keep one")
        own: dict[str, list[tuple[_Pair, Part]]] = {}
        kernels: dict[str, Entry] = {}
        scales, taken = set(), set(of_lora(state))
        for pair in found.pairs:
            name, kernel = _kernel(state, pair)
            part, rank = _part(pair, kernel)
            alpha = state.get(f"{pair.path}.alpha")
            part = replace(part, scale=self._scale(pair, rank, alpha))
            if alpha is not None:
                taken.add(alpha.name)
            own.setdefault(name, []).append((pair, part))
            kernels[name] = kernel
            scales.add(part.scale)
        _check_transposed(own, kernels, self.config)
        result: dict[str, Entry] = {}
        outer = _outer(own)
        for name, entry in state.items():
            short = _short(name, outer)
            if name in taken or short is None:
                continue
            parts = own.get(name, [])
            factors = [one for pair, _ in parts for one in (pair.down, pair.up) if one is not None]
            how = Merge(tuple(part for _, part in parts))
            if short in result:
                raise ConversionError(f"{printable(short)} stands there twice, once wrapped")
            if short == name and not parts:
                result[short] = entry
            else:
                result[short] = replace(
                    entry, name=short, problem=_problem(entry, factors), made=Made((entry, *factors), how)
                )
        texts = ", ".join(f"{scale:g}" for scale in sorted(scales))
        names = listed(map(printable, fold(own)), 2)
        return result, f"LoRA merged into {len(own)} kernels, in float64 and rounded once: {names}; scale {texts}"

    def _scale(self, pair: _Pair, rank: int, alpha: Entry | None) -> float:
        """How often the product is added: as the file or its configuration says, as is given, as its library has it."""
        place, given = printable(pair.path), self.given
        if self.config.rank not in (None, rank):
            raise ConversionError(
                f"LoRA at {place} is of rank {rank}, and the {NAME} beside it says r is {self.config.rank}"
            )
        told = self.config.scale(rank) if alpha is None else self._number(alpha) / rank
        if told is not None and given is not None and not np.isclose(told, given, rtol=1e-6, atol=0):
            where = printable(alpha.name) if alpha is not None else f"the {NAME} beside it"
            raise ConversionError(f"the scale of LoRA at {place} is {told:g}, says {where}, and not {given:g}")
        if told is None and given is None and not pair.part:
            raise ConversionError(f"nothing tells the scale of LoRA at {place}; {_WHERE}")
        if told is None:
            return 1.0 if given is None else given  # the fused layers of SAMed know no other than 1
        return told

    def _number(self, entry: Entry) -> float:
        """The one value of a tensor; of more, none is read."""
        value = float(self.read(entry).reshape(-1)[0]) if prod(entry.shape) == 1 else np.nan
        if not isfinite(value):
            raise ConversionError(f"{printable(entry.name)} is no number")
        return value


def _companions(pairs: list[_Pair], names: Iterable[str]) -> Iterable[str]:
    """Of the names, those of tensors beside a pair of factors that change what it adds."""
    paths = {pair.path for pair in pairs}
    for name in names:
        if not any(pattern.fullmatch(name) for pattern in _FACTORS):
            places = (at.start() for at in re.finditer(r"\.", name))
            if any(name[:at] in paths and _COMPANION.fullmatch(name, at + 1) for at in places):
                yield name


def _found(state: dict[str, Entry]) -> _Found:
    found = _Found()
    pairs: dict[tuple[str, str, str], _Pair] = {}
    for name in of_lora(state):
        match = next((one for pattern in _FACTORS if (one := pattern.fullmatch(name))), None)
        if match is None:
            found.unknown.append(name)
            continue
        groups = match.groupdict()
        key = (groups["path"], groups.get("part") or "", groups.get("adapter") or "")
        pair = pairs.setdefault(key, _Pair(*key))
        if groups["side"] in ("A", "a", "down"):
            pair.down = state[name]
        else:
            pair.up = state[name]
    found.pairs = list(pairs.values())
    return found


def _kernel(state: dict[str, Entry], pair: _Pair) -> tuple[str, Entry]:
    """The kernel that a pair of factors adds to."""
    inner = ("qkv.weight",) if pair.part else _KERNELS
    name = next((name for leaf in inner if (name := f"{pair.path}.{leaf}") in state), None)
    if name is None:
        lacking = f"{pair.path}.{inner[-1]}"
        raise ConversionError(
            f"LoRA stands there without the kernel it adds to ({printable(lacking)}); "
            "merge it into its model, and save that"
        )
    if pair.down is None or pair.up is None:
        raise ConversionError(f"one of the two factors of LoRA at {printable(pair.path)} is missing")
    return name, state[name]


def _part(pair: _Pair, kernel: Entry) -> tuple[Part, int]:
    """How the factors lie in the kernel, by their shapes, and their rank."""
    assert pair.down is not None
    assert pair.up is not None
    down, up = pair.down.shape, pair.up.shape
    blocks = 3 if pair.part else 1
    height = kernel.shape[0] if kernel.shape else 0
    rank = down[0] if down else 0
    fits = rank > 0 and len(up) > 1 and up[1] == rank and prod(up[2:]) == 1
    fits = fits and height % blocks == 0 and len(kernel.shape) > 1
    product = (up[0], prod(down[1:])) if fits else (0, 0)
    target = (height // blocks, prod(kernel.shape[1:]))
    if rank > max(_MOST_RANK, min(target)):  # before as much is computed
        raise ConversionError(f"LoRA at {printable(pair.path)} is of rank {rank}, far beyond its kernel {kernel.shape}")
    if fits and product == target:
        return Part(1.0, "qkv".find(pair.part) if pair.part else 0, blocks), rank
    if fits and blocks == 1 and len(kernel.shape) == 2 and product == target[::-1]:
        return Part(1.0, transposed=True), rank
    # loralib's convolutions: factors of r * k by in * k, and of out * k by r * k, in the order of their values.
    width = kernel.shape[-1] if len(kernel.shape) == 4 and len(down) == len(up) == 2 else 0
    if fits and width and prod(product) == prod(target) and not any(n % width for n in (rank, *product)):
        return Part(1.0), rank // width
    raise ConversionError(
        f"LoRA of shapes {down} and {up} at {printable(pair.path)} does not fit the kernel of {kernel.shape}"
    )


def _check_transposed(
    own: dict[str, list[tuple[_Pair, Part]]], kernels: dict[str, Entry], config: AdapterConfig
) -> None:
    """Of a square kernel nothing tells that it lies the other way round, where another does."""
    turned = [name for name, parts in own.items() if any(part.transposed for _, part in parts)]
    square = [name for name in own if len(kernels[name].shape) == 2 and len(set(kernels[name].shape)) == 1]
    if (turned or config.fan_in_fan_out) and square:
        raise ConversionError(
            f"{printable(square[0])} is square, so that nothing shows whether LoRA is to be added transposed, as to "
            "other kernels of the file; merge it in its own library"
        )


def _outer(own: dict[str, list[tuple[_Pair, Part]]]) -> dict[str, str]:
    """Path of a layer that one of LoRA holds as a part of its own -> the path that it has without LoRA."""
    return {
        name.removesuffix(".weight"): pair.path
        for name, parts in own.items()
        for pair, _ in parts
        if name != f"{pair.path}.weight"
    }


def _short(name: str, outer: dict[str, str]) -> str | None:
    """The tensor's name in the network without LoRA, or None where a trained copy stands in its place."""
    if ".original_module." in name:
        return None
    path, _, leaf = name.rpartition(".")
    name = f"{outer[path]}.{leaf}" if path in outer else name
    match = _TRAINED.fullmatch(name)
    return (f"{match['path']}.{match['leaf']}" if match else name).removeprefix(_PEFT)


def _problem(entry: Entry, factors: Sequence[Entry]) -> str | None:
    for one in (entry, *factors):
        if one.problem:
            return one.problem if one is entry else f"LoRA's {printable(one.name)}: {one.problem}"
        if factors and one.dtype not in FLOATS:
            return f"LoRA is not merged into {entry.dtype} with {one.dtype}"
    return None


def _rank(down: np.ndarray) -> int:
    return down.shape[0]
