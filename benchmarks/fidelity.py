"""How near each family comes to torch: `python -m benchmarks.fidelity` converts all with the full proof.

It writes README's table, and the picture of every layer's error (`docs/front.svg`). Weights are seeded; sizes are
the published ones where there are any. Errors are distances from torch in float64, the largest of all inputs, over
the largest value of the output; torch's own is that of torch in float32.
"""

import datetime
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision  # before TensorFlow: the other order aborts the process

import converter
import torch_refs
from converter.pairs.registry import get
from torch_refs.sam.seeded_checkpoint import seeded_tensor

ROOT = Path(__file__).parent.parent
_TABLE = re.compile(r"(?<=<!-- fidelity -->\n).*?(?=<!-- /fidelity -->)", re.S)
FAMILIES = (
    "sam_vit_b", "mobile_sam", "ms_deform_attn", "dcn_v2", "deform_conv2d",
    "deformable_attention_1d", "deformable_attention_2d", "deformable_attention_3d",
)  # fmt: skip
# Of those that nobody published, sizes at which the full proof takes little memory.
SIZES: dict[str, dict[str, Any]] = {
    f"deformable_attention_{n}d": {"dim": 32, "heads": 4, "dim_head": 8, "downsample_factor": 2 if n == 3 else 4}
    for n in (1, 2, 3)
}


def proven(name: str, folder: Path) -> Any:
    """The report of a conversion of a network of its usual sizes, with the full proof."""
    network = torch_refs.create(name, **SIZES.get(name, get(name).fallback or {}))
    state = {
        key: seeded_tensor(key, tuple(value.shape)) if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    torch.save(state, folder / f"{name}.pth")
    options = {key: value for key, value in SIZES.get(name, {}).items() if key in get(name).options}
    return converter.convert(
        name, folder / f"{name}.pth", folder / f"{name}.weights.h5", verify="full", options=options
    )


def row(report: Any) -> str:
    """A line of the table: the output that is furthest from what torch itself reaches."""
    proof = report.numerical
    worst = max(proof.outputs, key=lambda one: one.error / one.torch_error)
    good = sum(map(bool, proof.layers))
    return (
        f"| `{report.model}` | {report.tensors} | {good} of {len(proof.layers)} | {worst.error / worst.scale:.1e} "
        f"| {worst.torch_error / worst.scale:.1e} | {worst.error / worst.torch_error:.1f} | {proof.worst:.2f} |"
    )


def draw(reports: list[Any], path: Path) -> None:
    """Each layer a dot, in the order of the networks: its error over what roundings of float32 allow."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "front", "font.family": "sans-serif"})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    start = 0
    for number, report in enumerate(reports):
        ratios = [max(one.ratio, 1e-5) for one in report.numerical.layers]
        places = range(start, start + len(ratios))
        axes.scatter(places, ratios, 10, color=("#0072b2", "#d55e00", "#009e73")[number % 3], linewidths=0)
        if len(ratios) > 20:
            axes.text(start + len(ratios) / 2, 3e-5, f"{report.model}, {len(ratios)} layers", ha="center", fontsize=10)
        start += len(ratios) + 2
    axes.axhline(1, color="black", linewidth=1, linestyle="--")
    axes.text(0, 1.25, "what roundings of float32 explain; a layer above it is refused", fontsize=10)
    axes.set(yscale="log", ylim=(1e-5, 6), xlim=(-3, start), xticks=[])
    axes.set_ylabel("error / allowed")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    headings = "network|tensors|layers that agree|relative error|torch's own|ratio|worst error over allowed"
    lines = [f"| {headings.replace('|', ' | ')} |", "|---|---:|---:|---:|---:|---:|---:|"]
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FAMILIES:
            reports.append(proven(name, Path(folder)))
            lines.append(row(reports[-1]))
            print(lines[-1], flush=True)
    versions = {one.__name__: one.__version__ for one in (torch, torchvision)}
    versions |= {name: version(name) for name in ("tensorflow", "keras")}
    used = ", ".join(f"{name} {text.partition('+')[0]}" for name, text in versions.items())
    lines += ["", f"`python -m benchmarks.fidelity`, {datetime.date.today()}, {used}; seeded weights."]
    page = ROOT / "README.md"
    page.write_text(_TABLE.sub(lambda _: "\n".join(lines) + "\n", page.read_text()))
    draw(reports, ROOT / "docs" / "front.svg")


if __name__ == "__main__":
    main()
