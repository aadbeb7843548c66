"""What tests of rules have in common."""

from __future__ import annotations

import pytest
from operators import Registry

from onnx_net2net import rules


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of rules, put back afterwards."""
    mine = {key: list(value) for key, value in rules._registry.items()}
    monkeypatch.setattr(rules, "_registry", mine)
    return mine
