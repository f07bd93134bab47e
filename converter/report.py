"""What happened, as data: of a conversion or a verification; rendered as text or JSON."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import printable


@dataclass(frozen=True)
class Comparison:
    """One result of TensorFlow against torch, both measured against torch in float64.

    Attributes:
        name: an output's name, or a layer's path.
        error: largest difference of TensorFlow's float32 result from the truth.
        torch_error: the same of torch's own float32 result.
        scale: largest magnitude of the truth.
        note: why the results could not even be compared, or "".
        suspects: what is usually wrong where such a layer differs, or "".
        exact: the truth is in float64; else it is torch's float32 result, where memory allows no more.
    """

    name: str
    error: float = 0.0
    torch_error: float = 0.0
    scale: float = 0.0
    note: str = ""
    suspects: str = ""
    exact: bool = True

    @property
    def allowed(self) -> float:
        """The largest error that passes: 4 times torch's own, or 8 float32 roundings at the scale of the truth.

        Where torch's own is not known, a ten-thousandth of the scale.
        """
        if not self.exact:
            return 1e-4 * self.scale
        return max(4 * self.torch_error, 8 * float(np.spacing(np.float32(self.scale))))

    def joined(self, other: "Comparison") -> "Comparison":
        """Both as one: the largest of each."""
        return Comparison(
            self.name,
            max(self.error, other.error),
            max(self.torch_error, other.torch_error),
            max(self.scale, other.scale),
            self.note or other.note,
            self.suspects,
            self.exact and other.exact,
        )

    def __bool__(self) -> bool:
        return not self.note and self.error <= self.allowed

    def __str__(self) -> str:
        if self.note:
            return f"{self.name}: {self.note}"
        own = f"torch's own {self.torch_error:.1e}" if self.exact else "against torch's float32"
        verdict = f"error {self.error:.1e}, allowed {self.allowed:.1e} ({own})"
        return f"{self.name}: {verdict}" + (f"; suspect {self.suspects}" if self.suspects and not self else "")


@dataclass(frozen=True)
class Lossless:
    """The written file, read back and its layout undone, against the checkpoint, bit for bit."""

    tensors: int = 0
    nbytes: int = 0
    differing: tuple[str, ...] = ()
    ran: bool = True

    def __bool__(self) -> bool:
        return self.ran and not self.differing


@dataclass(frozen=True)
class Numerical:
    """The model with the written weights against the torch reference with the checkpoint's, on seeded inputs.

    `outputs` has one comparison for each output (the worst of all probes), `layers` one for each mapped layer that was
    fed torch's recorded inputs, in the order torch called them; `uncalled` are mapped layers that are no calls of
    their own (tables of tokens, parameters): their values are proven by the outputs.
    """

    outputs: tuple[Comparison, ...] = ()
    layers: tuple[Comparison, ...] = ()
    uncalled: tuple[str, ...] = ()
    probes: int = 0
    ran: bool = True

    def __bool__(self) -> bool:
        return self.ran and bool(self.outputs or self.layers) and all(self.outputs) and all(self.layers)

    @property
    def first_difference(self) -> Comparison | None:
        """The first layer, else output, that differs."""
        return next((one for one in (*self.layers, *self.outputs) if not one), None)


SKIPPED_LOSSLESS = Lossless(ran=False)
SKIPPED_NUMERICAL = Numerical(ran=False)


@dataclass
class Report:
    """A finished conversion (or verification)."""

    model: str
    config: dict[str, Any]
    source: Path
    source_sha256: str
    dialect: str
    output: Path
    tensors: int
    variables: int
    nbytes: int
    dtype: str
    out_of_scope: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    narrowed: int = 0
    loss: float = 0.0
    notes: list[str] = field(default_factory=list)
    lossless: Lossless = SKIPPED_LOSSLESS
    numerical: Numerical = SKIPPED_NUMERICAL
    seconds: float = 0.0
    deed: str = "written"

    def __bool__(self) -> bool:
        """Every proof that ran has passed."""
        return all(bool(proof) for proof in (self.lossless, self.numerical) if proof.ran)

    def failure(self) -> str:
        """Which proof failed and where, in one line; "" when every proof that ran has passed."""
        if self.lossless.ran and not self.lossless:
            names = ", ".join(printable(name) for name in self.lossless.differing[:5])
            return f"lossless: {len(self.lossless.differing)} tensors differ in the file: {names}"
        if self.numerical.ran and not self.numerical:
            if self.numerical.first_difference is None:
                return "the pair has no probe inputs, so nothing was compared"
            outputs = ", ".join(one.name for one in self.numerical.outputs if not one) or "none"
            return f"first layer that differs: {self.numerical.first_difference}; outputs that differ: {outputs}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        result = asdict(self)
        result["source"], result["output"] = str(self.source), str(self.output)
        for name in ("lossless", "numerical"):
            proof = getattr(self, name)
            result[name] = {"passed": bool(proof), **asdict(proof)}
        for part in ("outputs", "layers"):
            for row, one in zip(result["numerical"][part], getattr(self.numerical, part), strict=True):
                row.update(allowed=one.allowed, passed=bool(one))
        return result

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of each line for a person."""
        rows = [
            ("model", f"{self.model}, {self.tensors} tensors into {self.variables} variables, {size(self.nbytes)}"),
            ("source", f"{self.source}, sha256 {self.source_sha256[:16]}..., spelling {self.dialect}"),
        ]
        if self.out_of_scope:
            rows.append(("left out", ", ".join(f"{word}.* {n}" for word, n in list(self.out_of_scope.items())[:8])))
        rows += [("dropped", f"{name}: {reason}") for name, reason in list(self.dropped.items())[:4]]
        if len(self.dropped) > 4:
            rows.append(("dropped", f"and {len(self.dropped) - 4} more"))
        if self.narrowed:
            rows.append(("narrowed", f"{self.narrowed} tensors to {self.dtype}, relative loss at most {self.loss:.1e}"))
        rows += [("note", note) for note in self.notes]
        if not all(one.exact for one in (*self.numerical.outputs, *self.numerical.layers)):
            rows.append(("note", "too little memory for float64: compared with torch's float32, a weaker proof"))
        if self.lossless.ran:
            verdict = "equal bit for bit" if self.lossless else "DIFFERENT"
            rows.append(("lossless", f"{self.lossless.tensors} tensors, {size(self.lossless.nbytes)}, {verdict}"))
        if self.numerical.ran:
            good = sum(map(bool, self.numerical.layers))
            rows.append(
                ("layers", f"{good} of {len(self.numerical.layers)} agree with torch, each on torch's own input")
            )
            if self.numerical.uncalled:
                names = ", ".join(self.numerical.uncalled[:4])
                more = f" and {len(self.numerical.uncalled) - 4} more" if len(self.numerical.uncalled) > 4 else ""
                rows.append(("uncalled", f"{names}{more}: proven by the outputs, for torch makes no call of them"))
            rows += [("output", f"{one}{'' if one else '  DIFFERENT'}") for one in self.numerical.outputs]
        rows.append((self.deed, f"{self.output} in {self.seconds:.1f} s"))
        return rows

    def __str__(self) -> str:
        return "\n".join(f"{heading:<9} {text}" for heading, text in self.lines())


def size(nbytes: int) -> str:
    """Bytes as a person reads them: `15.5 MB`."""
    value, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"
