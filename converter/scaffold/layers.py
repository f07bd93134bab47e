"""The torch module and the Keras layer of each rule of `converter.scaffold.guesses`, as calls."""

from collections.abc import Callable, Mapping
from typing import Any

from converter.scaffold.code import Call, Code, call, listed
from converter.scaffold.guesses import Guess

# Torch's module and, after it, the Keras layer, with the shapes that it is built with.
_Both = tuple[Call, Call]
_Sizes = Mapping[str, str]


def torch_layer(guess: Guess, sizes: _Sizes) -> Call:
    """The torch module; `sizes` has the text of each of the guess's sizes."""
    module = _RULES[guess.rule](dict(guess.flags), sizes)[0]
    made = dict(guess.flags).get("made")
    if made is None:
        return module
    function, dim = made
    return call(f"nn.utils.{function}", module, **({} if dim is None else {"dim": repr(dim[0])}))


def keras_layer(guess: Guess, sizes: _Sizes) -> Call:
    """The Keras layer, built."""
    return _RULES[guess.rule](dict(guess.flags), sizes)[1]


def _built(layer: Code, *shapes: str) -> Call:
    return call("built", layer, *shapes)


def _sequences(width: str) -> str:
    return f"(None, {width})"


def _images(axes: int, channels: str) -> str:
    return f"({'None, ' * (axes + 1)}{channels})"


def _linear(flags: dict[str, Any], s: _Sizes) -> _Both:
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    dense = call("keras.layers.Dense", s["units"], **keras)
    return call("nn.Linear", s["inputs"], s["units"], **torch), _built(dense, _sequences(s["inputs"]))


def _linear_in_out(flags: dict[str, Any], s: _Sizes) -> _Both:
    dense = call("keras.layers.Dense", s["units"])
    return call("Conv1D", s["inputs"], s["units"]), _built(dense, _sequences(s["inputs"]))


def _embedding(flags: dict[str, Any], s: _Sizes) -> _Both:
    sizes = s["rows"], s["features"]
    return call("nn.Embedding", *sizes), _built(call("keras.layers.Embedding", *sizes), "None")


def _convolution(flags: dict[str, Any], s: _Sizes) -> _Both:
    axes = flags["axes"]
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    layer = call(f"layers.Conv{axes}D", s["filters"], s["kernel"], **keras)
    module = call(f"nn.Conv{axes}d", s["inputs"], s["filters"], s["kernel"], **torch)
    return module, _built(layer, _images(axes, s["inputs"]))


def _depthwise(flags: dict[str, Any], s: _Sizes) -> _Both:
    axes, channels = flags["axes"], s["channels"]
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    if flags["multiplier"] > 1:
        keras["depth_multiplier"] = str(flags["multiplier"])
    layer = call(f"layers.DepthwiseConv{axes}D", s["kernel"], **keras)
    module = call(f"nn.Conv{axes}d", channels, s["filters"], s["kernel"], groups=channels, **torch)
    return module, _built(layer, _images(axes, channels))


def _transposed(flags: dict[str, Any], s: _Sizes) -> _Both:
    axes = flags["axes"]
    groups = {} if flags["groups"] == 1 else {"groups": str(flags["groups"])}
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    layer = call(f"layers.Conv{axes}DTranspose", s["filters"], s["kernel"], **groups, **keras)
    module = call(f"nn.ConvTranspose{axes}d", s["inputs"], s["filters"], s["kernel"], **groups, **torch)
    return module, _built(layer, _images(axes, s["inputs"]))


def _batch_norm(flags: dict[str, Any], s: _Sizes) -> _Both:
    torch = {} if flags["affine"] else {"affine": "False"}
    keras = {} if flags["affine"] else {"center": "False", "scale": "False"}
    layer = call("keras.layers.BatchNormalization", momentum="0.9", epsilon="1e-5", **keras)
    module = call(f"nn.BatchNorm{max(1, flags['axes'])}d", s["channels"], **torch)
    return module, _built(layer, _sequences(s["channels"]))


def _layer_norm(flags: dict[str, Any], s: _Sizes) -> _Both:
    axes = flags["axes"]
    over = {"axis": str(list(range(-axes, 0)))} if axes > 1 else {}
    layer = call("keras.layers.LayerNormalization", **over, epsilon="1e-5")
    shape = f"(None, *{s['shape']})" if axes > 1 else _sequences(s["shape"])
    return call("nn.LayerNorm", s["shape"]), _built(layer, shape)


def _group_norm(flags: dict[str, Any], s: _Sizes) -> _Both:
    layer = call("keras.layers.GroupNormalization", s["groups"], epsilon="1e-5")
    return call("nn.GroupNorm", s["groups"], s["channels"]), _built(layer, _images(flags["axes"], s["channels"]))


def _rms_norm(flags: dict[str, Any], s: _Sizes) -> _Both:
    layer = call("layers.RMSNormalization")
    return call("nn.RMSNorm", s["channels"]), _built(layer, _sequences(s["channels"]))


def _prelu(flags: dict[str, Any], s: _Sizes) -> _Both:
    axes = flags["axes"]
    shared = {"shared_axes": str(list(range(1, axes + 1)))}
    layer = call("keras.layers.PReLU", **shared)
    return call("nn.PReLU", s["channels"]), _built(layer, _images(axes, s["channels"]))


def _attention(flags: dict[str, Any], s: _Sizes) -> _Both:
    width, heads = s["width"], s["heads"]
    bias = {} if flags["bias"] else {"bias": "False"}
    extra = {"add_bias_kv": "True"} if flags["extra"] else {}
    others = {} if flags["packed"] else {"kdim": s["keys"], "vdim": s["values"]}
    module = call("nn.MultiheadAttention", width, heads, **bias, **extra, **others, batch_first="True")
    if flags["extra"]:
        layer = call("layers.MultiheadAttention", width, heads, **bias, **extra, **others)
        return module, _built(layer, "None")
    keras = {} if flags["bias"] else {"use_bias": "False"}
    layer = call("keras.layers.MultiHeadAttention", heads, f"{width} // {heads}", **keras)
    keys, values = (width, width) if flags["packed"] else (s["keys"], s["values"])
    return module, _built(layer, *(_images(1, one) for one in (width, values, keys)))


def _recurrent(flags: dict[str, Any], s: _Sizes) -> _Both:
    kind, layers = flags["kind"], {} if flags["layers"] == 1 else {"num_layers": str(flags["layers"])}
    both = {"bidirectional": "True"} if flags["both"] else {}
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    if flags["projects"]:
        torch["proj_size"] = keras["projection"] = s["projection"]
    layer = call(f"layers.{kind}", s["units"], **layers, **both, **keras)
    module = call(f"nn.{kind}", s["inputs"], s["units"], **layers, **both, **torch, batch_first="True")
    return module, _built(layer, _images(1, s["inputs"]))


def _cell(flags: dict[str, Any], s: _Sizes) -> _Both:
    torch = {} if flags["bias"] else {"bias": "False"}
    keras = {} if flags["bias"] else {"use_bias": "False"}
    layer = call(f"keras.layers.{'SimpleRNN' if flags['kind'] == 'RNN' else flags['kind']}Cell", s["units"], **keras)
    return call(f"nn.{flags['kind']}Cell", s["inputs"], s["units"], **torch), _built(layer, _sequences(s["inputs"]))


_RULES: dict[str, Callable[[dict[str, Any], _Sizes], _Both]] = {
    "attention": _attention,
    "batch_norm": _batch_norm,
    "cell": _cell,
    "convolution": _convolution,
    "depthwise": _depthwise,
    "embedding": _embedding,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "linear_in_out": _linear_in_out,
    "prelu": _prelu,
    "recurrent": _recurrent,
    "rms_norm": _rms_norm,
    "transposed": _transposed,
}


def torch_tensor(name: str, shape: str, dtype: str | None) -> tuple[str, Code]:
    """("self.name = ", a parameter), or ("", what registers a buffer) of a dtype that is no float's."""
    if dtype is None:
        return f"self.{name} = ", call("nn.Parameter", call("torch.zeros", shape))
    zeros = call("torch.zeros", shape, dtype=f"torch.{dtype}")
    return "", call("self.register_buffer", f'"{name}"', zeros)


def keras_tensor(name: str, shape: str) -> Call:
    """A variable of the layer that is `self`."""
    return call("self.add_weight", name=f'"{name}"', shape=shape)


def parameters(shapes: list[str]) -> Call:
    """torch's ParameterList."""
    return call("nn.ParameterList", listed(*(call("torch.zeros", shape) for shape in shapes)))
