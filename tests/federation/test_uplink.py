"""Stages between client and server: clipping, noise, compression, in order."""

from __future__ import annotations

import pytest
import torch

from fedlightning import SCAFFOLD, FedAvg, Federation
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.seeding import Key
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.federation.uplink import (
    ClipNorm,
    GaussianNoise,
    Int8,
    TopK,
    UplinkContext,
    UplinkStage,
)
from tests.toys import fit, net, same, state

RECEIVED = {"w": torch.tensor([1.0, 1.0]), "mean": torch.tensor([5.0])}


def context(client: int = 0) -> UplinkContext:
    return UplinkContext(RECEIVED, {"w"}, (), {}, Key(0, "uplink", 3, client))


def update(**extras: torch.Tensor) -> ClientUpdate:
    moved = {"w": torch.tensor([4.0, 5.0]), "mean": torch.tensor([7.0])}
    return ClientUpdate(0, moved, 10, extras=extras)


def test_an_update_is_scaled_to_the_largest_norm():
    clipped = ClipNorm(1.0).send(update(), context())  # moved by (3, 4), of norm 5
    torch.testing.assert_close(clipped.state["w"], torch.tensor([1.6, 1.8]))
    assert clipped.state["mean"].item() == 7.0  # a buffer


def test_extras_are_part_of_the_norm_and_scaled_with_it():
    clipped = ClipNorm(1.0).send(update(drift=torch.tensor([12.0])), context())  # norm 13
    torch.testing.assert_close(clipped.state["w"], torch.tensor([1 + 3 / 13, 1 + 4 / 13]))
    torch.testing.assert_close(clipped.extras["drift"], torch.tensor([12 / 13]))


def test_a_short_update_stays():
    assert ClipNorm(5.0).send(update(), context()) is not None
    assert same(dict(ClipNorm(5.1).send(update(), context()).state), dict(update().state))


def test_noise_is_that_of_the_client_and_the_round():
    noisy = [GaussianNoise(0.1).send(update(), context(client)) for client in (0, 0, 1)]
    assert same(dict(noisy[0].state), dict(noisy[1].state))
    assert not torch.equal(noisy[0].state["w"], noisy[2].state["w"])
    assert noisy[0].state["mean"].item() == 7.0
    many = ClientUpdate(0, {"w": torch.zeros(100_000)}, 1)
    far = UplinkContext({"w": torch.zeros(100_000)}, {"w"}, (), {}, Key(0, "uplink"))
    spread = GaussianNoise(0.25).send(many, far).state["w"]
    assert float(spread.std()) == pytest.approx(0.25, rel=0.02)
    assert float(spread.mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("stage", [ClipNorm(1.0), GaussianNoise(1.0)])
def test_integers_are_refused_by_name(stage):
    with pytest.raises(
        ConfigError, match=f"{stage.name} cannot treat 'count', which is torch.int64"
    ):
        stage.send(update(count=torch.tensor(3)), context())


def test_stages_act_in_their_order():
    class Doubled(UplinkStage):
        def send(self, update, context):
            from dataclasses import replace

            state = {k: 2 * v if k in context.parameters else v for k, v in update.state.items()}
            return replace(update, state=state)

    one, other = net(), net()
    fit(one, FedAvg(), federation={"uplink": [ClipNorm(0.01), Doubled()]})
    fit(other, FedAvg(), federation={"uplink": [Doubled(), ClipNorm(0.01)]})
    assert not same(state(one), state(other))


def test_a_large_bound_and_no_noise_change_nothing():
    plain, staged = net(), net()
    fit(plain, SCAFFOLD())
    fit(staged, SCAFFOLD(), federation={"uplink": [ClipNorm(1e9), GaussianNoise(0)]})
    assert same(state(plain), state(staged))


def test_compression_is_the_last_stage():
    as_setting, as_stage = net(), net()
    fit(as_setting, FedAvg(), federation={"compression": TopK(0.5)})
    fit(as_stage, FedAvg(), federation={"uplink": [TopK(0.5)]})
    assert same(state(as_setting), state(as_stage))
    with pytest.raises(ConfigError, match="compression must be the last stage"):
        Federation(uplink=[TopK(0.5), ClipNorm(1.0)])
    with pytest.raises(ConfigError, match="compression must be the last stage"):
        Federation(uplink=[TopK(0.5)], compression=Int8())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ClipNorm(0.0), r"federation\.uplink\.max_norm must be a finite number > 0"),
        (lambda: GaussianNoise(-1.0), r"federation\.uplink\.std must be a finite number >= 0"),
        (lambda: Federation(uplink=ClipNorm(1.0)), "must be a list of UplinkStage"),
        (lambda: Federation(uplink=["clip"]), r"must be an instance of UplinkStage, got 'clip'"),
    ],
)
def test_settings_out_of_range_are_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_run_is_not_resumed_with_other_stages(tmp_path):
    fit(net(), FedAvg(), rounds=1, folder=tmp_path, federation={"uplink": [ClipNorm(1.0)]})
    with pytest.raises(CheckpointError, match=r"federation\.uplink: .*ClipNorm\(max_norm=1"):
        fit(net(), FedAvg(), rounds=2, folder=tmp_path, ckpt="last")
