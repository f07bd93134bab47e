"""timm's and transformers' networks and the ports of them in keras-hub."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports.port import Inputs, Port, State, picture
from benchmarks.ports.zeromodels_ports import configured, pixels, text


def _read(state: State, convert: Callable[[Any], None], whole: bool = True, **arguments: Any) -> None:
    """Run a converter on the reader that keras-hub gives it, of a folder as it is downloaded.

    Where not the `whole` model can be filled, as the networks are not the same, what does not fit is left out.
    """
    from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    class Reader(SafetensorLoader):
        def port_weight(self, *given: Any, **named: Any) -> None:
            with suppress(*() if whole else (ValueError, SafetensorError)):
                super().port_weight(*given, **named)

    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder, "model.safetensors"))
        with Reader(folder, **arguments) as reader:
            convert(reader)


def _of_timm(
    name: str, module: str, classifier: str, features: int | None = None, size: int = 224, **facts: Any
) -> Port:
    """`classifier` is the torch module of the last layer; `features` what its input has, where keras-hub asks."""

    def converter() -> Any:
        return import_module(f"keras_hub.src.utils.timm.{module}")

    config = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": features,
        "pretrained_cfg": {"classifier": classifier},
        "model_args": {},
    }

    def build_torch() -> Any:
        import timm

        return timm.create_model(name)

    def build_keras() -> Any:
        import keras_hub  # noqa: F401
        from keras_hub.src.models.image_classifier import ImageClassifier

        backbone = converter().backbone_cls
        cls = next((one for one in ImageClassifier.__subclasses__() if one.backbone_cls is backbone), ImageClassifier)
        more = {} if features is None else {"num_features": features}
        body = backbone(**converter().convert_backbone_config(config))
        return cls(backbone=body, num_classes=1000, preprocessor=None, **more)

    def truth(model: Any, state: State) -> None:
        # What timm holds as an array of one number, the converter assigns to a scalar, and stops.
        state = {name: value.reshape(()) if value.shape == (1,) else value for name, value in state.items()}

        def convert(reader: Any) -> None:
            converter().convert_weights(model.backbone, reader, config)
            converter().convert_head(model, reader, config)

        _read(state, convert, facts.get("kind") != "unequal", prefix="")

    return Port(build_torch, build_keras, picture(size), truth, **facts)


def _tokens(inputs: Callable[[], Inputs]) -> Callable[[], Inputs]:
    """The same by keras-hub's names."""
    names = {
        "input_ids": "token_ids",
        "attention_mask": "padding_mask",
        "token_type_ids": "segment_ids",
    }

    def renamed() -> Inputs:
        theirs, ours = inputs()
        return theirs, {names[name]: value for name, value in ours.items()}

    return renamed


def _of_transformers(
    theirs: str,
    config: str,
    module: str,
    arguments: dict[str, Any],
    inputs: Callable[[], Inputs],
    prefix: str = "",
    **facts: Any,
) -> Port:
    """`prefix` is what the converter expects before all names, as files of a network with a head have it."""

    def converter() -> Any:
        return import_module(f"keras_hub.src.utils.transformers.{module}")

    def read_config() -> dict[str, Any]:
        found = configured(config, arguments)
        given: dict[str, Any] = found.to_dict()
        given.setdefault("num_hidden_layers", getattr(found, "num_hidden_layers", None))
        return {"architectures": [theirs], **given}

    def build_torch() -> Any:
        import transformers

        return getattr(transformers, theirs)(configured(config, arguments))

    def build_keras() -> Any:
        import keras_hub  # noqa: F401

        return converter().backbone_cls(**converter().convert_backbone_config(read_config()))

    def truth(model: Any, state: State) -> None:
        whole = {prefix + name: value for name, value in state.items()}
        _read(whole, lambda reader: converter().convert_weights(model, reader, read_config()))

    return Port(build_torch, build_keras, inputs, truth, **facts)


def _two_texts() -> Inputs:
    theirs, ours = text(decoder=True)()
    return theirs, {
        "encoder_token_ids": ours["input_ids"],
        "encoder_padding_mask": ours["attention_mask"],
        "decoder_token_ids": ours["decoder_input_ids"],
        "decoder_padding_mask": np.ones_like(ours["decoder_input_ids"]),
    }


_SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_VISION = {name: value for name, value in _SMALL.items() if name != "intermediate_size"}
_TEXT = {"vocab_size": 120, "max_position_embeddings": 40, **_SMALL}

PORTS: dict[str, Port] = {
    "h_resnet18": _of_timm("resnet18", "convert_resnet", "fc"),
    "h_resnetv2_50": _of_timm("resnetv2_50", "convert_resnet", "head.fc"),
    "h_densenet121": _of_timm(
        "densenet121", "convert_densenet", "classifier", kind="near", reason="padding at the first strides; epsilon"
    ),
    "h_effnet_b0": _of_timm("efficientnet_b0", "convert_efficientnet", "classifier"),
    "h_mbv3_s": _of_timm("mobilenetv3_small_100", "convert_mobilenet", "classifier", 1024),
    "h_vgg11": _of_timm("vgg11", "convert_vgg", "head.fc"),
    "h_hgnetv2_b0": _of_timm(
        "hgnetv2_b0",
        "convert_hgnetv2",
        "head.fc",
        kind="unequal",
        reason="the last convolution gives 1024 channels for 2048 of torch",
    ),
    "h_bert": _of_transformers(
        "BertModel",
        "BertConfig",
        "convert_bert",
        _TEXT,
        _tokens(text(types=True)),
        kind="near",
        reason="the tanh of GELU is an approximation",
    ),
    "h_distilbert": _of_transformers(
        "DistilBertModel",
        "DistilBertConfig",
        "convert_distilbert",
        {"vocab_size": 120, "max_position_embeddings": 40, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96},
        _tokens(text()),
        "distilbert.",
    ),
    "h_gpt2": _of_transformers(
        "GPT2Model",
        "GPT2Config",
        "convert_gpt2",
        {"vocab_size": 120, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 192},
        _tokens(text()),
    ),
    "h_vit": _of_transformers(
        "ViTModel",
        "ViTConfig",
        "convert_vit",
        {"image_size": 32, "patch_size": 8, **_SMALL},
        pixels(32),
        "vit.",
        kind="near",
        reason="epsilon",
    ),
    "h_albert": _of_transformers(
        "AlbertModel",
        "AlbertConfig",
        "convert_albert",
        {"embedding_size": 24, **_TEXT},
        _tokens(text(types=True)),
        "albert.",
    ),
    "h_cspdarknet53": _of_timm("cspdarknet53", "convert_cspnet", "head.fc", size=256, heldout=True),
    "h_resnet50": _of_timm("resnet50", "convert_resnet", "fc", heldout=True),
    "h_roberta": _of_transformers(
        "RobertaModel",
        "RobertaConfig",
        "convert_roberta",
        {**_TEXT, "layer_norm_eps": 1e-5},
        _tokens(text()),
        "roberta.",
        heldout=True,
        kind="near",
        reason="the embedding of types is left out",
    ),
    "h_xlm_roberta": _of_transformers(
        "XLMRobertaModel",
        "XLMRobertaConfig",
        "convert_xlm_roberta",
        {**_TEXT, "layer_norm_eps": 1e-5},
        _tokens(text()),
        heldout=True,
        kind="near",
        reason="a variable has the sum of two tensors: positions with the embedding of a type added",
    ),
    "h_gemma": _of_transformers(
        "GemmaModel",
        "GemmaConfig",
        "convert_gemma",
        {**_TEXT, "num_key_value_heads": 2, "head_dim": 12},
        _tokens(text(padded=False)),
        "model.",
        heldout=True,
    ),
    "h_llama": _of_transformers(
        "LlamaModel",
        "LlamaConfig",
        "convert_llama3",
        {**_TEXT, "num_key_value_heads": 2, "tie_word_embeddings": True},
        _tokens(text(padded=False)),
        "model.",
        heldout=True,
    ),
    "h_qwen": _of_transformers(
        "Qwen2Model",
        "Qwen2Config",
        "convert_qwen",
        {**_TEXT, "num_key_value_heads": 2, "tie_word_embeddings": True},
        _tokens(text(padded=False)),
        "model.",
        heldout=True,
    ),
    "h_qwen3": _of_transformers(
        "Qwen3Model",
        "Qwen3Config",
        "convert_qwen3",
        {**_TEXT, "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": True},
        _tokens(text(padded=False)),
        heldout=True,
        kind="near",
        reason="epsilon",
    ),
    "h_deit": _of_transformers(
        "DeiTModel",
        "DeiTConfig",
        "convert_deit",
        {"image_size": 32, "patch_size": 8, **_SMALL},
        pixels(32),
        "deit.",
        heldout=True,
    ),
    "h_dinov2": _of_transformers(
        "Dinov2Model",
        "Dinov2Config",
        "convert_dinov2",
        {"image_size": 56, "patch_size": 14, "mlp_ratio": 2, **_VISION},
        picture(56, name="pixel_values", keras_name="images"),
        heldout=True,
    ),
    "h_swin": _of_transformers(
        "SwinModel",
        "SwinConfig",
        "convert_swin_transformer",
        {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        pixels(64),
        heldout=True,
    ),
    "h_bart": _of_transformers(
        "BartModel",
        "BartConfig",
        "convert_bart",
        {
            "vocab_size": 120,
            "max_position_embeddings": 40,
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
        },
        _two_texts,
        heldout=True,
    ),
}
