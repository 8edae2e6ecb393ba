"""Replaying a recorded run of the FedBABU authors' code through the public API."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fedlightning import FederatedModule, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.algorithms import Algorithm, FedAvg, FedBABU
from fedlightning.core.seeding import Key
from fedlightning.datamodules import Assignment, FederatedDataModule, Partition, TensorExamples
from fedlightning.federation.sampling import FixedCohorts
from fedlightning.models import Conv4, MobileNet, ResNet18

_MODELS = {"cnn": Conv4, "mobile": MobileNet, "resnet": ResNet18}


def trace_files() -> list[Path]:
    """Return the recorded traces, if there are any on this machine."""
    beside = Path(__file__).parents[2] / "shared" / "oracle"
    folder = Path(os.environ.get("FEDLIGHTNING_TRACES", beside))
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


@dataclass(frozen=True)
class Trace:
    """One recorded run: settings and orders in ``settings``, data and weights in ``tensors``."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Trace:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return cls(json.loads(file.metadata()["trace"]), tensors)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Return a recorded state dict under this project's names."""
        return {
            _our_name(name.removeprefix(f"{prefix}.")): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(f"{prefix}.")
        }

    def model(self) -> FederatedModule:
        s = self.settings
        model_class = next(cls for name, cls in _MODELS.items() if s["model"].startswith(name))
        model = model_class(
            num_classes=s["num_classes"],
            lr=s["lr"],
            momentum=s["momentum"],
            weight_decay=s["weight_decay"],
            fused=False,
        )
        model.load_state_dict(self.state("init"))
        return model

    def trainer(self, rounds: int, folder: Path, **kwargs: Any) -> FederatedTrainer:
        s, tune = self.settings, self.settings["finetune"]
        algorithm = _algorithm(s["update_part"], s["aggregate_part"])
        personalize = PersonalizationCallback(
            part=tune["part"], epochs=tune["epochs"], lr=tune["lr"], momentum=tune["momentum"]
        )
        return FederatedTrainer(
            federation=Federation(
                algorithm=algorithm,
                cohort_size=len(s["per_round"][0]["cohort"]),
                local_epochs=s["local_epochs"],
                sampler=FixedCohorts([r["cohort"] for r in s["per_round"]]),
                channels_last=False,
            ),
            callbacks=[personalize],
            max_epochs=rounds,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            **kwargs,
        )


class TraceData(FederatedDataModule):
    """The recorded data, visited in the recorded order."""

    def __init__(self, trace: Trace) -> None:
        s = trace.settings
        super().__init__(
            num_clients=s["num_clients"], batch_size=s["batch_size"], partition=_Recorded(trace)
        )
        self.num_classes = s["num_classes"]
        self._trace = trace

    def load(self) -> tuple[TensorExamples, TensorExamples]:
        t = self._trace.tensors
        return (
            TensorExamples(t["train.images"].float(), t["train.labels"]),
            TensorExamples(t["test.images"].float(), t["test.labels"]),
        )

    def epoch_order(self, key: Key, num_examples: int) -> Tensor:
        s = self._trace.settings
        if key.purpose == "personalize":
            visited = s["finetune"]["index_order"][key.client][key.epoch]
        else:
            updates = s["per_round"][key.round]["updates"]
            visited = next(u for u in updates if u["client"] == key.client)["index_order"][
                key.epoch
            ]
        place = {index: row for row, index in enumerate(self.indices(key.client).tolist())}
        return torch.tensor([place[index] for index in visited])


class _Recorded(Partition):
    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def assign(self, *_: Any, **__: Any) -> Assignment:
        s = self.trace.settings
        return Assignment(
            train=[np.array(rows) for rows in s["client_train_indices"]],
            test=[np.array(rows) for rows in s["client_test_indices"]],
        )


def _algorithm(update: str, aggregate: str) -> Algorithm:
    """Return the algorithm, with the authors' arithmetic: uniform means, summed in float32."""
    named = {("full", "full"): FedAvg, ("body", "body"): FedBABU}.get((update, aggregate))
    if named is not None:
        return named(weights="uniform", sums="float32")
    # the authors' other scripts throw away what clients train and do not share
    return Algorithm(train=update, share=aggregate, weights="uniform", sums="float32", keep=False)


def _our_name(name: str) -> str:
    return f"head.{name.removeprefix('linear.')}" if name.startswith("linear.") else f"body.{name}"
