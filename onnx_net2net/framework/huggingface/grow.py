"""Grow the folder of a checkpoint into another folder."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnx_net2net.errors import BadInputError, RefusedError
from onnx_net2net.framework.huggingface.card import changes
from onnx_net2net.framework.huggingface.folder import read_folder
from onnx_net2net.framework.huggingface.optimizer import optimizer_of
from onnx_net2net.framework.huggingface.parameters import parameters_of
from onnx_net2net.framework.huggingface.proof import Proof, TeacherRun
from onnx_net2net.framework.huggingface.running import MEMORY
from onnx_net2net.framework.huggingface.samples import read_samples, read_tensors
from onnx_net2net.framework.huggingface.student import Request, Student, plan_student
from onnx_net2net.framework.huggingface.teacher import Teacher, open_teacher
from onnx_net2net.framework.huggingface.writing import seconds_for, shards_of, write_folder
from onnx_net2net.model.saving import Progress


@dataclass(frozen=True)
class GrownCheckpoint:
    """What was done, or would be.

    Attributes:
        student: The student.
        shards: The names of its files of weights, with their sizes in bytes.
        proof: How it compares with its teacher; None where that was not asked for.
        seconds: How long planning, writing and comparing took; of a plan, how long computing the weights would take.
    """

    student: Student
    shards: tuple[tuple[str, int], ...]
    proof: Proof | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the same as JSON-ready values."""
        student, proof = self.student, self.proof
        return {
            "parameters": {"before": student.teacher.skeleton.elements, "after": student.skeleton.elements},
            "bytes": {"before": student.teacher.folder.nbytes, "after": student.nbytes},
            "config": {name: [a, b] for name, a, b in changes(student)},
            "shards": dict(self.shards),
            "dims": [{"name": c.name, "before": c.old, "after": c.new} for c in student.widening.changes]
            if student.widening else [],
            "notes": list(student.notes),
            "seconds": self.seconds,
            "verification": proof.to_dict() if proof else None,
        }  # fmt: skip


def grow_checkpoint(
    checkpoint: str | os.PathLike[str] | Teacher,
    output: str | os.PathLike[str] | None,
    request: Request,
    *,
    verify: bool = True,
    samples: str | os.PathLike[str] | None = None,
    shard_size: int | None = None,
    trust_remote_code: bool = False,
    module: str | None = None,
    optimizer: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> GrownCheckpoint:
    """Grow a checkpoint; it is never loaded, and the student's folder appears as a whole or not at all.

    Args:
        checkpoint: The folder, with config.json and weights (.safetensors or .bin, in shards or not), or one that
            is open.
        output: The student's folder, which must not exist or be empty; None to plan only.
        request: How it is to grow.
        verify: Whether both classes are run and compared before the folder takes its place.
        samples: Inputs to compare on; a file as `read_samples` or `read_tensors` takes it. By default they are drawn.
        shard_size: Bytes of a shard, at most.
        trust_remote_code: Whether code in the checkpoint's folder may be run.
        module: What makes the class, as `package.module:factory`, where neither transformers nor timm does.
        optimizer: The state of an optimizer that grows along; see `optimizer_of`.
        memory: Bytes that a weight, or a part of it, takes at most while teacher and student run, as far as operations
            can be done in parts.
        progress: Told about each shard.

    Raises:
        BadInputError: If the checkpoint cannot be used, or the folder cannot be written.
        RefusedError: If it cannot be exact, or no config of the class makes the student.
        NotEquivalentError: If the student differs; then nothing is written.
    """
    started = time.perf_counter()
    inputs = read_tensors(Path(samples)) if samples else None
    teacher = checkpoint
    if not isinstance(teacher, Teacher):
        teacher = open_teacher(Path(teacher), trust_remote_code, module, inputs)
    if samples and inputs is None:
        inputs = read_samples(Path(samples), teacher)

    @cache
    def yardstick() -> TeacherRun:
        return TeacherRun(teacher, inputs, memory)

    student = plan_student(teacher, request, lambda student: yardstick().is_exact(student))
    if not any(p.growth or p.stored is not teacher.parameters.get(name) for name, p in student.parameters.items()):
        raise RefusedError("nothing grows")
    shards = tuple((name, sum(t.nbytes for t in tensors)) for name, tensors in shards_of(student, shard_size))
    found: list[Proof] = []
    write_optimizer = optimizer_of(student, Path(optimizer)) if optimizer else None

    def check(folder: Path) -> list[str]:
        if write_optimizer:
            write_optimizer(folder)
        if not verify:
            return ["It was not compared with its teacher."]
        written, _ = parameters_of(student.skeleton, read_folder(folder).tensors)
        proof = yardstick().compare(student, written)
        found.append(proof)
        proof.raise_if_different()
        return list(proof.lines())

    if output is not None:
        if Path(output).resolve() == teacher.folder.path.resolve():
            raise BadInputError(f"cannot write {output}: the checkpoint is read from it")
        write_folder(student, request, Path(output), check, limit=shard_size, progress=progress)
    seconds = time.perf_counter() - started if output is not None else seconds_for(student)
    return GrownCheckpoint(student, shards, found[0] if found else None, seconds)
