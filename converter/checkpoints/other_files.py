"""What a file or a folder is that is no checkpoint of named tensors, and what to do with it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from converter.errors import SAVE, printable
from tf_models.runtime import mistaken

_PICTURE = "it is a picture, not a checkpoint; `weightbridge segment WEIGHTS PICTURE` takes pictures"
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pdparams", ".pth.tar")
# What a folder may hold, in the order transformers itself looks.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_HUB_NAME = re.compile(r"(?P<organisation>[\w.-]+)/[\w.-]+(?P<revision>@[^/@]+(?:/[^@]+)?)?")
_HUB_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<organisation>[\w.-]+)/(?P<name>[\w.-]+)"
    r"(?:/(?:resolve|blob|raw|tree)/(?P<revision>refs/(?:pr|convert)/[^/?#]+|[^/?#]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?",
    re.IGNORECASE,
)
_OTHERS = {".msgpack": "Flax", ".onnx": "ONNX", ".h5": "Keras", ".keras": "Keras", ".pb": "TensorFlow"}
_RUN = re.compile(r"(checkpoint|global_?step|step|epoch|iter)[-_=]?\d+", re.I)
_INDEX = re.compile(r"\.index\.(\w+\.)?json$")
_MOST_FOLDERS = 50  # within one that are looked into


def other_zip(names: Iterable[str]) -> str | None:
    """What a zip archive with records of these names is, where it is none of torch.save's; else None."""
    names = list(names)
    inner = [name.partition("/")[2] for name in names]  # torch's stand in one folder
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        load = "torch.jit.load(path).state_dict()"
        return f"it is a TorchScript archive, which holds code; {SAVE} (of one that you trust: {load})"
    if "models/model.json" in inner or "serialized_exported_program.json" in names:
        return f"it is a program of torch.export; {SAVE} (of this one: torch.export.load(path).state_dict)"
    if ".data/extern_modules" in inner:
        return f"it is a torch.package archive, which holds code; {SAVE}"
    if {"metadata.json", "config.json", "model.weights.h5"} <= set(names):
        return "it is a Keras model, so weights that TensorFlow has already; the checkpoint to convert is torch's"
    if names and all(name.endswith(".npy") for name in names):
        return "it is an archive of numpy arrays (.npz); write them as safetensors: safetensors.numpy.save_file"
    packed = [name for name in names if name.endswith(WEIGHTS) and not name.endswith("data.pkl")]
    if packed and "data.pkl" not in inner:
        return f"it is an archive that holds {printable(packed[0], 80)}; unpack it, and name that file"
    if names and not any("/" in name for name in names):
        return f"it is a zip archive, but none that torch.save writes: it holds {printable(names[0], 80)}"
    return None


def other_file(head: bytes, name: str) -> str:
    """What a file is that starts with `head`, of 262 bytes at least if it has them."""
    if not head:
        return "the file is empty"
    if head[257:262] == b"ustar":
        return "it is a tar archive; unpack it first"
    if head[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model; the checkpoint to convert is torch's"
    known = {
        b"\x89HDF": "it is an HDF5 file of weights, perhaps converted already: `weightbridge inspect` tells what it "
        "holds, `weightbridge restore` gives a checkpoint back",
        b"\x1f\x8b": "it is compressed with gzip; unpack it first",
        b"BZh": "it is compressed with bzip2; unpack it first",
        b"\xfd7zXZ": "it is compressed with xz; unpack it first",
        b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
        b"7z\xbc\xaf": "it is a 7z archive; unpack it first",
        b"Rar!": "it is a RAR archive; unpack it first",
        b"version https://": "it is a Git LFS pointer, not the file itself; run `git lfs pull`",
        b"GGUF": "it is a GGUF file, of quantised weights for llama.cpp; get the weights as safetensors",
        b"\x93NUMPY": "it is one numpy array (.npy), not a state dict of named tensors",
    }
    if mistaken.is_picture(head):
        return _PICTURE
    if head.lstrip().startswith(b"<"):
        return "it is a web page, not a checkpoint; download the file itself"
    for start, meaning in known.items():
        if head.startswith(start):
            return meaning
    if re.match(rb"\([dl]p\d|[]}]q\0|c(numpy|collections|copy_reg|torch|__builtin__)[._\n]", head):
        return "it is a pickle of protocol 0 or 1; load it where you trust it, and pickle.dump(state, file, 4)"
    if re.search(r"\.data-\d{5}-of-\d{5}$|\.index$", name):
        return "it is part of a TensorFlow checkpoint; the checkpoint to convert is torch's"
    if name.endswith(".onnx"):
        return "it is an ONNX model; the checkpoint to convert is torch's own"
    return "it is not a checkpoint: neither torch's zip or legacy format, nor safetensors, nor a shard index"


def weights_among(names: Iterable[str]) -> list[str]:
    """Of names in a folder, or paths below it, those of files that are weights by their ending, sorted."""
    beside = ("optimizer", "scheduler", "rng_state", "training_args")  # what training writes next to them
    return sorted(
        name
        for name in names
        if name.lower().endswith(WEIGHTS) and not _SHARD.search(name) and not name.rpartition("/")[2].startswith(beside)
    )


def other_folder(path: Path) -> str:
    """What a folder is in which no checkpoint stands under a usual name."""
    names = sorted(mistaken.names_in(path))
    deepspeed = [name for name in names if name.startswith(("zero_pp_rank_", "bf16_zero_pp_rank_"))]
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        to = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        made = f"dcp_to_torch_save makes one file of it: {to} {printable(str(path), 80)} one.pth"
        return f"it is a distributed checkpoint of torch; {made}"
    if deepspeed or "zero_to_fp32.py" in names:
        return "it is a DeepSpeed checkpoint; make one file of it, in its folder: python zero_to_fp32.py . one.pth"
    if "saved_model.pb" in names or any(name.endswith(".index") for name in names):
        return "it is a TensorFlow model; the checkpoint to convert is torch's"
    if "adapter_model.safetensors" in names or "adapter_model.bin" in names:
        return "it holds the weights of an adapter alone (LoRA); merge them into their model and save that"
    if "data.pkl" in names and "version" in names:
        again = f"zip -0rDX one.pth {printable(path.resolve().name, 80)}"
        return f"it is a checkpoint of torch that was unpacked; beside it, zip it again without compression: {again}"
    runs = [name for name in names if _RUN.fullmatch(name) and (path / name).is_dir()]
    if runs:
        last = max(runs, key=lambda name: int(re.sub(r"\D", "", name)))
        return f"it is the folder of a run; name one of its checkpoints: the last is {_path(path, last)}"
    weights = weights_among(names)
    if len(weights) == 1:
        return f"no checkpoint under a usual name; it holds one file of weights, name it: {_path(path, weights[0])}"
    if weights:
        listed = ", ".join(printable(name, 40) for name in weights[:4]) + (", ..." if len(weights) > 4 else "")
        return f"it holds several files of weights; name one: {listed}"
    parts = [name for name in names if (path / name).is_dir() and (path / name / "config.json").is_file()]
    if "model_index.json" in names and parts:
        return f"it is a pipeline of several networks; name one of its folders: {', '.join(map(printable, parts[:6]))}"
    indices = [name for name in names if _INDEX.search(name)]
    if indices:
        return f"no checkpoint under a usual name; it holds a shard index, name it: {_path(path, indices[0])}"
    shards = [name for name in names if _SHARD.search(name)]
    if shards:
        stem = _SHARD.split(shards[0])[0]
        return f"it holds shards without their index; get {printable(stem)}{Path(shards[0]).suffix}.index.json as well"
    below = next(_below(path, 2), None)
    if below:
        return f"it holds no checkpoint itself; below it stands one, name it: {printable(below, 160)}"
    for ending, whose in _OTHERS.items():
        if other := next((name for name in names if name.lower().endswith(ending)), None):
            return f"it holds weights of {whose} ({printable(other, 60)}); the checkpoint to convert is torch's"
    return f"the folder holds no checkpoint (looked for {', '.join(FOLDER_NAMES)})"


def no_file(path: Path) -> str:
    """What may have been meant by a path at which nothing is."""
    text = str(path)
    near = mistaken.near(path, (*WEIGHTS, ".h5", ".json"))
    if near:
        return f"no such file; did you mean {_path(path.parent, near)}?"
    named = _HUB_NAME.fullmatch(text)
    if named and not Path(named["organisation"]).is_dir() and (named["revision"] or not path.suffix):
        return f"no such file; if it is a name on the Hugging Face Hub: did you mean hf://{printable(text)}?"
    return "no such file"


def other_address(address: str) -> str:
    """What an address may have meant that is none of a checkpoint on the hub."""
    meant = re.sub("^HF(?=://)", "hf", address, flags=re.IGNORECASE)
    page = _HUB_PAGE.fullmatch(address)
    if page and page["organisation"] not in ("datasets", "spaces", "docs"):
        revision = f"@{page['revision']}" if page["revision"] not in (None, "main") else ""
        file = f"/{unquote(page['file'])}" if page["file"] else ""
        meant = f"hf://{page['organisation']}/{page['name']}{revision}{file}"
    if meant.startswith("hf://"):
        return f"no such file; did you mean {printable(meant, 200)}?"
    if address.startswith("file:"):
        return "no such file; name it by its path alone"
    return "no such file; it is an address: download the file, and name that"


def _below(folder: Path, levels: int) -> Iterator[str]:
    """Checkpoints in the folders within, and in those within these."""
    inner = [path for name in sorted(mistaken.names_in(folder))[:_MOST_FOLDERS] if (path := folder / name).is_dir()]
    for path in inner:
        names = mistaken.names_in(path)
        weights = weights_among(names)
        if ".metadata" in names or "data.pkl" in names or any(name in names for name in FOLDER_NAMES):
            yield str(path)
        elif weights:
            yield str(path / weights[-1])
    if levels > 1:
        for path in inner:
            yield from _below(path, levels - 1)


def _path(folder: Path, name: str) -> str:
    return printable(str(folder / name), 160)
