"""Teacher against student: whether both compute the same, and whether the weights are those that the record makes.

`proof.cases` decides on the inputs and on the time that they may take, and `operations.lineage` on the records that are
repeated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from onnx_net2net.algebra.floats import Array
from onnx_net2net.model.model import Model, ModelLike, Progress
from onnx_net2net.proof.compare import MAX_TOLERANCE, NOISE_FACTOR
from onnx_net2net.proof.divergence import Embed
from onnx_net2net.proof.interfaces import RunFunction
from onnx_net2net.proof.models import compare_models
from onnx_net2net.proof.verdict import Departure, Verification

__all__ = ["MAX_TOLERANCE", "NOISE_FACTOR", "Verification", "verify"]


def verify(
    teacher: ModelLike,
    student: ModelLike | RunFunction,
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

    Both models run with onnxruntime's graph optimizations off and on, so that the teacher has two values for each
    element. The error of the student's value is its distance to the nearer one. Integers, booleans and strings must
    equal one of the two; NaN and infinities must be where the teacher has them. In each run and output the error of
    floats may be `NOISE_FACTOR` times the teacher's noise plus the distance between the two values, but no more than
    `MAX_TOLERANCE` of the largest magnitude. The noise is how far the teacher's outputs move when its inputs and the
    results of its layers move by one unit in the last place.

    If the outputs agree, two more things are checked. If the student has a record of what was done to this teacher, its
    weights must be those that the record makes, because a single wrong weight seldom shows in the outputs. And an
    output that is the same in all runs proves nothing: larger inputs are tried, and then the tensors that it is
    computed from are compared.

    Args:
        teacher: The reference: a file or a model in memory.
        student: The model to check. Its inputs and outputs must have the same names, dtypes and compatible shapes. If
            it got more classes or input channels on request, the old ones, which come first, are compared. It may also
            be a function from inputs to outputs, both as arrays by name (`onnx_net2net.ModuleRunner`).
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, ``dml``, ``coreml``, ``openvino``, ``rocm`` or the
            full name of an onnxruntime execution provider.
        data: Inputs to compare on: arrays by name, or an npz file of them. By default inputs are generated.
        samples: The least number of generated inputs; there is at least one for every set of sizes of the dynamic
            axes. By default 3; 2 if a run takes more than 0.1 s of processor time, and more if runs are fast.
        rtol: Allowed error, as a fraction of the teacher's value. With `rtol` or `atol` the noise does not matter.
        atol: Allowed absolute error.
        seed: Seed of the generated inputs.
        progress: Called with the name of what is running, the number of finished runs, and the number of all.
        embed: Returns the positions that the units of a teacher's tensor have in the student's. The search for the
            first tensor that differs uses it. By default it is derived from the two graphs.
        record: Whether the student's weights are compared with those that its record makes. They are not if the
            student comes straight from an operation, or if `rtol` or `atol` is given.

    Returns:
        The comparison. A difference raises nothing; see `Verification.raise_if_different`.

    Raises:
        BadInputError: The teacher does not run, or the provider or the data cannot be used.
        NotEquivalentError: The student does not run, or its inputs or outputs differ.
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
    """Compare a student with its record; that imports all operations."""
    from onnx_net2net.operations.lineage import departure

    return departure(teacher, student)
