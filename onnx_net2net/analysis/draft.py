"""A graph that is being edited, with what was inferred of it before."""

from __future__ import annotations

from dataclasses import replace

from onnx_net2net.analysis.inference import Analysis
from onnx_net2net.graph.walk import constant_of


class Draft(Analysis):
    """What is known of a graph, for a copy of it that is edited. Whoever edits takes one: an Analysis stays as it is.

    Nodes keep their numbers until some are removed. New nodes come last.
    """

    @classmethod
    def of(cls, analysis: Analysis) -> Draft:
        """Copy the graph."""
        draft = cls(analysis.graph.copy(), analysis.sizes)
        sizes = replace(analysis.sizes, types=dict(analysis.sizes.types))
        vars(draft).update(vars(analysis), graph=draft.graph, sizes=sizes, uses={})  # also what was found on demand
        for (number, index), use in analysis.uses.items():
            constant = constant_of(draft.nodes[number].inputs[index])
            assert constant is not None
            draft.uses[number, index] = replace(use, constant=constant)
        return draft
