"""What a module counts in its training step is of the steps that the user sees alone."""

from __future__ import annotations

import pytest
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from fedlightning import APFL, SCAFFOLD, Ditto, FedAvg, FedProx, FedRep, PerFedAvg, PFedMe
from tests.toys import CLASSES, Net, data, fit, net


class Counting(Net):
    """Logs an accuracy as an object and as numbers, and how many examples it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.seen = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.seen += len(y)
        by_epoch = {"on_step": False, "on_epoch": True}
        self.log("train/object", self.accuracy, **by_epoch)
        right = (logits.argmax(dim=1) == y).double().mean()
        self.log("train/number", right, batch_size=len(y), **by_epoch)
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self):
        self.log("train/seen", float(self.seen))


@pytest.mark.parametrize(
    "algorithm",
    [
        FedAvg(),
        FedProx(0.1),
        SCAFFOLD(),
        FedRep(2),
        Ditto(),
        APFL(0.5),
        PFedMe(2.0, 5, 0.02),
        PerFedAvg(0.5),
        PerFedAvg(0.5, "hessian_free"),
        PerFedAvg(0.5, "exact"),
        PFedMe(2.0, 5, 0.02, tolerance=0.1),
    ],
    ids=repr,
)
def test_metric_objects_and_counters_are_of_the_users_steps(algorithm):
    built = fit(
        net(module=Counting), algorithm, rounds=1, datamodule=data(sizes=(8, 8)),
    )  # fmt: skip
    shown = {name: float(value) for name, value in built.callback_metrics.items()}
    assert shown["train/object"] == pytest.approx(shown["train/number"], abs=1e-6)
    if isinstance(algorithm, PerFedAvg):  # whose batches are divided between its two steps
        return
    epochs = 3 if isinstance(algorithm, FedRep) else 1
    # the mean over local epochs of what is seen at their ends: 8, 16, ...
    assert shown["train/seen"] == 8 * (epochs + 1) / 2
