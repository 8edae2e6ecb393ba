"""The table of all algorithms, and one small run of each that the contract's tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from fedlightning import (
    APFL,
    IFCA,
    MOON,
    SCAFFOLD,
    Ditto,
    FedAdagrad,
    FedAdam,
    FedALA,
    FedAMP,
    FedAvg,
    FedAvgM,
    FedBABU,
    FedBN,
    FedDyn,
    FedImpro,
    FedNova,
    FedPer,
    FedPN,
    FedProto,
    FedProx,
    FedRep,
    FedRes,
    FedRoD,
    FedYogi,
    KNNPer,
    LGFedAvg,
    LocalOnly,
    PerFedAvg,
    PerInvFL,
    PersAFL,
    PFedMe,
)
from fedlightning.algorithms import Algorithm, ServerData
from tests.toys import Net, data, loop_of, net, state, trainer

ALGORITHMS: dict[str, Algorithm] = {
    "FedAvg": FedAvg(),
    "FedProx": FedProx(mu=0.1),
    "FedAvgM": FedAvgM(lr=0.5),
    "FedAdam": FedAdam(),
    "FedYogi": FedYogi(),
    "FedAdagrad": FedAdagrad(),
    "SCAFFOLD": SCAFFOLD(),
    "FedBN": FedBN(),
    "FedBABU": FedBABU(),
    "FedPer": FedPer(),
    "FedRep": FedRep(head_epochs=2),
    "LGFedAvg": LGFedAvg(),
    "PerFedAvg": PerFedAvg(alpha=0.1),
    "PerFedAvg, Hessian-free": PerFedAvg(alpha=0.1, variant="hessian_free"),
    "PerFedAvg, exact": PerFedAvg(alpha=0.1, variant="exact", batches="same"),
    "Ditto": Ditto(),
    "PFedMe": PFedMe(strength=2.0, inner_steps=2, beta=0.5),
    "PersAFL": PersAFL("B", alpha=0.1),
    "PersAFL, plain": PersAFL("A", beta=0.5),
    "PersAFL, envelope": PersAFL("C", strength=2.0, inner_steps=3),
    "APFL": APFL(),
    "FedRoD": FedRoD(),
    "FedNova": FedNova(),
    "FedDyn": FedDyn(alpha=0.5),
    "MOON": MOON(),
    "FedProto": FedProto(),
    "FedALA": FedALA(first_epochs=2),
    "KNNPer": KNNPer(),
    "IFCA": IFCA(num_clusters=2),
    "FedAMP": FedAMP(strength=0.5, alpha=0.5, sigma=2.0),
    "FedRes": FedRes(private="head"),
    "FedRes, sgd": FedRes("sgd", private="head"),
    "FedRes, corrected": FedRes("corrected", private="head", keep_optimizer=True),
    "FedRes, simultaneous": FedRes("simultaneous", private="head"),
    "LocalOnly": LocalOnly(),
    "FedImpro": FedImpro(),
    "PerInvFL": PerInvFL(personal_lr=0.05, penalty=100.0, anneal_round=1),
    "FedPN": FedPN(),
    "ServerData": ServerData(fraction=0.5),
    "FedBABU + FedProx": FedBABU() + FedProx(mu=0.1),
    "FedBABU + FedProx + FedAdam + FedBN": FedBABU() + FedProx(0.1) + FedAdam() + FedBN(),
    "SCAFFOLD + FedRep + FedAvgM": SCAFFOLD() + FedRep(2) + FedAvgM(),
    "SCAFFOLD + FedProx + APFL": SCAFFOLD() + FedProx(0.1) + APFL(),
}

SIZES = (8, 6, 7, 6)
COHORTS = [(0, 1, 3), (3, 2, 0), (1, 2, 3)]
WITHOUT_TWO = [(0, 1, 3), (3, 0), (1, 2, 3)]
BAD = 2  # the only client with a batch of three


class Counts:
    """Counts on, whatever becomes of the module's attributes."""

    seen = 0


class Faulty(Net):
    """Fails in client 2 of round 1, at these of the batches of three that it sees there."""

    def __init__(self, at: tuple[int, ...] = (), **kwargs: Any) -> None:
        super().__init__(**{"norm": True, "dropout": 0.3, "lr_milestones": (), **kwargs})
        self.at, self.counts = at, Counts()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.current_epoch == 1 and len(batch[1]) == 3:
            self.counts.seen += 1
            if self.counts.seen in self.at:
                self.eval()
                self.head.weight.requires_grad_(not self.head.weight.requires_grad)
                self.trainer.optimizers[0].param_groups[0]["lr"] = 9.0
                raise ValueError("bad luck")


def run(
    name: str, module: Any = None, cohorts: Any = COHORTS, ckpt: Any = None, **kwargs: Any
) -> Any:
    """Fit three rounds of two local epochs and return the trainer."""
    settings = {"local_epochs": 2, **kwargs.pop("federation", {})}
    built = trainer(ALGORITHMS[name], cohort=3, federation=settings, **{"rounds": 3, **kwargs})
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module or net(module=Faulty), datamodule=data(SIZES), ckpt_path=ckpt)
    return built


def everything(built: Any) -> dict[str, Tensor]:
    """Return all that a run has led to: global model, what clients keep, the server's memory."""
    loop = loop_of(built)
    found = {f"global {key}": value for key, value in state(loop.module).items()}
    found |= {f"server {key}": value for key, value in loop.server.state_dict().items()}
    for client in sorted(loop.personal):
        found |= {f"{client} {key}": value for key, value in loop.personal.get(client).items()}
        own = loop.personal_model(client)
        found |= {f"{client} has {key}": value for key, value in own.items()}
    return found


@cache
def whole(name: str) -> Any:
    """Return the trainer of an algorithm's preserve_training_state run."""
    return run(name)
