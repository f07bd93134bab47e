"""A new pair converts the checkpoint that it was made of, its program is well formed, and no name gets into it."""

import importlib
import re
import subprocess
import sys
import warnings

import keras
import pytest
import timm
import torch
import torchvision
from torch import nn

import converter
from converter.scaffold.reserved import KERAS_LAYER, KERAS_MODEL, TORCH_DICT, TORCH_MODULE
from tests.support.checkpoints import save
from tests.support.pairs import registered
from tests.support.running import BIN, run_forked
from tf_models.runtime import weights_format


def block(inputs, outputs, norm):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        norm(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3),
        norm(outputs),
    )


class UNet(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.down = nn.ModuleList([block(3, 8, norm), block(8, 16, norm)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, stride=2)])
        self.back = nn.ModuleList([block(16, 8, norm)])
        self.head = nn.Conv2d(8, 2, 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True)
        self.gru = nn.GRU(10, 4, bias=False)
        self.rnn = nn.RNN(4, 3)
        self.projected = nn.LSTM(3, 4, proj_size=2)
        self.cell = nn.LSTMCell(2, 3)
        self.out = nn.Linear(3, 20)


class Odd(nn.Module):
    """What Keras calls otherwise, or holds otherwise, or has not."""

    def __init__(self):
        super().__init__()
        self._stem = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 5))
        self.old = nn.utils.weight_norm(nn.Linear(8, 4), dim=1)
        self.lipschitz = nn.utils.spectral_norm(nn.Conv2d(3, 4, 2))
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.layers_ = nn.Linear(4, 5)
        self.output = nn.Sequential(nn.Linear(4, 2))
        self.rms = nn.RMSNorm(7)
        self.act = nn.PReLU(4)
        self.both = nn.LayerNorm((4, 6))
        self.list = nn.ParameterList([torch.ones(2, 3), torch.ones(4)])
        self.register_buffer("index", torch.arange(6))
        self.cross = nn.MultiheadAttention(24, 3, kdim=10, vdim=12)
        self.extra = nn.MultiheadAttention(24, 3, add_bias_kv=True)
        self.mixed = nn.ModuleDict({"100": nn.Linear(2, 3), "x": nn.LayerNorm(5), "01": nn.Linear(1, 1)})
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.named_in = nn.Linear(2, 2)


class Within(nn.Module):
    """Lists and dicts within others."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 3), "101": nn.Linear(3, 4)}) for _ in range(2)])
        self.stages = nn.ModuleDict({"101": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5))})
        self.deep = nn.ModuleList([nn.ModuleList([nn.ModuleList([nn.Linear(5, 6)])])])
        self.prompts = nn.ModuleList([nn.ModuleList([nn.ParameterList([torch.ones(2, 3)])]) for _ in range(2)])


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.within = Within()


def weight_norms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Odd()


NETWORKS = {
    "resnet18": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], 10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.1, num_classes=7),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, img_size=32),
    "mlp": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
    "unet": lambda: UNet(nn.BatchNorm2d),
    "unet_of_groups": lambda: UNet(lambda channels: nn.GroupNorm(4, channels)),
    "recurrent": Recurrent,
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 48), 3, enable_nested_tensor=False),
    "odd": weight_norms,
    "within": Inside,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0].startswith("new_")]:
        del sys.modules[name]


def made(state, folder, name="new_pair", **more):
    """(report, the pair, its torch side) of a state dict."""
    report = converter.new_pair(save(state, folder), folder / name, **more)
    return report, importlib.import_module(f"{name}.pair").PAIR, importlib.import_module(f"{name}.torch_side")


def kinds_of(pair):
    return {path: kind.name for path, _, kind in pair.mapping({}).modules()}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_new_pair_converts_its_checkpoint(network, folder):
    torch.manual_seed(0)
    state = NETWORKS[network]().state_dict()
    name = f"new_{network}"
    report, pair, torch_side = made(state, folder, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = torch_side.build(**{name: option.default for name, option in pair.options.items()})
    assert {name: tensor.shape for name, tensor in theirs.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    theirs.load_state_dict(state)
    with registered(pair):
        assert converter.convert(name, "ckpt.pth", "out.weights.h5", verify="lossless").lossless
    text = (folder / name / "pair.py").read_text()
    assert report.rows == len(re.findall("# (certain|a guess): ", text.split("def probes")[0]))
    assert report.rows == report.certain + len(report.guessed)
    files = sorted(path.name for path in (folder / name).iterdir() if path.is_file())
    assert files == ["README.md", "__init__.py", "keras_side.py", "pair.py", "torch_side.py"]


def test_lists_and_dicts_within_others_are_layers(folder):
    """Keras before 3.15 does not save their layers otherwise, and after it gives them other places in the file."""
    made(Inside().state_dict(), folder)
    network = importlib.import_module("new_pair.keras_side").build()
    within = network.within
    assert within.heads[1]["101"].units == 4
    assert [part and part.units for part in within.stages["101"]] == [4, None, 5]
    assert [*within.deep[0][0]] == [within.deep[0][0][0]]
    with pytest.raises(IndexError, match="b"):
        within.heads[0]["b"]
    found = weights_format.places(network)
    assert len(found) == len(network.weights)
    assert not [place for place in found if "container" in place]


def test_the_program_is_formatted_as_ruff_does(folder):
    for network in NETWORKS:
        converter.new_pair(save(NETWORKS[network]().state_dict(), folder), folder / f"new_{network}")
    command = [BIN / "ruff", "format", "--diff", "--isolated", "--line-length", "120", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_proof_lacks_is_said(folder):
    _, pair, _ = made(NETWORKS["mlp"]().state_dict(), folder)
    with (
        registered(pair),
        pytest.raises(converter.ConversionError, match=r"write Network\.forward in new_pair/torch_side"),
    ):
        converter.convert("new_pair", "ckpt.pth", "out.weights.h5")


@pytest.mark.parametrize(
    ("module", "kind", "certain"),
    [
        (nn.Linear(3, 4), "DENSE", True),
        (nn.Linear(4, 4), "DENSE", False),
        (nn.Linear(3, 4, bias=False), "DENSE", False),
        (nn.Conv2d(3, 4, 2), "CONV_2D", True),
        (nn.Conv2d(4, 4, 2), "CONV_2D", False),
        (nn.Conv3d(3, 4, 2), "CONV_3D", True),
        (nn.Conv2d(2, 4, 2), "CONV_2D", False),
        (nn.Conv2d(3, 4, 2, bias=False), "CONV_2D", False),
        (nn.Conv2d(1, 4, 2), "CONV_2D", False),
        (nn.ConvTranspose1d(3, 4, 2), "CONV_TRANSPOSE_1D", True),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), "CONV_TRANSPOSE_2D", False),
        (nn.BatchNorm1d(3), "BATCH_NORM", False),
        (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), "BATCH_NORM", False),
        (nn.LayerNorm(3), "LAYER_NORM", False),
        (nn.PReLU(), "PRELU", False),
        (nn.MultiheadAttention(4, 2, bias=False), "MULTIHEAD_ATTENTION", True),
        (nn.GRU(3, 4), "GRU", True),
        (nn.LSTM(3, 4, 20), "LSTM", True),
        (nn.LSTMCell(3, 4), "LSTM_CELL", True),
        (nn.GRUCell(3, 4, bias=False), "GRU_CELL", True),
        (nn.RNNCell(4, 4), "RNN_CELL", True),
        (nn.Bilinear(2, 3, 4), "CONV_1D", False),
    ],
)
def test_what_names_and_shapes_tell(module, kind, certain, folder):
    report, pair, _ = made(nn.ModuleDict({"part": module}).state_dict(), folder)
    assert kinds_of(pair) == {"part": kind}
    assert report.certain == int(certain)


def test_a_matrix_behind_convolutions_may_be_of_flattened_images(folder):
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4 * 6, 5), nn.Linear(5, 2))
    report, _, _ = made(network.state_dict(), folder)
    assert report.guessed == (
        "2: kinds.DENSE, because a matrix and a bias for each of its rows; behind a flatten of images it is "
        "DENSE_FLATTENED",
    )


def test_filters_of_one_input_where_more_come_in_are_depthwise(folder):
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 12, 3, groups=4), nn.Conv2d(12, 12, 3, groups=12))
    _, pair, torch_side = made(network.state_dict(), folder)
    assert kinds_of(pair) == {"0": "CONV_2D", "1": "DEPTHWISE_CONV_2D", "2": "DEPTHWISE_CONV_2D"}
    assert [part.groups for part in torch_side.build()] == [1, 4, 12]
    with registered(pair):
        assert converter.convert("new_pair", "ckpt.pth", "out.weights.h5", verify="lossless").lossless


def test_a_name_may_tell_where_shapes_do_not(folder):
    state = {
        "upconv.weight": torch.zeros(4, 4, 2, 2),
        "embed.weight": torch.zeros(9, 4),
        "up.weight": torch.zeros(5, 4),
    }
    _, pair, _ = made(state, folder)
    assert kinds_of(pair) == {"upconv": "CONV_TRANSPOSE_2D", "embed": "EMBEDDING", "up": "DENSE"}


def test_the_names_that_training_puts_before_a_network_are_left_out(folder):
    state = nn.Sequential(nn.Linear(3, 4)).state_dict()
    _, pair, _ = made({f"module.{name}": value for name, value in state.items()}, folder)
    assert kinds_of(pair) == {"0": "DENSE"}
    with registered(pair):
        assert converter.convert("new_pair", "ckpt.pth", "out.weights.h5", verify="lossless").lossless


def test_one_of_several_state_dicts_is_chosen(folder):
    state = nn.Sequential(nn.Linear(3, 4)).state_dict()
    torch.save({"model": state, "ema": {"a.weight": torch.zeros(2, 2)}}, folder / "two.pth")
    with pytest.raises(converter.UsageError, match=r"several state dicts: model, ema; choose one with --key"):
        converter.new_pair("two.pth", "new_pair")
    with pytest.raises(converter.UsageError, match=r"no state dict at other; it has: model, ema"):
        converter.new_pair("two.pth", "new_pair", key="other")
    report = converter.new_pair("two.pth", "new_pair", key="model")
    assert report.command == "convert --pair new_pair.pair:PAIR --verify lossless --key model two.pth"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.b-c.weight", "tensor a.b-c.weight: b-c cannot name an attribute"),
        ("a..weight", "nothing cannot name an attribute"),
        ('a."); import os; ("', "cannot name an attribute"),
        ("a\n.weight", r"tensor a\n.weight: a\n cannot name an attribute"),
        ("\u202eab.weight", r"tensor \u202eab.weight: \u202eab cannot name an attribute"),
        ("fen\u00eatre.weight", "cannot name an attribute"),
        ("lambda.weight", "lambda cannot name an attribute"),
        ("None.weight", "None cannot name an attribute"),
        ("__class__.weight", "__class__ cannot name an attribute"),
        ("_.weight", "_ cannot name an attribute"),
        ("{0-9}.weight", "cannot name an attribute"),
        ("_modules.weight", "_modules is the name of something that every torch module has"),
        ("forward.weight", "forward is the name of something that every torch module has"),
        ("a.weight.more", "a.weight is a tensor, and others have names below it"),
        ("list.7", "tensor list.7 is beside others by number"),
        (".".join("a" * 40), "is 40 names deep; at most 32 are read"),
        ("0.keys.weight", "0.keys cannot stand beside modules that are numbered"),
    ],
)
def test_a_name_that_cannot_stand_in_a_program_is_refused(name, said, folder):
    state = {"a.weight": torch.zeros(2, 3), "0.1.weight": torch.zeros(2, 3), name: torch.zeros(2, 3)}
    with pytest.raises(converter.ConversionError) as caught:
        converter.new_pair(save(state, folder), "new_pair")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "new_pair").exists()


def test_what_has_a_layer_s_names_but_not_its_shapes_is_carried_as_it_is(folder):
    shapes = {
        "none": {"weight": (), "bias": ()},
        "spectral": {"weight_orig": (8, 1, 3), "weight_u": (8,), "weight_v": (8, 1, 3)},
        "normed": {"weight_g": (6, 1), "weight_v": (6, 8), "bias": (8,)},
        "counted": {"running_mean": (4,), "running_var": (3,)},
        "attention": {"in_proj_weight": (12, 4), "in_proj_bias": (12,), "out_proj.weight": (4, 4)},
        "recurrent": {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 3)},
        "six": {"weight": (1, 2, 1, 2, 1, 2)},
    }
    state = {f"{part}.{name}": torch.rand(shape) for part, names in shapes.items() for name, shape in names.items()}
    state["mask.weight_mask"] = torch.ones(2, dtype=torch.bool)
    state["mask.weight"] = torch.rand(3, 2)
    _, pair, torch_side = made(state, folder)
    assert {kind for path, kind in kinds_of(pair).items() if path != "attention.out_proj"} == {"PARAMETER"}
    torch_side.build().load_state_dict(state)
    with registered(pair):
        assert converter.convert("new_pair", "ckpt.pth", "out.weights.h5", verify="lossless").lossless


def test_a_file_without_weights_makes_no_pair(folder):
    with pytest.raises(converter.ConversionError, match="none of its tensors is of floats, as weights are"):
        converter.new_pair(save({"index": torch.arange(3)}, folder), "new_pair")


def test_classes_keep_clear_of_what_a_program_has(folder):
    parts = ["network", "none", "built", "keras", "nn", "torch", "self", "Conv1D", "layers", "num_heads", "call"]
    state = {f"{part}.inner.weight": torch.zeros(2 + at, 3) for at, part in enumerate(parts)}
    state |= {f"{part}.inner.bias": torch.zeros(2 + at) for at, part in enumerate(parts)}
    _, pair, torch_side = made(state, folder)
    torch_side.build().load_state_dict(state)
    with registered(pair):
        assert converter.convert("new_pair", "ckpt.pth", "out.weights.h5", verify="lossless").lossless


def test_tensors_that_cannot_be_converted_are_refused(folder):
    state = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(2, 3, dtype=torch.complex64)}
    with pytest.raises(
        converter.ConversionError, match=r"tensor b\.weight is of dtype complex64; convertible are float16"
    ):
        converter.new_pair(save(state, folder), "new_pair")


@pytest.mark.parametrize("name", ["a-b", "1a", "class", "torch", "json", "sam_decoder", ".", "fen\u00eatre"])
def test_the_folder_s_name_must_be_a_pair_s(name, folder):
    checkpoint = save(NETWORKS["mlp"]().state_dict(), folder)
    with pytest.raises(converter.UsageError):
        converter.new_pair(checkpoint, name)


def test_a_folder_is_replaced_only_if_it_is_a_pair_s(folder):
    checkpoint = save(NETWORKS["mlp"]().state_dict(), folder)
    converter.new_pair(checkpoint, "new_pair")
    with pytest.raises(converter.ConversionError, match="the output new_pair exists; --overwrite replaces it"):
        converter.new_pair(checkpoint, "new_pair")
    converter.new_pair(checkpoint, "new_pair", overwrite=True)
    (folder / "new_mine").mkdir()
    (folder / "new_mine" / "thesis.txt").write_text("mine")
    with pytest.raises(converter.ConversionError, match=r"is a folder without pair\.py, so none of ours"):
        converter.new_pair(checkpoint, "new_mine", overwrite=True)
    assert (folder / "new_mine" / "thesis.txt").read_text() == "mine"


def test_the_command_says_what_to_do_next(folder):
    save(NETWORKS["unet"]().state_dict(), folder)
    done = run_forked("weightbridge", "new-pair", "ckpt.pth", "-o", "new_pair/", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "written   new_pair: pair.py, torch_side.py, keras_side.py, README.md",
        "tensors   46",
        "rows      8: 3 certain, 5 guessed, with reasons in README.md",
        "next      convert --pair new_pair.pair:PAIR --verify lossless ckpt.pth",
        "then      write `call` in keras_side.py, and `forward` in torch_side.py or have it return your own network",
    ]
    again = run_forked(*"convert --pair new_pair.pair:PAIR --verify lossless ckpt.pth".split(), cwd=folder)
    assert again.returncode == 0, again.stderr
    done = run_forked("weightbridge", "new-pair", "ckpt.pth", "-o", "new_pair", cwd=folder)
    assert (done.returncode, done.stderr) == (1, "error: the output new_pair exists; --overwrite replaces it\n")
    done = run_forked("weightbridge", "new-pair", "ckpt.pth", "-o", "a-pair", cwd=folder)
    assert done.returncode == 2


def _home(value):
    """The module that defines it; of what is no function, torch."""
    return getattr(value, "__module__", None) or "torch"


def test_the_names_that_libraries_have_for_themselves_are_known():
    for module, known in ((nn.Module(), TORCH_MODULE), (nn.ModuleDict(), TORCH_MODULE | TORCH_DICT)):
        of_torch = {name for name in dir(module) if _home(getattr(module, name, None)).startswith("torch")}
        assert {name for name in of_torch if not name.startswith("__")} <= known
    assert {name for name in dir(keras.layers.Layer()) if not name.startswith("_")} <= KERAS_LAYER
    assert {name for name in dir(keras.Model()) if not name.startswith("_")} <= KERAS_LAYER | KERAS_MODEL
