"""One client that holds all the data has plain Lightning's numbers and weights."""

from __future__ import annotations

import pytest

from tests.lightning_parity.comparison import one_client
from tests.lightning_parity.idioms import IDIOMS


@pytest.mark.parametrize("idiom", [idiom for idiom in IDIOMS if idiom.one], ids=repr)
def test_one_client_is_plain_lightning(idiom):
    outcome = one_client(idiom)
    assert not outcome.differences, "\n".join(map(str, outcome.differences))
