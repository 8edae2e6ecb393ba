"""Networks that differ by client: keys, roles, values, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlightning import FedAvg, LocalOnly, PersonalizationCallback
from fedlightning.datamodules import Digits
from fedlightning.errors import ConfigError
from fedlightning.models import LayeredNetwork, LayeredNetworks, MixedModule
from fedlightning.models.layered import operation_of
from fedlightning.personalization.models import client_model
from tests.toys import fit, loop_of, net, same, state, trainer

BOTH = {"plain": ["fc5"], "conv": ["conv3", "pool2"]}


def module(seed: int = 0, **kwargs) -> LayeredNetworks:
    return net(seed, module=LayeredNetworks, architectures=BOTH, lr=0.1, lr_milestones=(), **kwargs)


def digits(clients: int = 4) -> Digits:
    return Digits(num_clients=clients, batch_size=40, seed=0)


def test_layers_are_named_by_operation_and_number():
    network = LayeredNetwork(["conv4", "conv6", "pool2", "fc7"], (2, 8, 8), 3, padding=0)
    layers = dict(network.named_children())
    assert list(layers) == ["conv1", "conv2", "pool1", "fc1", "fc2"]
    does = [operation_of(layer) for layer in layers.values()]
    assert does == ["conv", "conv", "pool", "fc", "fc"]
    assert layers["fc1"][0].weight.shape == (7, 6 * 2 * 2)  # 8 - 2 - 2 = 4, halved
    x = torch.rand(5, 2, 8, 8)
    y = layers["pool1"](layers["conv2"](layers["conv1"](x))).flatten(1)
    assert torch.equal(network(x), layers["fc2"](layers["fc1"](y)))


@pytest.mark.parametrize(("layers", "says"), [
    (["conv"], "'conv' is not a layer"), (["conv0"], "'conv0' is not a layer"),
    (["fc4", "conv4"], "'conv4' cannot follow a linear layer"),
    (["pool2", "pool2", "pool2", "pool2"], r"'pool2' gets \(1, 1, 1\), too small"),
])  # fmt: skip
def test_layers_that_cannot_be_are_refused(layers, says):
    with pytest.raises(ConfigError, match=says):
        LayeredNetwork(layers)


def test_clients_have_architectures_in_turn_or_as_assigned():
    assert [module().architecture_of(c) for c in range(4)] == ["plain", "conv", "plain", "conv"]
    named = module(assignment=["conv", "conv", "plain"])
    assert [named.architecture_of(c) for c in range(4)] == ["conv", "conv", "plain", "conv"]
    with pytest.raises(ConfigError, match=r"'cov' \(there are plain, conv\). Did you mean 'conv'?"):
        module(assignment=["cov"])
    with pytest.raises(ConfigError, match="at least one network, got none"):
        MixedModule({})


def test_a_client_trains_and_keeps_its_own_network_and_nothing_else():
    start, built = module(), None
    before = state(start)
    built = fit(start, LocalOnly(), rounds=2, datamodule=digits())
    assert same(before, state(start)), "the global model stays as it starts"
    for client in range(4):
        own = loop_of(built).client_store.get(client)
        assert own.keys() == set(start.client_keys(client))
        assert int(own["architecture"]) == client % 2
        assert all(not torch.equal(own[key], before[key]) for key in own if key != "architecture")


def test_a_client_trains_as_its_network_would_alone():
    mixed, other = module(), module(seed=5)
    mixed_run = fit(mixed, LocalOnly(), rounds=2, datamodule=digits())
    alone = MixedModule({"conv": LayeredNetwork(BOTH["conv"])}, lr=0.1, lr_milestones=())
    alone.networks["conv"].load_state_dict(module().networks["conv"].state_dict())
    alone_run = fit(alone, LocalOnly(), rounds=2, datamodule=digits())
    ours, theirs = (loop_of(run).client_store.get(1) for run in (mixed_run, alone_run))
    keys = set(ours) - {"architecture"}
    assert keys == set(theirs) - {"architecture"}
    assert all(torch.equal(ours[key], theirs[key]) for key in keys)
    assert not same(state(other), state(mixed))


def test_a_client_that_never_trained_has_its_architecture():
    built = trainer(LocalOnly(), rounds=1, cohort=2)
    loop_of(built).cohort = lambda _: (0, 2)
    built.fit(module(), datamodule=digits())
    assert {key: int(v) for key, v in loop_of(built).personal_model(3).items()} == {
        "architecture": 1
    }


def test_an_average_over_other_networks_is_refused():
    with pytest.raises(ConfigError, match=r"FedAvg averages networks.*client \d does not have"):
        fit(module(), FedAvg(), rounds=1, datamodule=digits())


def test_training_at_once_is_refused():
    with pytest.raises(ConfigError, match="LayeredNetworks has other networks for other clients"):
        fit(module(), LocalOnly(), rounds=1, datamodule=digits(),
            federation={"clients_per_kernel": 2})  # fmt: skip


def test_personal_files_hold_the_clients_network(tmp_path):
    callback = PersonalizationCallback(part="head", epochs=0, nearest_mean=False)
    built = fit(module(), LocalOnly(), rounds=2, datamodule=digits(), folder=tmp_path,
                callbacks=[callback])  # fmt: skip
    data = built.datamodule
    for client in range(4):
        own = client_model(built.log_dir, client, module(seed=9))
        assert own.present == ("plain", "conv")[client % 2]
        with torch.no_grad():
            hits = [(own(x).argmax(1) == y).float() for x, y in data.batches(client, "test")]
        (found,) = [r.record for r in callback.views[0].results if r.client == client]
        assert float(torch.cat(hits).mean()) == pytest.approx(found.acc_before, abs=1e-6)


def test_clients_are_measured_by_architecture_too():
    callback = PersonalizationCallback(part="head", epochs=0, nearest_mean=False)
    built = fit(module(assignment=["plain", "conv", "conv"]), LocalOnly(), rounds=1,
                datamodule=digits(), callbacks=[callback])  # fmt: skip
    accuracies = {r.client: r.record.acc_before for r in callback.results}
    for name, members in (("plain", (0, 3)), ("conv", (1, 2))):
        found = built.callback_metrics[f"{name}/personalized/acc"].item()
        assert found == pytest.approx(sum(accuracies[c] for c in members) / 2, abs=1e-6)
    with pytest.raises(ConfigError, match="view cannot be called 'val'"):
        LayeredNetworks({"val": ["fc5"]})


def test_any_networks_can_be_mixed():
    mixed = MixedModule({"one": nn.Linear(4, 3), "two": nn.Sequential(nn.Linear(4, 3))})
    x = torch.rand(2, 4)
    assert torch.equal(mixed(x), mixed.networks["one"](x))
    mixed.load_state_dict({**mixed.state_dict(), **mixed.client_start(1)})
    assert torch.equal(mixed(x), mixed.networks["two"](x))
