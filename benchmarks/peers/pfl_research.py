"""pfl: its FederatedAveraging in its simulated backend, with the given cohorts for a sampler."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from peers.common import BATCH, COHORT, LR, MOMENTUM, Diary, Work, arguments
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional as F

DEVIATIONS = (
    "cohorts given instead of drawn",
    "examples shuffled by us, since its datasets keep their order",
    "evaluates the cohort in the first round only, which is not counted",
)


class Module(nn.Module):
    """The network with the two methods that the library wants.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss to train with."""
        self.train()
        return F.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return the accuracy."""
        self.eval()
        return {"accuracy": Weighted(int((self.net(x).argmax(1) == y).sum()), len(y))}


class Notes(TrainingProcessCallback):
    """Writes the ends of rounds down.

    Args:
        diary: Where to.
    """

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """A round has ended."""
        self.diary.mark()
        return False, Metrics()


def federated_dataset(work: Work) -> FederatedDataset:
    """Return the clients' examples, and the clients in the order in which cohorts name them."""

    def examples(client: int) -> Dataset:
        x, y = work.train[client]
        order = torch.randperm(len(y))
        return Dataset((x[order], y[order]), user_id=str(client))

    return FederatedDataset(examples, chain.from_iterable(work.cohorts).__next__)


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    torch.manual_seed(0)
    module, data = Module(work.net()), federated_dataset(work)
    model = PyTorchModel(
        module,
        lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM),
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    diary.mark()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=len(work.cohorts),
            evaluation_frequency=len(work.cohorts) + 1,
            train_cohort_size=COHORT,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Notes(diary)],
    )
    diary.report(work, module.net.state_dict(), *DEVIATIONS)


if __name__ == "__main__":
    main()
