"""Small files whose layers want memory out of proportion: the proof ends before it takes that."""

import os
import subprocess
import sys
import time

import pytest
import torch

import torch_refs
from tests.support.running import BIN, environment

CONFIGS = {
    "sam_image_encoder": {
        "image_size": 256, "patch_size": 1, "embed_dim": 4, "depth": 1, "num_heads": 1, "mlp_dim": 4, "out_chans": 4,
        "window_size": 200, "global_attn_indexes": [], "trained_img_size": 256,
    },
    "sam_prompt_encoder": {"image_size": 1024, "patch_size": 16, "embed_dim": 100_000, "mask_in_chans": 16},
}  # fmt: skip
MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("model", CONFIGS)
def test_layers_that_want_more_than_their_file_explains(tmp_path, model):
    with torch.device("meta"):
        state = torch_refs.create(model, **CONFIGS[model]).state_dict()
    torch.save({name: torch.tensor(0.01).expand(tensor.shape) for name, tensor in state.items()}, tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 10_000
    command = [sys.executable, "-c", MEASURED, str(BIN / "convert"), "--model", model, "c.pth", "-o", "c.weights.h5"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert time.monotonic() - began < 60  # 10 s of it, on a machine with nothing else to do
    assert done.returncode == 1
    assert done.stderr.startswith("error: the torch reference failed: its layers want more than 7")
    assert done.stderr.count("\n") == 1
    assert int(done.stdout) < 3 << 19  # KB, of the largest process
    assert os.listdir(tmp_path) == ["c.pth"]
