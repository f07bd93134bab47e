"""Networks of a few layers on both sides, as pairs that are converted and restored, or refused."""

import keras
import numpy as np
import pytest
import torch
from torch import nn

import converter
from converter import Mapping, Pair, Probe
from tests.support.pairs import registered
from tests.support.seeded import seeded


class Model(keras.Model):
    """A Keras model of the layers given by name, and a function of them and the input."""

    def __init__(self, call, **layers):
        super().__init__()
        for name, (layer, shape) in layers.items():
            setattr(self, name, layer)
            layer.build(shape)
        self._function = call
        self.built = True

    def call(self, x):
        return self._function(self, x)


class Net(nn.Module):
    """The same of torch."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._function = forward

    def forward(self, x):
        return self._function(self, x)


class Conv1D(nn.Linear):
    """GPT-2's Linear."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.T.contiguous())

    def forward(self, x):
        return x @ self.weight + (0 if self.bias is None else self.bias)


def net(forward, **modules):
    torch.manual_seed(0)
    return Net(forward, **modules)


def dense(units, inputs, **more):
    return keras.layers.Dense(units, **more), (None, inputs)


def built(layer, *shapes):
    layer.build(*shapes)
    return layer


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def normal(*shape):
    """Probes of one standard normal input."""
    return lambda config, rng: [Probe({"x": rng.standard_normal(shape, dtype=np.float32)})]


def pair(build_tf, build_torch, rows, probes, **more):
    return Pair("small", lambda config: Mapping(rows), probes, build_tf=build_tf, build_torch=build_torch, **more)


def state_of(one):
    """A state dict of the pair in which no tensor is constant."""
    return seeded(one.build_torch()).state_dict()


def converted(one, state, folder, **more):
    """Convert a state dict of the pair, as `converter.convert` does; the report."""
    torch.save(state, folder / "ckpt.pth")
    with registered(one):
        return converter.convert(
            one.name, folder / "ckpt.pth", folder / "out.weights.h5", **{"overwrite": True, **more}
        )


def refused(one, state, folder, match, **more):
    (folder / "out.weights.h5").unlink(missing_ok=True)
    with pytest.raises(converter.ConversionError, match=match) as caught:
        converted(one, state, folder, **more)
    assert not (folder / "out.weights.h5").exists()
    return caught.value


def restored(one, report, folder):
    """The state dict that comes back of a converted file."""
    with registered(one):
        converter.restore(report.output, folder / "back.pth", overwrite=True)
    return torch.load(folder / "back.pth", weights_only=True)


def there_and_back(one, folder, **more):
    """Proven in full, and restored: the same tensors, bit for bit where nothing is folded; the report."""
    state = state_of(one)
    report = converted(one, state, folder, **more)
    assert report.numerical.full, str(report)
    back = restored(one, report, folder)
    assert sorted(back) == sorted(state)
    for name, tensor in state.items():
        assert back[name].shape == tensor.shape, name
        assert name in report.folded or torch.equal(back[name], tensor), name
    return report
