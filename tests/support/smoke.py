"""What an installed Weightbridge does, tried by a script that needs nothing else: `python smoke.py FOLDER [hidden]`.

FOLDER holds `attention.safetensors`, of an `ms_deform_attn`, and `sam.safetensors`, a small Segment Anything; what is
written goes there too. Without torch the proof says how to get it, with torch it passes; `hidden` hides a torch that is
installed. It prints where Weightbridge stands.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SIZES = {"n_levels": 2, "n_heads": 2, "n_points": 2}
HIDING = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'huggingface_hub']))\n"


def main(folder: Path) -> None:
    import converter
    import tf_models
    import torch_refs

    shown = command("convert", "--help")
    assert "Convert a torch CHECKPOINT" in shown.stdout
    checkpoint, weights = folder / "attention.safetensors", folder / "attention.weights.h5"
    listed = json.loads(command("weightbridge", "inspect", checkpoint, "--json").stdout)
    assert len(listed["entries"]) == len(converter.inspect(checkpoint)) == 8
    assert converter.plan("auto", checkpoint, SIZES).tensors == 8

    torch = find_spec("torch") is not None
    if not torch:
        told = "error: the numerical proof needs torch, which is not installed: pip install 'weightbridge[torch]', or "
        refused = command("convert", checkpoint, "-o", weights)
        assert (refused.returncode, refused.stderr) == (1, f"{told}--verify lossless\n")
        refused = command("weightbridge", "verify", checkpoint, weights)
        assert (refused.returncode, refused.stderr) == (1, f"{told}--level lossless\n")
        assert not weights.exists()
    level = "full" if torch else "lossless"
    report = converter.convert("auto", checkpoint, weights, level, options=SIZES)
    assert report.lossless
    assert bool(report.numerical) == torch
    assert converter.verify("auto", checkpoint, weights, level=level)

    assert converter.inspect(weights).provenance["proof"]["level"] == level
    assert len(tf_models.load(weights).weights) == 8
    assert all(part.differences for part in converter.export(weights, folder / "saved", "saved_model").parts)
    converter.restore(weights, folder / "back.safetensors")
    assert tensors(folder / "back.safetensors") == tensors(checkpoint)
    assert "ms_deform_attn" in torch_refs.names()

    import numpy as np
    from PIL import Image

    from tf_models.ops import affine_grid, grid_sample
    from tf_models.segmenting.segment import segment

    image, still = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1), np.eye(2, 3, dtype=np.float32)[None]
    sampled = grid_sample(image, affine_grid(still, image.shape, align_corners=True), align_corners=True)
    np.testing.assert_allclose(sampled, image, atol=1e-5)
    sam = folder / "sam.weights.h5"
    converter.convert("auto", folder / "sam.safetensors", sam, "lossless", options={"num_heads": 4})
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)).save(folder / "photo.png")
    assert segment(sam, folder / "photo.png", points=[(20, 30)]).to_dict()["masks"]

    assert torch or sys.modules.get("torch") is None
    print(Path(converter.__file__).parent.parent)


def command(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run `convert` or `weightbridge` with this interpreter."""
    hiding = HIDING if "hidden" in sys.argv else ""
    entry = {"convert": "convert", "weightbridge": "main"}[name]
    words = [sys.executable, "-c", f"{hiding}import cli; cli.{entry}()", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=300)


def tensors(path: Path) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    return {name: values.tobytes() for name, values in load_file(path).items()}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "hidden" in sys.argv:
        exec(HIDING)
    main(Path(sys.argv[1]))
