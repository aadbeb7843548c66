"""A reason keeps its kind on the way to another process."""

from __future__ import annotations

import pickle

import pytest

from onnx_net2net.rules import reasons


@pytest.mark.parametrize("name", ["KERNEL", "LISTED", "UNREAD", "UNTYPED"])
def test_a_reason_comes_back_whole(name: str) -> None:
    reason: reasons.Reason = getattr(reasons, name)
    back = pickle.loads(pickle.dumps(reason))
    assert (back, back.kind) == (reason, reason.kind)
