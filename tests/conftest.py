"""What all tests have in common."""

import contextlib
import signal

import pytest
from graphs import NEWEST
from hypothesis import settings

from onnx_net2net.analysis import inference

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

inference.STRICT = True  # an error of a rule is no ill-formed node here; the tests of these say so

for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    # Who starts tests in the background lets them ignore signals; commands that tests start have to be stopped by them.
    if signal.getsignal(number) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

NEWER = {
    "test_contrib.py::test_what_is_behind_a_fused_activation_is_not_padded[Sigmoid]": "a LayerNormalization so exact",
    "test_contrib.py::test_a_grown_operator_computes_grown_outputs[QMoE": "today's layout of QMoE",
    "test_hostile.py::test_functions_that_call_themselves_do_not_run": "a check of functions that call themselves",
    "test_hostile.py::test_functions_that_the_inliner_does_not_take_freeze": "a limit of nested functions",
    "test_hostile.py::test_what_a_chain_of_concatenations_reads_is_folded_once_a_reader": "the same number of folds",
    "test_indexing.py::test_a_wider_net_computes_the_same[DeformConv": "a kernel of DeformConv",
    "test_indexing.py::test_a_wider_net_computes_the_same[NonZero": "a length of what NonZero finds",
    "test_random_operators.py::test_the_graphs_of_a_seed_are_always_the_same": "the same operators",
    "test_rules.py::test_a_grown_operator_computes_grown_outputs[Einsum-18 (2,3,5) equation=abc->ca]": "such an Einsum",
    "test_rules.py::test_a_grown_operator_computes_grown_outputs[ReduceSum-18 (2,3,5) noop": "a sum over no axis",
    "test_rules.py::test_every_rule_is_exercised_on_a_dim_that_grows": "cases of every operator",
    "test_op.py::test_what_a_newer_operator_set_brings": "newer operator sets",
    "test_words.py::test_inspection_of_an_invalid_model_says_so": "a check of sizes",
    "test_words.py::test_that_a_teacher_is_invalid_is_said_first_and_alone[fault0": "a check of sizes",
}
"""Tests of what older versions of onnx and onnxruntime, which the package still runs with, do not have."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of what the installed versions lack; the newest ones have to pass all."""
    for item in items if not NEWEST else ():
        lacks = next(
            (what for start, what in NEWER.items() if f"{item.path.name}::{item.name}".startswith(start)), None
        )
        if lacks:
            item.add_marker(pytest.mark.skip(reason=f"the installed versions have not {lacks}"))
