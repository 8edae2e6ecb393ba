"""fedlightning: hospitals in a table, split by patient; each one's accuracy by name."""

from fedlightning import FedAvg, FederatedTrainer, Federation, PersonalizationCallback
from fedlightning.datamodules import FederatedTable, GroupSplit
from fedlightning.models import MLP

data = FederatedTable(
    "hospitals.csv",
    client="hospital",
    label="outcome",
    features=["age", "pressure"],
    categories=["sex"],
    split=GroupSplit("patient", test=0.3),
    batch_size=16,
)
data.setup()
model = MLP(in_features=len(data.features), hidden=[16], num_classes=data.num_classes, lr=0.05)
trainer = FederatedTrainer(
    federation=Federation(algorithm=FedAvg(), cohort_size=1.0),
    max_epochs=6,
    callbacks=[PersonalizationCallback(epochs=0)],
)
trainer.fit(model, datamodule=data)  # clients.csv has each hospital by name
