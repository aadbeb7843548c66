"""Grow checkpoints of many architectures of transformers and timm, and count those that are exact.

Each is made by a tiny config with random weights, saved into several shards, and grown at 2x, at 1.5x, to twice the
depth and both ways. The folder is loaded by `from_pretrained` and run in double precision beside the teacher; then it
is saved by `save_pretrained`, loaded and run again.

    pip install '.[hf]'
    pip install timm
    python tools/hf_table.py                      # all, as a table for docs/checkpoints.md
    python tools/hf_table.py llama gemma2 --keep kept
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from checkpoint_table import import_torchvision

from onnx_net2net.errors import Net2NetError, NotEquivalentError, RefusedError

TEXT = {"vocab_size": 120, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", {**GROUPED, **WINDOW}),
    "qwen2": ("Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, **WINDOW, "head_dim": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("Gemma3ForCausalLM", {**GROUPED, **WINDOW, "head_dim": 16, "query_pre_attn_scalar": 24}),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, "num_hidden_layers": 2}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 120, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT),
    "opt": ("OPTForCausalLM", {"vocab_size": 120, "hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2,
                               "num_attention_heads": 4, "max_position_embeddings": 40, "word_embed_proj_dim": 48}),
    "falcon": ("FalconForCausalLM", {"vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2,
                                     "num_attention_heads": 4, "multi_query": True}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 120, "hidden_size": 48, "n_layer": 2, "n_head": 4}),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", {**GROUPED, "no_rope_layer_interval": 2}),
    "starcoder2": ("Starcoder2ForCausalLM", {**GROUPED, **WINDOW}),
    "mixtral": ("MixtralForCausalLM", {**GROUPED, **EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**GROUPED, **EXPERTS, "head_dim": 16, "num_experts": 4,
                                          "moe_intermediate_size": 40}),
    "gpt_oss": ("GptOssForCausalLM", {**GROUPED, **EXPERTS, **WINDOW, "head_dim": 16, "num_local_experts": 4}),
    "bert": ("BertForMaskedLM", TEXT),
    "vit": ("ViTForImageClassification", {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
                                          "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
                                          "num_labels": 10}),
    "whisper encoder": ("WhisperForAudioClassification", {
        "vocab_size": 120, "d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 80,
        "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 80, "num_mel_bins": 20,
        "max_source_positions": 25, "num_labels": 10, "classifier_proj_size": 30, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}),
}  # fmt: skip

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (3, 6)}

TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "convnext_atto": {"dims": (12, 24, 48, 96), "depths": (1, 1, 2, 1)},
    "resnet18": {"channels": (12, 24, 48, 96)},
    "mobilenetv3_small_050": {},
}
"""Models of timm, with the arguments that make them small."""

WAYS: dict[str, dict[str, Any]] = {
    "2x": {"factor": 2.0}, "1.5x": {"factor": 1.5}, "depth 2x": {"depth": "2x"},
    "2x, depth 2x": {"factor": 2.0, "depth": "2x"}, "1.5x, depth 2x": {"factor": 1.5, "depth": "2x"},
}  # fmt: skip


def make(name: str, folder: Path) -> None:
    """Save a tiny model of random weights, all of them other than 0 and 1, into several shards."""
    import transformers

    torch.manual_seed(0)
    if name in TIMM:
        import timm
        from timm.models import save_for_hf

        model = timm.create_model(name, num_classes=10, **TIMM[name])
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand_like(tensor) * 0.1)
        save_for_hf(model, folder, safe_serialization=True)
        return
    kind, options = ARCHITECTURES[name]
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(3)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=max(size // 4, 1000))


def outputs(folder: Path, kind: str) -> torch.Tensor:
    """Return what `from_pretrained` computes in double precision."""
    if kind == "timm":
        import timm

        model = timm.create_model(f"local-dir:{folder}", pretrained=True).double().eval()
        generator = torch.Generator().manual_seed(5)
        x = torch.randn((2, *model.pretrained_cfg["input_size"]), generator=generator, dtype=torch.float64)
        with torch.no_grad():
            found: torch.Tensor = model(x)
        return found
    import transformers

    from onnx_net2net.framework.huggingface.inputs import call, draw_inputs
    from onnx_net2net.framework.huggingface.skeleton import IMPLEMENTATIONS

    made = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float64, **IMPLEMENTATIONS)
    model = made.eval()
    inputs = draw_inputs(model, model.config, seed=5, length=24)
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.no_grad():
        result = call(model, type(model).forward, inputs)
    model.save_pretrained(folder.with_name(f"{folder.name}-again"), max_shard_size="40KB")
    return result


def try_way(teacher: Any, wanted: torch.Tensor, way: str, folder: Path, kind: str) -> dict[str, Any]:
    """Grow a checkpoint in one way, and return what came of it."""
    from onnx_net2net.framework.huggingface.grow import grow_checkpoint
    from onnx_net2net.framework.huggingface.student import Request

    started = time.perf_counter()
    try:
        grown = grow_checkpoint(teacher, folder, Request(**WAYS[way]))
        found = outputs(folder, kind)
        again = found if kind == "timm" else outputs(folder.with_name(f"{folder.name}-again"), kind)
    except RefusedError as error:
        return {"result": "refused", "why": str(error)}
    except NotEquivalentError as error:
        return {"result": "DIFFERS", "why": str(error)}
    except Net2NetError as error:
        return {"result": "failed", "why": str(error)}
    except Exception:  # a fault of the package or of transformers
        return {"result": "CRASHED", "why": traceback.format_exc()[-1500:]}
    largest = float(wanted.abs().max())
    error, later = (float((one - wanted).abs().max()) / largest for one in (found, again))
    is_exact = error < 1e-6 and later < 1e-6
    widths = grown.student.widening.changes if grown.student.widening else ()
    return {
        "result": "exact" if is_exact else "WRONG", "error": error, "again": later, "config": grown.to_dict()["config"],
        "kept": sorted({change.name for change in widths if change.new == change.old})[:3],
        "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all by default")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--keep", type=Path, help="where to keep the folders")
    options = parser.parse_args()
    import_torchvision()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from onnx_net2net.framework.huggingface.teacher import open_teacher

    root = options.keep or Path(tempfile.mkdtemp())
    counts: dict[str, int] = {}
    for name in options.names or (*ARCHITECTURES, *TIMM):
        folder = root / name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        kind = "timm" if name in TIMM else ARCHITECTURES[name][0]
        try:
            make(name, folder / "teacher")
            wanted = outputs(folder / "teacher", kind)
            teacher = open_teacher(folder / "teacher")
            _ = teacher.graph
        except Exception as error:
            print(f"| {name} | cannot be opened: {error} |", flush=True)
            traceback.print_exc()
            continue
        cells = []
        for way in options.ways:
            found = try_way(teacher, wanted, way, folder / way.replace(", ", "-").replace(" ", "-"), kind)
            counts[found["result"]] = counts.get(found["result"], 0) + 1
            cells.append(f"{found['error']:.0e}" if found["result"] == "exact" else found["result"])
            print(json.dumps({"name": name, "way": way, **found}), file=sys.stderr, flush=True)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(counts)
    if options.keep is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
