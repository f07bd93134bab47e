"""Every hostile checkpoint is refused by one printable line, within 10 s and 1 GB, and nothing else happens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_checkpoints import all_of_them
from tests.support.running import environment

ROOT = Path(__file__).parent.parent.parent
SECONDS, BYTES = 10, 1_000_000_000

# What the message must say of some of them: the reason, not just that there is one.
REASONS = {
    "zip: call posix.system": "class posix.system, which could run code; save the weights alone: torch.save(",
    "legacy: call builtins.eval": "class builtins.eval",
    "zip: class torch.nn.modules.conv.Conv2d": "class torch.nn.modules.conv.Conv2d",
    "archive: TorchScript": "TorchScript archive, which holds code; save the weights alone: torch.save(",
    "archive: compressed": "is compressed",
    "archive: version 999": "has version 999; torch knows 1 to 10",
    "archive: version 999 under .data": "has version 999; torch knows 1 to 10",
    "archive: a version that is no number": r"its version is no number: b'\\x1b[31m'",
    "archive: one record twice": "stands twice",
    "archive: one record twice in two folders": "several folders",
    "archive: record archive/../x": "unsafe name",
    "archive: a byte behind": "followed by what torch.save never writes",
    "archive: everything elsewhere": "names another directory",
    "archive: fewer records in the directory": "names another directory",
    "archive: pointer of the directory to a record": "leads elsewhere",
    "archive: room between records": "something stands before it",
    "archive: record DATA/0 after others": "in letters that torch never writes",
    "zip: one storage, again as 2 of DoubleStorage": "two types or lengths",
    "archive: cut in half": "cut off",
    "archive: damaged pickle": "checksum",
    "zip: terabytes through stride 0": "claim 4,398,046,511,104 bytes, but the file holds",
    "zip: storage longer than its record": "expected 4",
    "zip: storage of another type": "its record holds 16 bytes, its storage declares 32",
    "zip: meta tensor": "w cannot be read: it is a meta tensor",
    "zip: sparse tensor": "w cannot be read: it is sparse",
    "zip: conjugate tensor": "w cannot be read: it is complex",
    "zip: whole numbers": "wrong dtype (int32; convertible are float16, bfloat16, float32, float64): w",
    "zip: dtype float8_e5m2": "wrong dtype (float8_e5m2",
    "zip: values replaced by an attribute": "its values are replaced by an attribute",
    "zip: one name twice": "the key w stands twice",
    "zip: one path to two dicts": "both reached by a.b",
    "zip: name with control characters": r"w\x1b[2J\x07\r\n",
    "zip: name with right to left": r"w\u202etxet",
    "zip: a name of 900,000 characters": "a name in its pickle has 900000 characters",
    "zip: self-referencing dict": "holds no named tensors",
    "zip: one text encoded many times": "grow to far more than it holds",
    "zip: one list into many OrderedDicts": "grow to far more than it holds",
    "legacy: beyond the storage by stride": "reaches element 7 of a storage of 4",
    "safetensors: one name twice": "a name stands twice",
    "safetensors: a gap": "tensor v does not begin where the one before it ends",
    "safetensors: an overlap": "tensor v does not begin where the one before it ends",
    "safetensors: trailing bytes": "its tensors end at byte 86, the file at 87",
    "legacy cut in the values": "cut off",
    "LFS pointer": "git lfs pull",
    "HDF5": "weightbridge inspect",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every hostile file: name -> what `converting_each` printed of it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "files").mkdir()
    names = []
    for number, (name, data) in enumerate(all_of_them()):
        assert len(data) <= 1_000_000, name
        (folder / "files" / f"{number:04}").write_bytes(data)
        names.append(name)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hardening.converting_each", str(folder / "files")],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended at {names[len(rows)]}: {done.stderr[-2000:]}"
    assert sorted(place.name for place in folder.iterdir()) == ["files", "output"]  # nothing was executed
    return dict(zip(names, rows, strict=True))


def test_every_one_is_refused(outcomes):
    assert len(outcomes) > 280
    assert {
        name: row["kind"] for name, row in outcomes.items() if row["kind"] not in ("ConversionError", "PlanError")
    } == {}


def test_every_message_is_one_printable_line(outcomes):
    messages = {name: row["message"] for name, row in outcomes.items()}
    assert {name: text for name, text in messages.items() if not text.isprintable() or not 20 < len(text) < 490} == {}
    assert all("Traceback" not in text for text in messages.values())


def test_every_one_is_refused_in_time_and_memory(outcomes):
    slowest = max(outcomes, key=lambda name: outcomes[name]["seconds"])
    largest = max(outcomes, key=lambda name: outcomes[name]["peak"])
    print(f"{len(outcomes)} files; slowest: {outcomes[slowest]['seconds']:.1f} s, {slowest};", end=" ")
    print(f"largest: {outcomes[largest]['peak'] / 1e6:.0f} MB with TensorFlow loaded, {largest}")
    assert {name: row["seconds"] for name, row in outcomes.items() if row["seconds"] > SECONDS} == {}
    assert {name: row["peak"] for name, row in outcomes.items() if row["peak"] > BYTES} == {}


def test_the_previous_output_stays_alone_in_its_folder(outcomes):
    assert [name for name, row in outcomes.items() if not row["untouched"]] == []


@pytest.mark.parametrize("name", REASONS)
def test_the_message_says_why(outcomes, name):
    assert REASONS[name] in outcomes[name]["message"]
