"""A stock Trainer for every client, as most integrations of Lightning into a federation do it."""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as pl
import torch
from peers.common import BATCH, Diary, arguments
from torch.utils.data import DataLoader, TensorDataset
from workloads import module


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    net = module(work.workload)
    net.fused = False
    server = {key: value.clone() for key, value in net.state_dict().items()}
    diary.mark()
    for cohort in work.cohorts:
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        examples = sum(len(work.train[client][1]) for client in cohort)
        for client in cohort:
            net.load_state_dict(server)
            own = TensorDataset(*work.train[client])
            trainer = pl.Trainer(
                max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(net, train_dataloaders=DataLoader(own, batch_size=BATCH, shuffle=True))
            for key, value in net.state_dict().items():
                total[key] += value * (len(own) / examples)
        server = total
        diary.mark()
    diary.report(work, server, "no logger, no checkpoints")


if __name__ == "__main__":
    main()
