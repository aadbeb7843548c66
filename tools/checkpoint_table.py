"""Grow models of public libraries, carry the growth into their state dicts, load these into wider classes, compare.

For each architecture (random weights, random BatchNormalization statistics): export, `widen --factor 1.5 --for torch`,
`checkpoint`, make the wider class, `load_state_dict(strict=True)`, and compare its outputs with the teacher's in
double precision. transformers' classes are made by their configs at the new sizes; those of torchvision and timm, whose
constructors do not take a size for every layer, by setting the sizes of the teacher's modules to those of the
checkpoint. Each model has a process of its own.

    pip install '.[train]' torchvision timm transformers
    python tools/checkpoint_table.py --json results.jsonl > table.md
    python tools/checkpoint_table.py --only 'timm/*vit*' --exports dynamo
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from onnx_net2net.framework.widths import WidthReport

EXPORTS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True},
    "dynamo, folding off": {"dynamo": True, "optimize": False},
    "TorchScript": {"dynamo": False},
    "TorchScript, folding off": {"dynamo": False, "do_constant_folding": False},
}
FACTORS = {"torchvision": (1.5,), "timm": (1.5,), "transformers": (1.5, 2.0)}
"""What streams grow by that a norm reads: whole factors only."""

WHOLE = ("transformers/bloom", "transformers/convnext", "timm/convnextv2_atto")
"""Classes all of whose widths are a multiple of one that a norm reads: they grow by 2."""

SMALL = 12
"""Sizes up to this are numbers of heads and kernels, and the width of a head."""

TOLERANCE = 1e-4
"""Largest difference of the outputs, relative to the largest output."""

Case = tuple[nn.Module, torch.Tensor]


class Flat(nn.Module):
    """A model of transformers with one input, whose results are tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the model."""
        result = self.model(**{self.model.main_input_name: x}, return_dict=True)
        return tuple(value for value in result.values() if isinstance(value, torch.Tensor))


# --- Architectures -------------------------------------------------------------------------------------------


def image(size: int) -> torch.Tensor:
    """Make two images."""
    return torch.randn(2, 3, size, size)


def import_torchvision() -> Any:
    """Import torchvision, also where its operators (of detection) do not fit the installed torch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            break
    import torchvision

    torchvision.keep = library
    return torchvision


TORCHVISION = (
    "alexnet", "convnext", "densenet", "efficientnet", "efficientnet_v2", "googlenet", "inception", "maxvit", "mnasnet",
    "mobilenet_v2", "mobilenet_v3", "regnet_x", "regnet_y", "resnet", "resnet_bottleneck", "resnext", "wide_resnet",
    "shufflenet_v2", "squeezenet", "swin", "swin_v2", "vgg", "vgg_bn", "vit",
)  # fmt: skip
"""All families of classifiers."""


def torchvision_case(family: str) -> Case:
    """Make a classifier of torchvision, with few layers where the class takes their number."""
    models = import_torchvision().models
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
    from torchvision.models.regnet import BlockParams
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    size, few = 64, {"num_classes": 10}
    swin = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
            "stochastic_depth_prob": 0.0, **few}  # fmt: skip
    regnet = {"depth": 6, "w_0": 24, "w_a": 24.0, "w_m": 2.5, "group_width": 8}
    make: dict[str, Callable[[], nn.Module]] = {
        "alexnet": lambda: models.alexnet(**few),
        "convnext": lambda: models.ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, 96, 2),
                                             CNBlockConfig(96, None, 1)], **few),
        "densenet": lambda: models.DenseNet(8, (2, 3, 2), 16, **few),
        "efficientnet": lambda: models.EfficientNet([MBConvConfig(1, 3, 1, 16, 16, 1, 1.0, 1.0),
            MBConvConfig(6, 3, 2, 16, 24, 2, 1.0, 1.0), MBConvConfig(6, 5, 2, 24, 40, 2, 1.0, 1.0)], 0.2, **few),
        "efficientnet_v2": lambda: models.EfficientNet([FusedMBConvConfig(1, 3, 1, 16, 16, 2),
            FusedMBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(4, 3, 2, 24, 40, 2)], 0.2, last_channel=80, **few),
        "googlenet": lambda: models.GoogLeNet(aux_logits=False, init_weights=False, **few),
        "inception": lambda: models.Inception3(aux_logits=False, init_weights=False, **few),
        "maxvit": lambda: models.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, **few),
        "mnasnet": lambda: models.MNASNet(0.5, **few),
        "mobilenet_v2": lambda: models.MobileNetV2(width_mult=0.5, **few),
        "mobilenet_v3": lambda: models.mobilenet_v3_small(**few),
        "regnet_x": lambda: models.RegNet(BlockParams.from_init_params(**regnet), **few),
        "regnet_y": lambda: models.RegNet(BlockParams.from_init_params(**regnet, se_ratio=0.25), **few),
        "resnet": lambda: models.ResNet(BasicBlock, [2, 1, 1, 1], **few),
        "resnet_bottleneck": lambda: models.ResNet(Bottleneck, [2, 1, 1, 1], width_per_group=16, **few),
        "resnext": lambda: models.ResNet(Bottleneck, [2, 1, 1, 1], groups=8, width_per_group=4, **few),
        "wide_resnet": lambda: models.ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=32, **few),
        "shufflenet_v2": lambda: models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 256], **few),
        "squeezenet": lambda: models.squeezenet1_1(**few),
        "swin": lambda: models.SwinTransformer(**swin),
        "swin_v2": lambda: models.SwinTransformer(**swin, block=SwinTransformerBlockV2,
                                                  downsample_layer=PatchMergingV2),
        "vgg": lambda: models.vgg11(**few),
        "vgg_bn": lambda: models.vgg11_bn(**few),
        "vit": lambda: models.VisionTransformer(size, 16, 2, 4, 48, 96, **few),
    }  # fmt: skip
    model = make[family]()
    if family in ("alexnet", "vgg", "vgg_bn"):  # their classifiers have up to 120 million weights
        wide, places = (256, 6 * 6) if family == "alexnet" else (512, 7 * 7)
        model.classifier = nn.Sequential(nn.Linear(wide * places, 64), nn.ReLU(), nn.Linear(64, 10))
    return model, image(96 if family in ("alexnet", "inception") else size)


TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    **{name: (name, {}, 64) for name in (
        "test_byobnet", "test_convnext", "test_convnext2", "test_convnext3", "test_efficientnet",
        "test_efficientnet_gn", "test_efficientnet_ln", "test_mambaout", "test_nfnet", "test_resnet",
        "resnet10t", "seresnext26d_32x4d", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035",
        "efficientnet_b0", "mnasnet_small", "ghostnet_050", "tinynet_e", "lcnet_035", "dla46_c", "ese_vovnet19b_slim",
        "repvgg_a0", "mobileone_s0", "regnetx_002", "regnety_002", "rexnet_100", "hrnet_w18_small",
        "edgenext_xx_small", "convnext_atto", "convnextv2_atto", "poolformer_s12", "repghostnet_050", "starnet_s050",
        "fastvit_t8", "res2net50_14w_8s", "resnest14d", "skresnet18", "cspresnet50", "inception_next_atto",
    )},
    **{name: (name, {"img_size": 160}, 160) for name in ("test_vit", "test_vit2", "test_vit3", "test_vit4")},
    "vit_tiny": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2}, 64),
    "deit_tiny_distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, 64),
    "deit3": ("deit3_small_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 3}, 64),
    "cait_xxs24": ("cait_xxs24_224", {"img_size": 64, "depth": 2}, 64),
    "mixer_s32": ("mixer_s32_224", {"img_size": 64}, 64),
    "resmlp_12": ("resmlp_12_224", {"img_size": 64}, 64),
    "gmlp_ti16": ("gmlp_ti16_224", {"img_size": 64}, 64),
    "convmixer": ("convmixer_768_32", {}, 64),
    "beit": ("beit_base_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}, 64),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2),
             "num_heads": (2, 4)}, 64),
    "xcit_nano": ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, 64),
    "pvt_v2_b0": ("pvt_v2_b0", {}, 64),
    "levit_128s": ("levit_128s", {}, 224),
    "mobilevit_xxs": ("mobilevit_xxs", {}, 64),
    "mobilevitv2_050": ("mobilevitv2_050", {}, 64),
    "visformer_tiny": ("visformer_tiny", {"img_size": 64}, 64),
    "pit_ti": ("pit_ti_224", {"img_size": 64}, 64),
    "coat_tiny": ("coat_tiny", {"img_size": 64, "serial_depths": (1, 1, 1, 1), "parallel_depth": 1}, 64),
    "mvitv2_tiny": ("mvitv2_tiny", {"img_size": 64}, 64),
    "twins_svt_small": ("twins_svt_small", {"img_size": 64, "depths": (1, 1, 1, 1)}, 64),
}  # fmt: skip


def timm_case(name: str) -> Case:
    """Make a model of timm."""
    import_torchvision()
    import timm

    base, options, size = TIMM[name]
    return timm.create_model(base, num_classes=10, **options), image(size)


WORDS = {"vocab_size": 120, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "attn_implementation": "eager"}  # fmt: skip
DECODER = {**WORDS, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
           "head_dim": 12}  # fmt: skip
PICTURES = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8, "attn_implementation": "eager"}  # fmt: skip

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", WORDS),
    "bert_mlm": ("BertConfig", "BertForMaskedLM", {**WORDS, "tie_word_embeddings": False}),
    "roberta": ("RobertaConfig", "RobertaModel", WORDS),
    "electra": ("ElectraConfig", "ElectraModel", {**WORDS, "embedding_size": 36}),
    "albert": ("AlbertConfig", "AlbertModel", {**WORDS, "embedding_size": 36}),
    "distilbert": ("DistilBertConfig", "DistilBertModel",
                   {"vocab_size": 120, "dim": 48, "hidden_dim": 88, "n_layers": 2, "n_heads": 4,
                    "max_position_embeddings": 40, "attn_implementation": "eager"}),
    "mpnet": ("MPNetConfig", "MPNetModel", WORDS),
    "squeezebert": ("SqueezeBertConfig", "SqueezeBertModel", {**WORDS, "embedding_size": 48, "q_groups": 1,
                    "k_groups": 1, "v_groups": 1, "post_attention_groups": 1, "intermediate_groups": 1,
                    "output_groups": 1}),
    "roformer": ("RoFormerConfig", "RoFormerModel", {**WORDS, "embedding_size": 48}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel",
             {"vocab_size": 120, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40, "n_inner": 88,
              "tie_word_embeddings": False, "attn_implementation": "eager"}),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoModel",
                {"vocab_size": 120, "hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 88,
                 "max_position_embeddings": 40, "attention_types": [[["global", "local"], 1]], "window_size": 6,
                 "attn_implementation": "eager"}),
    "gptj": ("GPTJConfig", "GPTJModel", {"vocab_size": 120, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40,
             "n_inner": 88, "rotary_dim": 6, "attn_implementation": "eager"}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXModel", WORDS),
    "opt": ("OPTConfig", "OPTForCausalLM",
            {"vocab_size": 120, "hidden_size": 48, "ffn_dim": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": 40, "word_embed_proj_dim": 48, "tie_word_embeddings": False,
             "attn_implementation": "eager"}),
    "bloom": ("BloomConfig", "BloomModel", {"vocab_size": 120, "hidden_size": 48, "n_layer": 2, "n_head": 4,
              "attn_implementation": "eager"}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**DECODER, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**DECODER, "head_dim": 12}),
    "phi": ("PhiConfig", "PhiForCausalLM", {**DECODER, "num_key_value_heads": 4}),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", DECODER),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {**DECODER, "partial_rotary_factor": 0.5}),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", DECODER),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**DECODER, "head_dim": 12}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", DECODER),
    "vit": ("ViTConfig", "ViTForImageClassification", PICTURES),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**PICTURES, "mlp_ratio": 2}),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification",
                 {"hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 1, 1], "num_labels": 10}),
    "clip_text": ("CLIPTextConfig", "CLIPTextModel", {**WORDS, "eos_token_id": 2}),
    "clip_vision": ("CLIPVisionConfig", "CLIPVisionModel", PICTURES),
    "t5_encoder": ("T5Config", "T5EncoderModel",
                   {"vocab_size": 120, "d_model": 48, "d_ff": 88, "d_kv": 12, "num_heads": 4, "num_layers": 2,
                    "tie_word_embeddings": False}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {key: value for key, value in DECODER.items() if key != "head_dim"}),
    "falcon": ("FalconConfig", "FalconModel",
               {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "ffn_hidden_size": 88, "attn_implementation": "eager"}),
    "segformer": ("SegformerConfig", "SegformerForSemanticSegmentation",
                  {"depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [4, 2], "patch_sizes": [7, 3],
                   "strides": [4, 2], "mlp_ratios": [2, 2], "num_labels": 5, "hidden_sizes": [16, 24],
                   "decoder_hidden_size": 36, "num_attention_heads": [2, 3], "attn_implementation": "eager"}),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model",
                 {"vocab_size": 32, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "intermediate_size": 88, "conv_dim": [20, 20], "conv_kernel": [5, 3], "conv_stride": [4, 2],
                  "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
                  "attn_implementation": "eager"}),
    "mobilebert": ("MobileBertConfig", "MobileBertModel", {**WORDS, "embedding_size": 20, "intra_bottleneck_size": 32,
                   "num_feedforward_networks": 2}),
}  # fmt: skip


def transformers_case(name: str) -> Case:
    """Make a small model of transformers from a config whose sizes are all different."""
    config, kind, options = TRANSFORMERS[name]
    model = build_transformer(config, kind, options)
    if "image_size" in options or "depths" in options:
        return model, image(32)
    if "conv_dim" in options:
        return model, torch.randn(2, 400)
    return model, torch.randint(3, 100, (2, 9))


def build_transformer(config: str, kind: str, options: Mapping[str, Any]) -> nn.Module:
    """Make a model of transformers."""
    import_torchvision()
    import transformers

    made = getattr(transformers, config)(**options)
    if hasattr(made, "use_cache"):
        made.use_cache = False
    return getattr(transformers, kind)(made)


CASES: dict[str, tuple[Mapping[str, Any], Callable[[str], Case]]] = {
    "torchvision": (TORCHVISION, torchvision_case),
    "timm": (TIMM, timm_case),
    "transformers": (TRANSFORMERS, transformers_case),
}


# --- Wider classes -------------------------------------------------------------------------------------------


def randomise(model: nn.Module) -> None:
    """Move all weights that an initialization left equal, and the statistics of normalisations."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if sum(size > 1 for size in parameter.shape) < 2 or parameter.std() < 1e-3:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.2 * torch.randn(buffer.shape, generator=generator)
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=generator)


def wider_config(options: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a config at the sizes of a checkpoint; all sizes of the config are different numbers."""
    became: dict[int, set[int]] = {}
    for name, tensor in old.items():
        for before, after in zip(tensor.shape, new[name].shape, strict=True):
            became.setdefault(before, set()).add(after)
    wider = dict(options)
    for key, value in options.items():
        if key in ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and len(became.get(value, ())) == 1:
            wider[key] = next(iter(became[value]))
        if isinstance(value, list) and all(isinstance(v, int) and len(became.get(v, ())) == 1 for v in value):
            wider[key] = [next(iter(became[v])) for v in value]
    return wider


def widen_heads(options: dict[str, Any], teacher: Mapping[str, Any], grown: Mapping[str, Any]) -> None:
    """Set the numbers of heads from the widths of the projections of queries and keys."""
    keys = {"k_proj": "num_key_value_heads"}
    queries = ("q_proj", "query", "q_lin", "c_attn", "query_key_value", "qkv", ".q.", "attention.attention.query")
    heads = next((k for k in ("num_attention_heads", "n_head", "n_heads", "num_heads") if k in options), None)
    if heads and isinstance(options[heads], list):  # of stages, whose heads keep their width
        for stage in range(len(options[heads])):
            block = f"segformer.stages.{stage}.blocks.0"
            old, new = (state[f"{block}.attention.q_proj.weight"].shape[0] for state in (teacher, grown))
            inner, stream = grown[f"{block}.mlp.fc1.weight"].shape
            options[heads] = [*options[heads][:stage], options[heads][stage] * new // old, *options[heads][stage + 1 :]]
            options["mlp_ratios"] = [
                *options["mlp_ratios"][:stage],
                inner // stream,
                *options["mlp_ratios"][stage + 1 :],
            ]
        return
    for name, tensor in teacher.items():
        if not name.endswith("weight") or tensor.ndim < 2:
            continue
        if name.endswith("mlp.fc1.weight") and "mlp_ratio" in options:
            options["mlp_ratio"] = grown[name].shape[0] // grown[name].shape[1]
        axis = 1 if "c_attn" in name else 0
        ratio = grown[name].shape[axis] / tensor.shape[axis]
        if heads and any(query in name for query in queries):
            options[heads + "'"] = round(options[heads] * ratio)
        for key, field in keys.items():
            if (key in name or "qkv_proj" in name) and field in options:
                options[field + "'"] = round(options[field] * ratio)
    for key in [key for key in options if key.endswith("'")]:
        options[key[:-1]] = options.pop(key)


def resized(model: nn.Module, grown: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a module with the shapes of a checkpoint, and with the sizes that follow from them."""
    before = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model = copy.deepcopy(model)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and prefix + name in grown:
                    tensor.data = torch.zeros(grown[prefix + name].shape, dtype=tensor.dtype)
        shapes = {name: (before[prefix + name], tuple(grown[prefix + name].shape)) for name in module._parameters
                  if prefix + name in grown}  # fmt: skip
        resize_leaf(module, shapes)
    for path, module in model.named_modules():
        resize_owner(module, path, before, grown)
    return model


def resize_leaf(module: nn.Module, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Set the sizes that a layer keeps beside its parameters."""
    if "weight" not in shapes:
        return
    old, new = shapes["weight"]
    if isinstance(module, nn.modules.conv._ConvNd):
        out, per_group = (1, 0) if module.transposed else (0, 1)
        if module.groups > 1 and new[per_group] == old[per_group]:
            module.groups = module.groups * new[out] // old[out]
        module.out_channels, module.in_channels = new[out], new[per_group] * module.groups
        if module.transposed:
            module.out_channels, module.in_channels = new[1] * module.groups, new[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = new
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = new
    else:
        for name, value in list(vars(module).items()):
            if type(value) is int and old and value == old[0] and name not in ("num_groups",):
                setattr(module, name, new[0])
            elif isinstance(value, tuple) and value == old:
                setattr(module, name, new)


def set_groups(model: nn.Module, report: WidthReport) -> None:
    """Give the group normalisations the numbers of groups that the width report tells, which no weight shows."""
    for name, (kind, sizes) in report.modules.items():
        if kind == "GroupNorm":
            model.get_submodule(name).num_groups = sizes["num_groups"][1]


def resize_owner(
    module: nn.Module, path: str, before: Mapping[str, tuple[int, ...]], grown: Mapping[str, torch.Tensor]
) -> None:
    """Set the sizes that a module keeps beside its layers: each is the size of one of them."""
    if "weight" in module._parameters or not list(module.children()):
        return
    prefix = f"{path}." if path else ""
    became: dict[int, set[int]] = {}
    for name, shape in before.items():
        if name.startswith(prefix) and name.count(".") <= prefix.count(".") + 2:
            for a, b in zip(shape, grown[name].shape, strict=True):
                became.setdefault(a, set()).add(b)
    ratio = head_ratio(prefix, before, grown)
    for name, value in list(vars(module).items()):
        if name.startswith("_") or type(value) is not int:
            continue
        if name in ("num_heads", "n_heads", "num_attention_heads", "heads"):
            setattr(module, name, round(value * ratio))
        elif len(became.get(value, ())) == 1 and name not in NOT_SIZES and value > 1:
            setattr(module, name, next(iter(became[value])))
    kind = type(module).__name__
    if kind in SPECIAL:
        SPECIAL[kind](module)


NOT_SIZES = ("patch_size", "window_size", "kernel_size", "stride", "num_classes", "head_dim", "key_dim", "radix",
             "img_size", "shift_size", "input_size", "depth", "num_layers", "num_prefix_tokens")  # fmt: skip
"""Attributes of modules that are no widths, or that `widen --for torch` keeps."""


def _resize_ghost(module: Any) -> None:
    module.out_chs = module.primary_conv[0].out_channels + module.cheap_operation[0].out_channels


def _resize_gated(module: Any) -> None:
    width, through = module.fc2.in_features, module.conv.in_channels
    module.split_indices = (width, width - through, through)


def _resize_partial(module: Any) -> None:
    first = module.conv_exp if module.conv_exp is not None else module.conv_dw
    module.in_channels, module.out_channels = first.conv.in_channels, module.conv_pwl.conv.out_channels


def _resize_selective(module: Any) -> None:
    module.in_channels = module.paths[0].conv.in_channels * (module.num_paths if module.split_input else 1)
    module.out_channels = module.paths[0].conv.out_channels


def _resize_res2(module: Any) -> None:
    module.width = module.convs[0].in_channels


def _resize_inception(module: Any) -> None:
    mixer = module.conv_dw
    parts = [layer.out_channels for layer in (mixer.dwconv_hw, mixer.dwconv_w, mixer.dwconv_h)]
    mixer.split_indexes = (module.mlp.fc1.in_channels - sum(parts), *parts)


SPECIAL: dict[str, Callable[[Any], None]] = {
    "GhostModule": _resize_ghost,
    "GatedConvBlock": _resize_gated,
    "LinearBottleneck": _resize_partial,
    "SelectiveKernel": _resize_selective,
    "Bottle2neck": _resize_res2,
    "MetaNeXtBlock": _resize_inception,
}
"""Classes that keep sums or differences of sizes."""


def head_ratio(prefix: str, before: Mapping[str, tuple[int, ...]], grown: Mapping[str, torch.Tensor]) -> float:
    """Return by what the heads of an attention grew: its first projection has a row for each place of a head."""
    for layer in ("qkv", "q", "query", "q_proj", "in_proj", "q_norm", "qkv_conv", "qkv.conv", "self_attn"):
        name = f"{prefix}{layer}.weight"
        name = f"{prefix}in_proj_weight" if layer == "in_proj" else name
        if name in before:
            return float(grown[name].shape[0] / before[name][0])
    return 1.0


# --- One model -----------------------------------------------------------------------------------------------


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Run a model in double precision."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        result = model(x.double() if x.is_floating_point() else x)
    return [result] if isinstance(result, torch.Tensor) else list(result)


def uniform(teacher: Path, factor: float) -> Any:
    """Widen so that all dims of one size get one size, as a class that is made by a config has them.

    The sizes of the configs here are different numbers, so that equal sizes are one field.
    """
    from onnx_net2net import widen

    sizes: dict[str, int | str] = {}
    for _ in range(4):
        widening = widen(teacher, factor=factor, sizes=sizes, framework="torch")
        became: dict[int, set[int]] = {group.size: {group.size} for group in widening.fixed if group.size > SMALL}
        for change in widening.changes:
            became.setdefault(change.old, set()).add(change.new)
        differing = [c for c in widening.changes if c.new != min(became[c.old]) and c.old > SMALL]
        if not differing:
            return widening
        sizes.update({change.name: min(became[change.old]) for change in differing})
    return widening


def attempt(library: str, name: str, export: str, factor: float, folder: Path) -> dict[str, Any]:
    """Take one model the whole way; the result says how far it came."""
    from onnx_net2net import Net2NetError, checkpoint, load, widen
    from onnx_net2net.framework.widths import compare_widths

    torch.manual_seed(0)
    model, x = CASES[library][1](name)
    model.eval()
    randomise(model)
    stages = {"stage": "export", "parameters": sum(p.numel() for p in model.parameters())}
    teacher, student, saved = folder / "teacher.onnx", folder / "student.onnx", folder / "grown.pt"
    try:
        whole = Flat(model) if library == "transformers" else model
        torch.onnx.export(whole, (x,), str(teacher), **EXPORTS[export])
        stages["stage"] = "widen"
        widening = uniform(teacher, factor) if library == "transformers" else widen(
            teacher, factor=factor, framework="torch"
        )  # fmt: skip
        stages["covered"] = round(widening.covered, 3)
        widening.student.save(student)
        stages["stage"] = "checkpoint"
        result = checkpoint(load(teacher), load(student), model.state_dict())
        stages["relations"] = sorted({entry.relation for entry in result.entries})
        result.save(saved)
        stages["stage"] = "class"
        grown = torch.load(saved, weights_only=True)
        if library == "transformers":
            config, kind, options = TRANSFORMERS[name]
            options = wider_config(options, model.state_dict(), grown)
            widen_heads(options, model.state_dict(), grown)
            wider = build_transformer(config, kind, options)
        else:
            wider = resized(model, grown)
            set_groups(wider, compare_widths(load(teacher), load(student)))
        wider.load_state_dict(grown, strict=True)
        again = Flat(wider) if library == "transformers" else wider
        stages["stage"] = "compare"
        errors = [
            float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
            for a, b in zip(outputs(whole, x), outputs(again, x), strict=True)
            if a.is_floating_point() and a.shape == b.shape
        ]
        if not errors:
            return {**stages, "result": "failed", "reason": "no output has the teacher's shape"}
        stages["error"] = max(errors)
        ok = stages["error"] <= TOLERANCE
        return {**stages, "result": "ok" if ok else "WRONG", "reason": "" if ok else f"off by {stages['error']:.1e}"}
    except Net2NetError as error:
        return {**stages, "result": "refused", "reason": str(error)}
    except Exception as error:
        text = " ".join(str(error).split())
        kind = "no export" if stages["stage"] == "export" else "failed"
        return {**stages, "result": kind, "reason": f"{type(error).__name__}: {text[:300]}"}


def worker(library: str, name: str, factors: Sequence[float], exports: Sequence[str]) -> None:
    """Try one model, all exports, and print a line for each."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for export, factor in itertools.product(exports, factors):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = attempt(library, name, export, factor, Path(folder))
        line = {"library": library, "model": name, "export": export, "factor": factor, **result}
        print("RESULT " + json.dumps({**line, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


def run(
    library: str, name: str, factors: Sequence[float], exports: Sequence[str], limit: float
) -> Iterator[dict[str, Any]]:
    """Try one model in a process of its own; what it did not come to counts as failed."""
    found, why = run_worker([__file__, "--worker", library, name, ",".join(map(str, factors)), *exports], limit)
    yield from found
    for export, factor in list(itertools.product(exports, factors))[len(found) :]:
        line = {"library": library, "model": name, "export": export, "factor": factor}
        yield {**line, "result": "failed", "reason": why}


def run_worker(arguments: Sequence[str], limit: float) -> tuple[list[dict[str, Any]], str]:
    """Run a script in a process of its own; return the results that it printed, and why there are no more."""
    try:
        command = [sys.executable, *arguments]
        output = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        text, why = output.stdout, (output.stderr.strip().splitlines() or ["it crashed"])[-1]
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        why = f"not done in {limit:.0f} s"
    return [json.loads(line[7:]) for line in text.splitlines() if line.startswith("RESULT ")], why


# --- The table -----------------------------------------------------------------------------------------------


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table by library and export, and what did not pass."""
    yield "| library | export | factor | architectures | that export | exact after loading | refused | other |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    kinds = {(r["library"], r["export"], r["factor"]): [] for r in results}
    for result in results:
        kinds[result["library"], result["export"], result["factor"]].append(result)
    for kind, own in sorted(kinds.items(), key=lambda item: (list(CASES).index(item[0][0]), item[0][1:])):
        exported = [r for r in own if r["result"] != "no export"]
        count = [sum(r["result"] == what for r in exported) for what in ("ok", "refused")]
        row = *kind, len(own), len(exported), *count, len(exported) - sum(count)
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""
    for result in results:
        if result["result"] not in ("ok", "no export"):
            where = f"{result['library']}/{result['model']}, {result['export']}, x {result['factor']:g}"
            yield f"- {where}: {result['result']}: {result['reason']}"


def note(where: str, result: Mapping[str, Any], path: Path | None) -> None:
    """Tell a result, and keep it in a file if there is to be one."""
    print(f"{where}: {result['result']} {result['reason'][:200]}", file=sys.stderr, flush=True)
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(result) + os.linesep)


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="library/architecture")
    parser.add_argument("--exports", nargs="*", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--factors", type=float, nargs="*", help="(default: 1.5, for transformers 2 too)")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a file, and run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results, one line for each")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each model")
    options = parser.parse_args()
    if options.worker:
        library, name, factors, *exports = options.worker
        worker(library, name, [float(factor) for factor in factors.split(",")], exports)
        return
    if options.show:
        lines = [json.loads(line) for line in options.show.read_text().splitlines()]
        last = {(line["library"], line["model"], line["export"], line["factor"]): line for line in lines}
        print("\n".join(table(list(last.values()))))
        return
    results: list[dict[str, Any]] = []
    for library, (models, _) in CASES.items():
        for name in models:
            if any(fnmatch.fnmatchcase(f"{library}/{name}", pattern) for pattern in options.only):
                whole = f"{library}/{name}" in WHOLE
                factors = (2.0,) if whole else options.factors or FACTORS[library]
                for result in run(library, name, factors, options.exports, options.limit):
                    results.append(result)
                    note(f"{library}/{name}, {result['export']}, x {result['factor']:g}", result, options.json)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
