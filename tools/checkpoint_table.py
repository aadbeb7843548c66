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
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

EXPORTS: dict[str, dict[str, Any]] = {
    "dynamo": {"dynamo": True},
    "dynamo, folding off": {"dynamo": True, "optimize": False},
    "TorchScript": {"dynamo": False},
    "TorchScript, folding off": {"dynamo": False, "do_constant_folding": False},
}
FACTOR = 1.5
TOLERANCE = 1e-4
"""Largest difference of the outputs, relative to the largest output."""

Case = tuple[nn.Module, dict[str, torch.Tensor]]


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


TORCHVISION: dict[str, tuple[str, dict[str, Any], int]] = {
    "alexnet": ("alexnet", {}, 96),
    "convnext": ("convnext_tiny", {}, 64),
    "densenet": ("densenet121", {}, 64),
    "efficientnet": ("efficientnet_b0", {}, 64),
    "efficientnet_v2": ("efficientnet_v2_s", {}, 64),
    "googlenet": ("googlenet", {"aux_logits": False, "init_weights": False}, 64),
    "inception": ("inception_v3", {"aux_logits": False, "init_weights": False}, 128),
    "maxvit": ("maxvit", {}, 64),
    "mnasnet": ("mnasnet0_5", {}, 64),
    "mobilenet_v2": ("mobilenet_v2", {"width_mult": 0.5}, 64),
    "mobilenet_v3": ("mobilenet_v3_small", {}, 64),
    "regnet_x": ("regnet_x_400mf", {}, 64),
    "regnet_y": ("regnet_y_400mf", {}, 64),
    "resnet": ("resnet18", {}, 64),
    "resnet_bottleneck": ("resnet50", {}, 64),
    "resnext": ("resnext50_32x4d", {"width_per_group": 2}, 64),
    "shufflenet_v2": ("shufflenet_v2_x0_5", {}, 64),
    "squeezenet": ("squeezenet1_1", {}, 64),
    "swin": ("swin", {}, 64),
    "swin_v2": ("swin_v2", {}, 64),
    "vgg": ("vgg11", {}, 64),
    "vgg_bn": ("vgg11_bn", {}, 64),
    "vit": ("vit", {}, 64),
}


def torchvision_case(family: str) -> Case:
    """Make a classifier of torchvision, a small one where the class takes sizes."""
    models = import_torchvision().models
    name, options, size = TORCHVISION[family]
    if family == "maxvit":
        model = models.MaxVit(
            input_size=(size, size), stem_channels=16, partition_size=2, block_channels=[16, 32],
            block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=10,
        )  # fmt: skip
    elif family in ("swin", "swin_v2"):
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

        more = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if family == "swin_v2" else {}
        model = models.SwinTransformer(
            patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
            stochastic_depth_prob=0.0, num_classes=10, **more,
        )  # fmt: skip
    elif family == "vit":
        model = models.VisionTransformer(
            image_size=size, patch_size=16, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
        )
    else:
        model = getattr(models, name)(num_classes=10, **options)
        if family.startswith("vgg"):  # the classifier has 120 million weights
            model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))
    return model, {"x": image(size)}


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
    "mixer_s32": ("mixer_s32_224", {"img_size": 64, "num_blocks": 2, "embed_dim": 64}, 64),
    "resmlp_12": ("resmlp_12_224", {"img_size": 64, "num_blocks": 2, "embed_dim": 64}, 64),
    "gmlp_ti16": ("gmlp_ti16_224", {"img_size": 64, "num_blocks": 2}, 64),
    "convmixer": ("convmixer_768_32", {"dim": 48, "depth": 3}, 64),
    "beit": ("beit_base_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}, 64),
    "swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2),
             "num_heads": (2, 4)}, 64),
    "xcit_nano": ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}, 64),
    "pvt_v2_b0": ("pvt_v2_b0", {}, 64),
    "levit_128s": ("levit_128s", {}, 224),
    "mobilevit_xxs": ("mobilevit_xxs", {}, 64),
    "mobilevitv2_050": ("mobilevitv2_050", {}, 64),
    "visformer_tiny": ("visformer_tiny", {"img_size": 64}, 64),
    "twins_svt_small": ("twins_svt_small", {"img_size": 64, "depths": (1, 1, 1, 1)}, 64),
}  # fmt: skip


def timm_case(name: str) -> Case:
    """Make a model of timm."""
    import_torchvision()
    import timm

    base, options, size = TIMM[name]
    return timm.create_model(base, num_classes=10, **options), {"x": image(size)}


WORDS = {"vocab_size": 120, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "attn_implementation": "eager"}  # fmt: skip
DECODER = {**WORDS, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0}
PICTURES = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8, "attn_implementation": "eager"}  # fmt: skip

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", WORDS),
    "bert_mlm": ("BertConfig", "BertForMaskedLM", {**WORDS, "tie_word_embeddings": False}),
    "roberta": ("RobertaConfig", "RobertaModel", WORDS),
    "camembert": ("CamembertConfig", "CamembertModel", WORDS),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaModel", WORDS),
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
    "ernie": ("ErnieConfig", "ErnieModel", WORDS),
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
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", DECODER),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", DECODER),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**DECODER, "head_dim": 12}),
    "granite": ("GraniteConfig", "GraniteForCausalLM", DECODER),
    "vit": ("ViTConfig", "ViTForImageClassification", PICTURES),
    "deit": ("DeiTConfig", "DeiTForImageClassification", PICTURES),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**PICTURES, "mlp_ratio": 2}),
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification",
                 {"hidden_sizes": [16, 24, 40, 56], "depths": [1, 1, 1, 1], "num_labels": 10}),
    "clip_text": ("CLIPTextConfig", "CLIPTextModel", {**WORDS, "eos_token_id": 2}),
    "clip_vision": ("CLIPVisionConfig", "CLIPVisionModel", PICTURES),
    "t5_encoder": ("T5Config", "T5EncoderModel",
                   {"vocab_size": 120, "d_model": 48, "d_ff": 88, "d_kv": 12, "num_heads": 4, "num_layers": 2,
                    "tie_word_embeddings": False}),
    "mobilebert": ("MobileBertConfig", "MobileBertModel", {**WORDS, "embedding_size": 20, "intra_bottleneck_size": 32,
                   "num_feedforward_networks": 2}),
}  # fmt: skip


def transformers_case(name: str) -> Case:
    """Make a small model of transformers from a config whose sizes are all different."""
    config, kind, options = TRANSFORMERS[name]
    model = build_transformer(config, kind, options)
    if "image_size" in options or "depths" in options:
        return model, {"pixel_values": image(32)}
    return model, {"input_ids": torch.randint(3, 100, (2, 9))}


def build_transformer(config: str, kind: str, options: Mapping[str, Any]) -> nn.Module:
    """Make a model of transformers."""
    import_torchvision()
    import transformers

    made = getattr(transformers, config)(**options)
    made.return_dict = False
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
    ratios = [a / b for b, afters in became.items() for a in afters if b == options.get("hidden_size", 48)]
    wider = dict(options)
    for key, value in options.items():
        if key in ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and len(became.get(value, ())) == 1:
            wider[key] = next(iter(became[value]))
        if isinstance(value, list) and all(isinstance(v, int) and len(became.get(v, ())) == 1 for v in value):
            wider[key] = [next(iter(became[v])) for v in value]
    del ratios
    return wider


def widen_heads(options: dict[str, Any], teacher: Mapping[str, Any], grown: Mapping[str, Any]) -> None:
    """Set the numbers of heads from the widths of the projections of queries and keys."""
    keys = {"k_proj": "num_key_value_heads"}
    queries = ("q_proj", "query", "q_lin", "c_attn", "query_key_value", "qkv", ".q.", "attention.attention.query")
    heads = next((k for k in ("num_attention_heads", "n_head", "n_heads", "num_heads") if k in options), None)
    for name, tensor in teacher.items():
        if not name.endswith("weight") or tensor.ndim < 2:
            continue
        axis = 1 if "c_attn" in name else 0
        ratio = grown[name].shape[axis] / tensor.shape[axis]
        if heads and any(query in name for query in queries):
            options[heads + "'"] = round(options[heads] * ratio)
        for key, field in keys.items():
            if key in name and field in options:
                options[field + "'"] = round(options[field] * ratio)
    for key in [key for key in options if key.endswith("'")]:
        options[key[:-1]] = options.pop(key)


def resized(model: nn.Module, grown: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of a module whose parameters have the shapes of a checkpoint, and what follows from them."""
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


def resize_owner(
    module: nn.Module, path: str, before: Mapping[str, tuple[int, ...]], grown: Mapping[str, torch.Tensor]
) -> None:
    """Set the sizes that a module keeps beside its layers: each is the size of one of them."""
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)) or not list(module.children()):
        if not list(module.parameters(recurse=False)):
            resize_plain(module)
        return
    prefix = f"{path}." if path else ""
    became: dict[int, set[int]] = {}
    for name, shape in before.items():
        if name.startswith(prefix) and name.count(".") <= prefix.count(".") + 1:
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


NOT_SIZES = ("patch_size", "window_size", "kernel_size", "stride", "num_classes", "head_dim", "key_dim", "radix",
             "img_size", "shift_size", "input_size", "depth", "num_layers", "num_prefix_tokens")  # fmt: skip
"""Attributes of modules that are no widths, or that `widen --for torch` keeps."""


def resize_plain(module: nn.Module) -> None:
    """Nothing to do for modules without parameters."""


def head_ratio(prefix: str, before: Mapping[str, tuple[int, ...]], grown: Mapping[str, torch.Tensor]) -> float:
    """Return by what the heads of an attention grew: its first projection has a row for each place of a head."""
    for layer in ("qkv", "q", "query", "q_proj", "in_proj", "q_norm", "qkv_conv", "qkv.conv", "self_attn"):
        name = f"{prefix}{layer}.weight"
        name = f"{prefix}in_proj_weight" if layer == "in_proj" else name
        if name in before:
            return float(grown[name].shape[0] / before[name][0])
    return 1.0


# --- One model -----------------------------------------------------------------------------------------------


def outputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Run a model in double precision."""
    model = copy.deepcopy(model).double().eval()
    feeds = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        result = model(*feeds.values()) if set(feeds) == {"x"} else model(**feeds)
    flat: list[torch.Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif isinstance(value, Mapping):
            [collect(v) for v in value.values()]
        elif isinstance(value, list | tuple):
            [collect(v) for v in value]

    collect(result)
    return flat


def attempt(library: str, name: str, export: str, folder: Path) -> dict[str, Any]:
    """Take one model the whole way; the result says how far it came."""
    from safetensors.torch import load_file

    from onnx_net2net import Net2NetError, checkpoint, load, widen

    torch.manual_seed(0)
    model, inputs = CASES[library][1](name)
    model.eval()
    randomise(model)
    stages = {"stage": "export", "parameters": sum(p.numel() for p in model.parameters())}
    teacher, student, saved = folder / "teacher.onnx", folder / "student.onnx", folder / "grown.safetensors"
    try:
        if set(inputs) == {"x"}:
            torch.onnx.export(model, tuple(inputs.values()), str(teacher), **EXPORTS[export])
        else:
            torch.onnx.export(model, (), str(teacher), kwargs=dict(inputs), input_names=list(inputs), **EXPORTS[export])
        stages["stage"] = "widen"
        widening = widen(teacher, factor=FACTOR, framework="torch")
        stages["covered"] = round(widening.covered, 3)
        widening.student.save(student)
        stages["stage"] = "checkpoint"
        result = checkpoint(load(teacher), load(student), model.state_dict())
        stages["relations"] = sorted({entry.relation for entry in result.entries})
        result.save(saved)
        stages["stage"] = "class"
        grown = load_file(saved)
        if library == "transformers":
            config, kind, options = TRANSFORMERS[name]
            options = wider_config(options, model.state_dict(), grown)
            widen_heads(options, model.state_dict(), grown)
            wider = build_transformer(config, kind, options)
        else:
            wider = resized(model, grown)
        wider.load_state_dict(grown, strict=True)
        stages["stage"] = "compare"
        errors = [
            float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
            for a, b in zip(outputs(model, inputs), outputs(wider, inputs), strict=True)
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


def worker(library: str, name: str, exports: Sequence[str]) -> None:
    """Try one model, all exports, and print a line for each."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for export in exports:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            result = attempt(library, name, export, Path(folder))
        line = {"library": library, "model": name, "export": export, **result}
        print("RESULT " + json.dumps({**line, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


def run(library: str, name: str, exports: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """Try one model in a process of its own; what it did not come to counts as failed."""
    command = [sys.executable, __file__, "--worker", library, name, *exports]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        text, why = output.stdout, output.stderr.strip().splitlines()[-1:] or ["it crashed"]
    except subprocess.TimeoutExpired as error:
        text = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        why = [f"not done in {limit:.0f} s"]
    found = [json.loads(line[7:]) for line in text.splitlines() if line.startswith("RESULT ")]
    yield from found
    for export in exports[len(found) :]:
        yield {"library": library, "model": name, "export": export, "result": "failed", "reason": why[0]}


# --- The table -----------------------------------------------------------------------------------------------


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table by library and export, and what did not pass."""
    yield "| library | export | architectures | that export | exact after `load_state_dict` | refused | other |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for library in dict.fromkeys(result["library"] for result in results):
        for export in dict.fromkeys(result["export"] for result in results):
            own = [r for r in results if (r["library"], r["export"]) == (library, export)]
            exported = [r for r in own if r["result"] != "no export"]
            count = [sum(r["result"] == kind for r in exported) for kind in ("ok", "refused")]
            if own:
                row = library, export, len(own), len(exported), *count, len(exported) - sum(count)
                yield "| " + " | ".join(map(str, row)) + " |"
    yield ""
    for result in results:
        if result["result"] not in ("ok", "no export"):
            yield f"- {result['library']}/{result['model']}, {result['export']}: {result['result']}: {result['reason']}"


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="library/architecture")
    parser.add_argument("--exports", nargs="*", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results, one line for each")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each model")
    options = parser.parse_args()
    if options.worker:
        library, name, *exports = options.worker
        worker(library, name, exports)
        return
    results: list[dict[str, Any]] = []
    for library, (models, _) in CASES.items():
        for name in models:
            if fnmatch.fnmatchcase(f"{library}/{name}", options.only):
                for result in run(library, name, options.exports, options.limit):
                    results.append(result)
                    shown = f"{library}/{name}, {result['export']}: {result['result']} {result['reason'][:200]}"
                    print(shown, file=sys.stderr, flush=True)
                    if options.json:
                        with open(options.json, "a") as file:
                            file.write(json.dumps(result) + os.linesep)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
