"""Flower: hospitals in a table; heads stay with them, accuracies by name."""

import numpy as np
import pandas as pd
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

ROUNDS, BATCH, LR = 6, 16, 0.05
INPUTS = ["age", "pressure", "sex_f", "sex_m"]


def read_hospitals():
    """Return the names, and inputs and labels by hospital and split."""
    table = pd.get_dummies(pd.read_csv("hospitals.csv"), columns=["sex"])
    patients = np.random.default_rng(0).permutation(table["patient"].unique())
    test = table["patient"].isin(patients[: int(0.3 * len(patients))])
    numbers = ["age", "pressure"]
    table = table.astype(dict.fromkeys(numbers, float))
    mean, std = table.loc[~test, numbers].mean(), table.loc[~test, numbers].std()
    table[numbers] = (table[numbers] - mean) / std
    table["label"] = table["outcome"].astype("category").cat.codes
    names = sorted(table["hospital"].unique())
    pools = {}
    for name in names:
        for split, rows in (("train", ~test), ("test", test)):
            mine = table[rows & (table["hospital"] == name)]
            x = torch.tensor(mine[INPUTS].to_numpy("float32"))
            pools[name, split] = x, torch.tensor(mine["label"].to_numpy("int64"))
    return names, pools


def make_net():
    """Return the network."""
    body = nn.Sequential(nn.Linear(len(INPUTS), 16), nn.ReLU())
    return nn.ModuleDict({"body": body, "head": nn.Linear(16, 2)})


def load(message, context):
    """Return the network with the received body and this hospital's own head."""
    net = make_net()
    net["body"].load_state_dict(message.content["arrays"].to_torch_state_dict())
    if "head" in context.state:
        net["head"].load_state_dict(context.state["head"].to_torch_state_dict())
    return net


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on one hospital's patients."""
    names, pools = read_hospitals()
    x, y = pools[names[context.node_config["partition-id"]], "train"]
    net = load(message, context)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)
    for rows in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net["head"](net["body"](x[rows])), y[rows]).backward()
        optimizer.step()
    context.state["head"] = ArrayRecord(net["head"].state_dict())
    metrics = MetricRecord({"num-examples": len(y)})
    content = {"arrays": ArrayRecord(net["body"].state_dict()), "metrics": metrics}
    return Message(content=RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test on one hospital's other patients."""
    names, pools = read_hospitals()
    hospital = context.node_config["partition-id"]
    x, y = pools[names[hospital], "test"]
    net = load(message, context)
    accuracy = float((net["head"](net["body"](x)).argmax(1) == y).float().mean())
    metrics = MetricRecord({"num-examples": len(y), "acc": accuracy, "hospital": hospital})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


class NamedFedAvg(FedAvg):
    """Its FedAvg, which would average the hospitals' accuracies; this one prints them."""

    def aggregate_evaluate(self, server_round, replies):
        """Print the accuracy of each hospital."""
        replies = list(replies)
        names, _ = read_hospitals()
        for metrics in (reply.content["metrics"] for reply in replies):
            print(f"{server_round},{names[int(metrics['hospital'])]},{metrics['acc']:.3f}")
        return super().aggregate_evaluate(server_round, replies)


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    strategy = NamedFedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    arrays = ArrayRecord(make_net()["body"].state_dict())
    strategy.start(grid, arrays, ROUNDS, train_config=ConfigRecord({}))


if __name__ == "__main__":
    run_simulation(server, client, num_supernodes=len(read_hospitals()[0]))
