"""The result of a comparison of teacher and student, as an object, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_net2net.errors import NotEquivalentError
from onnx_net2net.proof.compare import OutputReport
from onnx_net2net.texts import table_html


@dataclass(frozen=True)
class Departure:
    """How the weights of a student differ from those that its record makes.

    Attributes:
        tensor: The first tensor that differs; None if none does.
        elements: How many of its elements differ.
        size: How many elements it has.
        off: The largest difference of an element, relative to the larger of the two values.
    """

    tensor: str | None = None
    elements: int = 0
    size: int = 0
    off: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.tensor!r} is not what the student's record says: {self.elements:,} of {self.size:,} elements are "
            f"off by up to {self.off:.2g} of their value"
        )


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        equivalent: Whether the student was shown to compute the same as the teacher.
        provider: The onnxruntime execution provider that ran both models.
        runs: How many different inputs were run.
        bindings: The sizes given to the dynamic axes in each run; one empty dict for a static model or given data.
        outputs: One report for each output, in the teacher's order; it is that of the worst run.
        diverges_at: The first tensor of the teacher, in the order of the graph, that the student does not reproduce.
            None if all agree, or none could be compared.
        unmoved: Outputs that were the same in all runs although they depend on the inputs, each with the inner tensors
            that were compared instead. If there are no such tensors, `equivalent` is False.
        departure: How the weights differ from those that the record makes; `equivalent` is False in that case. None
            if they agree or were not compared.
        seconds: Processor time of one run of the teacher, if there were few runs because of it; else 0.
    """

    equivalent: bool
    provider: str
    runs: int
    bindings: tuple[dict[str, int], ...]
    outputs: tuple[OutputReport, ...]
    diverges_at: str | None = None
    unmoved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    departure: Departure | None = None
    seconds: float = field(default=0.0, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values that JSON has; an infinite number becomes None."""
        record = asdict(self)
        for report in record["outputs"]:
            report.update({k: None for k, v in report.items() if isinstance(v, float) and not math.isfinite(v)})
        lists = {name: list(record[name]) for name in ("bindings", "outputs")}
        return {**record, **lists, "unmoved": {name: list(inside) for name, inside in self.unmoved.items()}}

    def _repr_html_(self) -> str:
        rows = ((o.name, f"{o.max_abs:.2g}", f"{o.ratio:.2g}", f"{o.tolerance:.2g}") for o in self.outputs)
        return table_html(("output", "off by", "x the teacher's noise", "tolerance"), rows, str(self))

    def raise_if_different(self) -> None:
        """Do nothing if the models are equivalent.

        Raises:
            NotEquivalentError: The models are not equivalent; its text is `str` of this object.
        """
        if not self.equivalent:
            raise NotEquivalentError(str(self))

    def __str__(self) -> str:
        worst = max(self.outputs, key=lambda report: report.severity, default=None)
        where = f"{self.runs} runs on {self.provider.removesuffix('ExecutionProvider')}"
        where += f" (few, as each takes {self.seconds:.1f} s; --samples)" if self.seconds else ""
        if worst is None:
            return f"equivalent: no outputs, {where}"
        figures = f"output {worst.name!r} is off by {worst.max_abs:.2g} (relative {worst.max_rel:.2g}, "
        figures += f"{worst.ratio:.2g} x the teacher's noise, tolerance {worst.tolerance:.2g})"
        if worst.different_fraction and not worst.max_abs:
            figures = f"output {worst.name!r} is finite in one of the models only"
        if self.equivalent:
            return f"equivalent in {where}: at worst {figures}{self._instead()}"
        if worst.different_fraction:
            first = f"; the first tensor to differ is {self.diverges_at!r}" if self.diverges_at else ""
            return f"not equivalent in {where}: {figures} in {worst.different_fraction:.2%} of its elements{first}"
        if self.departure is not None:
            return f"not equivalent: {self.departure}; the outputs do not show it in {where}"
        still = next((name for name, inside in self.unmoved.items() if not inside), "")
        same = f"equivalent in {where}: output {still!r} was the same in all of them"
        if self.diverges_at:
            return f"not {same}, but {self.diverges_at!r} inside differs"
        return f"not shown to be {same}, which proves nothing; --data can give inputs that move it"

    def _instead(self) -> str:
        """Say what was compared of outputs that did not move."""
        if not self.unmoved:
            return ""
        name, inside = next(iter(self.unmoved.items()))
        what = f"{inside[0]!r}, which it is made from, was compared" if inside else "the weights are as the record says"
        return f"; output {name!r} was the same in all of them: {what}"
