"""What happened, as data: of a conversion or a verification; rendered as text or JSON."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from converter.errors import aligned, printable
from converter.naming import fold, listed
from converter.rounding import ratio

_BARELY = 1.5  # an error so little beyond what is allowed accuses nothing in particular


@dataclass(frozen=True)
class Comparison:
    """One result of TensorFlow against torch in float64, at the value that is furthest for what is allowed there.

    Attributes:
        name: an output's name, or a layer's path.
        error: difference of TensorFlow's float32 result from the truth.
        allowed: the largest that float32 explains there (`converter.rounding`).
        torch_error: largest difference of torch's own float32 result.
        scale: largest magnitude of the truth.
        note: why the results could not even be compared, or "".
        suspects: what is usually wrong where such a layer differs, or "".
    """

    name: str
    error: float = 0.0
    allowed: float = 0.0
    torch_error: float = 0.0
    scale: float = 0.0
    note: str = ""
    suspects: str = ""

    @property
    def ratio(self) -> float:
        """The error over what is allowed."""
        return ratio(self.error, self.allowed)

    def joined(self, other: "Comparison") -> "Comparison":
        """The worse of both."""
        worse = other if (bool(other.note), other.ratio) > (bool(self.note), self.ratio) else self
        return replace(
            worse,
            name=self.name,
            torch_error=max(self.torch_error, other.torch_error),
            scale=max(self.scale, other.scale),
        )

    def __bool__(self) -> bool:
        return not self.note and self.error <= self.allowed

    def __str__(self) -> str:
        name = printable(self.name, 200)
        if self.note:
            return f"{name}: {self.note}"
        verdict = f"{name}: error {self.error:.1e}, allowed {self.allowed:.1e} (torch's own {self.torch_error:.1e})"
        if self:
            return verdict
        if self.ratio < _BARELY:
            return f"{verdict}; {self.ratio:.2f} times what float32 explains"
        return verdict + (f"; suspect {self.suspects}" if self.suspects else "")


@dataclass(frozen=True)
class Lossless:
    """The written file, read back and its layout undone, against the checkpoint, bit for bit.

    `differing` are tensors that are not equal; `unequal` tensors that TensorFlow leaves out and that are not what the
    mapping says it computes instead; `equal` those that are.
    """

    tensors: int = 0
    nbytes: int = 0
    differing: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    ran: bool = True

    def __bool__(self) -> bool:
        return self.ran and not self.differing and not self.unequal


@dataclass(frozen=True)
class Numerical:
    """The model with the written weights against the torch reference with the checkpoint's, on seeded inputs.

    Attributes:
        outputs: one comparison for each output, the worst of all probes.
        layers: one for each mapped layer that was fed torch's recorded inputs, in the order torch called them.
        between: one for each layer whose input was compared, in a run in which every layer before gave torch's result:
            what joins the layers.
        fault: where the two sides differ first, and why, in a sentence; "" where they do not.
        unproven: Keras variables on which no comparison depends.
        seeded: how many constant tensors were also tried with other values.
        trained: comparisons of gradients, statistics and weights after steps of training; empty where it was not asked.
        by_design: what Keras does otherwise in training, with its size.
        notes: what else is worth knowing.
    """

    outputs: tuple[Comparison, ...] = ()
    layers: tuple[Comparison, ...] = ()
    between: tuple[Comparison, ...] = ()
    fault: str = ""
    unproven: tuple[str, ...] = ()
    seeded: int = 0
    probes: int = 0
    trained: tuple[Comparison, ...] = ()
    by_design: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ran: bool = True

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return (*self.layers, *self.between, *self.outputs, *self.trained)

    def __bool__(self) -> bool:
        return self.ran and not self.fault and bool(self.outputs or self.layers) and all(self.comparisons)

    @property
    def full(self) -> bool:
        """Passed, outputs of the whole among it, and nothing is left unproven."""
        return bool(self) and bool(self.outputs) and not self.unproven

    @property
    def first_difference(self) -> Comparison | None:
        """The first layer, else input of a layer, else output, that differs."""
        return next((one for one in self.comparisons if not one), None)

    @property
    def worst(self) -> float:
        """The largest error over what is allowed."""
        return max((one.ratio for one in self.comparisons), default=0.0)


SKIPPED_LOSSLESS = Lossless(ran=False)
SKIPPED_NUMERICAL = Numerical(ran=False)


@dataclass
class Report:
    """A finished conversion (or verification); `source` is the checkpoint's path, or its address on the hub."""

    model: str
    config: dict[str, Any]
    source: Path | str
    source_sha256: str
    dialect: str
    output: Path
    tensors: int
    variables: int
    nbytes: int
    dtype: str
    scope: str = ""
    key: str = ""  # of the state dict, where the file has others; they are told by `beside`
    beside: list[str] = field(default_factory=list)
    out_of_scope: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)  # variable that no tensor fills -> what it holds
    narrowed: int = 0
    loss: float = 0.0
    notes: list[str] = field(default_factory=list)
    lossless: Lossless = SKIPPED_LOSSLESS
    numerical: Numerical = SKIPPED_NUMERICAL
    seconds: float = 0.0
    action: str = "written"
    trained: str = ""  # since when the values of an existing file are no longer the checkpoint's, as it says
    plan: Any = field(default=None, repr=False, compare=False)  # a `Plan`; JSON leaves it out, `--dry-run` prints it

    def __bool__(self) -> bool:
        """Every proof that ran has passed."""
        return all(bool(proof) for proof in (self.lossless, self.numerical) if proof.ran)

    def loading(self) -> str:
        """How the written file is loaded, as a line of Python."""
        place, built_by = json.dumps(str(self.output), ensure_ascii=False), getattr(self.plan, "pair", None)
        built_by = getattr(built_by, "built_by", "")
        if built_by:
            return f"model.load_weights({place}), where model is what {printable(built_by, 200)} builds"
        return f"tf_models.load({place})"

    def failure(self) -> str:
        """Which proof failed and where, in one line; "" when every proof that ran has passed."""
        if self.lossless.ran and not self.lossless:
            if self.lossless.unequal:
                return f"lossless: {listed(self.lossless.unequal, 3)}"
            names = listed(map(printable, self.lossless.differing), 5)
            if self.trained:
                return (
                    f"the weights were trained {printable(self.trained, 160)}: {len(self.lossless.differing)} of "
                    f"{self.tensors} tensors are no longer this checkpoint's ({names}); verify them against what "
                    "`weightbridge restore` makes of them"
                )
            return f"lossless: {len(self.lossless.differing)} tensors differ in the file: {names}"
        if self.numerical.ran and not self.numerical:
            if not (self.numerical.outputs or self.numerical.layers):
                return "the pair's probes are empty, so nothing was compared"
            outputs = listed([one.name for one in self.numerical.outputs if not one], 5) or "none"
            first = self.numerical.fault or f"first that differs: {self.numerical.first_difference}"
            return f"{first}; outputs that differ: {outputs}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        result = asdict(replace(self, plan=None))
        del result["plan"]
        result["source"], result["output"] = str(self.source), str(self.output)
        for name in ("lossless", "numerical"):
            proof = getattr(self, name)
            result[name] = {"passed": bool(proof), **asdict(proof)}
        result["numerical"]["full"] = self.numerical.full
        for part in ("outputs", "layers", "between", "trained"):
            for row, one in zip(result["numerical"][part], getattr(self.numerical, part), strict=True):
                row.update(ratio=one.ratio, passed=bool(one))
        return result

    def lines(self) -> list[tuple[str, str]]:
        """(heading, text) of each line for a person."""
        rows = [
            ("model", f"{self.model}, {self.tensors} tensors into {self.variables} variables, {size(self.nbytes)}"),
            ("source", f"{self.source}, sha256 {self.source_sha256[:16]}..., dialect {self.dialect}"),
        ]
        if self.beside:
            others = listed([printable(key or "(the file itself)", 40) for key in self.beside], 4)
            rows.append(("key", f"{printable(self.key or '(the file itself)')}; not read: {others}"))
        if self.scope:
            rows.append(("scope", printable(self.scope)))
        if self.out_of_scope:
            rows.append(
                ("out of scope", listed([f"{printable(w, 40)}.* {n}" for w, n in self.out_of_scope.items()], 8))
            )
        for what, tensors in (("dropped", self.dropped), ("folded", self.folded), ("constant", self.constants)):
            reasons: dict[str, list[str]] = {}
            for name, reason in tensors.items():
                reasons.setdefault(reason, []).append(name)
            rows += [(what, f"{listed(map(printable, fold(names)), 4)}: {reason}") for reason, names in reasons.items()]
        if self.narrowed:
            rows.append(("narrowed", f"{self.narrowed} tensors to {self.dtype}, relative loss at most {self.loss:.1e}"))
        if self.trained:
            rows.append(("trained", printable(self.trained, 160)))
        rows += [("note", note) for note in (*self.notes, *self.numerical.notes)]
        if self.lossless.ran:
            verdict = "equal bit for bit" if self.lossless else "DIFFERENT"
            if self.lossless and self.folded:
                verdict += f", {len(self.folded)} of them to what they fold to"
            rows.append(("lossless", f"{self.lossless.tensors} tensors, {size(self.lossless.nbytes)}, {verdict}"))
        if self.numerical.ran:
            rows += self._numerical_lines()
        rows.append((self.action, f"{self.output} in {self.seconds:.1f} s"))
        return rows

    def _numerical_lines(self) -> list[tuple[str, str]]:
        proof = self.numerical
        good = sum(map(bool, proof.layers))
        rows = [("layers", f"{good} of {len(proof.layers)} agree with torch, each on torch's own input")]
        if proof.between:
            joined = sum(map(bool, proof.between))
            rows.append(("between", f"{joined} of {len(proof.between)} get torch's input from the layers before them"))
        rows += [("output", f"{one}{'' if one else '  DIFFERENT'}") for one in proof.outputs]
        if proof.trained:
            good = sum(map(bool, proof.trained))
            rows.append(("training", f"{good} of {len(proof.trained)} gradients, statistics and weights agree"))
            rows += [("by design", text) for text in proof.by_design]
        if proof.unproven:
            names = listed(map(printable, fold(proof.unproven)), 4)
            rows.append(("unproven", f"{names}: no comparison depends on them, so the proof is not full"))
        return rows

    def __str__(self) -> str:
        return "\n".join(aligned(self.lines()))


def size(nbytes: int) -> str:
    """Bytes as a person reads them: `15.5 MB`."""
    value, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def proof_lines(proof: dict[str, Any]) -> list[str]:
    """What a weights file, perhaps a stranger's or an older one, records of its proof, for a person."""
    if "before" in proof:
        return [printable(f"level none, for the weights were trained since; level {proof['before']} before", 200)]
    level = proof.get("level", "not recorded, by an older converter")
    lossless = "equal bit for bit" if proof.get("lossless") is True else "not compared bit for bit"
    lines = [printable(f"level {level}; the tensors {lossless}", 200)]
    if "layers" in proof:
        counts = ", ".join(
            f"{proof.get(name)} {what}"
            for name, what in (("layers", "layers"), ("between", "inputs of layers"), ("outputs", "outputs"))
        )
        trained = f", {proof['trained']} in training" if proof.get("trained") else ""
        lines.append(printable(f"{counts}{trained}; the worst at {proof.get('worst')} of what float32 explains", 200))
    numerical = proof.get("numerical")
    for name, one in list(numerical.items())[:8] if isinstance(numerical, dict) else []:
        lines.append(printable(f"{name}: {json.dumps(one)}", 200))
    if proof.get("unproven"):
        lines.append(printable(f"unproven: {json.dumps(proof['unproven'])}", 300))
    if isinstance(proof.get("versions"), dict):
        lines.append(printable("with " + ", ".join(f"{k} {v}" for k, v in proof["versions"].items()), 200))
    return lines
