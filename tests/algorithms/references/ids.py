"""IDS: labels and rewards epoch by epoch, of one pair, of a table, and of two clients."""

from __future__ import annotations

import ast
import re
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedlightning import IterativeDataSmoothing
from fedlightning.datamodules import ClientDatasets
from fedlightning.models import RewardTable
from tests.algorithms.references.reference import Reference, close
from tests.toys import loop_of, trainer

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


class Noting(RewardTable):
    """Notes each loss in a list that is not the module's own, which would be put back."""

    noted: ClassVar[list[Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.noted.append(loss.detach())
        return loss


def clients(pairs: list[Tensor], labels: list[Tensor]) -> ClientDatasets:
    """Return clients with these comparisons, each in one batch."""
    given = list(zip(pairs, labels, strict=True))
    return ClientDatasets(train=given, test=given, batch_size=max(map(len, labels)))


def fit(
    data: Any, items: int, beta: float, step: float, epochs: int, cohorts: Any
) -> tuple[Any, Any]:
    """Train in rounds with given cohorts; return the module and the loop."""
    Noting.noted.clear()
    module = Noting(items, lr=step, momentum=0.0, lr_milestones=()).double()
    built = trainer(
        IterativeDataSmoothing(beta), rounds=len(cohorts), cohort=1.0,
        federation={"local_epochs": epochs}, check_val_every_n_epoch=99,
    )  # fmt: skip
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module, datamodule=data)
    return module, loop_of(built)


def labels_of(loop: Any, client: int) -> Tensor:
    return loop.client_store.get(client)["ids:labels"]


def number(text: str, pattern: str) -> float:
    """Return the number that a case's text states."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def replay(reference: Reference) -> None:
    """Replay the three cases."""
    _one_pair(reference)
    _table(reference)
    _federated(reference)


def _one_pair(reference: Reference) -> None:
    text, tolerance = reference.about["cases"]["one_pair"], reference.tolerance()
    step, label = number(text, r"step ([\d.]+)"), number(text, r"label ([\d.]+)")
    pair, first = torch.tensor([[0, 1]]), torch.tensor([label], dtype=torch.float64)
    for name, want in reference.under("out.one_pair.beta_").items():
        for epoch, row in enumerate(want):
            data = clients([pair], [first])
            module, loop = fit(data, 2, float(name), step, epoch + 1, [(0,)])
            gap = module.rewards[0] - module.rewards[1]
            got = torch.stack([gap.detach(), labels_of(loop, 0)[0]])
            close(got, row, tolerance, f"one pair, beta {name}, epoch {epoch}")


def _table(reference: Reference) -> None:
    text, tolerance = reference.about["cases"]["table"], reference.tolerance()
    step = number(text, r"step ([\d.]+)")
    found = reference.under("out.table.beta_")
    for name in sorted({key.removesuffix(".rewards") for key in found if "rewards" in key}):
        losses = [found[f"{name}.loss_{e}"] for e in range(len(found))
                  if f"{name}.loss_{e}" in found]  # fmt: skip
        data = clients([reference["in.pairs"]], [reference["in.labels"]])
        items = len(found[f"{name}.rewards"])
        module, loop = fit(data, items, float(name), step, len(losses), [(0,)])
        close(module.rewards.detach(), found[f"{name}.rewards"], tolerance, f"table {name}")
        close(labels_of(loop, 0), found[f"{name}.labels"], tolerance, f"labels {name}")
        close(torch.stack(Noting.noted), torch.stack(losses), tolerance, f"losses {name}")


def _federated(reference: Reference) -> None:
    text, tolerance = reference.about["cases"]["federated"], reference.tolerance()
    step, beta = number(text, r"step ([\d.]+)"), number(text, r"beta ([\d.]+)")
    word = re.search(r"(\w+) epochs? a turn", text)
    cohorts = re.search(r"cohorts (\[.*?\])[;,] \w+ epoch", text)
    assert word is not None
    assert cohorts is not None
    epochs = NUMBERS.get(word[1]) or int(word[1])
    chosen = [tuple(cohort) for cohort in ast.literal_eval(f"[{cohorts[1]}]")]
    out = reference.under("out.federated.round")
    sizes = [len(out[f"0.labels{c}"]) for c in range(10) if f"0.labels{c}" in out]
    pairs, labels = reference["in.pairs"].split(sizes), reference["in.labels"].split(sizes)
    for last in range(len(chosen)):
        data = clients(list(pairs), list(labels))
        rewards = out[f"{last}.rewards"]
        module, loop = fit(data, len(rewards), beta, step, epochs, chosen[: last + 1])
        close(module.rewards.detach(), rewards, tolerance, f"round {last}: rewards")
        for client in range(len(sizes)):
            close(labels_of(loop, client), out[f"{last}.labels{client}"], tolerance,
                  f"round {last}: labels of client {client}")  # fmt: skip
