"""Three clients of unequal size: plain Lightning on each, or on all their examples, and a mean."""

from __future__ import annotations

import pytest

from tests.lightning_parity.comparison import three_clients
from tests.lightning_parity.idioms import IDIOMS

THREE = [idiom for idiom in IDIOMS if idiom.three and idiom.refused is None]


@pytest.mark.parametrize("idiom", THREE, ids=repr)
def test_three_clients_are_plain_lightning_on_each(idiom):
    outcome = three_clients(idiom)
    assert not outcome.differences, "\n".join(map(str, outcome.differences))


@pytest.mark.parametrize("idiom", [idiom for idiom in THREE if idiom.personal], ids=repr)
def test_fine_tuned_clients_are_plain_lightning_on_each(idiom):
    outcome = three_clients(idiom, fine_tune=True)
    assert not outcome.differences, "\n".join(map(str, outcome.differences))
