"""Bad inputs end in a refusal of one line, at once; the evidence tries many more."""

import pytest

from redistill.evidence.trust.inputs import COUNTS, try_inputs


@pytest.mark.parametrize("kind", COUNTS)
def test_mutated_inputs_are_refused_or_accepted(kind, tmp_path):
    tally = try_inputs({kind: 20 if kind == "recipes" else 120}, seed=7, folder=tmp_path)[kind]
    assert tally.tried >= 20
    assert tally.faults == []
    assert tally.accepted < tally.tried
