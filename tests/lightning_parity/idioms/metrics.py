"""Metric objects, and what stands in for them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import (
    CatMetric,
    MaxMetric,
    MeanMetric,
    Metric,
    MetricCollection,
    MetricTracker,
    MinMetric,
    RunningMean,
)
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from tests.lightning_parity.idiom import CLASSES, note
from tests.lightning_parity.idioms.base import Net


def accuracy() -> MulticlassAccuracy:
    """Return the share of examples that are right."""
    return MulticlassAccuracy(CLASSES, average="micro")


def f1() -> MulticlassF1Score:
    """Return a score that is no mean over batches or clients."""
    return MulticlassF1Score(CLASSES, average="macro")


class ObjectLogged(Net):
    """``self.metric(...)`` and ``self.log(name, self.metric)``."""

    def __init__(self) -> None:
        super().__init__()
        self.train_f1, self.val_f1, self.test_f1 = f1(), f1(), f1()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_f1(logits, y)
        self.log("train/f1", self.train_f1, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_f1(self(batch[0]), batch[1])
        self.log("val/f1", self.val_f1, on_step=False, on_epoch=True, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_f1(self(batch[0]), batch[1])
        self.log("test/f1", self.test_f1)


class ObjectUpdatedAndLogged(ObjectLogged):
    """``self.metric.update(...)`` and ``self.log(name, self.metric)``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_f1.update(logits, y)
        self.log("train/f1", self.train_f1, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_f1.update(self(batch[0]), batch[1])
        self.log("val/f1", self.val_f1, on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_f1.update(self(batch[0]), batch[1])
        self.log("test/f1", self.test_f1, on_step=False, on_epoch=True)


class ObjectByHand(Net):
    """Update in the step; compute, log and reset at the end of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.train_f1, self.val_f1, self.test_f1 = f1(), f1(), f1()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_f1.update(logits, y)
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        self.log("train/f1", self.train_f1.compute())
        self.train_f1.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_f1.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/f1", self.val_f1.compute(), prog_bar=True)
        self.val_f1.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_f1.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self) -> None:
        self.log("test/f1", self.test_f1.compute())
        self.test_f1.reset()


class ResetAtStart(ObjectByHand):
    """Reset when an epoch starts; compute and log at its end."""

    def on_train_epoch_start(self) -> None:
        self.train_f1.reset()

    def on_train_epoch_end(self) -> None:
        self.log("train/f1", self.train_f1.compute())

    def on_validation_epoch_start(self) -> None:
        self.val_f1.reset()

    def on_validation_epoch_end(self) -> None:
        self.log("val/f1", self.val_f1.compute())

    def on_test_epoch_start(self) -> None:
        self.test_f1.reset()

    def on_test_epoch_end(self) -> None:
        self.log("test/f1", self.test_f1.compute())


class BatchValueLogged(Net):
    """``self.log(name, self.metric(...))``: the value of each batch, then their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = accuracy()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.log("train/acc", self.accuracy(logits, y), on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", self.accuracy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", self.accuracy(self(batch[0]), batch[1]))


class CollectionLogged(Net):
    """``self.log_dict(self.collection)``."""

    def __init__(self) -> None:
        super().__init__()
        collection = MetricCollection({"acc": accuracy(), "f1": f1()})
        self.train_metrics = collection.clone(prefix="train/")
        self.val_metrics = collection.clone(prefix="val/")
        self.test_metrics = collection.clone(prefix="test/")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_metrics(logits, y)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_metrics(self(batch[0]), batch[1])
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_metrics(self(batch[0]), batch[1])
        self.log_dict(self.test_metrics, on_step=False, on_epoch=True)


class CollectionByHand(CollectionLogged):
    """Update in the step; ``self.log_dict(self.collection.compute())`` at the end of the epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_metrics.update(logits, y)
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_metrics.compute())
        self.train_metrics.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_metrics.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_metrics.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()


class BestSoFar(ObjectLogged):
    """Keep the best of a logged object; forget at the start of training what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.best, self.lowest = MaxMetric(), MinMetric()

    def on_train_start(self) -> None:
        self.val_f1.reset()
        self.best.reset()
        self.lowest.reset()

    def on_validation_epoch_end(self) -> None:
        value = self.val_f1.compute()
        self.best(value)
        self.lowest(value)
        self.log("val/best", self.best.compute(), sync_dist=True, prog_bar=True)
        self.log("val/lowest", self.lowest.compute(), sync_dist=True)


class BestLoggedAsObject(ObjectByHand):
    """``self.log("val/best", self.best)`` with the MaxMetric itself, which logging empties."""

    def __init__(self) -> None:
        super().__init__()
        self.best = MaxMetric()

    def on_validation_epoch_end(self) -> None:
        self.best.update(self.val_f1.compute())
        self.log("val/best", self.best)
        self.val_f1.reset()


class MinMaxWrapper(Net):
    """A wrapper that remembers the least and the largest value over the epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.wrapped = MinMaxMetric(f1())

    def on_train_start(self) -> None:
        self.wrapped = MinMaxMetric(f1())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.wrapped.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        for name, value in self.wrapped.compute().items():
            self.log(f"val/{name}", value)
        self.wrapped._base_metric.reset()


class Tracker(Net):
    """A metric tracker, which holds one copy of a metric for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = MetricTracker(f1(), maximize=True)

    def on_validation_epoch_start(self) -> None:
        self.tracker.increment()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.tracker.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/f1", self.tracker.compute())
        self.log("val/best", self.tracker.best_metric())
        self.log("val/epochs", float(self.tracker.n_steps))


class RunningWindow(Net):
    """The mean of the last three losses, by a Running wrapper, logged and computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.recent, self.logged = RunningMean(window=3), RunningMean(window=3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.recent.update(loss.detach())
        self.logged(loss.detach())
        note("train: running mean", float(self.recent.compute()))
        self.log("train/logged", self.logged, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/recent", self.recent.compute())
        self.recent.reset()


class Classwise(Net):
    """One number for each class, by a wrapper and by hand from a confusion matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.each = ClasswiseWrapper(
            MulticlassAccuracy(CLASSES, average=None), labels=["a", "b", "c"], prefix="val/acc_"
        )
        self.matrix = MulticlassConfusionMatrix(CLASSES)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.each.update(logits, batch[1])
        self.matrix.update(logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.each.compute())
        table = self.matrix.compute()
        for label, row in zip("abc", table, strict=True):
            self.log(f"val/count_{label}", row.sum().float())
        self.each.reset()
        self.matrix.reset()


class ListStates(Net):
    """Metrics whose state is the list of all predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.auroc, self.values = MulticlassAUROC(CLASSES, average="macro"), CatMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.auroc.update(logits.softmax(dim=1), batch[1])
        self.values.update(logits.max(dim=1).values)

    def on_validation_epoch_end(self) -> None:
        self.log("val/auroc", self.auroc.compute())
        self.log("val/median", self.values.compute().median())
        self.auroc.reset()
        self.values.reset()


class ModuleDictOfMetrics(ObjectByHand):
    """Metrics by split in an ``nn.ModuleDict``, with one step for all splits."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics_of = nn.ModuleDict({f"{split}_": f1() for split in ("train", "val", "test")})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch)

    def on_train_epoch_end(self) -> None:
        self._end("train")

    def on_validation_epoch_end(self) -> None:
        self._end("val")

    def on_test_epoch_end(self) -> None:
        self._end("test")

    def _step(self, split: str, batch: Any) -> Tensor:
        logits = self(batch[0])
        self.metrics_of[f"{split}_"].update(logits, batch[1])
        return F.cross_entropy(logits, batch[1])

    def _end(self, split: str) -> None:
        metric = self.metrics_of[f"{split}_"]
        self.log(f"{split}/f1", metric.compute())
        metric.reset()


class UnregisteredMetrics(ModuleDictOfMetrics):
    """Metrics in a plain dictionary, so no children of the module."""

    def __init__(self) -> None:
        super().__init__()
        metrics = {f"{split}_": f1() for split in ("train", "val", "test")}
        del self.metrics_of
        self.metrics_of = metrics  # type: ignore[assignment]


class MetricsMadeInSetup(ObjectByHand):
    """Metrics made in ``setup()``, anew for each stage."""

    def __init__(self) -> None:
        super().__init__()
        del self.train_f1, self.val_f1, self.test_f1

    def setup(self, stage: str) -> None:
        self.train_f1, self.val_f1, self.test_f1 = f1(), f1(), f1()


class MeanMetrics(Net):
    """Mean metrics that are told the weight of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.train_mean, self.val_mean, self.test_mean = MeanMetric(), MeanMetric(), MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.train_mean.update(loss.detach(), weight=len(batch[1]))
        self.log("train/mean", self.train_mean, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_mean.update(self.loss(batch), weight=len(batch[1]))

    def on_validation_epoch_end(self) -> None:
        self.log("val/mean", self.val_mean.compute())
        self.val_mean.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_mean.update(self.loss(batch), weight=len(batch[1]))

    def on_test_epoch_end(self) -> None:
        self.log("test/mean", self.test_mean.compute())
        self.test_mean.reset()


class Margin(Metric):
    """A metric of one's own: the mean distance of the two best scores."""

    total: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        best = logits.topk(2, dim=1).values
        self.total += (best[:, 0] - best[:, 1]).sum()
        self.count += len(logits)

    def compute(self) -> Tensor:
        return self.total / self.count


class OwnMetric(Net):
    """A metric of one's own, computed in epoch-end hooks and read once more afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.margin, self.test_margin = Margin(), Margin()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.margin.update(self(batch[0]))

    def on_validation_epoch_end(self) -> None:
        self.log("val/margin", self.margin.compute())

    def on_validation_end(self) -> None:
        self.margin.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_margin.update(self(batch[0]))

    def on_test_epoch_end(self) -> None:
        self.log("test/margin", self.test_margin.compute())
        self.test_margin.reset()


class ListsOfOutputs(Net):
    """Append outputs in the step; stack, log and clear at the end of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.train_outputs: list[Tensor] = []
        self.val_outputs: list[Tensor] = []
        self.test_outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.train_outputs.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/stacked", torch.stack(self.train_outputs).mean())
        self.train_outputs.clear()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_outputs.append(self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        self.log("val/stacked", torch.stack(self.val_outputs).mean())
        self.val_outputs.clear()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_outputs.append(self.loss(batch))

    def on_test_epoch_end(self) -> None:
        self.log("test/stacked", torch.stack(self.test_outputs).mean())
        self.test_outputs.clear()


class Gathers(ListsOfOutputs):
    """Outputs that are gathered from all processes in epoch-end hooks, as a cautious user would."""

    def on_train_epoch_end(self) -> None:
        self._log_all("train", self.train_outputs)

    def on_validation_epoch_end(self) -> None:
        self._log_all("val", self.val_outputs)

    def on_test_epoch_end(self) -> None:
        self._log_all("test", self.test_outputs)

    def _log_all(self, split: str, outputs: list[Tensor]) -> None:
        everyones = self.all_gather(torch.stack(outputs))
        self.log(f"{split}/stacked", everyones.mean(), sync_dist=True)
        outputs.clear()


class PredictionsForSklearn(Net):
    """Collect predictions in a dictionary of lists, and ask scikit-learn at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = defaultdict(list)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._collect(batch)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._collect(batch)

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def _collect(self, batch: Any) -> dict[str, Tensor]:
        guesses = self(batch[0]).argmax(dim=1)
        self.seen["guess"].append(guesses)
        self.seen["truth"].append(batch[1])
        return {"guess": guesses}

    def _score(self, split: str) -> None:
        truth, guess = (torch.cat(self.seen[name]).numpy() for name in ("truth", "guess"))
        score = f1_score(truth, guess, average="macro", labels=[0, 1, 2], zero_division=0)
        self.log(f"{split}/f1", score)
        self.seen = defaultdict(list)


class PlainSums(Net):
    """Sums in plain attributes, set to zero when an epoch starts."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.count = 0.0, 0

    def on_train_epoch_start(self) -> None:
        self.total, self.count = 0.0, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.total += float(loss.detach()) * len(batch[1])
        self.count += len(batch[1])
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        note("train: loss so far", self.total / self.count)

    def on_validation_epoch_start(self) -> None:
        self.val_total, self.val_count = 0.0, 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_total += float(self.loss(batch)) * len(batch[1])
        self.val_count += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/mean", self.val_total / self.val_count)
        self.log("val/count", float(self.val_count))

    def on_test_epoch_start(self) -> None:
        self.test_count = 0

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_count += len(batch[1])

    def on_test_epoch_end(self) -> None:
        self.log("test/count", float(self.test_count))


class OnlyTested(Net):
    """A test metric by hand, in a module without validation."""

    validation_step = pl.LightningModule.validation_step

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = accuracy()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy.update(self(batch[0]), batch[1])

    def on_test_epoch_end(self) -> None:
        self.log("test_acc", self.accuracy.compute())
        self.accuracy.reset()


class ReadsWhatItLogged(ObjectLogged):
    """``self.trainer.callback_metrics`` read in an epoch-end hook."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.log("val/loss", self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        shown = self.trainer.callback_metrics
        note("val: loss and f1", (float(shown["val/loss"]), float(shown["val/f1"])))


class ReadAndLogged(Net):
    """A train metric read in the middle of the epoch, logged as an object at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.train_f1 = f1()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        self.train_f1.update(logits, y)
        if batch_idx == 1:
            note("train: f1 after two batches", float(self.train_f1.compute()))
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        note("train: f1 of the epoch", float(self.train_f1.compute()))
        self.log("train/f1", self.train_f1)
