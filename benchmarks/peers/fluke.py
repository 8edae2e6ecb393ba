"""fluke-fl: its FedAVG on the given tensors, with the given cohorts in place of drawn ones."""

from __future__ import annotations

from collections.abc import Sequence

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.client import Client
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.server import Server
from fluke.utils import FederationObserver
from peers.common import BATCH, COHORT, LR, MOMENTUM, Diary, Pair, Work, arguments

DEVIATIONS = (
    "cohorts given instead of drawn",
    "no evaluation on the server (its default is one a round)",
    "persistency=False: its default keeps a client's momentum from round to round",
)


class ReplayServer(Server):
    """Its server, with cohorts that are known beforehand."""

    cohorts: Sequence[Sequence[int]] = ()

    def get_eligible_clients(self, eligible_perc: float) -> list[Client]:
        """Return the next cohort's clients."""
        first, *self.cohorts = self.cohorts
        return [self.clients[client] for client in first]


class ReplayFedAVG(FedAVG):
    """Its FedAVG, with that server."""

    def get_server_class(self) -> type[Server]:
        """Return the class of the server."""
        return ReplayServer


class Notes(FederationObserver):
    """Writes the ends of rounds down.

    Args:
        diary: Where to.
    """

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def end_round(self, round: int) -> None:  # noqa: A002 (its name for it)
        """A round has ended."""
        self.diary.mark()


def loader(pair: Pair) -> FastDataLoader:
    """Return a client's training examples as the library wants them."""
    return FastDataLoader(*pair, num_labels=10, batch_size=BATCH, shuffle=True)


def federation(work: Work) -> ReplayFedAVG:
    """Return the algorithm with its clients and its server."""
    clients = len(work.train)
    container = DummyDataContainer(
        [loader(pair) for pair in work.train], [None] * clients, None, num_classes=10
    )
    settings = DDict(
        model=work.net(),
        client={
            "batch_size": BATCH,
            "persistency": False,
            "local_epochs": 1,
            "loss": "CrossEntropyLoss",
            "optimizer": {"name": "SGD", "lr": LR, "momentum": MOMENTUM},
            "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
        },
        server={"weighted": True},
    )
    algorithm = ReplayFedAVG(clients, DataSplitter(container), settings)
    algorithm.server.cohorts = work.cohorts
    return algorithm


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    FlukeENV().set_seed(0)
    FlukeENV().set_device("cpu")
    algorithm = federation(work)
    algorithm.set_callbacks([Notes(diary)])
    diary.mark()
    algorithm.run(len(work.cohorts), eligible_perc=COHORT / len(work.train))
    diary.report(work, algorithm.server.model.state_dict(), *DEVIATIONS)


if __name__ == "__main__":
    main()
