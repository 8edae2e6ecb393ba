"""Data modules that change another one's data, with all of its other settings."""

from __future__ import annotations

from fedlightning.core.validation import check_instance
from fedlightning.datamodules.base import FederatedDataModule

__all__ = ["DerivedData"]


class DerivedData(FederatedDataModule):
    """Another data module's clients, names, partition, sizes and seed; a subclass loads the data.

    Args:
        data: The other data module.

    Raises:
        ConfigError: ``data`` is something else.
    """

    def __init__(self, data: FederatedDataModule) -> None:
        check_instance("data", data, FederatedDataModule)
        super().__init__(
            num_clients=data.num_clients,
            batch_size=data.batch_size,
            partition=data.partition,
            val_fraction=data.val_fraction,
            eval_batch_size=data.eval_batch_size,
            drop_last=data.drop_last,
            seed=data.seed,
            eval_clients=data.eval_clients,
            held_out_clients=data.held_out_clients,
            check_data=data.check_data,
        )
        self.data = data
        self.client_names = data.client_names
