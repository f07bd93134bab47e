"""The torch side of the networks: builders of independent libraries' modules, and seeded weights for them.

Where a library has the network (torchvision, timm, transformers, torch itself), its own module is taken, made small by
its arguments. What no library has is written here, of torch's layers. Nothing here imports TensorFlow.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def resnet(
    block: str = "BasicBlock", layers: tuple[int, ...] = (1, 1, 1, 1), channels: tuple[int, ...] = (12, 16, 20, 24)
) -> Any:
    """timm's ResNet with a 7x7 stem of 64 channels and stages of any width; the stride is on the 3x3 convolution."""
    from timm.models import resnet as timm_resnet

    return timm_resnet.ResNet(getattr(timm_resnet, block), layers, num_classes=7, channels=channels)


def torchvision_resnet(name: str) -> Any:
    """torchvision's ResNet at its real size, with 10 classes."""
    import torchvision

    return getattr(torchvision.models, name)(num_classes=10)


def vit(**sizes: Any) -> Any:
    """torchvision's Vision Transformer, whose attention is nn.MultiheadAttention."""
    from torchvision.models import VisionTransformer

    small = {"image_size": 24, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 24, "mlp_dim": 40}
    return VisionTransformer(**{**small, "num_classes": 7, **sizes})


def timm_vit(**sizes: Any) -> Any:
    """timm's Vision Transformer, with packed queries, keys and values, and LayerScale."""
    from timm.models.vision_transformer import VisionTransformer

    small = {"img_size": (24, 40), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    return VisionTransformer(**{**small, "init_values": 0.1, "num_classes": 7, **sizes})


def convnext(dims: tuple[int, ...] = (12, 20), depths: tuple[int, ...] = (2, 1), layer_scale: float = 1e-6) -> Any:
    """torchvision's ConvNeXt."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    settings = [CNBlockConfig(*row) for row in zip(dims, (*dims[1:], None), depths, strict=True)]
    return ConvNeXt(settings, layer_scale=layer_scale, num_classes=7)


def swin() -> Any:
    """torchvision's Swin Transformer; windows of 3 x 4 do not divide the grid, and are shifted in every other block."""
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 12, [2, 1], [3, 4], [3, 4], mlp_ratio=2.0, stochastic_depth_prob=0.0, num_classes=7)


def mobilenet() -> Any:
    """torchvision's MobileNetV3: depthwise convolutions, squeeze and excitation, hard-swish; epsilon is 1e-3."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    rows = [
        (8, 3, 16, 8, True, "RE", 1, 1),
        (8, 5, 24, 16, True, "HS", 2, 1),
        (16, 3, 32, 16, False, "HS", 1, 2),
    ]
    return MobileNetV3([InvertedResidualConfig(*row, width_mult=1.0) for row in rows], last_channel=20, num_classes=7)


def efficientnet() -> Any:
    """torchvision's EfficientNet: SiLU, squeeze and excitation; epsilon is 1e-5 here."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    rows = [(1, 3, 1, 8, 8, 1), (4, 3, 2, 8, 16, 2), (4, 5, 2, 16, 24, 1)]
    return EfficientNet([MBConvConfig(*row) for row in rows], dropout=0.2, num_classes=7, last_channel=32)


def squeezenet() -> Any:
    """torchvision's SqueezeNet 1.1: fire modules, max pooling with ceil_mode, a convolution as its head."""
    from torchvision.models.squeezenet import squeezenet1_1

    return squeezenet1_1(num_classes=7)


def densenet() -> Any:
    """torchvision's DenseNet: normalisation first, concatenation in every layer, average pooling between blocks."""
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=6, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=7)


def mixer() -> Any:
    """timm's MLP-Mixer."""
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(img_size=(24, 40), patch_size=8, num_blocks=2, embed_dim=24, num_classes=7)


class Inception(nn.Module):
    """A stem and torchvision's InceptionA: four branches; average pooling that counts its padding."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.inception import BasicConv2d, InceptionA

        self.stem = BasicConv2d(3, 10, kernel_size=3, stride=2)
        self.mixed = InceptionA(10, pool_features=12)
        self.fc = nn.Linear(236, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mixed(self.stem(x)).mean((2, 3)))


class Segmenter(nn.Module):
    """A stem and torchvision's ASPP: dilated convolutions, global pooling, resized logits."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self.stem = nn.Conv2d(3, 10, 3, stride=2, padding=1)
        self.aspp = ASPP(10, (2, 3), 12)
        self.classifier = nn.Conv2d(12, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.classifier(self.aspp(self.stem(x).relu()))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Three convolutions and torchvision's FeaturePyramidNetwork; returns its three maps."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.body = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip((3, 8, 12), (8, 12, 16), strict=True)
        )
        self.fpn = FeaturePyramidNetwork([8, 12, 16], 12)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = OrderedDict()
        for index, conv in enumerate(self.body):
            x = conv(x).relu()
            maps[str(index)] = x
        return tuple(self.fpn(maps).values())


class DoubleConv(nn.Module):
    """Two convolutions with batch normalisation, as every level of a U-Net has them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class UNet(nn.Module):
    """Encoder and decoder with skips.

    `up` is "transposed", or else bilinear: "corners" with align_corners, "edges" without.
    """

    def __init__(self, up: str = "transposed", width: int = 6) -> None:
        super().__init__()
        self.up = up
        self.down1, self.down2 = DoubleConv(3, width), DoubleConv(width, 2 * width)
        self.bottom = DoubleConv(2 * width, 4 * width)
        if up == "transposed":
            self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
            self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        else:
            self.up2, self.up1 = nn.Conv2d(4 * width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.merge2, self.merge1 = DoubleConv(4 * width, 2 * width), DoubleConv(2 * width, width)
        self.head = nn.Conv2d(width, 5, 1)

    def _grown(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.up != "transposed":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.up == "corners")
        return layer(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.merge2(torch.cat([two, self._grown(self.up2, x)], 1))
        x = self.merge1(torch.cat([one, self._grown(self.up1, x)], 1))
        return self.head(x)


class Tagger(nn.Module):
    """An embedding, two LSTMs without biases, the second one backwards as well, and a linear layer on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 10)
        self.rnn = nn.LSTM(10, 12, bias=False, batch_first=True)
        self.both = nn.LSTM(12, 8, bias=False, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(16, 5)
        self.head = nn.Linear(12, 7)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.rnn(self.embed(ids))[0]
        return self.tags(self.both(states)[0]), self.head(states[:, -1])


class LeNet(nn.Module):
    """Convolutions, max pooling of negative values (what pads it shows), a flattened map, linear layers, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 10, 5)
        self.fc1, self.bn, self.fc2 = nn.Linear(10 * 3 * 5, 20), nn.BatchNorm1d(20), nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv1(x), 3, stride=2, padding=1).tanh()
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc2(self.bn(self.fc1(x.flatten(1))).relu()).softmax(1)


class Chain(nn.Module):
    """What Keras users write with the activation inside the layer: convolutions, pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 12, (3, 5), padding=(1, 2))
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv2(self.conv1(x).relu()).relu())
        x = self.conv3(x).tanh().mean((2, 3))
        return self.fc2(self.fc1(x).relu()).softmax(1)


class TwoHeads(nn.Module):
    """A convolution and two linear layers of the same shape, each an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(x).relu().mean((2, 3))
        return self.left(x), self.right(x)


def vgg() -> Any:
    """torchvision's VGG features with a small head, as one nn.Sequential."""
    from torchvision.models.vgg import make_layers

    layers = list(make_layers([8, "M", 12, 12, "M"]))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 7))


class Upscaler(nn.Module):
    """Super resolution: reflect padding, group normalisation, PReLU, a residual scaled by a gamma, pixel shuffle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, width, 5, padding=2, padding_mode="reflect")
        self.act = nn.PReLU(width)
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=2), nn.GroupNorm(4, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))
        self.expand = nn.Conv2d(width, 3 * 4, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.entry(x))
        y = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        x = self.shuffle(self.expand(x + self.gamma[:, None, None] * y))
        return torch.tanh(self.last(F.pad(x, (1, 1, 1, 1), mode="reflect")))


class Generator(nn.Module):
    """Transposed convolutions with padding and output padding, a depthwise one with a multiplier, dilation, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8 * 2 * 3)
        self.up1, self.bn1 = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(12)
        self.up2 = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=8)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.project(z).reshape(-1, 8, 2, 3)
        x = F.relu6(3 * self.bn1(self.up1(x)))
        x = F.leaky_relu(self.bn2(self.up2(x)), 0.2)
        x = F.silu(self.grouped(F.hardswish(self.depthwise(x))))
        return self.last(x).sigmoid()


class Encoder(nn.Module):
    """torch's own TransformerEncoder on embedded tokens, with a mask of padding; pooled over the tokens that count."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 24)
        self.positions = nn.Parameter(torch.zeros(1, 12, 24))
        layer = nn.TransformerEncoderLayer(
            24, 4, 40, dropout=0.1, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 7)

    def forward(self, ids: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encoder(self.embed(ids) + self.positions[:, : ids.shape[1]], src_key_padding_mask=padding)
        counts = (~padding)[..., None].to(x.dtype)
        return self.head((x * counts).sum(1) / counts.sum(1)), x


def bert() -> Any:
    """transformers' BERT."""
    from transformers import BertConfig, BertModel

    class Bert(BertModel):
        """Returns the two arrays."""

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            result = super().forward(**given)
            return result.last_hidden_state, result.pooler_output

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    more = {"vocab_size": 40, "max_position_embeddings": 16, "attn_implementation": "eager"}
    return Bert(BertConfig(**sizes, **more))


def gpt2(tied: bool = True) -> Any:
    """transformers' GPT-2, with its tied output layer or one of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    class GPT2(GPT2LMHeadModel):
        """Returns the logits."""

        def forward(self, input_ids: Any) -> Any:
            return super().forward(input_ids=input_ids, use_cache=False).logits

    sizes = {
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "vocab_size": 37,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2(GPT2Config(**sizes, attn_implementation="eager", tie_word_embeddings=tied))


# --- seeded weights ---------------------------------------------------------------------------------------------------

_TABLES = ("pos", "token", "relative_position_bias_table")
_SCALES = ("layer_scale", "gamma", "ls1", "ls2")


def seeded_state(
    build: Callable[[], Any], seed: int, inputs: dict[str, Any], finish: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, torch.Tensor]:
    """Weights by seed with which activations stay of order one; batch statistics are those of `inputs`.

    `finish` changes the state dict at the end, as for a gamma of zero.
    """
    torch.manual_seed(seed)
    module = build()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, layer in module.named_modules():
            for name, value in layer.named_parameters(recurse=False):
                value.copy_(_seeded(layer, path, name, value, rng))
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.reset_running_stats()
                layer.momentum = None  # the average of all batches
        module.train()
        for layer in module.modules():
            if "Drop" in type(layer).__name__ or "StochasticDepth" in type(layer).__name__:
                layer.eval()
            if isinstance(layer, nn.MultiheadAttention):
                layer.dropout = 0.0
        _statistics(module, inputs, rng)
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    if finish is not None:
        finish(state)
    return state


def _seeded(layer: Any, path: str, name: str, value: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    values = torch.randn(value.shape, generator=rng)
    if any(word in name for word in _SCALES):
        return value * (1 + 0.3 * values)  # around what the module was made with
    if isinstance(layer, nn.Embedding):
        return values
    if any(word in name for word in _TABLES):
        return 0.7 * values
    if isinstance(layer, nn.PReLU):
        return 0.25 + 0.1 * values
    if value.ndim == 1:
        return 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
    if isinstance(layer, (nn.ConvTranspose2d,)):
        fan = value.shape[0] * value[0, 0].numel() / (layer.stride[0] * layer.stride[1])
    else:
        fan = value.shape[0] if type(layer).__name__ == "Conv1D" else value[0].numel()
    gain = 1.5 if isinstance(layer, nn.Conv2d) else 1.0
    return values * (gain / fan) ** 0.5


def _statistics(module: Any, inputs: dict[str, Any], rng: torch.Generator) -> None:
    """Batch statistics of a forward pass, moved a little, so that normalised values are no perfect ones."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    module(**inputs)
    for layer in norms:
        layer.running_mean += 0.1 * layer.running_var.sqrt() * torch.randn(layer.running_mean.shape, generator=rng)
        layer.running_var *= 0.8 + 0.4 * torch.rand(layer.running_var.shape, generator=rng)


def zeroed(*endings: str) -> Callable[[dict[str, Any]], None]:
    """A `finish` that sets every tensor whose name ends so to zero, as layers that start as nothing are."""
    return partial(_filled, endings, 0.0)


def ones(*endings: str) -> Callable[[dict[str, Any]], None]:
    """A `finish` that sets every tensor whose name ends so to one."""
    return partial(_filled, endings, 1.0)


def steep(*endings: str) -> Callable[[dict[str, Any]], None]:
    """A `finish` that makes every tensor whose name ends so three times as large, so that ReLU6 would clip."""

    def finish(state: dict[str, Any]) -> None:
        for name in state:
            if name.endswith(endings):
                state[name].mul_(3)

    return finish


def _filled(endings: tuple[str, ...], number: float, state: dict[str, Any]) -> None:
    names = [name for name in state if name.endswith(endings)]
    if not names:
        raise ValueError(f"no tensor's name ends in {', '.join(endings)}")
    for name in names:
        state[name].fill_(number)
