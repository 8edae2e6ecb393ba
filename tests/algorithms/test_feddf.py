"""FedDF against its paper's formulas, with Adam written out."""

from __future__ import annotations

import pytest
import torch

from fedlightning import FedAvg, FedBN, FedDF
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.core.seeding import Key
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from tests.algorithms.by_hand import (
    COHORTS,
    EPOCHS,
    Sgd,
    assert_close,
    batches,
    clients,
    copy,
    gradient,
    logits,
    mean,
    sizes,
    start,
)
from tests.toys import examples, fit, loop_of, net, same, state, trainer

PUBLIC = examples(10, 99)[0].double()


class WithPublic(ClientDatasets):
    """The clients of the other references, and public inputs without labels."""

    def __init__(self) -> None:
        pairs = [[clients().pooled.train, clients().indices(c)] for c in range(4)]
        train = [(torch.as_tensor(p.inputs[r]), torch.as_tensor(p.labels[r])) for p, r in pairs]
        super().__init__(train=train, test=train, num_classes=3, batch_size=4)

    def split_examples(self, client, split):
        return PUBLIC, torch.full((10,), 2)


def run(algorithm, module, **kwargs):
    built = trainer(algorithm, rounds=3, cohort=3, federation={"local_epochs": EPOCHS, **kwargs})
    loop_of(built).cohort = COHORTS.__getitem__
    built.fit(module, datamodule=WithPublic())
    return loop_of(built)


def distilled(w, ends, round_, lr):
    """Return the student after two passes of Adam."""
    target = (sum(logits(end, PUBLIC) for end in ends) / len(ends)).softmax(dim=1)
    x, first, second, step = copy(w), {}, {}, 0

    def objective(a, batch):
        log_q = logits(a, batch[0]) - logits(a, batch[0]).exp().sum(1, keepdim=True).log()
        return (batch[1] * (batch[1].log() - log_q)).sum(1).mean()

    for epoch in range(2):
        order = torch.randperm(10, generator=Key(0, "server", round_, epoch=epoch).torch())
        for rows in order.split(4):
            step += 1
            for k, g in gradient(x, (PUBLIC[rows], target[rows]), of=objective).items():
                first[k] = 0.9 * first.get(k, 0) + 0.1 * g
                second[k] = 0.999 * second.get(k, 0) + 0.001 * g**2
                m, v = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
                x[k] = x[k] - lr * m / (v.sqrt() + 1e-8)
    return x


@pytest.mark.parametrize("lr", [1e-3, 0.05])
def test_the_student_is_that_of_the_papers_formula(lr):
    w = state(start())
    for round_, cohort in enumerate(COHORTS):
        ends = []
        for client in cohort:
            mine = copy(w)
            optimizer = Sgd(mine)
            for batch in batches(client, round_):
                optimizer.step(gradient(mine, batch))
            ends.append(mine)
        w = distilled(mean(ends, sizes(cohort), w), ends, round_, lr)
    module = start()
    run(FedDF(epochs=2, server_lr=lr, batch_size=4), module)
    assert_close(state(module), w)


def test_without_a_pass_it_is_fedavg():
    one, other = start(), start()
    run(FedDF(epochs=0), one)
    run(FedAvg(), other)
    assert same(state(one), state(other))


def test_layers_that_stay_with_the_clients_are_the_global_ones_at_the_server():
    """Which client was trained last makes no difference to the student."""
    found = []
    for cohort in ((0, 1, 3), (3, 1, 0)):
        module = start(norm=True)
        built = trainer(FedBN() + FedDF(epochs=2), rounds=1, cohort=3)
        loop_of(built).cohort = [cohort].__getitem__
        built.fit(module, datamodule=WithPublic())
        found.append(state(module))
    assert_close(found[0], found[1], 1e-12)
    assert all(child.training for child in module.modules())


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(ConfigError, match="needs public examples, and ClientDatasets has none"):
        fit(net(), FedDF())
    with pytest.raises(ConfigError, match="CoordinateMedian cannot protect EnsembleDistillation"):
        fit(net(), FedDF(), federation={"aggregator": CoordinateMedian()})
    with pytest.raises(ConfigError, match=r"algorithm\.server_lr must be a finite number > 0"):
        FedDF(server_lr=0)
