"""A hand-written loop: what there is to do, and nothing else.

``fast=1`` has torch's switches, ``kept=1`` has the C allocator keep freed memory.
"""

from __future__ import annotations

import torch
from peers.common import BATCH, LR, MOMENTUM, Diary, arguments, options
from torch.nn import functional as F


def main() -> None:
    """Run federated averaging."""
    work, diary = arguments(), Diary()
    torch.set_num_threads(1)
    if "kept" in options():
        from fedlightning.engine.freed_memory import FreedMemory

        FreedMemory().keep()
    torch.manual_seed(0)
    net, fast = work.net("published" in options()), "fast" in options()
    if fast:
        net.to(memory_format=torch.channels_last)
    server = {key: value.clone() for key, value in net.state_dict().items()}
    diary.mark()
    for cohort in work.cohorts:
        total = {key: torch.zeros_like(value) for key, value in server.items()}
        examples = sum(len(work.train[client][1]) for client in cohort)
        for client in cohort:
            net.load_state_dict(server)
            optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=fast)
            x, y = work.train[client]
            for rows in torch.randperm(len(y)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
            for key, value in net.state_dict().items():
                total[key] += value * (len(y) / examples)
        server = total
        diary.mark()
    diary.report(work, server)


if __name__ == "__main__":
    main()
