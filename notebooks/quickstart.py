# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # Quickstart
#
# Twenty clients share a body, each fine-tunes a head of its own: FedBABU on scikit-learn's
# digits.

# %%
import csv
from pathlib import Path

from fedlightning import FedBABU, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.datamodules import Digits, Shards
from fedlightning.models import MLP

# %% [markdown]
# Each client has two shards of the data sorted by class: mostly two kinds of digits.

# %%
data = Digits(num_clients=20, batch_size=10, partition=Shards(2))
federation = Federation(algorithm=FedBABU(), cohort_size=5, local_epochs=2)
personalization = PersonalizationCallback(epochs=5, lr=0.1)
trainer = FederatedTrainer(federation=federation, max_epochs=10, callbacks=[personalization])
trainer.fit(MLP(in_features=64), datamodule=data)

# %% [markdown]
# The metrics of the last round: the global model with its random head, and the personal ones.

# %%
metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
{
    name: metrics[name]
    for name in ("global/acc", "personalized/acc", "personalized/acc_worst_decile")
}

# %% [markdown]
# The run folder has a row for each client, and pictures: `clients.png`, `curves.png`,
# `partition.png`.

# %%
folder = Path(trainer.log_dir)
with (folder / "clients.csv").open() as file:
    clients = list(csv.DictReader(file))
gains = [float(row["acc_after"]) - float(row["acc_before"]) for row in clients]
print(f"{len(clients)} clients, mean gain {100 * sum(gains) / len(gains):.1f} points")
