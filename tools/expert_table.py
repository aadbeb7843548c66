"""Grow checkpoints of transformers' mixtures of experts, and load them into classes with more or wider experts.

Each is made by a tiny config with random weights in double precision and grown by `grow_checkpoint`, which finds the
config of the student. The folder is loaded by `from_pretrained`, strictly, and run in double precision beside the
teacher. Some classes compute a router or a norm in single precision whatever the model's is: these are made to compute
in double precision, too.

    pip install '.[hf]'
    python tools/expert_table.py                              # all, as a table for docs/experts.md
    python tools/expert_table.py mixtral olmoe --ways topk
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint_table import import_torchvision
from hf_table import GROUPED, WINDOW
from torch.overrides import TorchFunctionMode

from onnx_net2net.errors import Net2NetError, NotEquivalentError, RefusedError

SMALL = {**GROUPED, "num_experts_per_tok": 2, "tie_word_embeddings": False}
FINE = {**SMALL, "moe_intermediate_size": 40}
GROUPED_ROUTER = {**FINE, "n_routed_experts": 6, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"q_lora_rank": 12, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
          "num_key_value_heads": 4}  # fmt: skip

CLASSES: dict[str, dict[str, Any]] = {
    "Mixtral": {**SMALL, "num_local_experts": 6},
    "Qwen2Moe": {**FINE, "num_experts": 6, "shared_expert_intermediate_size": 28, "norm_topk_prob": True},
    "Qwen3Moe": {**FINE, "num_experts": 6, "norm_topk_prob": True, "head_dim": 16},
    "Olmoe": {**SMALL, "num_experts": 6},
    "DeepseekV3": {**GROUPED_ROUTER, **LATENT},
    "GptOss": {**SMALL, **WINDOW, "num_local_experts": 6, "head_dim": 16},
    "Glm4Moe": {**GROUPED_ROUTER, "head_dim": 16},
    "GraniteMoe": {**SMALL, "num_local_experts": 6},
}
"""Classes by what their names begin with, and their sizes."""

WAYS: dict[str, dict[str, Any]] = {
    "1.5x": {"factor": 1.5}, "2x": {"factor": 2.0},
    **{how: {"sizes": {"experts": "2x"}, "how": how} for how in ("topk", "lift", "granular")},
}  # fmt: skip
"""What is asked for."""


class InDoubles(TorchFunctionMode):  # type: ignore[misc]
    """Lets a class compute in double precision where it asks for single precision by name."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double() if args[0].is_floating_point() else args[0].to(torch.float64)
        options = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*(torch.float64 if value is torch.float32 else value for value in args), **options)


def make(name: str, folder: Path) -> None:
    """Save a tiny model with weights so large that its routers choose clearly."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**CLASSES[name]))
    with torch.no_grad():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.ndim > 1:
                tensor.normal_(0, tensor.shape[-1] ** -0.5)
            elif "inv_freq" not in key:
                tensor.add_(0.2 * torch.randn_like(tensor))
    model.double().save_pretrained(folder)


def outputs(name: str, folder: Path) -> torch.Tensor:
    """Return what the class computes of a folder in double precision; all its parameters are there, and no others."""
    import transformers

    from onnx_net2net.framework.huggingface.skeleton import IMPLEMENTATIONS

    kind = getattr(transformers, f"{name}ForCausalLM")
    options = {"dtype": torch.float64, "output_loading_info": True, **IMPLEMENTATIONS}
    with InDoubles():
        model, found = kind.from_pretrained(folder, **options)
    wrong = {what: names for what, names in found.items() if names}
    if wrong:
        raise NotEquivalentError(f"not loaded strictly: {wrong}")
    ids = torch.randint(0, model.config.vocab_size, (2, 19), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), InDoubles():
        logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits


def attempt(name: str, way: str, teacher: Any, wanted: torch.Tensor, folder: Path) -> tuple[str, str]:
    """Grow an open checkpoint in one way; return the table's cell, and what there is to say."""
    from onnx_net2net.framework.huggingface.grow import grow_checkpoint
    from onnx_net2net.framework.huggingface.student import Request

    try:
        grown = grow_checkpoint(teacher, folder, Request(**WAYS[way]))
        error = float((outputs(name, folder) - wanted).abs().max() / wanted.abs().max())
    except RefusedError as refusal:
        return "refused", str(refusal)
    except Net2NetError as failure:
        return "WRONG", str(failure)
    return f"{error:.0e}" if error < 1e-12 else f"WRONG ({error:.0e})", str(grown.to_dict()["config"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if a class computes something else."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="classes; all by default")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    import_torchvision()
    import transformers

    from onnx_net2net.framework.huggingface.teacher import open_teacher

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"| class | {' | '.join(options.ways)} |\n|---|{'---|' * len(options.ways)}", flush=True)
    wrong = 0
    for name in options.names or CLASSES:
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            make(name, folder / "teacher")
            wanted, cells = outputs(name, folder / "teacher"), []
            teacher = open_teacher(folder / "teacher")
            for way in options.ways:
                cell, said = attempt(name, way, teacher, wanted, folder / way)
                cells.append(cell)
                print(f"{name} {way}: {cell}: {said}", file=sys.stderr, flush=True)
                wrong += "WRONG" in cell
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
