"""One client that holds all the data has plain Lightning's numbers and weights."""

from __future__ import annotations

import pytest

from tests.lightning_parity.comparison import one_client
from tests.lightning_parity.idioms import IDIOMS


@pytest.mark.parametrize("idiom", [idiom for idiom in IDIOMS if idiom.one], ids=repr)
def test_one_client_is_plain_lightning(idiom):
    outcome = one_client(idiom)
    assert not outcome.differences, "\n".join(map(str, outcome.differences))


def test_idioms_have_names_of_their_own():
    assert len(IDIOMS) >= 40
    assert len({idiom.name for idiom in IDIOMS}) == len({idiom.title for idiom in IDIOMS})
    assert len({idiom.name for idiom in IDIOMS}) == len(IDIOMS)
