"""Where a federation shows other numbers than plain Lightning, as a list of differences."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loops.optimization.automatic import Closure

from fedlightning import FedLightningError, PersonalizationCallback
from tests.lightning_parity import federated, plain
from tests.lightning_parity.clients import Clients, pooled_loader, stock_loader
from tests.lightning_parity.federated import Refused
from tests.lightning_parity.idiom import Idiom
from tests.lightning_parity.runs import Numbers, Run, Shown, State, numbers, seeded

RELATIVE, ABSOLUTE = 1e-6, 1e-7
FINE_TUNING_RATE = 0.05


@dataclass(frozen=True)
class Difference:
    """What is not as it should be.

    Args:
        what: A name, and where it was looked at.
        right: What plain Lightning gives.
        got: What the federation gives.
    """

    what: str
    right: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.what}: right {self.right}, got {self.got}"


@dataclass
class Outcome:
    """What a comparison has found.

    Args:
        differences: Empty if all is right.
        right: The number to show in a table, by plain Lightning.
        got: The same of the federation.
        refusal: What the federation said if it refused the idiom.
    """

    differences: list[Difference] = field(default_factory=list)
    right: float | str = ""
    got: float | str = ""
    refusal: str = ""


def one_client(idiom: Idiom) -> Outcome:
    """Compare plain Lightning with a federation of one client that holds all its data."""
    outcome = Outcome()
    with ignoring(idiom):
        _one_client(idiom, outcome)
    return outcome


def _one_client(idiom: Idiom, outcome: Outcome) -> None:
    clients = Clients(idiom.data, 1)
    reference = None
    with _warning_of(idiom, "plain Lightning", outcome):
        if not idiom.in_plain_too and (idiom.refused is None or idiom.may_be_refused):
            reference = plain.fit(idiom, clients, 0, idiom.rounds * idiom.epochs)
    try:
        with _warning_of(idiom, "the federation", outcome):
            ours = federated.fit(idiom, clients)
    except Refused as refused:
        _note_refusal(idiom, refused, reference, outcome)
        return
    if reference is None:
        outcome.differences.append(Difference("the run", f"refused: {idiom.refused}", "no refusal"))
        return
    outcome.right = reference.epochs[-1].metrics.get(idiom.show, math.nan)
    outcome.got = ours.epochs[-1].metrics.get(idiom.show, math.nan)
    outcome.differences += _rounds_of_one(idiom, clients, reference, ours)
    outcome.differences += _notes(reference, ours)
    for split in ("val", "test"):
        loader = stock_loader(clients, 0, split)
        right = plain.evaluate(idiom, loader, split, module=reference.module)
        outcome.differences += _after_fit(idiom, ours, clients, split, right)
    if idiom.resumes:
        outcome.differences += _from_file(idiom, ours, clients, right)


def _rounds_of_one(
    idiom: Idiom, clients: Clients, reference: Run, ours: Run
) -> Iterator[Difference]:
    """Compare round by round; a resumed run shows only the rounds after that."""
    epochs, rounds = reference.epochs, ours.epochs
    if len(rounds) * idiom.epochs != len(epochs) and not idiom.resumes:
        yield Difference("rounds", len(epochs) // idiom.epochs, len(rounds))
    first = len(epochs) // idiom.epochs - len(rounds)
    for index, shown in enumerate(rounds):
        round_index = first + index if idiom.resumes else index
        of_round = epochs[round_index * idiom.epochs : (round_index + 1) * idiom.epochs]
        if len(of_round) < idiom.epochs:
            return
        where, state = f"round {round_index}", of_round[-1].state
        right = _of_a_round(of_round)
        yield from _numbers(idiom, where, right, shown.metrics)
        yield from _places(idiom, where, of_round[-1], shown)
        yield from _states(where, state, shown.state)
    if idiom.tests_in_fit and rounds:
        module = reference.module if idiom.resumes or idiom.apart else None
        test = stock_loader(clients, 0, "test")
        right = plain.evaluate(idiom, test, "test", epochs[-1].state, module)
        yield from _numbers(idiom, "last round, test data", right, rounds[-1].metrics)


def three_clients(idiom: Idiom, fine_tune: bool = False) -> Outcome:
    """Compare a federation of three clients with plain Lightning on each, and a mean by hand.

    Args:
        idiom: The idiom.
        fine_tune: Whether each client gets its own model at the end.
    """
    outcome = Outcome()
    with ignoring(idiom):
        _three_clients(idiom, fine_tune, outcome)
    return outcome


def _three_clients(idiom: Idiom, fine_tune: bool, outcome: Outcome) -> None:
    clients = Clients(idiom.data, 3)
    reference = by_hand(idiom)
    personalization = PersonalizationCallback(
        epochs=1, part="full", lr=FINE_TUNING_RATE, momentum=0.0, nearest_mean=False
    )
    try:
        ours = federated.fit(idiom, clients, [personalization] if fine_tune else [])
    except Refused as refused:
        outcome.differences.append(Difference("the run", "three clients train", str(refused)))
        return
    rounds = reference.rounds
    if len(ours.epochs) != len(rounds):
        outcome.differences.append(Difference("rounds", len(rounds), len(ours.epochs)))
        return
    for index, (right, shown) in enumerate(zip(rounds, ours.epochs, strict=True)):
        where = f"round {index}"
        outcome.differences += _numbers(idiom, where, right.train, shown.metrics)
        outcome.differences += _states(where, right.state, shown.state)
        outcome.differences += _choice(idiom, f"{where}, validation", right.val, shown.metrics)
    last = ours.epochs[-1].metrics
    if idiom.tests_in_fit:
        outcome.differences += _choice(idiom, "last round, test data", reference.test, last)
    if fine_tune:
        outcome.differences += _personal(idiom, clients, reference, ours, personalization)
    if reference.test.pooled:  # else it is what the last round has shown
        for split, after in (("val", reference.val_after), ("test", reference.test)):
            if after.mean:
                outcome.differences += _after_fit(idiom, ours, clients, split, after)


# -- three clients by hand ---------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What is right for the global model on all clients' validation, or test, data.

    Args:
        mean: The mean over clients of what plain Lightning logs on each, each counting once.
        pooled: What plain Lightning logs on all clients' batches.
    """

    mean: Numbers
    pooled: Numbers


@dataclass(frozen=True)
class Round:
    """What is right after a round: numbers of training, of validation, and the weights."""

    train: Numbers
    val: Evaluation
    state: State


@dataclass(frozen=True)
class Reference:
    """What is right of a run.

    Args:
        rounds: Its rounds. Means over clients are there for the last one only.
        val_after: Of one more validation after the run.
        test: Of the final model on test data.
    """

    rounds: tuple[Round, ...]
    val_after: Evaluation
    test: Evaluation


@cache
def by_hand(idiom: Idiom) -> Reference:
    """Train three clients from the global weights, take the mean, evaluate it; round by round."""
    clients = Clients(idiom.data, 3)
    weights = [len(stock_loader(clients, client, "train").dataset) for client in range(3)]
    validator = plain.new_module(idiom)  # validation goes on from round to round
    pools = bool(idiom.pooled or idiom.objects)

    def evaluated(split: str, by_client: bool, whole: Any) -> Evaluation:
        loaders = [stock_loader(clients, client, split) for client in range(3)]
        mean = plain.mean_numbers(
            [plain.evaluate(idiom, loader, split, state) for loader in loaders if by_client]
        )
        loader = pooled_loader(clients, split)
        return Evaluation(mean, plain.evaluate(idiom, loader, split, state, whole) if pools else {})

    rounds: list[Round] = []
    state: State | None = None
    for index in range(idiom.rounds):
        before = index * idiom.epochs
        runs = [
            plain.fit(idiom, clients, client, idiom.epochs, state, before, validates=False)
            for client in range(3)
        ]
        start = state if state is not None else runs[0].start
        state = plain.mean_state([run.epochs[-1].state for run in runs], weights, start)
        trained = [_named(_of_a_round(run.epochs), "train") for run in runs]
        last = index + 1 == idiom.rounds
        val = evaluated("val", last, validator)
        rounds.append(Round(plain.mean_numbers(trained, weights), val, state))
    after = Evaluation(val.mean, evaluated("val", False, validator).pooled)
    return Reference(tuple(rounds), after, evaluated("test", True, None))


def _personal(
    idiom: Idiom,
    clients: Clients,
    reference: Reference,
    ours: Run,
    personalization: PersonalizationCallback,
) -> Iterator[Difference]:
    """Compare every client's own model, before and after fine-tuning."""
    moments: dict[str, list[Numbers]] = {"initial": [], "personalized": []}
    start = reference.rounds[-1].state
    if len(personalization.results) != 3:
        yield Difference("clients with a model of their own", 3, len(personalization.results))
    for client, result in enumerate(personalization.results):
        tuned = plain.fine_tuned(idiom, clients, client, start, FINE_TUNING_RATE)
        for moment, state, got in (
            ("initial", start, result.before),
            ("personalized", tuned.epochs[-1].state, result.after),
        ):
            right: dict[str, float] = {}
            for split, prefix in (("test", ""), ("val", "val_")):
                loader = stock_loader(clients, client, split)
                right |= _short(plain.evaluate(idiom, loader, split, state), prefix)
            moments[moment].append(right)
            yield from _numbers(idiom, f"client {client}, {moment}", right, got)
    for moment, clients_numbers in moments.items():
        means = plain.mean_numbers(clients_numbers)
        right = {f"{moment}/{name}": value for name, value in means.items()}
        yield from _numbers(idiom, "over clients", right, ours.epochs[-1].metrics)


def _short(metrics: Numbers, prefix: str = "") -> Numbers:
    """Return metrics under the names that personalization gives them."""
    short = {re.sub(r"^(test|val)[/_]", "", name): value for name, value in metrics.items()}
    return {prefix + name: value for name, value in short.items()}


# -- one thing after another -------------------------------------------------------------------


def _of_a_round(epochs: Sequence[Shown]) -> Numbers:
    """Return what a round of so many local epochs shows: of training, the epochs' mean."""
    training = plain.mean_numbers([_named(epoch.metrics, "train") for epoch in epochs])
    return {**epochs[-1].metrics, **training}


def _named(metrics: Numbers, beginning: str) -> Numbers:
    return {name: value for name, value in metrics.items() if name.startswith(beginning)}


def _after_fit(
    idiom: Idiom, ours: Run, clients: Clients, split: str, right: Numbers | Evaluation
) -> Iterator[Difference]:
    """Compare what ``trainer.validate``, or ``trainer.test``, says of the module after fit."""
    what, step = (
        ("trainer.validate after fit", ours.trainer.validate)
        if split == "val"
        else ("trainer.test after fit", ours.trainer.test)
    )
    try:
        step(ours.module, datamodule=clients, verbose=False)
    except Exception as error:
        yield Difference(what, "no error", f"{type(error).__name__}: {error}")
        return
    got = numbers(ours.trainer.callback_metrics)
    compare = _choice if isinstance(right, Evaluation) else _numbers
    yield from compare(idiom, what, right, got)


def _from_file(idiom: Idiom, ours: Run, clients: Clients, right: Numbers) -> Iterator[Difference]:
    """Compare what ``trainer.test`` says of the final checkpoint."""
    checkpoint = Path("final.ckpt").absolute()
    ours.trainer.save_checkpoint(checkpoint)
    try:
        ours.trainer.test(
            seeded(idiom.module), datamodule=clients, ckpt_path=checkpoint, verbose=False
        )
    except Exception as error:
        yield Difference("trainer.test of the file", "no error", f"{type(error).__name__}: {error}")
        return
    got = numbers(ours.trainer.callback_metrics)
    yield from _numbers(idiom, "trainer.test of the file", right, got)


def _numbers(idiom: Idiom, where: str, right: Numbers, got: Numbers) -> Iterator[Difference]:
    for name, value in right.items():
        if name in idiom.unlike:
            continue
        if name not in got:
            yield Difference(f"{where}, {name}", _shown(value), "nothing of that name")
        elif not _close(value, got[name]):
            yield Difference(f"{where}, {name}", _shown(value), _shown(got[name]))


def _choice(idiom: Idiom, where: str, right: Evaluation, got: Numbers) -> Iterator[Difference]:
    """Compare by what a name means: a mean over clients, or all examples at once."""
    pooled = {n: v for n, v in right.pooled.items() if n in idiom.pooled}
    objects = {n: v for n, v in right.mean.items() if n in idiom.objects}
    means = {n: v for n, v in right.mean.items() if n not in {*idiom.pooled, *idiom.objects}}
    yield from _numbers(idiom, f"{where}, mean over clients", means, got)
    yield from _numbers(idiom, f"{where}, all clients' examples", pooled, got)
    for name, value in objects.items():
        either = (value, right.pooled[name])
        if name not in right.pooled:
            continue
        if name not in got or not any(_close(choice, got[name]) for choice in either):
            yield Difference(
                f"{where}, {name}",
                f"{_shown(either[0])} (mean over clients) or {_shown(either[1])} (all examples)",
                _shown(got[name]) if name in got else "nothing of that name",
            )


def _places(idiom: Idiom, where: str, right: Shown, got: Shown) -> Iterator[Difference]:
    """Compare where numbers go: to the loggers, to the progress bar."""
    for place in ("logged", "bar"):
        expected, found = (
            {*getattr(shown, place)} & {*right.metrics} - {*idiom.unlike} for shown in (right, got)
        )
        if expected != found:
            what = {"logged": "logged_metrics", "bar": "progress_bar_metrics"}[place]
            yield Difference(f"{where}, {what}", sorted(expected), sorted(found))


def _states(where: str, right: State, got: State) -> Iterator[Difference]:
    if right.keys() != got.keys():
        yield Difference(f"{where}, keys of the state", sorted(right), sorted(got))
        return
    for key, value in right.items():
        other = got[key]
        if value.dtype != other.dtype or value.shape != other.shape:
            kinds = [f"{t.dtype} {tuple(t.shape)}" for t in (value, other)]
            yield Difference(f"{where}, {key}", *kinds)
            continue
        # integers and flags are not averaged: the server keeps its own
        if not (value.is_floating_point() or value.is_complex()):
            continue
        a, b = (_wide(tensor) for tensor in (value, other))
        if not torch.allclose(a, b, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            gap = float((a - b).abs().max())
            yield Difference(f"{where}, {key}", "plain Lightning's weights", f"off by {gap:.2g}")


def _notes(right: Run, got: Run) -> Iterator[Difference]:
    for about in dict.fromkeys([*right.notes, *got.notes]):
        expected, found = right.notes.get(about, []), got.notes.get(about, [])
        if about.startswith("test"):
            continue
        if len(expected) != len(found) or not all(map(_same_note, expected, found)):
            yield Difference(f"noted of {about}", expected, found)


def _note_refusal(idiom: Idiom, refused: Refused, reference: Run | None, outcome: Outcome) -> None:
    """Note that an idiom was refused, which is right if it was to be, early, and in one line."""
    outcome.refusal = str(refused.error)
    add = outcome.differences.append
    if reference is not None:
        outcome.right = reference.epochs[-1].metrics.get(idiom.show, math.nan)
    outcome.got = "refused"
    if idiom.refused is None:
        add(Difference("the run", "as plain Lightning", str(refused)))
        return
    if not re.search(idiom.refused, outcome.refusal, re.IGNORECASE):
        add(Difference("the refusal", f"says {idiom.refused!r}", outcome.refusal))
    if "\n" in outcome.refusal.strip():
        add(Difference("the refusal", "one line", outcome.refusal))
    if idiom.in_plain_too:
        return  # plain Lightning says so in the first step
    if not isinstance(refused.error, FedLightningError):
        add(Difference("the refusal", "a FedLightningError", str(refused)))
    if not refused.early:
        add(Difference("the refusal", "before round 0", "after a client had begun"))


@contextmanager
def _warning_of(idiom: Idiom, who: str, outcome: Outcome) -> Iterator[None]:
    """See to it that the warning is there, if there is one to come."""
    Closure.warning_cache.clear()  # which keeps Lightning from warning twice
    if idiom.warns is None:
        yield
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    if not any(re.search(idiom.warns, str(warning.message)) for warning in seen):
        outcome.differences.append(Difference(f"warnings of {who}", idiom.warns, "none"))


@contextmanager
def ignoring(idiom: Idiom) -> Iterator[None]:
    with warnings.catch_warnings():
        for known in (idiom.ignores, idiom.warns):
            if known is not None:
                warnings.filterwarnings("ignore", f".*({known})")
        yield


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_dense().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE) or (
        math.isnan(a) and math.isnan(b)
    )


def _same_note(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same_note, a, b))
    if isinstance(a, float) or isinstance(b, float):
        return isinstance(a, (int, float)) and isinstance(b, (int, float)) and _close(a, b)
    return bool(a == b)


def _shown(value: float) -> str:
    return f"{value:.7g}"
