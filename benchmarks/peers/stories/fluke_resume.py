"""fluke: hospitals in a table, accuracies by name; a killed run goes on."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.utils import ClientObserver
from torch import nn

ROUNDS, BATCH, LR = 6, 16, 0.05
INPUTS = ["age", "pressure", "sex_f", "sex_m"]


def read_hospitals():
    """Return the names, and a loader by hospital and split."""
    table = pd.get_dummies(pd.read_csv("hospitals.csv"), columns=["sex"])
    patients = np.random.default_rng(0).permutation(table["patient"].unique())
    test = table["patient"].isin(patients[: int(0.3 * len(patients))])
    numbers = ["age", "pressure"]
    table = table.astype(dict.fromkeys(numbers, float))
    mean, std = table.loc[~test, numbers].mean(), table.loc[~test, numbers].std()
    table[numbers] = (table[numbers] - mean) / std
    table["label"] = table["outcome"].astype("category").cat.codes
    names = sorted(table["hospital"].unique())
    loaders = {}
    for name in names:
        for split, rows in (("train", ~test), ("test", test)):
            mine = table[rows & (table["hospital"] == name)]
            x = torch.tensor(mine[INPUTS].to_numpy("float32"))
            y = torch.tensor(mine["label"].to_numpy("int64"))
            loaders[name, split] = FastDataLoader(
                x, y, num_labels=2, batch_size=BATCH, shuffle=True
            )
    return names, loaders


names, loaders = read_hospitals()


class Named(ClientObserver):
    """Prints the accuracy of each hospital."""

    def client_evaluation(self, round, client_id, phase, evals, **_):  # noqa: A002
        """Print one."""
        if phase == "pre-fit":  # the received model
            print(f"{round},{names[client_id]},{evals['accuracy']:.3f}")


def main():
    """Run the rounds."""
    FlukeENV().set_seed(0)
    FlukeENV().set_save_options(path="saved", save_every=1)
    FlukeENV().set_evaluator(ClassificationEval(1, 2))
    FlukeENV().set_eval_cfg(pre_fit=True)
    container = DummyDataContainer(
        [loaders[name, "train"] for name in names], [loaders[name, "test"] for name in names],
        None, num_classes=2,
    )  # fmt: skip
    settings = DDict(
        model=nn.Sequential(nn.Linear(len(INPUTS), 16), nn.ReLU(), nn.Linear(16, 2)),
        client={
            "batch_size": BATCH, "local_epochs": 1, "loss": "CrossEntropyLoss",
            "optimizer": {"name": "SGD", "lr": LR, "momentum": 0.9},
            "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
        },
        server={"weighted": True},
    )  # fmt: skip
    algorithm = FedAVG(len(names), DataSplitter(container), settings)
    algorithm.set_callbacks([Named()])
    if earlier := sorted(Path.cwd().glob("saved_*"), key=lambda path: path.stat().st_mtime):
        algorithm.load(str(earlier[-1]))
    algorithm.run(ROUNDS - algorithm.rounds, eligible_perc=1.0)


if __name__ == "__main__":
    main()
