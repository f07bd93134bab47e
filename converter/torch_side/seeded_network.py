"""A torch network with seeded values, so that each tensor shows in what it computes, and none hides another."""

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from converter.torch_side.seeding import seeded

_LEAST = 1e-3  # of the variance of all channels that one may have


def seed(network: Any) -> None:
    """Give the network's tensors their seeded values; one that is held twice those of its first name.

    What the network's own code computes stays: tables in buffers, and parameters that are never learnt.
    """
    owners = {path: type(module).__name__ for path, module in network.named_modules(remove_duplicate=False)}
    done: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or id(tensor) in done:
            continue
        done.add(id(tensor))
        if not _computed(network, name, tensor):
            values = seeded(name, tuple(tensor.shape), owners.get(name.rpartition(".")[0], ""))
            tensor.copy_(torch.from_numpy(values))


def comes_of_its_name(network: Any, name: str, tensor: Any) -> bool:
    """Whether its values are those that `seeded` makes; else they must be sent."""
    if not tensor.is_floating_point():
        return True
    return not _computed(network, name, tensor) and not name.endswith(("running_mean", "running_var"))


def _computed(network: Any, name: str, tensor: Any) -> bool:
    """Whether the network's own code computes the values: no training changes them, and they are no constant."""
    if isinstance(tensor, torch.nn.Parameter):
        return not tensor.requires_grad and _evenly_spaced(tensor)
    owner = network.get_submodule(name.rpartition(".")[0])
    return not hasattr(owner, "running_mean") and bool((tensor != tensor.reshape(-1)[:1]).any())


def _evenly_spaced(tensor: Any) -> bool:
    """As the bins of a distribution are, over which a convolution sums."""
    if tensor.numel() < 3:
        return False
    steps = tensor.detach().reshape(-1).diff()
    return bool((steps == steps[0]).all()) and bool(steps[0] != 0)


@contextlib.contextmanager
def calibrating(network: Any) -> Iterator[None]:
    """In the block, a run gives normalisations the statistics of what reaches them, but for seeded factors: so values
    stay of one size, however deep the network is, and softmax does not become a choice that a rounding decides."""

    def measure(path: str) -> Any:
        def hook(module: Any, args: tuple) -> None:
            x = args[0].detach() if args and isinstance(args[0], torch.Tensor) else None
            if x is None or x.ndim < 2 or x.shape[1] != module.running_mean.numel() or not x.is_floating_point():
                return
            others = [axis for axis in range(x.ndim) if axis != 1]
            mean, variance = x.mean(others), x.var(others, correction=0)
            usual = (x - x.mean()).square().mean().clamp(min=1e-12)
            generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
            factors = torch.rand(2, mean.numel(), generator=generator) * 0.4 + 0.8
            module.running_mean.copy_(mean * factors[0])
            module.running_var.copy_(torch.where(variance > _LEAST * usual, variance, usual) * factors[1])

        return hook

    with contextlib.ExitStack() as hooks:
        for path, module in network.named_modules():
            if all(isinstance(getattr(module, name, None), torch.Tensor) for name in ("running_mean", "running_var")):
                hooks.callback(module.register_forward_pre_hook(measure(path)).remove)
        yield
