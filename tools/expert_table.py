"""Grow mixtures of experts of transformers, carry the growth into their state dicts, load these into wider classes.

For each class (random weights): export, `widen --for torch` by a factor or with more experts, `checkpoint`, make the
class at the new sizes, `load_state_dict(strict=True)`, and compare its outputs with the teacher's in double precision.

    pip install '.[train]' transformers
    python tools/expert_table.py
    python tools/expert_table.py --only mixtral --ways factor topk
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnx_net2net import Net2NetError, checkpoint, load, widen

_BASE = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 64, "experts_implementation": "batched_mm", "use_cache": False,
    "attn_implementation": "eager", "tie_word_embeddings": False,
}  # fmt: skip

_LATENT = {"q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10}

CLASSES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "mixtral": ("Mixtral", {"intermediate_size": 40, "num_local_experts": 6, "num_experts_per_tok": 2},
                {"experts": "num_local_experts", "ffn": "intermediate_size"}),
    "qwen2-moe": ("Qwen2Moe", {"intermediate_size": 44, "moe_intermediate_size": 20, "num_experts": 6,
                  "shared_expert_intermediate_size": 28, "num_experts_per_tok": 2, "norm_topk_prob": True},
                  {"experts": "num_experts", "ffn": "moe_intermediate_size"}),
    "qwen3-moe": ("Qwen3Moe", {"intermediate_size": 44, "moe_intermediate_size": 20, "num_experts": 6,
                  "num_experts_per_tok": 2, "norm_topk_prob": True},
                  {"experts": "num_experts", "ffn": "moe_intermediate_size"}),
    "olmoe": ("Olmoe", {"intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2},
              {"experts": "num_experts", "ffn": "intermediate_size"}),
    "granite-moe": ("GraniteMoe", {"intermediate_size": 40, "num_local_experts": 6, "num_experts_per_tok": 2},
                    {"experts": "num_local_experts", "ffn": "intermediate_size"}),
    "gpt-oss": ("GptOss", {"intermediate_size": 40, "num_local_experts": 6, "num_experts_per_tok": 2,
                "layer_types": ["full_attention", "full_attention"]},
                {"experts": "num_local_experts", "ffn": "intermediate_size"}),
    "deepseek-v3": ("DeepseekV3", {"intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 6,
                    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                    "n_shared_experts": 1, **_LATENT, "num_key_value_heads": 4},
                    {"experts": "n_routed_experts", "ffn": "moe_intermediate_size"}),
    "glm4-moe": ("Glm4Moe", {"intermediate_size": 40, "moe_intermediate_size": 20, "n_routed_experts": 6,
                 "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                 "n_shared_experts": 1},
                 {"experts": "n_routed_experts", "ffn": "moe_intermediate_size"}),
}  # fmt: skip
"""Classes: their names in transformers, sizes, and what their configs call experts and their hidden units."""

WAYS: dict[str, dict[str, Any]] = {
    "factor": {"factor": 1.5},
    "topk": {"sizes": {"experts": "2x"}, "how": "topk"},
    "lift": {"sizes": {"experts": "2x"}, "how": "lift"},
    "granular": {"sizes": {"experts": "2x"}, "how": "granular"},
}
"""What is asked of `widen`."""


class Logits(nn.Module):
    """A model of transformers with one input and one result."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.model(input_ids=ids).logits  # type: ignore[no-any-return]


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Make a small model."""
    from checkpoint_table import import_torchvision

    import_torchvision()
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}ForCausalLM")(config)  # type: ignore[no-any-return]


def randomise(model: nn.Module) -> None:
    """Draw all weights large enough that routers choose clearly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("correction_bias") or (tensor.ndim == 1 and "inv_freq" not in name):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
            elif tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)


def sizes_of(state: Mapping[str, torch.Tensor], options: dict[str, Any], names: Mapping[str, str], how: str) -> None:
    """Set the sizes of a config from those of a state dict."""
    options["hidden_size"] = state["model.embed_tokens.weight"].shape[1]
    prefix = "model.layers.1."
    gate = next(t for n, t in state.items() if n.startswith(prefix) and n.endswith(
        ("mlp.gate.weight", "router.weight", "router.layer.weight", "mlp.router.weight")))  # fmt: skip
    times = gate.shape[0] / options[names["experts"]]
    options[names["experts"]] = gate.shape[0]
    down = next(
        t
        for n, t in state.items()
        if n.startswith(prefix) and n.endswith(("experts.down_proj", "output_linear.weight"))
    )
    options[names["ffn"]] = down.shape[1] if "gpt" in how or down.shape[2] == options["hidden_size"] else down.shape[2]
    dense = state.get("model.layers.0.mlp.gate_proj.weight")
    if dense is not None:
        options["intermediate_size"] = dense.shape[0]
    shared = state.get(prefix + "mlp.shared_expert.gate_proj.weight")
    if shared is not None:
        options["shared_expert_intermediate_size"] = shared.shape[0]
    shared = state.get(prefix + "mlp.shared_experts.gate_proj.weight")
    if shared is not None:
        options["n_shared_experts"] = shared.shape[0] // options[names["ffn"]]
    if "topk" in how or "granular" in how:
        options["num_experts_per_tok"] = round(options["num_experts_per_tok"] * times)
    query = state.get(prefix + "self_attn.q_proj.weight")
    if query is not None:
        options["num_attention_heads"] = query.shape[0] // options["head_dim"]
        options["num_key_value_heads"] = state[prefix + "self_attn.k_proj.weight"].shape[0] // options["head_dim"]


def attempt(case: str, way: str, folder: Path) -> str:
    """Take one class the whole way; return what came of it."""
    name, sizes, names = CLASSES[case]
    options = {**_BASE, **sizes}
    torch.manual_seed(0)
    model = build(name, options).eval()
    randomise(model)
    ids = torch.randint(0, options["vocab_size"], (2, 9))
    teacher, student, saved = folder / "teacher.onnx", folder / "student.onnx", folder / "grown.pt"
    dims = {"ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("sequence", max=60)}}
    try:
        torch.onnx.export(Logits(model), (ids,), str(teacher), dynamo=True, dynamic_shapes=dims, verbose=False)
        asked = dict(WAYS[way])
        if way == "factor":
            asked["only"] = ["residual stream", "ffn"]
            asked["factor"] = 2.0
        widening = widen(teacher, framework="torch", **asked)
        widening.student.save(student)
        result = checkpoint(load(teacher), load(student), model.state_dict())
        result.save(saved)
        grown = torch.load(saved, weights_only=True)
        sizes_of(grown, options, names, f"{way} {case}")
        wider = build(name, options).eval()
        wider.load_state_dict(grown, strict=True)
        with torch.no_grad():
            expected, found = (Logits(one.double())(ids) for one in (model, wider))
        error = float((expected - found).abs().max() / expected.abs().max())
        counts = f"{sum(p.numel() for p in model.parameters()):,} -> {sum(p.numel() for p in wider.parameters()):,}"
        return f"{'exact' if error < 1e-5 else 'WRONG'} ({error:.1e}), parameters {counts}"
    except Net2NetError as error:
        return f"refused: {error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if a class computes something else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(CLASSES))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    wrong = 0
    for case in options.only:
        for way in options.ways:
            with tempfile.TemporaryDirectory() as folder:
                found = attempt(case, way, Path(folder))
            wrong += "WRONG" in found
            print(f"| {case} | {way} | {found} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
