"""PersA-FL: event traces of scalar quadratics, gradients of MAML and of Moreau envelopes."""

from __future__ import annotations

import re
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning import Buffered, PersAFL, PersonalizationCallback, Synchronous
from fedlightning.federation import Polynomial
from tests.algorithms.quadratics import Quadratic, Weights, clients, scalars
from tests.algorithms.references.reference import Reference, close
from tests.toys import loop_of, trainer

STEPS = 400  # enough for any inner problem here, to the tolerance of float64


class Trace(pl.Callback):
    """Notes every arrival: time, client, version read, staleness, w after it."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []
        self.w = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.w = pl_module.w.item()

    def on_aggregate_end(self, trainer: Any, pl_module: Any) -> None:
        commit = trainer.current_epoch
        for job in sorted(trainer.federated_loop.jobs, key=lambda job: (job.time, job.client)):
            self.rows.append([job.time, job.client, job.version, commit - job.version, self.w])
        self.w = self.rows[-1][-1] = pl_module.w.item()


class Logistic(Weights):
    """The mean cross-entropy of a linear model without bias."""

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(x @ self.w, y)


def numbers(text: str, pattern: str) -> list[float]:
    """Return the numbers that a setting's text states."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return [float(group) for group in found.groups()]


def fit(module: Any, data: Any, algorithm: Any, commits: int = 1, **kwargs: Any) -> Any:
    """Train all clients and return the trainer."""
    built = trainer(algorithm, rounds=commits, check_val_every_n_epoch=10**6, **kwargs)
    built.fit(module, datamodule=data)
    return built


def replay(reference: Reference) -> None:
    """Replay the traces and both gradients."""
    _traces(reference)
    _maml(reference)
    _envelope(reference)


# -- traces -----------------------------------------------------------------------------------


def _traces(reference: Reference) -> None:
    text, tolerance = reference.about["settings"]["trace"], reference.tolerance()
    start, steps, rate, beta = numbers(
        text, r"scalar w from ([\d.]+)[;,].*Q = (\d+) steps? of ([\d.]+); beta = ([\d.]+)"
    )
    cases = reference.about["cases"]
    (exponent,) = numbers(cases["polynomial"], r"\(1 \+ staleness\)\^-([\d.]+)")
    curvature, optimum = reference["in.trace.curvature"], reference["in.trace.optimum"]
    delays = reference["in.trace.duration"].tolist()
    size = int(numbers(" ".join(reference.under("out.trace.")), r"equal_durations_buffer(\d+)")[0])
    equal = f"equal_durations_buffer{size}"
    (length,) = {float(d) for d in re.findall(r"[\d.]+", cases[equal].partition("durations")[2]
                                              .partition(", buffer")[0])}  # fmt: skip
    settings = {
        "plain": (Buffered(1, delays), beta),
        "polynomial": (Buffered(1, delays, weighting=Polynomial(exponent)), beta),
        "buffer2": (Buffered(2, delays), beta),
        equal: (Buffered(size, length), numbers(cases[equal], r"beta ([\d.]+)")[0]),
    }
    for name, want in reference.under("out.trace.").items():
        schedule, server = settings[name]
        trace = Trace()
        built = fit(
            Quadratic(start, rate), scalars(curvature, optimum), PersAFL("A", beta=server),
            len(want) // schedule.buffer, callbacks=[trace],
            federation={"schedule": schedule, "local_steps": int(steps)},
        )  # fmt: skip
        close(torch.tensor(trace.rows, dtype=torch.float64), want, tolerance, name)
        if name == equal:
            again = Quadratic(start, rate)
            fit(again, scalars(curvature, optimum), PersAFL("A", beta=server),
                len(want) // size, federation={"schedule": Synchronous(delays=length),
                                               "local_steps": int(steps)})  # fmt: skip
            assert torch.equal(again.w, built.lightning_module.w), "synchronous rounds"


# -- gradients --------------------------------------------------------------------------------


def _gradient(module: Any, data: Any, algorithm: Any) -> Tensor:
    """Return w less w after one step of rate one."""
    before = module.w.detach().clone()
    fit(module, data, algorithm)
    return before - module.w.detach()


def _maml(reference: Reference) -> None:
    text, tolerance = reference.about["settings"]["maml"], reference.tolerance()
    x, y, w = (reference[f"in.maml.{name}"] for name in "xyw")
    (alpha,) = numbers(text, r"alpha = ([\d.]+)")
    ends = numbers(text, r"D = (\d+)-(\d+), D' = (\d+)-(\d+), D'' = (\d+)-(\d+)")
    first, second, third = (range(int(a), int(b) + 1) for a, b in zip(ends[::2], ends[1::2],
                                                                      strict=True))  # fmt: skip
    two, three = [*first, *second], [*first, *second, *third]
    for name, rows, settings in (
        ("three_batches", three, {}),
        ("three_batches_first_order", two, {"first_order": True}),
        ("full_batch", range(len(y)), {"batches": "same"}),
        ("full_batch_first_order", range(len(y)), {"batches": "same", "first_order": True}),
    ):
        chosen = torch.tensor(rows)
        data = clients([(x[chosen], y[chosen])])
        found = _gradient(Logistic(w, lr=1.0), data, PersAFL("B", alpha, **settings))
        close(found, reference[f"out.maml.{name}"], tolerance, name)
    own = _own_model(Logistic(w, lr=1.0), clients([(x, y)]), PersAFL("B", alpha))
    close(own, reference["out.maml.personal"], tolerance, "personal")


def _envelope(reference: Reference) -> None:
    tolerance = reference.tolerance()
    a, b, w = (reference[f"in.me.{name}"] for name in "abw")
    data = clients([(a[None], b[None])])
    steepest = float(torch.linalg.eigvalsh(a).max())
    for name, want in reference.under("out.me.gradient_").items():
        strength = float(name)
        rate = 1 / (strength + steepest)
        algorithm = PersAFL("C", strength=strength, tolerance=0.0, inner_steps=STEPS, lr=1.0)
        found = _gradient(Quadratic(w, rate), data, algorithm)
        close(found, want, tolerance, f"gradient, lambda {name}")
        solved = PersAFL("C", strength=strength, tolerance=1e-12 * strength)
        own = _own_model(Quadratic(w, rate), data, solved)
        close(own, reference[f"out.me.theta_{name}"], tolerance, f"theta, lambda {name}")
    plain = _gradient(Quadratic(w, 1.0), data, PersAFL("A"))
    close(plain, reference["out.me.plain_gradient"], tolerance, "plain gradient")


def _own_model(module: Any, data: Any, algorithm: Any) -> Tensor:
    """Return the model that a client predicts with, of the module as it is."""
    callback = PersonalizationCallback(epochs=0, part="full", nearest_mean=False)
    built = trainer(algorithm, callbacks=[callback])
    built.test(module, datamodule=data, verbose=False)
    with callback.personalizer(built).at_work() as personalizer:
        personalizer.client(0)
        own: Tensor = loop_of(built).module.w.detach().clone()
    return own
