"""As pip installs it: what the wheel and the sdist hold, how it does without torch, and what other systems are told."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.support.running import ROOT, run
from tests.support.small_sam import sam_state

SMOKE = Path("tests", "support", "smoke.py")
CHECKPOINT = ROOT / "tests" / "data" / "ms_deform_attn_0_1.safetensors"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made of the unpacked sdist as `python -m build` does, and that sdist's folder."""
    folder = tmp_path_factory.mktemp("build")
    kept = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile", "cli.py")
    for name in kept:
        shutil.copy(ROOT / name, folder / name)
    for name in ("converter", "tf_models", "torch_refs", "benchmarks", "docs", "tests"):
        shutil.copytree(ROOT / name, folder / name)
    done = run("python", "-m", "build", "--no-isolation", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist], [wheel] = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    [unpacked] = (folder / "sdist").iterdir()
    return wheel, unpacked


@pytest.fixture
def inputs(tmp_path):
    """What the smoke test reads."""
    shutil.copy(CHECKPOINT, tmp_path / "attention.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in sam_state().items()}, tmp_path / "sam.safetensors")
    return tmp_path


def sources(folder):
    names = ("converter", "tf_models", "torch_refs")
    return {one.relative_to(folder).as_posix() for name in names for one in (folder / name).rglob("*.py")} | {"cli.py"}


def test_the_wheel_and_the_sdist_hold_what_is_needed(built):
    wheel, sdist = built
    assert wheel.name == "weightbridge-0.2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        [about] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = archive.read(about).decode()
    assert held == sources(ROOT)
    assert 'Provides-Extra: torch\nRequires-Dist: torch>=2.4; extra == "torch"\n' in said
    assert 'Provides-Extra: hf\nRequires-Dist: huggingface_hub>=1.5; extra == "hf"\n' in said
    base = [line for line in said.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not any("torch" in line or "huggingface" in line for line in base)
    assert sources(sdist) == sources(ROOT)
    for name in ("tests", "docs", "benchmarks"):
        wanted = {one.relative_to(ROOT) for one in (ROOT / name).rglob("*") if one.is_file()}
        wanted = {one for one in wanted if "__pycache__" not in one.parts}
        assert wanted
        assert wanted <= {one.relative_to(sdist) for one in sdist.rglob("*")}


def test_the_floors_are_the_lowest_that_users_may_have(built):
    with zipfile.ZipFile(built[0]) as archive:
        [about] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = re.findall(r"^Requires-Dist: (\S+?)(?:; extra == \"(\w+)\")?$", archive.read(about).decode(), re.M)
    allowed = {need for need, extra in needs if extra != "test"}
    floors = {line for line in (ROOT / "tests" / "floors.txt").read_text().splitlines() if not line.startswith("#")}
    assert len(allowed) > 10
    assert {re.sub(r"(\.0)?$", "", floor.replace("==", ">=")) for floor in floors} == allowed


def test_the_wheel_without_torch(built, inputs):
    with zipfile.ZipFile(built[0]) as archive:
        archive.extractall(inputs / "installed")
    done = subprocess.run(
        [sys.executable, str(ROOT / SMOKE), str(inputs), "hidden"],
        env={**os.environ, "PYTHONPATH": str(inputs / "installed")},
        cwd=inputs, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{inputs / 'installed'}\n"


@pytest.mark.slow  # pip brings TensorFlow
def test_the_wheel_in_an_empty_environment(built, inputs):
    """Without torch; then with the torch of the tests, also the tests that the sdist has, without its source."""
    wheel, sdist = built
    home = inputs / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"

    def ran(*words):
        done = subprocess.run(
            [*map(str, words)], cwd=inputs, capture_output=True, text=True, timeout=1500, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    ran(python, "-m", "pip", "install", "--quiet", wheel)
    [packages] = home.glob("lib/python*/site-packages")
    assert not (packages / "torch").exists()
    assert ran(home / "bin" / "weightbridge", "--version") == "weightbridge 0.2.0\n"
    assert ran(python, sdist / SMOKE, inputs).strip() == str(packages)
    weighed = f"import sys; sys.path.append({str(sdist)!r}); from benchmarks.installing import added; print(added())"
    beside = ast.literal_eval(ran(python, "-c", weighed))
    assert sum(beside.values()) < 100e6, beside
    assert {"weightbridge", "pillow"} < beside.keys()
    for name in ("attention.weights.h5", "sam.weights.h5", "back.safetensors"):
        (inputs / name).unlink()
    shutil.rmtree(inputs / "saved")
    (packages / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    assert ran(python, sdist / SMOKE, inputs).strip() == str(packages)
    for name in ("tests", "pyproject.toml"):
        shutil.move(sdist / name, inputs / name)
    assert " passed" in ran(python, "-m", "pytest", "tests/test_older_files.py", "tests/checkpoints", "tests/pairs")


# --- Systems ---------------------------------------------------------------------------------------------------------

# What Windows has not.
ELSEWHERE = (
    "import os, sys\nfor name in ('pread', 'preadv', 'O_CLOEXEC', 'O_NONBLOCK'): delattr(os, name)\n"
    "sys.modules['fcntl'] = None\n"
)


@pytest.mark.parametrize("name", ["converter", "converter.api", "converter.kinds"])
def test_another_system_is_refused_at_import(name, tmp_path):
    done = run("python", "-c", f"{ELSEWHERE}import {name}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: Weightbridge runs on Linux and macOS; on Windows use WSL"


def test_a_command_on_another_system_says_so_in_one_line(tmp_path):
    done = run("python", "-c", f"{ELSEWHERE}import cli; cli.main()", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: Weightbridge runs on Linux and macOS; on Windows use WSL\n"


def test_pictures_and_weights_are_read_on_another_system(tmp_path):
    """And a folder of pictures is refused in one line, because a second run could not be kept away."""
    (tmp_path / "sam.pth").write_bytes(b"\x80\x02}.")
    script = (
        "import tf_models\nfrom PIL import Image\nfrom tf_models.pictures.reading import read_picture\n"
        "from tf_models.pictures.running import _alone\n"
        "Image.new('RGB', (4, 3)).save('p.png')\nprint(read_picture('p.png').shape)\n"
        "for act in (lambda: tf_models.load('sam.pth'), lambda: _alone('.').__enter__()):\n"
        "    try: act()\n    except ValueError as error: print(error)\n"
    )
    done = run("python", "-c", ELSEWHERE + script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shape, weights, folder = done.stdout.splitlines()
    assert shape == "(3, 4, 3)"
    assert "sam.pth: is not a readable HDF5 file: it is a checkpoint of torch" in weights
    assert folder == "folders of pictures are segmented on Linux and macOS; on Windows use WSL"
