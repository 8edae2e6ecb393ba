# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # Your own data
#
# Three hospitals in one table. Each row names its hospital, each hospital keeps its name
# everywhere. Needs the extra `table`.

# %%
import numpy as np
import pandas as pd

from fedlightning import FederatedTrainer, Federation, FedPer, PersonalizationCallback
from fedlightning.datamodules import ClientDatasets, FederatedTable
from fedlightning.models import MLP

# %% [markdown]
# Stand-ins for visits; a file's name (`hospitals.csv`) does as well as a DataFrame.

# %%
rng = np.random.default_rng(0)
age, pressure = rng.integers(20, 90, 240), rng.integers(90, 180, 240)
visits = pd.DataFrame(
    {
        "hospital": np.array(["charite", "mayo", "ucla"])[np.arange(240) % 3],
        "age": age,
        "pressure": pressure,
        "outcome": np.where(age + pressure + rng.normal(0, 20, 240) > 190, "ill", "well"),
    }
)

# %%
data = FederatedTable(
    visits, client="hospital", label="outcome", features=["age", "pressure"], batch_size=16
)
data.setup()
trainer = FederatedTrainer(
    federation=Federation(algorithm=FedPer(), cohort_size=1.0),
    max_epochs=3,
    callbacks=[PersonalizationCallback(epochs=0)],
)
model = MLP(in_features=len(data.features), num_classes=data.num_classes, lr=0.05)
trainer.fit(model, datamodule=data)

# %% [markdown]
# Data that is apart already, by name: arrays, datasets or loaders.

# %%
apart = ClientDatasets(
    {
        name: (rows[["age", "pressure"]].to_numpy("float32"), (rows.outcome == "ill").to_numpy(int))
        for name, rows in visits.groupby("hospital")
    }
)
apart.setup()
apart.client_names
