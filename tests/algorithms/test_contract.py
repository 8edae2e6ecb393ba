"""What holds for every algorithm of the family; a new one joins with a line in ``cases.py``."""

from __future__ import annotations

import pytest
import torch

import fedlightning.algorithms as family
from tests.algorithms.cases import (
    ALGORITHMS,
    BAD,
    SIZES,
    WITHOUT_TWO,
    Faulty,
    everything,
    run,
    whole,
)
from tests.algorithms.test_systems import SYSTEMS
from tests.toys import data, fit, loop_of, net, same, state

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
START = state(net(module=Faulty))
REMEMBERING = (
    "SCAFFOLD", "Ditto", "PFedMe", "APFL", "FedRoD", "PerInvFL", "FedDyn", "MOON", "FedProto",
    "FedALA", "IFCA",
)  # fmt: skip


@every_algorithm
def test_two_runs_give_the_same_bits(name):
    found = everything(whole(name))
    assert all(torch.isfinite(value).all() for value in found.values())
    assert same(found, everything(run(name)))


@every_algorithm
def test_a_run_resumed_after_a_round_gives_the_same_bits(name, tmp_path):
    first = run(name, rounds=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    resumed = run(name, net(seed=9, module=Faulty), ckpt=tmp_path / "one.ckpt")
    assert same(everything(whole(name)), everything(resumed))


@pytest.mark.parametrize("name", ["SCAFFOLD", "FedAdam", "FedPer", "APFL"])
def test_another_fit_of_the_trainer_goes_on(name):
    built = run(name, module := net(module=Faulty), rounds=1)
    built.fit_loop.max_epochs = 3
    built.fit(module, datamodule=data(SIZES))
    assert same(everything(whole(name)), everything(built))


@every_algorithm
def test_what_is_not_trained_does_not_move_and_what_is_not_shared_stays_the_initial_one(name):
    loop = loop_of(whole(name))
    trained, shared = set(loop.roles.trained), set(loop.roles.shared)
    now = state(loop.module)
    still = {k for k, value in START.items() if torch.equal(now[k], value)}
    parameters = {k for k, _ in loop.module.named_parameters()}
    assert parameters - trained <= still
    assert START.keys() - shared <= still
    moving = parameters & trained & shared
    assert moving & still <= {"body.0.bias"}, "what is trained and shared does move"
    # before BatchNorm a bias has no gradient but rounding


@every_algorithm
def test_what_a_client_keeps_is_its_own(name):
    loop = loop_of(whole(name))
    assert bool(len(loop.personal)) == bool(loop.roles.kept or has_memory(name))
    kept = [loop.personal.get(client) for client in sorted(loop.personal)]
    for key in kept[0] if kept else ():
        if "num_batches_tracked" in key or key == "ifca:cluster":
            continue
        if key.endswith("body.0.bias"):  # before BatchNorm: no gradient but rounding, or none
            continue
        values = [k[key] for k in kept]
        assert all(not torch.equal(values[0], value) for value in values[1:]), key
    models = [loop.personal_model(client) for client in sorted(loop.personal)]
    assert any(models) == ALGORITHMS[name].personal


def has_memory(name: str) -> bool:
    return any(word in name for word in REMEMBERING)


@every_algorithm
def test_the_server_remembers_what_it_has_to(name):
    remembered = loop_of(whole(name)).server.state_dict()
    stateful = (
        "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "SCAFFOLD", "corrected", "FedImpro",
        "FedDyn", "FedProto", "FedAMP", "IFCA",
    )  # fmt: skip
    assert bool(remembered) == any(word in name for word in stateful)
    assert all(value.abs().sum() > 0 for value in remembered.values())


@every_algorithm
def test_nothing_of_a_turn_is_left_in_the_module(name):
    built = whole(name)
    module = built.lightning_module
    assert all(child.training for child in module.modules())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not [c for c in module.modules() if c._forward_hooks or c._forward_pre_hooks]
    assert "log" not in vars(module)
    assert built.optimizers[0].param_groups[0]["lr"] == 0.1


@every_algorithm
@pytest.mark.filterwarnings("ignore:client 2, round 1")
def test_a_skipped_client_leaves_no_trace(name):
    events = net(module=Faulty, at=(1,))
    skipped = run(name, events, federation={"on_client_failure": "skip"})
    assert events.counts.seen >= 1
    assert same(everything(skipped), everything(run(name, cohorts=WITHOUT_TWO)))


@every_algorithm
def test_a_fault_that_passes_leaves_no_trace(name):
    with pytest.warns(UserWarning, match=rf"client {BAD}, round 1: .*\(tried again\)"):
        retried = run(
            name, net(module=Faulty, at=(1, 3)), federation={"on_client_failure": "retry"}
        )
    assert same(everything(retried), everything(whole(name)))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if "FedBN" not in name])
def test_clients_of_one_example_and_without_some_classes_can_take_part(name):
    algorithm = ALGORITHMS[name]
    module = net()
    loop = loop_of(fit(module, algorithm, rounds=2, datamodule=data((1, 6, 2, 5))))
    assert all(torch.isfinite(value).all() for value in state(module).values())
    assert all(
        torch.isfinite(value).all()
        for client in loop.personal
        for value in loop.personal_model(client).values()
    )


@every_algorithm
def test_user_frozen_parameters_stay_frozen(name):
    module = net(module=Faulty)
    module.body[0].bias.requires_grad_(False)
    loop = loop_of(run(name, module, rounds=2))
    assert torch.equal(state(module)["body.0.bias"], START["body.0.bias"])
    assert not module.body[0].bias.requires_grad
    models = [loop.personal_model(client) for client in loop.personal]
    assert all(
        torch.allclose(model["body.0.bias"], START["body.0.bias"], atol=1e-7)
        for model in models
        if "body.0.bias" in model
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize(
    "name", ["FedProx", "SCAFFOLD", "APFL", "FedRoD", "PFedMe", "PerFedAvg", "PerInvFL"]
)
def test_lower_precision_works(name, precision):
    found = everything(run(name, rounds=2, precision=precision))
    assert all(torch.isfinite(value).all() for value in found.values())


def test_the_table_has_every_algorithm():
    classes = {
        name
        for name in family.__all__
        if isinstance(kind := getattr(family, name), type) and issubclass(kind, family.Algorithm)
    }
    systems = [system.algorithm for system in SYSTEMS.values()]  # with networks of their own
    assert classes - {"Algorithm", "Composite"} == {
        type(algorithm).__name__ for algorithm in (*ALGORITHMS.values(), *systems)
    } - {"Composite"}
