"""Teacher against student: what the two compute, and whether the student is what its record says."""

from __future__ import annotations

import os
from collections.abc import Mapping

from onnx_net2net.algebra.floats import Array
from onnx_net2net.model.model import Model, ModelLike, Progress
from onnx_net2net.proof.compare import MAX_TOLERANCE, NOISE_FACTOR
from onnx_net2net.proof.divergence import Embed
from onnx_net2net.proof.interfaces import Run
from onnx_net2net.proof.models import compare_models
from onnx_net2net.proof.verdict import Departure, Verification

__all__ = ["MAX_TOLERANCE", "NOISE_FACTOR", "Verification", "verify"]


def verify(
    teacher: ModelLike,
    student: ModelLike | Run,
    *,
    provider: str = "cpu",
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    samples: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    embed: Embed | None = None,
    record: bool = True,
) -> Verification:
    """Compare all outputs of two models on the same inputs.

    Both models run with onnxruntime's graph optimizations off and on. An element of the student is as wrong as its
    distance to the nearer of the teacher's two values; integers, booleans and strings must equal one of them, and
    NaN and infinities must stand where the teacher has them. In each run and output floats may be off by
    `NOISE_FACTOR` times the teacher's noise plus the distance between its two values, but by no more than
    `MAX_TOLERANCE` of its largest magnitude.

    If the outputs agree, two more things are checked. If the student has a record of what was done to this teacher, its
    weights must be those that the record makes: one wrong weight seldom shows in outputs. And an output that is the
    same in all runs proves nothing: larger inputs are tried, and then the tensors from which it is made are compared.

    Args:
        teacher: The reference: a file or a model in memory.
        student: The model to check. Its inputs and outputs must have the same names, types and compatible shapes. If
            it got more classes or input channels on request, the old ones, which come first, are compared.
            What is no model may be a function from inputs to outputs, both by name (`pytorch.ModuleRunner`).
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, ``dml``, ``coreml``, ``openvino``, ``rocm`` or the
            full name of an onnxruntime execution provider.
        data: Inputs to use instead of generated ones: arrays by name, or an npz file of them.
        samples: The least number of generated inputs; there is at least one for every set of sizes of the dynamic
            axes. By default 3; 2 if a run takes more than 0.1 s of a processor, and more if it is fast.
        rtol: Allowed error as a part of the teacher's value; with this or `atol` given the noise does not matter.
        atol: Allowed absolute error.
        seed: Seed of the generated inputs.
        progress: Called with what is running, how many runs are done, and of how many.
        embed: Returns where the units of a teacher's tensor are in the student's. The search for the first tensor
            that differs compares these. By default it is found from the two graphs.
        record: Whether a student's weights are compared with those that its record makes. A student in memory that
            comes straight from an operation is not compared, nor is any if `rtol` or `atol` is given.

    Returns:
        The comparison; a difference is no exception, see `Verification.raise_if_different`.

    Raises:
        BadInputError: The teacher does not run, or the provider or the data cannot be used.
        NotEquivalentError: The student does not run, or has other inputs or outputs.
    """
    return compare_models(
        teacher,
        student,
        provider=provider,
        data=data,
        samples=samples,
        rtol=rtol,
        atol=atol,
        seed=seed,
        progress=progress,
        embed=embed,
        vouch=_departure if record else None,
    )


def _departure(teacher: Model, student: Model) -> Departure | None:
    """Compare a student with its record; all operations are imported for that."""
    from onnx_net2net.operations.lineage import departure

    return departure(teacher, student)
