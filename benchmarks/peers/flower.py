"""Flower's simulation on Ray; an optional fourth argument is the number of workers."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peers.common import BATCH, LR, MOMENTUM, Diary, Work, arguments, load, options
from torch.nn import functional as F

CORES = 2  # what Ray may use; a client's share of it decides how many train at once


def train(message: Message, context: Context) -> Message:
    """Train the client that the message names, in one of Ray's workers."""
    config = message.content["config"]
    work = load(config["folder"], config["workload"], config["rounds"])
    diary = Diary()
    torch.set_num_threads(1)
    net = work.net().train()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
    x, y = work.train[config["client"]]
    for rows in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    notes = {"num-examples": len(y), "steps": diary.steps, "first-step": diary.first_step}
    diary.close()
    content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(notes)}
    return Message(content=RecordDict(content), reply_to=message)


class ReplayFedAvg(FedAvg):
    """Its FedAvg; the message names the client whose data the node gets.

    Args:
        work: The work.
        diary: Where times and steps are written down.
    """

    def __init__(self, work: Work, diary: Diary) -> None:
        clients, cohort = len(work.train), len(work.cohorts[0])
        super().__init__(
            fraction_train=cohort / clients,
            fraction_evaluate=0.0,
            # it counts the nodes that are there by now, and rounds down
            min_train_nodes=cohort,
            min_available_nodes=clients,
        )
        self.work, self.diary = work, diary

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Name a client of the cohort in every message that it makes."""
        if server_round == 1:
            self.diary.mark()
        cohort = self.work.cohorts[server_round - 1]
        messages = super().configure_train(server_round, arrays, config, grid)
        for message, client in zip(messages, cohort, strict=True):
            named = ConfigRecord({**config, "client": client})
            message.content = RecordDict({"arrays": arrays, "config": named})
            yield message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the clients' notes before they are averaged."""
        replies = list(replies)
        for notes in (reply.content["metrics"] for reply in replies if not reply.has_error()):
            self.diary.steps += notes["steps"]
            first = min(self.diary.first_step or notes["first-step"], notes["first-step"])
            self.diary.first_step = first
        aggregated = super().aggregate_train(server_round, replies)
        self.diary.mark()
        return aggregated


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    workers = int(options().get("devices", "1"))
    folder, workload = sys.argv[1:3]
    server, client, results = ServerApp(), ClientApp(), []
    client.train()(train)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        config = {"folder": folder, "workload": workload, "rounds": len(work.cohorts)}
        result = ReplayFedAvg(work, diary).start(
            grid, ArrayRecord(work.weights), len(work.cohorts), train_config=ConfigRecord(config)
        )
        results.append(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        client,
        num_supernodes=len(work.train),
        backend_config={
            "init_args": {"num_cpus": CORES},
            "client_resources": {"num_cpus": CORES // workers, "num_gpus": 0.0},
        },
    )
    diary.report(
        work,
        results[0],
        "messages name the clients",
        "no evaluation (its default is all nodes every round)",
        "one CPU a client instead of two" if workers > 1 else "one thread where Ray would give two",
    )


if __name__ == "__main__":
    main()
