"""A client update and a server, with a bare module and no Trainer, give the bits of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedlightning import SCAFFOLD, Ditto, FedAvg, FedBABU, FedPer, FedProx
from fedlightning.algorithms import Algorithm
from fedlightning.core.optimizers import FreshOptimizers
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.engine.clients import ResidentClient
from fedlightning.engine.local_settings import LocalSettings
from fedlightning.engine.local_training import LocalTraining
from fedlightning.engine.model_roles import ModelRoles
from fedlightning.engine.resident import ResidentModule
from fedlightning.federation.client_update import client_update
from fedlightning.federation.schedule import Job
from fedlightning.federation.server import Server
from fedlightning.federation.uplink import Int8, TopK, UplinkStage
from tests.toys import data, fit, loop_of, net, same, state

ROUNDS, SIZES = 3, (8, 6, 7, 6)


def optimizers_of(module: Any) -> list[torch.optim.Optimizer]:
    configured = module.configure_optimizers()
    if isinstance(configured, dict):
        configured = configured["optimizer"]
    return [configured]


def federate(algorithm: Algorithm, stages: list[UplinkStage]) -> tuple[State, dict[int, State]]:
    """Run synchronous rounds by hand: every client trains, the server merges."""
    module, clients = net(norm=True, dropout=0.3, lr_milestones=()), data(SIZES)
    clients.setup("fit")
    model = ModelRoles(module, algorithm)
    model.check()
    model.freeze()
    settings = LocalSettings(optimizers_of(module))
    resident = ResidentModule(module, FreshOptimizers(settings.optimizers, []))
    training = LocalTraining(settings, module, clients, resident, algorithm)
    server = Server(algorithm, clients.num_clients, uplink=stages)
    server.start(resident.received, model.roles.shared, model.parameters, model.moving)
    kept: dict[int, State] = {}
    for round_ in range(ROUNDS):
        resident.begin_round()
        for position, number in enumerate((2, 0, 3)):
            client = ResidentClient(
                number, kept.get(number, {}), resident, model, clients.num_examples(number),
                local_epochs=2,
            )  # fmt: skip
            job = Job(number, round_, position)
            update = client_update(job, server.broadcast(job), client, algorithm, training, stages)
            server.receive(update)
            resident.reset_client()
            kept[number] = client.kept
        merged = server.aggregate()
        server.commit()
        resident.commit(merged)
    return state(module), kept


@pytest.mark.parametrize(
    ("algorithm", "stages"),
    [
        (FedAvg(), []),
        (FedBABU(), []),
        (FedPer(), [TopK(0.5)]),
        (SCAFFOLD() + FedProx(mu=0.1), [Int8()]),
        (Ditto(), []),
    ],
    ids=str,
)
def test_rounds_by_hand_give_the_bits_of_a_run(algorithm, stages):
    from fedlightning.federation.sampling import FixedCohorts

    weights, kept = federate(algorithm, stages)
    module = net(norm=True, dropout=0.3, lr_milestones=())
    built = fit(
        module, algorithm, rounds=ROUNDS, cohort=3, datamodule=data(SIZES),
        federation={
            "sampler": FixedCohorts([(2, 0, 3)] * ROUNDS), "uplink": stages, "local_epochs": 2
        },
    )  # fmt: skip
    assert same(state(module), weights)
    for number in (0, 2, 3):
        assert same(loop_of(built).client_store.get(number) or {}, kept[number])


def test_an_update_leaves_the_module_to_the_next_client():
    module, clients = net(), data()
    clients.setup("fit")
    algorithm = FedAvg()
    model = ModelRoles(module, algorithm)
    settings = LocalSettings(optimizers_of(module))
    resident = ResidentModule(module, FreshOptimizers(settings.optimizers, []))
    training = LocalTraining(settings, module, clients, resident, algorithm)
    server = Server(algorithm, clients.num_clients)
    server.start(resident.received, model.roles.shared, model.parameters, model.moving)
    before = state(module)
    job = Job(1, 0, 0)
    client = ResidentClient(1, {}, resident, model, clients.num_examples(1))
    update = client_update(job, server.broadcast(job), client, algorithm, training)
    sent = {key: value.clone() for key, value in update.state.items()}
    assert not same(sent, before)
    resident.reset_client()
    assert same(state(module), before)
    assert update.version == 0
    assert update.num_examples == 6
    assert update.steps == 2
    copy_into(live_state(module), sent)
    assert same(state(module), sent)
