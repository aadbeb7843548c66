"""Repeated layers are one row."""

from onnx_net2net.texts import fold_names, fold_rows, shorten


def test_names_that_differ_by_numbers_are_one():
    assert fold_names(["h.0.fc", "h.1.fc", "head", "h.2.fc"]) == ["h.*.fc x3", "head"]
    assert fold_names(["l1.0.c", "l1.1.c"]) == ["l1.*.c x2"]
    assert fold_names([]) == []


def test_rows_of_other_sizes_stay_apart():
    rows = [(["h.0.fc", "8", "16"], False), (["h.1.fc", "8", "16"], False), (["h.2.fc", "8", "8"], True)]
    assert fold_rows(rows) == [(["h.*.fc x2", "8", "16"], False), (["h.2.fc", "8", "8"], True)]


def test_texts_that_name_their_layer_fold_with_it():
    rows = [([f"h.{n}.fc", "8", f"no: read by 'h.{n}.MatMul'"], True) for n in range(12)]
    assert fold_rows(rows) == [(["h.*.fc x12", "8", "no: read by 'h.*.MatMul'"], True)]


def test_multipliers_are_no_names():
    rows = [(["h.0.fc", "1.5x"], False), (["h.1.fc", "2.5x"], False)]
    assert fold_rows(rows) == rows


def test_long_names_lose_their_middle():
    assert shorten("transformer.h.0.attn.c_attn", 12) == "transf…_attn"
    assert shorten("short", 12) == "short"
