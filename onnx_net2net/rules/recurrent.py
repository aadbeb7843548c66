"""Recurrent layers: the hidden dim stands inside every gate block, and on both axes of the recurrence weight."""

from onnx_net2net.rules import rule
from onnx_net2net.rules.op import Op

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@rule("LSTM", "GRU", "RNN")
def recurrent(op: Op) -> None:
    """H' = gates(W x + R h + b): each gate has a block of rows, the columns of R read the hidden state.

    Both directions share the hidden size, so their hidden dims grow alike. Copies of a unit start from copies of its
    state and stay equal to it. Initial states and peepholes are copied; `hidden_size` follows.
    """
    k = GATES[op.kind]
    batch_first = op.attrs.get("layout", 0)
    x, y, state = ("n t i", "n t d h", "n d h") if batch_first else ("t n i", "t d n h", "d n h")
    op.apply(
        f"{x}, d (k h) i, d (k h) h, d (b h), n, {state}, {state}, d (p h) -> {y}, {state}, {state}",
        sizes={"k": k, "b": 2 * k, "p": 3, "h": "hidden_size"},
        fixed="t n d k b p",
    )
    hidden = op.input(2)
    if hidden is not None:
        op.contract(hidden[2], [(2, 2)])
    op.pointwise("any")
