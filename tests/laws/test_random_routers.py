"""Whatever a router and its experts look like, copies and parts compute the same, or are refused.

`tools/random_graphs.py --routers` does more.
"""

import contextlib

import pytest
from random_routers import routed

from onnx_net2net import verify, widen
from onnx_net2net.errors import RefusedError


@pytest.mark.parametrize("seed", range(24))
def test_experts_of_random_networks_get_copies_or_parts(seed):
    proto, _, asked = routed(seed)
    with contextlib.suppress(RefusedError) if asked["how"] != "split" else contextlib.nullcontext():
        verify(proto, widen(proto, seed=seed, **asked).student).raise_if_different()
