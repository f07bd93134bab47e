"""timm's and transformers' networks and the ports of them in zeromodels."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ports.port import Inputs, Port, State, picture

# --- timm -------------------------------------------------------------------------------------------------------------


def _converter(family: str) -> Any:
    """The module that holds a family's configurations and its converter from timm."""
    package = import_module(f"zeromodels.models.{family}")
    assert package.__file__
    [file] = Path(package.__file__).parent.glob("convert_*_timm_to_keras.py")
    return import_module(f"zeromodels.models.{family}.{file.stem}")


def _of_timm(family: str, name: str, cls: str, size: int = 224, **facts: Any) -> Port:
    def variant() -> dict[str, Any]:
        [variants] = [found for name, found in vars(_converter(family)).items() if name.endswith("_VARIANTS")]
        found: dict[str, Any] = next(one for one in variants.values() if one["timm_id"].split(".")[0] == name)
        return found

    def build_torch() -> Any:
        import timm

        return timm.create_model(variant()["timm_id"])

    def build_keras() -> Any:
        [models] = [found for name, found in vars(_converter(family)).items() if name.endswith("_MODEL_CONFIG")]
        return getattr(import_module(f"zeromodels.models.{family}"), cls)(**models[variant()["model"]])

    def truth(model: Any, state: State) -> None:
        if "transfer_from_timm" in vars(type(model)):
            type(model).transfer_from_timm(model, state)
            return
        shared = ("transfer_weights", "transfer_attention_weights")
        [fill] = [
            found
            for name, found in vars(_converter(family)).items()
            if name.startswith("transfer_") and name.endswith("_weights") and name not in shared
        ]
        fill(model, state)

    return Port(build_torch, build_keras, picture(size), truth, **facts)


_TIMM: dict[str, Port] = {
    "z_vit_t": _of_timm("vit", "vit_tiny_patch16_224", "ViTImageClassify"),
    "z_swin_t": _of_timm("swin", "swin_tiny_patch4_window7_224", "SwinImageClassify"),
    "z_convnext_atto": _of_timm("convnext", "convnext_atto", "ConvNeXtImageClassify"),
    "z_mixer_b16": _of_timm("mlp_mixer", "mixer_b16_224", "MLPMixerImageClassify"),
    "z_effnet_b0": _of_timm("efficientnet", "tf_efficientnet_b0", "EfficientNetImageClassify"),
    "z_mbv3_s": _of_timm("mobilenetv3", "mobilenetv3_small_100", "MobileNetV3ImageClassify"),
    "z_resnet50": _of_timm("resnet", "resnet50", "ResNetImageClassify"),
    "z_res2net50": _of_timm("res2net", "res2net50_26w_4s", "Res2NetImageClassify"),
    "z_densenet121": _of_timm("densenet", "densenet121", "DenseNetImageClassify"),
    "z_poolformer_s12": _of_timm("poolformer", "poolformer_s12", "PoolFormerImageClassify"),
    "z_maxvit_t": _of_timm("maxvit", "maxvit_tiny_tf_224", "MaxViTImageClassify"),
    "z_nextvit_s": _of_timm("nextvit", "nextvit_small", "NextViTImageClassify"),
    "z_swinv2_t": _of_timm("swinv2", "swinv2_tiny_window8_256", "SwinV2ImageClassify", 256),
    "z_inceptionv3": _of_timm("inceptionv3", "inception_v3", "InceptionV3ImageClassify", 299),
    "z_deit_t": _of_timm("deit", "deit_tiny_distilled_patch16_224", "DeiTImageClassify"),
    "z_effnetv2_b0": _of_timm("efficientnetv2", "tf_efficientnetv2_b0", "EfficientNetV2ImageClassify", 192),
    "z_resnetv2_50": _of_timm("resnetv2", "resnetv2_50x1_bit", "ResNetV2ImageClassify"),
    "z_cait_xxs24": _of_timm("cait", "cait_xxs24_224", "CaiTImageClassify", heldout=True),
    "z_convmixer_768": _of_timm("convmixer", "convmixer_768_32", "ConvMixerImageClassify", heldout=True),
    "z_convnextv2_atto": _of_timm("convnextv2", "convnextv2_atto", "ConvNeXtV2ImageClassify", heldout=True),
    "z_efficientformer_l1": _of_timm(
        "efficientformer", "efficientformer_l1", "EfficientFormerImageClassify", heldout=True
    ),
    "z_effnet_lite0": _of_timm(
        "efficientnet_lite", "tf_efficientnet_lite0", "EfficientNetLiteImageClassify", heldout=True
    ),
    "z_flexivit_s": _of_timm("flexivit", "flexivit_small", "FlexiViTImageClassify", 240, heldout=True),
    "z_inception_next_atto": _of_timm(
        "inception_next", "inception_next_atto", "InceptionNextImageClassify", heldout=True
    ),
    "z_mbv2_050": _of_timm("mobilenetv2", "mobilenetv2_050", "MobileNetV2ImageClassify", heldout=True),
    "z_mbv4_s": _of_timm("mobilenetv4", "mobilenetv4_conv_small", "MobileNetV4ImageClassify", heldout=True),
    "z_mobilevit_xxs": _of_timm(
        "mobilevit", "mobilevit_xxs", "MobileViTImageClassify", 256, heldout=True, kind="near", reason="epsilon"
    ),
    "z_mobilevitv2_050": _of_timm("mobilevitv2", "mobilevitv2_050", "MobileViTV2ImageClassify", 256, heldout=True),
    "z_pit_ti": _of_timm("pit", "pit_ti_224", "PiTImageClassify", heldout=True),
    "z_resmlp_12": _of_timm("resmlp", "resmlp_12_224", "ResMLPImageClassify", heldout=True),
    "z_resnext50": _of_timm("resnext", "resnext50_32x4d", "ResNeXtImageClassify", heldout=True),
    "z_seresnet50": _of_timm("senet", "seresnet50", "SENetImageClassify", heldout=True),
    "z_xception41": _of_timm("xception", "xception41", "XceptionImageClassify", 299, heldout=True),
}

# --- transformers -----------------------------------------------------------------------------------------------------


def text(
    length: int = 11, vocabulary: int = 120, types: bool = False, padded: bool = True, decoder: bool = False
) -> Callable[[], Inputs]:
    """Two texts by transformers' names, for both sides; the end of the first is padding."""

    def inputs() -> Inputs:
        ids = np.random.default_rng(2).integers(3, vocabulary, (2, length))
        mask = np.ones_like(ids)
        mask[0, length - 3 :] = not padded
        given = {"input_ids": ids, "attention_mask": mask}
        if types:
            given["token_type_ids"] = np.tile(np.arange(length) > length // 2, (2, 1)).astype(ids.dtype)
        if decoder:
            given["decoder_input_ids"] = ids[:, :7]
        return given, {name: value.astype(np.int32) for name, value in given.items()}

    return inputs


def _clip() -> Inputs:
    [(pictures,), (ours,)] = picture(32, 2)()
    theirs, texts = text()()
    return {"pixel_values": pictures, **theirs}, {
        "images": ours,
        "token_ids": texts["input_ids"],
        "padding_mask": texts["attention_mask"],
    }


def _enlarged(result: Any) -> Any:
    """The Keras model brings the classes of each pixel to the size of the picture."""
    from torch.nn import functional

    return functional.interpolate(result["logits"], scale_factor=4, mode="bilinear")


def pixels(size: int) -> Callable[[], Inputs]:
    """A picture as transformers' networks take it, and a Keras model with a single input."""
    return picture(size, name="pixel_values")


def configured(config: str, arguments: dict[str, Any]) -> Any:
    """transformers' configuration; (class, arguments) in `arguments` stands for one inside it."""
    import transformers

    arguments = {
        name: configured(*value) if isinstance(value, tuple) and str(value[0]).endswith("Config") else value
        for name, value in arguments.items()
    }
    found = getattr(transformers, config)(**arguments)
    found._attn_implementation = "eager"
    return found


def _of_transformers(
    theirs: str,
    config: str,
    family: str,
    ours: str,
    arguments: dict[str, Any],
    inputs: Callable[[], Inputs],
    keras: dict[str, Any] | None = None,
    **facts: Any,
) -> Port:
    def build_torch() -> Any:
        import transformers

        return getattr(transformers, theirs)(configured(config, arguments))

    def build_keras() -> Any:
        cls = getattr(import_module(f"zeromodels.models.{family}"), ours)
        model = cls(**{**cls.config_from_hf(configured(config, arguments).to_dict()), **(keras or {})})
        if not model.built and hasattr(model, "build_for_transfer"):
            model.build_for_transfer()
        return model

    def truth(model: Any, state: State) -> None:
        type(model).transfer_from_hf(model, {name.removeprefix("transformer."): one for name, one in state.items()})

    return Port(build_torch, build_keras, inputs, truth, **facts)


_SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT = {"vocab_size": 120, "max_position_embeddings": 40, **_SMALL}
_TOWER = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
_DFINE = {"decoder_layers": 3, "num_queries": 30, "num_labels": 7, "decoder_n_points": [3, 6, 3]}
_VISION = {name: value for name, value in _SMALL.items() if name != "intermediate_size"}

_TRANSFORMERS: dict[str, Port] = {
    "z_bert": _of_transformers("BertModel", "BertConfig", "bert", "BertModel", _TEXT, text(types=True)),
    "z_gpt2": _of_transformers(
        "GPT2LMHeadModel",
        "GPT2Config",
        "gpt2",
        "GPT2TextGenerate",
        {"vocab_size": 120, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4},
        text(),
    ),
    "z_t5": _of_transformers(
        "T5ForConditionalGeneration",
        "T5Config",
        "t5",
        "T5ConditionalGenerate",
        {"vocab_size": 120, "d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 3, "num_heads": 4},
        text(decoder=True),
    ),
    "z_deberta_v2": _of_transformers(
        "DebertaV2Model",
        "DebertaV2Config",
        "deberta_v2",
        "DebertaV2Model",
        {
            **_TEXT,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "type_vocab_size": 0,
            "position_biased_input": False,
        },
        text(types=True),
    ),
    "z_llama": _of_transformers(
        "LlamaForCausalLM",
        "LlamaConfig",
        "llama",
        "LlamaTextGenerate",
        {**_TEXT, "max_position_embeddings": 64, "num_key_value_heads": 2},
        text(padded=False),
        {"rope_theta": 10000.0},
    ),
    "z_dinov2": _of_transformers(
        "Dinov2Model",
        "Dinov2Config",
        "dino_v2",
        "DinoV2Model",
        {"image_size": 56, "patch_size": 14, "mlp_ratio": 2, **_VISION},
        pixels(56),
        {"image_size": 56},
    ),
    "z_clip": _of_transformers(
        "CLIPModel",
        "CLIPConfig",
        "clip",
        "CLIPZeroShotClassify",
        {
            "text_config": {
                "vocab_size": 120,
                "eos_token_id": 2,
                "max_position_embeddings": 11,
                "projection_dim": 24,
                **_TOWER,
            },
            "vision_config": {"image_size": 32, "patch_size": 8, "projection_dim": 24, **_TOWER},
            "projection_dim": 24,
        },
        _clip,
    ),
    "z_detr": _of_transformers(
        "DetrForObjectDetection",
        "DetrConfig",
        "detr",
        "DETRDetect",
        {
            "use_timm_backbone": True,
            "use_pretrained_backbone": False,
            "backbone": "resnet50",
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "num_queries": 9,
            "num_labels": 7,
        },
        pixels(128),
        {"image_size": 128},
        converter_reads="live",
    ),
    "z_dfine": _of_transformers(
        "DFineForObjectDetection",
        "DFineConfig",
        "dfine",
        "DFineDetect",
        {"depth_mult": 0.34, **_DFINE},
        pixels(160),
        {"image_size": 160},
    ),
    "z_dfine_depth1": _of_transformers(
        "DFineForObjectDetection",
        "DFineConfig",
        "dfine",
        "DFineDetect",
        _DFINE,
        pixels(160),
        {"image_size": 160},
        kind="unequal",
        reason="one bottleneck on the Keras side for three on torch's: the depth is ignored",
    ),
    "z_segformer": _of_transformers(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        "segformer",
        "SegFormerSemanticSegment",
        {"num_labels": 7},
        pixels(128),
        {"image_size": 128},
        compared=_enlarged,
    ),
    "z_depthany": _of_transformers(
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        "depth_anything_v2",
        "DepthAnythingV2DepthEstimation",
        {
            "backbone_config": (
                "Dinov2Config",
                {
                    **_VISION,
                    "image_size": 70,
                    "patch_size": 14,
                    "num_hidden_layers": 4,
                    "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    "reshape_hidden_states": False,
                    "apply_layernorm": True,
                },
            ),
            "reassemble_hidden_size": 48,
            "neck_hidden_sizes": [12, 24, 48, 48],
            "fusion_hidden_size": 16,
            "patch_size": 14,
            "reassemble_factors": [4, 2, 1, 0.5],
            "head_in_index": -1,
            "head_hidden_size": 32,
        },
        pixels(70),
        {"image_size": 70},
    ),
}


def _whisper() -> Inputs:
    """A spectrum (2, 8, 60), and what was written of it so far."""
    spectrum = np.random.default_rng(3).standard_normal((2, 8, 60), dtype=np.float32)
    ids = np.random.default_rng(2).integers(3, 120, (2, 7))
    return (
        {"input_features": spectrum, "decoder_input_ids": ids},
        {"input_features": spectrum, "decoder_input_ids": ids.astype(np.int32)},
    )


def _siglip() -> Inputs:
    [(pictures,), (ours,)] = picture(32, 2)()
    ids = np.random.default_rng(2).integers(3, 120, (2, 11))
    return {"pixel_values": pictures, "input_ids": ids}, {"images": ours, "token_ids": ids.astype(np.int32)}


def _held_out(*arguments: Any, **facts: Any) -> Port:
    return _of_transformers(*arguments, **facts, heldout=True)


_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_BART = {
    "vocab_size": 120,
    "max_position_embeddings": 40,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}

_HELD_OUT: dict[str, Port] = {
    "z_roberta": _held_out("RobertaModel", "RobertaConfig", "roberta", "RobertaModel", _TEXT, text(types=True)),
    "z_electra": _held_out(
        "ElectraModel", "ElectraConfig", "electra", "ElectraModel", {"embedding_size": 24, **_TEXT}, text(types=True)
    ),
    "z_mpnet": _held_out("MPNetModel", "MPNetConfig", "mpnet", "MPNetModel", _TEXT, text()),
    "z_modernbert": _held_out(
        "ModernBertModel",
        "ModernBertConfig",
        "modernbert",
        "ModernBertModel",
        {**_TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        text(),
    ),
    "z_gemma": _held_out(
        "GemmaForCausalLM",
        "GemmaConfig",
        "gemma",
        "GemmaTextGenerate",
        {**_GROUPED, "head_dim": 12},
        text(padded=False),
    ),
    "z_mistral": _held_out(
        "MistralForCausalLM", "MistralConfig", "mistral", "MistralTextGenerate", _GROUPED, text(padded=False)
    ),
    "z_qwen2": _held_out(
        "Qwen2ForCausalLM",
        "Qwen2Config",
        "qwen2",
        "Qwen2TextGenerate",
        _GROUPED,
        text(padded=False),
        {"rope_theta": 10000.0},
    ),
    "z_bart": _held_out(
        "BartForConditionalGeneration", "BartConfig", "bart", "BartConditionalGenerate", _BART, text(decoder=True)
    ),
    "z_whisper": _held_out(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        "whisper",
        "WhisperConditionalGenerate",
        {
            **{name: value for name, value in _BART.items() if name != "max_position_embeddings"},
            "num_mel_bins": 8,
            "max_source_positions": 30,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        _whisper,
    ),
    "z_siglip": _held_out(
        "SiglipModel",
        "SiglipConfig",
        "siglip",
        "SigLIPZeroShotClassify",
        {
            "text_config": {"vocab_size": 120, "max_position_embeddings": 11, "projection_size": 128, **_TOWER},
            "vision_config": {"image_size": 32, "patch_size": 8, **_TOWER},
        },
        _siglip,
    ),
    "z_beit": _held_out(
        "BeitForImageClassification",
        "BeitConfig",
        "beit",
        "BeitImageClassify",
        {"image_size": 32, "patch_size": 8, "use_relative_position_bias": True, "num_labels": 7, **_SMALL},
        pixels(32),
    ),
    "z_levit": _held_out(
        "LevitForImageClassificationWithTeacher",
        "LevitConfig",
        "levit",
        "LevitImageClassify",
        {"num_labels": 7},
        pixels(224),
        {"num_classes": 7},
    ),
    "z_pvt_v2": _held_out(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        "pvt_v2",
        "PvtV2ImageClassify",
        {"image_size": 64, "num_labels": 7},
        pixels(64),
        {"image_size": 64, "num_classes": 7},
    ),
    "z_regnet": _held_out(
        "RegNetForImageClassification",
        "RegNetConfig",
        "regnet",
        "RegNetImageClassify",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 3, 1], "groups_width": 8, "num_labels": 7},
        pixels(64),
        {"image_size": 64, "num_classes": 7},
    ),
    "z_rt_detr": _held_out(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        "rt_detr",
        "RTDETRDetect",
        {"num_queries": 30, "num_labels": 7, "decoder_layers": 2},
        pixels(160),
        {"image_size": 160},
        converter_reads="live",
    ),
}

PORTS: dict[str, Port] = {**_TIMM, **_TRANSFORMERS, **_HELD_OUT}
