"""The faults that `tools/mutate_rules.py` plants have a place in the package."""

from __future__ import annotations

import mutate_rules


def test_every_fault_has_its_place() -> None:
    lost = []
    for mutation in mutate_rules.MUTATIONS:
        source = (mutate_rules.ROOT / mutate_rules.PACKAGE / mutation.file).read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            lost.append(f"{mutation.file}: {mutation.what}")
    assert not lost, "bring these up to date, or remove those whose subject is gone"
