"""Fill networks of public libraries from smaller ones, and compare them with these.

For each pair (random weights, random BatchNormalization statistics in both) teacher and target are exported, `transfer`
fills the target, and `verify` compares the student with the teacher in onnxruntime. The target's class takes the filled
state dict, too, and is compared with the teacher's class in double precision. Each pair has a process of its own.

    pip install '.[train]' torchvision timm transformers
    python tools/transfer_table.py --json results.jsonl > table.md
    python tools/transfer_table.py --only 'resnet*' --exports dynamo
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transfer_classes
from checkpoint_table import EXPORTS, PICTURES, Case, image, import_torchvision, note, randomise, run_worker
from transfer_classes import FAMILIES, INPUTS

Spec = tuple[str, dict[str, Any]]

WORDS = {"vocab_size": 120, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 40, "attn_implementation": "eager"}  # fmt: skip
GPT2 = {"vocab_size": 120, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40, "attn_implementation": "eager"}
EAGER = {"attn_implementation": "eager"}
LLAMA = {**WORDS, "num_key_value_heads": 2, "head_dim": 12, "tie_word_embeddings": False, "pad_token_id": 0}
OPT = {"vocab_size": 120, "hidden_size": 48, "word_embed_proj_dim": 48, "ffn_dim": 96, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 40, "attn_implementation": "eager"}  # fmt: skip
FALCON = {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": True,
          "parallel_attn": True, "bias": False, "alibi": False, "attn_implementation": "eager"}  # fmt: skip
MAMBA = {"vocab_size": 120, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "conv_kernel": 3, "expand": 2,
         "time_step_rank": 4, "tie_word_embeddings": False}  # fmt: skip
VIT = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4],
        "stochastic_depth_prob": 0.0}  # fmt: skip
DENSENET = {"growth_rate": 8, "block_config": (2, 3, 2), "num_init_features": 16}
CONVNEXT = {"dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1)}

BERT, GPT = "BertConfig BertForSequenceClassification", "GPT2Config GPT2LMHeadModel"
WIDE_WORDS = {**WORDS, "hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 8}
WIDER_LLAMA = {**LLAMA, "hidden_size": 72, "intermediate_size": 144, "num_attention_heads": 8}

PAIRS: dict[str, tuple[str, Spec, Spec, str]] = {
    "resnet18 -> resnet18": ("torchvision", ("resnet18", {}), ("resnet18", {}), "exact"),
    "resnet18 -> wide (96)": ("torchvision", ("resnet18", {}), ("ResNet", {"width": 1.5}), "exact"),
    "resnet18 -> resnet34": ("torchvision", ("resnet18", {}), ("resnet34", {}), "exact"),
    "resnet34 -> wide (96)": ("torchvision", ("resnet34", {}), ("ResNet34", {"width": 1.5}), "exact"),
    "resnet18 -> resnet34, wide (96)": ("torchvision", ("resnet18", {}), ("ResNet34", {"width": 1.5}), "exact"),
    "resnet18 -> resnet50": ("torchvision", ("resnet18", {}), ("resnet50", {}), "partial"),
    "resnet34 -> resnet18": ("torchvision", ("resnet34", {}), ("resnet18", {}), "partial"),
    "resnet50 -> resnet101": ("torchvision", ("resnet50", {}), ("resnet101", {}), "exact"),
    "resnet50 -> wide_resnet50_2": ("torchvision", ("resnet50", {}), ("wide_resnet50_2", {}), "exact"),
    "resnext50_32x4d -> resnext101_32x8d": (
        "torchvision", ("resnext50_32x4d", {}), ("resnext101_32x8d", {}), "exact"),
    "resnext50_32x4d -> 16x8d": ("torchvision", ("resnext50_32x4d", {}), (
        "ResNeXt", {"groups": 16, "width_per_group": 8}), "exact"),
    "vgg11 -> vgg13": ("torchvision", ("vgg11", {}), ("vgg13", {}), "exact"),
    "vgg11 -> vgg16": ("torchvision", ("vgg11", {}), ("vgg16", {}), "exact"),
    "vgg16 -> vgg19": ("torchvision", ("vgg16", {}), ("vgg19", {}), "exact"),
    "vgg11_bn -> vgg16_bn": ("torchvision", ("vgg11_bn", {}), ("vgg16_bn", {}), "exact"),
    "vgg16_bn -> vgg19_bn": ("torchvision", ("vgg16_bn", {}), ("vgg19_bn", {}), "exact"),
    "densenet -> wider": ("torchvision", ("DenseNet", DENSENET),
                          ("DenseNet", {**DENSENET, "growth_rate": 12, "num_init_features": 24}), "exact"),
    "densenet -> deeper": ("torchvision", ("DenseNet", DENSENET),
                           ("DenseNet", {**DENSENET, "block_config": (2, 4, 3)}), "exact"),
    "densenet121 -> densenet169": ("torchvision", ("densenet121", {}), ("densenet169", {}), "exact"),
    "mobilenet_v2 0.5 -> 1.0": ("torchvision", ("mobilenet_v2", {"width_mult": 0.5}),
                                ("mobilenet_v2", {"width_mult": 1.0}), "exact"),
    "mobilenet_v2 1.0 -> 1.4": ("torchvision", ("mobilenet_v2", {"width_mult": 1.0}),
                                ("mobilenet_v2", {"width_mult": 1.4}), "exact"),
    "mobilenet_v3 small 0.75 -> 1.0": ("timm", ("mobilenetv3_small_075", {}), ("mobilenetv3_small_100", {}), "exact"),
    "mobilenet_v3 small -> large": (
        "torchvision", ("mobilenet_v3_small", {}), ("mobilenet_v3_large", {}), "partial"),
    "mnasnet0_5 -> mnasnet1_0": ("torchvision", ("mnasnet0_5", {}), ("mnasnet1_0", {}), "exact"),
    "efficientnet_b0 -> b1": ("torchvision", ("efficientnet_b0", {}), ("efficientnet_b1", {}), "exact"),
    "efficientnet_b1 -> b2": ("torchvision", ("efficientnet_b1", {}), ("efficientnet_b2", {}), "exact"),
    "efficientnet_b0 -> b2": ("torchvision", ("efficientnet_b0", {}), ("efficientnet_b2", {}), "exact"),
    "efficientnet_b0 -> b1, timm": ("timm", ("efficientnet_b0", {}), ("efficientnet_b1", {}), "exact"),
    "regnet_y_400mf -> 800mf": ("torchvision", ("regnet_y_400mf", {}), ("regnet_y_800mf", {}), "partial"),
    "convnext -> deeper": ("timm-convnext", ("ConvNeXt", CONVNEXT),
                           ("ConvNeXt", {**CONVNEXT, "depths": (2, 1, 4, 2)}), "exact"),
    "convnext -> wider (x2)": ("timm-convnext", ("ConvNeXt", CONVNEXT),
                               ("ConvNeXt", {**CONVNEXT, "dims": (32, 48, 64, 80)}), "exact"),
    "convnext -> wider (x1.5)": ("timm-convnext", ("ConvNeXt", CONVNEXT),
                                 ("ConvNeXt", {**CONVNEXT, "dims": (24, 36, 48, 60)}), "partial"),
    "convnext, torchvision tiny -> small": (
        "torchvision", ("convnext_tiny", {}), ("convnext_small", {}), "exact"),
    "swin -> deeper": ("torchvision", ("SwinTransformer", SWIN),
                       ("SwinTransformer", {**SWIN, "depths": [2, 6]}), "exact"),
    "swin -> wider (x2)": ("torchvision", ("SwinTransformer", SWIN),
                           ("SwinTransformer", {**SWIN, "embed_dim": 48, "num_heads": [4, 8]}), "exact"),
    "swin -> wider (x1.5)": ("torchvision", ("SwinTransformer", SWIN),
                             ("SwinTransformer", {**SWIN, "embed_dim": 36, "num_heads": [3, 6]}), "partial"),
    "vit -> deeper": ("torchvision", ("VisionTransformer", VIT),
                      ("VisionTransformer", {**VIT, "num_layers": 4}), "exact"),
    "vit -> wider (x2)": ("torchvision", ("VisionTransformer", VIT),
                          ("VisionTransformer", {**VIT, "hidden_dim": 64, "num_heads": 4, "mlp_dim": 128}), "exact"),
    "vit -> wider (x1.5)": ("torchvision", ("VisionTransformer", VIT),
                            ("VisionTransformer", {**VIT, "hidden_dim": 48, "num_heads": 3, "mlp_dim": 96}), "exact"),
    "vit -> wider and deeper": ("torchvision", ("VisionTransformer", VIT), ("VisionTransformer", {
        **VIT, "hidden_dim": 64, "num_heads": 4, "mlp_dim": 160, "num_layers": 3}), "exact"),
    "vit -> wider heads": ("torchvision", ("VisionTransformer", VIT),
                           ("VisionTransformer", {**VIT, "hidden_dim": 64, "mlp_dim": 128}), "exact"),
    "deit tiny -> small": ("timm", ("deit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
                           ("deit_small_patch16_224", {"img_size": 64, "depth": 4}), "exact"),
    "bert -> ffn wider": (BERT, ("", WORDS), ("", {**WORDS, "intermediate_size": 160}), "exact"),
    "bert -> wider (x2)": (BERT, ("", WORDS), ("", WIDE_WORDS), "exact"),
    "bert -> wider (x1.5)": (BERT, ("", WORDS), ("", {
        **WORDS, "hidden_size": 72, "intermediate_size": 144, "num_attention_heads": 6}), "partial"),
    "bert -> deeper": (BERT, ("", WORDS), ("", {**WORDS, "num_hidden_layers": 4}), "exact"),
    "bert, masked words -> wider (x2) and deeper": (
        "BertConfig BertForMaskedLM", ("", WORDS), ("", {**WIDE_WORDS, "num_hidden_layers": 3}), "exact"),
    "albert -> wider (x2)": ("AlbertConfig AlbertForSequenceClassification", ("", {**WORDS, "embedding_size": 36}), (
        "", {**WIDE_WORDS, "embedding_size": 36}), "exact"),
    "gpt2 -> deeper": (GPT, ("", GPT2), ("", {**GPT2, "n_layer": 4}), "exact"),
    "gpt2 -> wider (x2)": (GPT, ("", GPT2),
                           ("", {**GPT2, "n_embd": 96, "n_head": 8}), "exact"),
    "gpt2 -> wider (x1.5)": (GPT, ("", GPT2),
                             ("", {**GPT2, "n_embd": 72, "n_head": 6}), "exact"),
    "gpt2 -> wider (x1.5) and deeper": (GPT, ("", GPT2),
                                        ("", {**GPT2, "n_embd": 72, "n_head": 6, "n_layer": 4}), "exact"),
    "gpt2 (124 M) -> medium (355 M)": (GPT, ("", EAGER), ("", {
        **EAGER, "n_embd": 1024, "n_head": 16, "n_layer": 24}), "exact"),
    "opt -> wider (x1.5)": ("OPTConfig OPTForCausalLM", ("", OPT), ("", {
        **OPT, "hidden_size": 72, "word_embed_proj_dim": 72, "ffn_dim": 144, "num_attention_heads": 6}), "exact"),
    "llama -> deeper": ("LlamaConfig LlamaForCausalLM", ("", LLAMA), ("", {**LLAMA, "num_hidden_layers": 4}), "exact"),
    "llama -> wider (x2)": ("LlamaConfig LlamaForCausalLM", ("", LLAMA), ("", {
        **LLAMA, "hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 8, "num_key_value_heads": 4}),
        "exact"),
    "llama -> wider (x1.5)": ("LlamaConfig LlamaForCausalLM", ("", LLAMA), ("", WIDER_LLAMA), "exact"),
    "gemma -> wider (x1.5)": ("GemmaConfig GemmaForCausalLM", ("", LLAMA), ("", WIDER_LLAMA), "exact"),
    "qwen3 -> wider (x1.5)": ("Qwen3Config Qwen3ForCausalLM", ("", LLAMA), ("", WIDER_LLAMA), "exact"),
    "vit (transformers) -> wider (x1.5)": ("ViTConfig ViTForImageClassification", ("", PICTURES), ("", {
        **PICTURES, "hidden_size": 72, "intermediate_size": 132, "num_attention_heads": 6}), "exact"),
    "llama -> more shared heads": ("LlamaConfig LlamaForCausalLM", ("", LLAMA), ("", {
        **LLAMA, "num_key_value_heads": 4}), "exact"),
    "llama, one shared head -> two, wider (x1.5)": ("LlamaConfig LlamaForCausalLM", (
        "", {**LLAMA, "num_key_value_heads": 1}), ("", WIDER_LLAMA), "exact"),
    "falcon -> wider (x1.5)": ("FalconConfig FalconForCausalLM", ("", FALCON), ("", {
        **FALCON, "hidden_size": 72, "num_attention_heads": 6}), "exact"),
    "mamba -> wider (x2)": ("MambaConfig MambaForCausalLM", ("", MAMBA), ("", {**MAMBA, "hidden_size": 32}), "exact"),
    "mamba -> larger state": ("MambaConfig MambaForCausalLM", ("", MAMBA), ("", {**MAMBA, "state_size": 6}), "exact"),
    **{name: ("classes", (kind, old), (kind, new), "exact") for name, (kind, old, new) in FAMILIES.items()},
}  # fmt: skip
"""Pairs: where the classes are, teacher, target, and what is to be expected."""


class Logits(torch.nn.Module):
    """A model of transformers of whose outputs only the logits are taken."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor | None = None, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits."""
        if pixel_values is not None:
            return self.model(pixel_values=pixel_values, return_dict=True).logits
        return self.model(input_ids=input_ids, use_cache=False, return_dict=True).logits


def make(library: str, spec: Spec) -> Case:
    """Make a network and inputs for it."""
    name, options = spec
    if " " in library:
        config, kind = library.split()
        import_torchvision()
        import transformers

        model = Logits(getattr(transformers, kind)(getattr(transformers, config)(**options)))
        if "image_size" in options:
            return model, {"pixel_values": image(32)}
        return model, {"input_ids": torch.randint(3, 100, (2, 9))}
    if library == "classes":
        return getattr(transfer_classes, name)(**options), INPUTS[name]()
    models = import_torchvision().models
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=10, **options), {"x": image(64)}
    if library == "timm-convnext":
        from timm.models.convnext import ConvNeXt

        return ConvNeXt(num_classes=10, **options), {"x": image(96)}
    if name == "ResNeXt":
        blocks = models.resnet.Bottleneck, [3, 4, 6, 3]
        return models.resnet.ResNet(*blocks, num_classes=10, **options), {"x": image(64)}
    if name.startswith("ResNet"):
        return resnet(models, [3, 4, 6, 3] if name == "ResNet34" else [2, 2, 2, 2], **options), {"x": image(64)}
    kind = getattr(models.vision_transformer, name, None) if name == "VisionTransformer" else None
    kind = models.densenet.DenseNet if name == "DenseNet" else kind
    kind = models.swin_transformer.SwinTransformer if name == "SwinTransformer" else kind
    model = (kind or getattr(models, name))(num_classes=10, **options)
    if name.startswith("vgg"):  # the classifier has 120 million weights
        model.avgpool = torch.nn.Identity()
        model.classifier = torch.nn.Sequential(torch.nn.Linear(512 * 4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    return model, {"x": image(96 if name == "SwinTransformer" else 64)}


def resnet(models: Any, depths: Sequence[int], width: float) -> torch.nn.Module:
    """Make a ResNet of basic blocks whose layers are all wider."""

    class Wide(models.resnet.ResNet):  # type: ignore[misc]
        def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> Any:
            if planes == 64:
                self.inplanes = round(64 * width)
                self.conv1 = torch.nn.Conv2d(3, self.inplanes, 7, 2, 3, bias=False)
                self.bn1 = torch.nn.BatchNorm2d(self.inplanes)
                self.fc_width = round(512 * width)
            return super()._make_layer(block, round(planes * width), *rest, **options)

    model = Wide(models.resnet.BasicBlock, list(depths), num_classes=10)
    model.fc = torch.nn.Linear(round(512 * width), 10)
    return model


def export_to(folder: Path, pair: str, export: str) -> None:
    """Export a pair and its state dicts, unless they are there already."""
    library, *specs, _ = PAIRS[pair]
    torch.manual_seed(0)
    for spec, name in zip(specs, ("teacher", "target"), strict=True):
        model, inputs = make(library, spec)
        model.eval()
        randomise(model)
        if (folder / f"{name}.onnx").exists():
            continue
        torch.save(model.state_dict(), folder / f"{name}.pt")
        arguments, named = (tuple(inputs.values()), None) if "x" in inputs else ((), dict(inputs))
        torch.onnx.export(model, arguments, str(folder / f"{name}.onnx"), kwargs=named, input_names=list(inputs),
                          **EXPORTS[export])  # fmt: skip


def class_error(pair: str, teacher: Path, student: Path) -> float:
    """Load both state dicts into their classes, strictly, and return the largest difference of the outputs."""
    library, *specs, _ = PAIRS[pair]
    results = []
    _, inputs = make(library, specs[0])
    feeds = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    for spec, file in zip(specs, (teacher, student), strict=True):
        model, _ = make(library, spec)
        model.load_state_dict(torch.load(file, weights_only=True), strict=True)
        with torch.no_grad():
            model = model.double().eval()
            made = model(*feeds.values()) if "x" in feeds else model(**feeds)
            results.append(made if isinstance(made, tuple) else (made,))
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(*results, strict=True))


def attempt(pair: str, export: str, folder: Path) -> dict[str, Any]:
    """Export a pair, fill the target and compare, in onnxruntime and in the target's class."""
    from onnx_net2net import Net2NetError, transfer
    from onnx_net2net.framework.statedict.filled import fill_state_dict
    from onnx_net2net.operations.transfer.transfer import proof

    files = [folder / "teacher.onnx", folder / "target.onnx"]
    found: dict[str, Any] = {"expected": PAIRS[pair][3], "stage": "export"}
    try:
        export_to(folder, pair, export)
        found["stage"], started = "transfer", time.perf_counter()
        result = transfer(*files, prove=False)
        found |= {"seconds": round(time.perf_counter() - started, 1), "filled": round(result.filled, 3)}
        verification, obstacles = proof(result, samples=2)
        if verification is not None:
            found["error"] = max((o.max_rel for o in verification.outputs), default=0.0)
        if obstacles:
            return {**found, "result": "partial", "reason": f"{len(obstacles)} places, like {obstacles[0]}"}
        found["stage"] = "class"
        try:
            fill_state_dict(result, folder / "target.pt").save(folder / "student.pt")
            found["class_error"] = class_error(pair, folder / "teacher.pt", folder / "student.pt")
        except Net2NetError as error:
            return {**found, "result": "exact", "reason": f"state dict: {error}"}
        return {**found, "result": "exact", "reason": ""}
    except Net2NetError as error:
        return {**found, "result": "refused", "reason": str(error)}
    except Exception as error:
        text = " ".join(str(error).split())
        kind = "no export" if found["stage"] == "export" else "failed"
        return {**found, "result": kind, "reason": f"{type(error).__name__}: {text[:300]}"}


def worker(pair: str, keep: str, exports: Sequence[str]) -> None:
    """Try one pair, all exports, and print a line for each."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for export in exports:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(keep) / (export + "__" + re.sub(r"[^\w]+", "_", pair)) if keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result = attempt(pair, export, folder)
        print("RESULT " + json.dumps({"pair": pair, "export": export, **result}), flush=True)


def run(pair: str, keep: str, exports: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """Try one pair in a process of its own; what it did not come to counts as failed."""
    found, why = run_worker([__file__, "--worker", pair, keep, *exports], limit)
    yield from found
    for export in exports[len(found) :]:
        yield {"pair": pair, "export": export, "result": "failed", "reason": why}


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, one for each family; a pair is exact if it is in every export that works."""
    yield "| family | exact | off by | in the class | not exact |"
    yield "|---|---|--:|--:|---|"
    families: dict[str, list[str]] = {}
    for pair in dict.fromkeys(result["pair"] for result in results):
        families.setdefault(_family(pair), []).append(pair)
    for family, pairs in families.items():
        exact, other, errors, own = [], [], [0.0], [0.0]
        for pair in pairs:
            tried = [r for r in results if r["pair"] == pair and r["result"] != "no export"]
            name = re.sub(rf"(^|-> ){family}[_ ]?", r"\1", pair).removeprefix("-> ").strip(", ")
            if tried and all(result["result"] == "exact" for result in tried):
                exact.append(name)
                errors += [result["error"] for result in tried]
                own += [result["class_error"] for result in tried if "class_error" in result]
            else:
                other.append(f"{name} ({'; '.join(sorted({r['result'] for r in tried})) or 'no export'})")
        cells = (
            ", ".join(exact),
            (f"{max(errors):.0e}" if max(errors) else "0") if exact else "",
            f"{max(own):.0e}" if max(own) else "",
        )
        yield f"| {family} | {' | '.join(cells)} | {', '.join(other)} |"


def _family(pair: str) -> str:
    """Return what a pair's name begins with: letters, and the version behind _v."""
    match = re.match(r"[a-z]+(_v\d)?", pair)
    return match[0] if match else pair


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="pairs")
    parser.add_argument("--exports", nargs="*", default=["dynamo", "dynamo, folding off", "TorchScript"],
                        choices=list(EXPORTS))  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results, one line for each")
    parser.add_argument("--keep", default="", metavar="FOLDER", help="where exported files are kept, and found again")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each pair")
    options = parser.parse_args()
    if options.worker:
        pair, keep, *exports = options.worker
        worker(pair, keep, exports)
        return
    results: list[dict[str, Any]] = []
    for pair in fnmatch.filter(PAIRS, options.only):
        for result in run(pair, options.keep, options.exports, options.limit):
            results.append(result)
            note(f"{pair}, {result['export']}", result, options.json)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
