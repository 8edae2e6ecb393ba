"""Two workers give the bits of one, whatever the module does."""

from __future__ import annotations

import pytest

from tests.lightning_parity.idioms import IDIOMS
from tests.lightning_parity.workers import two_workers

CASES = [
    pytest.param(idiom, id=idiom.name, marks=[] if idiom.quick_workers else [pytest.mark.slow])
    for idiom in IDIOMS
    if idiom.three and idiom.refused is None
]


@pytest.mark.parametrize("idiom", CASES)
def test_two_workers_give_the_bits_of_one(idiom, tmp_path):
    differences = two_workers(idiom, tmp_path)
    assert not differences, "\n".join(map(str, differences))
