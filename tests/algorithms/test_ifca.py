"""IFCA against its paper's algorithm with model averaging."""

from __future__ import annotations

import pytest
import torch

from fedlightning import IFCA, Algorithm, FedAvg
from fedlightning.algorithms import BestCluster
from fedlightning.core.state import under
from fedlightning.datamodules import ClientDatasets
from tests.algorithms.by_hand import (
    COHORTS,
    SIZES,
    Sgd,
    assert_close,
    batches,
    copy,
    gradient,
    loss,
    mean,
    start,
    trained,
)
from tests.toys import examples, fit, loop_of, net, state


def first_models(k):
    """Return the models that the clusters start from: the package's, checked apart."""
    shown = []

    class Spy(BestCluster):
        def on_update_start(self, context):
            super().on_update_start(context)
            shown.extend(copy(self._model(context, j)) for j in range(k))

    trained(Algorithm(train="full", share="none", local=[Spy(k)]), rounds=1)
    return shown[:k]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ifca_is_the_papers_algorithm(k):
    models, own, choices = first_models(k), {}, {}
    for round_, cohort in enumerate(COHORTS):
        ends = {}
        for client in cohort:
            sums = [
                sum(float(loss(w, b)) * len(b[1]) for b in batches(client, round_, epochs=1))
                for w in models
            ]
            choices[client] = min(range(k), key=sums.__getitem__)
            w = copy(models[choices[client]])
            optimizer = Sgd(w)
            for batch in batches(client, round_):
                optimizer.step(gradient(w, batch))
            own[client] = w
            ends.setdefault(choices[client], []).append(copy(w))
        for j, members in ends.items():
            models[j] = mean(members, [1.0] * len(members), members[0])
    loop = trained(IFCA(k))
    server = loop.server.state_dict()
    for j in {key.split("/")[1] for key in server}:
        assert_close(under(server, f"ifca/{j}"), models[int(j)])
    for client in range(4):
        assert_close(loop.personal_model(client), own[client])
        assert int(loop.client_store.get(client)["ifca:cluster"]) == choices[client]


def test_clusters_start_with_the_same_numbers_in_another_order():
    one, two, three = first_models(3)
    assert_close(one, state(start()))
    for key, value in one.items():
        for other in (two, three):
            assert torch.equal(value.flatten().sort().values, other[key].flatten().sort().values)
    assert not torch.equal(one["body.0.weight"], two["body.0.weight"])
    assert not torch.equal(two["body.0.weight"], three["body.0.weight"])


def test_one_cluster_is_fedavg_with_uniform_weights():
    module = start()
    trained(FedAvg(weights="uniform"), module)
    assert len(set(SIZES)) > 1
    assert_close(under(trained(IFCA(1)).server.state_dict(), "ifca/0"), state(module))


def test_two_groups_of_clients_with_unlike_labels_find_two_clusters():
    pairs = [examples(40, seed) for seed in range(6)]
    turned = [(x, y if client < 3 else (y + 1) % 3) for client, (x, y) in enumerate(pairs)]
    groups = ClientDatasets(train=turned, test=turned, num_classes=3, batch_size=10)
    built = fit(
        net(lr_milestones=()), IFCA(2), rounds=12, datamodule=groups,
        federation={"local_epochs": 3},
    )  # fmt: skip
    store = loop_of(built).client_store
    chosen = [int(store.get(client)["ifca:cluster"]) for client in range(6)]
    assert chosen in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
