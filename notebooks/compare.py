# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # Comparing algorithms
#
# The same clients and the same cohorts for each algorithm: both follow from the seed alone.

# %%
import csv
from pathlib import Path

from pytorch_lightning import seed_everything

from fedlightning import (
    FedAvg,
    FedBABU,
    FederatedTrainer,
    Federation,
    FedPer,
    PersonalizationCallback,
)
from fedlightning.datamodules import Digits, Shards
from fedlightning.models import MLP

# %%
results = {}
for algorithm in (FedAvg(), FedBABU(), FedPer()):
    seed_everything(0)
    trainer = FederatedTrainer(
        federation=Federation(algorithm=algorithm, cohort_size=5, local_epochs=2),
        max_epochs=5,
        callbacks=[PersonalizationCallback(epochs=3, lr=0.1)],
        default_root_dir=f"runs/{algorithm.name}",
    )
    trainer.fit(MLP(in_features=64, lr=0.1), datamodule=Digits(num_clients=10, partition=Shards(2)))
    results[algorithm.name] = Path(trainer.log_dir)

# %% [markdown]
# Before and after personalization, client by client. One seed shows how the clients differ; which
# algorithm is better takes several seeds.

# %%
for name, folder in results.items():
    with (folder / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    before, after = (
        sum(float(row[column]) for row in rows) / len(rows)
        for column in ("acc_before", "acc_after")
    )
    worst = min(float(row["acc_after"]) for row in rows)
    print(f"{name:8} {before:.3f} -> {after:.3f}, worst client {worst:.3f}")

# %% [markdown]
# Several seeds, processes and a report with tests are a study: a file of a few lines, and the
# command `compare`.
