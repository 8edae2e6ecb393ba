"""How often each client's examples were released with noise that nobody can repeat."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedlightning.core.state import State
from fedlightning.errors import CheckpointError
from fedlightning.storage.client_store import ClientStore
from fedlightning.storage.files import append_line, write_atomically

__all__ = ["ACCOUNT", "ExampleLedger", "Steps", "correct", "with_account"]

ACCOUNT = "example_dp"
"""The name under which a client keeps its account: int64, numbers of examples and of steps."""

Steps = dict[int, tuple[int, int]]
"""Numbers of examples and of private steps so far, by client."""

_HEADER = b"client,examples,steps\n"


class ExampleLedger:
    """A file that says how many private steps each client has released, before it releases them.

    A round that is run again after a crash starts from what clients had kept in the checkpoint, and
    has other noise: its steps are further ones. So an account is written down before the server
    takes the update in, and whoever goes on corrects the clients' accounts by it. Accounts only
    grow: the largest one of a client counts.

    Args:
        path: The file; one line for each update.

    Example:
        >>> path = getfixture("tmp_path") / "private_steps.csv"
        >>> ExampleLedger.create(path).add(3, torch.tensor([50, 12]))
        >>> ExampleLedger(path).steps()
        {3: (50, 12)}
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> ExampleLedger:
        """Write an empty one, unless there is one."""
        if not path.exists():
            write_atomically(path, _HEADER)
        return cls(path)

    def add(self, client: int, account: Tensor) -> None:
        """Write a client's account down; it is on the disk when this returns.

        Raises:
            EnvironmentFailure: It cannot be written.
        """
        examples, steps = account.tolist()
        append_line(self.path, f"{client},{examples},{steps}")

    def steps(self) -> Steps:
        """Return the largest account of each client; a line that a kill has torn is left out.

        Such a line was not on the disk when its update would have been released.

        Raises:
            CheckpointError: If the file is not there, or not such a file.
        """
        try:
            content = self.path.read_bytes()
            if not content.startswith(_HEADER):
                raise ValueError("another header")
            found: Steps = {}
            for line in content.split(b"\n")[1:-1]:
                client, examples, steps = map(int, line.split(b","))
                if client not in found or steps > found[client][1]:
                    found[client] = examples, steps
            return found
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: the private steps that clients have released cannot be read "
                f"({type(error).__name__}: {error}); without them nobody knows what the run has "
                "cost. Restore the file, or start anew."
            ) from error


def correct(store: ClientStore, released: Steps) -> None:
    """Raise the accounts that clients keep to what they have released."""
    for client, account in released.items():
        kept = store.get(client) or {}
        if (raised := with_account(kept, torch.tensor(account))) is not kept:
            store.update({client: raised})


def with_account(kept: State, account: Tensor) -> State:
    """Return what a client keeps with the larger one of its account and another.

    Example:
        >>> with_account({"head": torch.ones(1)}, torch.tensor([50, 12]))
        {'head': tensor([1.]), 'example_dp': tensor([50, 12])}
    """
    known = kept.get(ACCOUNT)
    if known is not None and int(known[1]) >= int(account[1]):
        return kept
    return {**kept, ACCOUNT: account}
