"""The `adapter_config.json` that peft writes beside LoRA: its scale, its rank, and what else it says of the adapter."""

from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from converter.checkpoints.safetensors_file import json_object
from converter.errors import ConversionError, printable

NAME = "adapter_config.json"
_BESIDE = f"the {NAME} beside it"
_LARGEST = 1 << 20  # bytes
_NOT_MERGED = ("use_dora", "alpha_pattern", "rank_pattern", "lora_bias")


@dataclass(frozen=True)
class AdapterConfig:
    """What it says; None where it says nothing.

    Attributes:
        alpha: what the product is multiplied with, before it is divided by the rank, or by its root (`by_root`).
        rank: of every pair of factors.
        fan_in_fan_out: the layers keep their kernels as (in, out).
    """

    alpha: float | None = None
    rank: int | None = None
    by_root: bool = False
    fan_in_fan_out: bool = False

    @classmethod
    def beside(cls, file: Path) -> "AdapterConfig":
        """The one in the folder of a checkpoint's file; one that says nothing where there is none.

        Raises:
            ConversionError: it cannot be read, or says what is not merged here.
        """
        place = file.parent / NAME
        if not place.is_file():
            return cls()
        try:
            with open(place, "rb") as opened:
                text = opened.read(_LARGEST + 1)
        except OSError as error:
            raise ConversionError(f"{_BESIDE} cannot be read ({error.strerror})") from None
        if len(text) > _LARGEST:
            raise ConversionError(f"{_BESIDE} is far too long for one")
        try:
            said = json_object(text, "it is no JSON object")
        except ConversionError as error:
            raise ConversionError(f"{_BESIDE} cannot be read: {error}") from None
        for name in _NOT_MERGED:
            if said.get(name):
                raise ConversionError(f"{_BESIDE} has {name}, which is not merged here; merge it in peft")
        method = said.get("peft_type") or "LORA"
        if method != "LORA":
            raise ConversionError(
                f"{_BESIDE} is of {printable(method, 40)}, which is not merged here; merge it in peft"
            )
        return cls(
            alpha=_of(said, "lora_alpha", _number, "a number"),
            rank=_of(said, "r", _count, "a whole number above 0"),
            by_root=bool(_of(said, "use_rslora", _flag, "true or false")),
            fan_in_fan_out=bool(_of(said, "fan_in_fan_out", _flag, "true or false")),
        )

    def scale(self, rank: int) -> float | None:
        """How often the product of factors of this rank is added."""
        return None if self.alpha is None else self.alpha / (sqrt(rank) if self.by_root else rank)


def _of(said: dict[str, Any], name: str, reading: Any, what: str) -> Any:
    """What it says under a name, None where that is nothing."""
    value = said.get(name)
    if value is None:
        return None
    try:
        return reading(value)
    except (ValueError, OverflowError):  # of a whole number beyond float64
        shown = printable(value, 40) if isinstance(value, str) else printable(str(value), 40)
        raise ConversionError(f"{_BESIDE} says {name} is {shown}, which is not {what}") from None


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**63:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value
