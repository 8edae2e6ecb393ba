"""Random streams are named, independent, and leave the global generators alone."""

from __future__ import annotations

import random

import numpy as np
import torch

from fedlightning.core.seeding import Key, default_seed, forked_generators


def test_different_keys_name_different_streams():
    keys = [
        Key(seed, "fit", round=round_, client=client, epoch=epoch)
        for seed in range(5)
        for round_ in range(10)
        for client in range(20)
        for epoch in range(5)
    ]
    assert len({key.integer() for key in keys}) == len(keys)


def test_purposes_do_not_share_a_stream():
    assert Key(0, "fit").integer() != Key(0, "personalize").integer()


def test_forked_generators_depend_on_the_key_alone():
    def draw() -> tuple[float, float, float]:
        with forked_generators(Key(3, "fit")):
            return random.random(), float(np.random.rand()), float(torch.rand(()))

    first = draw()
    torch.manual_seed(99)
    assert draw() == first


def test_forked_generators_are_restored():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with forked_generators(Key(3, "fit")):
        random.random(), np.random.rand(), torch.rand(3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_paused_stream_goes_on_where_it_stopped():
    with forked_generators(Key(3, "fit")):
        whole = [random.random(), float(torch.rand(()))], [random.random(), float(torch.rand(()))]
    paused = []
    parts = []
    for _ in range(2):
        with forked_generators(Key(3, "fit"), paused=paused):
            parts.append([random.random(), float(torch.rand(()))])
        random.random(), torch.rand(())
    assert tuple(parts) == whole


def test_the_seed_is_the_runs_unless_given(monkeypatch):
    assert default_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert default_seed() == 7
    assert default_seed(3) == 3


def test_forked_generators_may_be_nested():
    with forked_generators(Key(3, "fit")):
        preserve_training_state = np.random.rand(2).tolist()
    with forked_generators(Key(3, "fit")):
        first = float(np.random.rand())
        with forked_generators(Key(4, "evaluate")):
            np.random.rand(7)
        assert [first, float(np.random.rand())] == preserve_training_state
