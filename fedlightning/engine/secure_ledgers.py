"""What a run with secure noise writes down before it is released, for whoever goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fedlightning.core.state import State
from fedlightning.engine.workers.collectives import Workers
from fedlightning.errors import CheckpointError
from fedlightning.federation.settings import Federation
from fedlightning.privacy.example_ledger import ACCOUNT, ExampleLedger, Steps, correct
from fedlightning.privacy.example_level import ExampleDP
from fedlightning.privacy.handover import hand_over
from fedlightning.privacy.ledger import Ledger
from fedlightning.storage.client_store import ClientStore
from fedlightning.storage.run_layout import PRIVACY, PRIVATE_STEPS

__all__ = ["SecureLedgers"]


class SecureLedgers:
    """The ledgers in a run folder; the first worker writes them.

    Args:
        federation: The settings of the run.
        workers: The processes that share the work.
        folder: Returns the run folder; ``None`` if the run leaves no files. All workers ask.
    """

    def __init__(
        self, federation: Federation, workers: Workers, folder: Callable[[], Path | None]
    ) -> None:
        hooks = federation.client_algorithm.hooks
        self._clients = federation.privacy is not None and federation.privacy.secure
        self._examples = any(isinstance(hook, ExampleDP) and hook.secure for hook in hooks)
        self._workers = workers
        self._folder = folder
        self._file: ExampleLedger | None = None

    @property
    def any(self) -> bool:
        """Whether anything is written down before it is released."""
        return self._clients or self._examples

    def open(self, checkpoint: Path | None, store: ClientStore) -> Ledger:
        """Take over what the run has released before; clients' accounts are corrected.

        Args:
            checkpoint: What the run goes on from.
            store: What clients keep.

        Returns:
            The rounds that were released under ``federation.privacy``.

        Raises:
            CheckpointError: If that is lost, or the run has gone on in another folder already.
        """
        if not self.any:
            return Ledger()
        folder, failure = self._folder(), None
        released, steps = Ledger(), Steps()
        if self._workers.rank == 0:
            try:
                released, steps = self._open(checkpoint, folder)
            except Exception as error:
                failure = error
        self._workers.agree(failure)
        released, steps = self._workers.from_rank_0((released, steps))
        correct(store, steps)
        return released

    def _open(self, checkpoint: Path | None, folder: Path | None) -> tuple[Ledger, Steps]:
        if folder is None:
            if checkpoint is not None:
                raise CheckpointError(
                    "a run with secure noise writes down what it releases, and this one, which "
                    "goes on from a checkpoint, has no folder; set trainer.logger."
                )
            return Ledger(), {}
        if checkpoint is not None:
            names = [PRIVACY] * self._clients + [PRIVATE_STEPS] * self._examples
            hand_over(checkpoint, folder, names)
        privacy = folder / PRIVACY
        released = Ledger.read(privacy) if self._clients and privacy.exists() else Ledger()
        if not self._examples:
            return released, {}
        self._file = ExampleLedger.create(folder / PRIVATE_STEPS)
        return released, self._file.steps()

    def before_merge(self, client: int, kept: Mapping[int, State]) -> None:
        """Write down how many private steps a client has made, before its update is taken in."""
        if self._file is not None and (account := kept.get(client, {}).get(ACCOUNT)) is not None:
            self._file.add(client, account)

    def before_restart(self, store: ClientStore) -> None:
        """Correct clients' accounts where updates of a round are dropped that is run again."""
        if self._examples:
            steps = self._file.steps() if self._file is not None else Steps()
            correct(store, self._workers.from_rank_0(steps))
