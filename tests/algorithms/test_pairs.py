"""Which algorithms go together: every pair of the family runs, or is refused with a reason."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from fedlightning import APFL, SCAFFOLD, Algorithm, FedAdam, FedAvg, FedBABU, FedBN, FedPer, FedProx
from fedlightning.algorithms import Composite
from fedlightning.errors import ConfigError
from tests.algorithms.by_hand import assert_close, mean
from tests.algorithms.cases import ALGORITHMS, everything
from tests.toys import data, fit, loop_of, net, same, state, trainer

NAMED = {name: a for name, a in ALGORITHMS.items() if type(a) is not Composite and "," not in name}
SERVERS = ("FedAvgM", "FedAdam", "FedYogi", "FedAdagrad")
GLOBAL = ("FedProx", *SERVERS, "SCAFFOLD", "FedNova", "FedDyn", "MOON")
PERSONAL = ("Ditto", "PFedMe", "APFL", "FedProto", "FedALA", "IFCA", "FedAMP")
PRIVATE = ("FedProto", "IFCA", "FedAMP")  # share no part of the network

_SERVER = r"server is Server\w+\(.*\) for the one and Server\w+\(.*\) for the other"
_STEP = "each says how to train on a batch"
_MODELS = "each gives clients models of their own"
_PREDICTORS = "each says what a client predicts with"
_PHASES = "each divides an update into phases"
_NOBODY = r"(Server)?\w+ needs a global model, and with share='none' there is none"


def _part(key: str, one: str, other: str) -> str:
    return f"{key} is '{one}' for the one and '{other}' for the other"


REFUSED: dict[tuple[str, str], str] = {
    **dict.fromkeys(combinations((*SERVERS, "PFedMe", "FedDyn"), 2), _SERVER),  # PFedMe's with beta
    **{(name, "LocalOnly"): _NOBODY for name in ("FedProx", *SERVERS, "SCAFFOLD")},
    **{(name, "LocalOnly"): _NOBODY for name in ("Ditto", "APFL", "PFedMe")},
    ("FedProx", "PFedMe"): "Proximal changes gradients, MoreauEnvelope has its own",
    ("SCAFFOLD", "PFedMe"): "ControlVariates changes gradients, MoreauEnvelope has its own",
    **{
        ("FedBABU", name): _part("train", "body", "full")
        for name in ("FedPer", "FedRep", "FedRes", "LGFedAvg", "FedRoD", "LocalOnly")
    },
    ("FedRep", "FedRes"): _PHASES,
    ("FedRes", "LocalOnly"): _NOBODY,
    ("LGFedAvg", "FedRes"): "'head' is shared by the one and left to the clients by the other",
    ("FedPer", "LGFedAvg"): _part("share", "body", "head"),
    ("FedPer", "FedRoD"): _part("share", "body", "full"),
    ("FedPer", "LocalOnly"): _part("share", "body", "none"),
    ("FedRep", "LGFedAvg"): _part("share", "body", "head"),
    ("FedRep", "FedRoD"): _part("share", "body", "full"),
    ("FedRep", "LocalOnly"): _part("share", "body", "none"),
    ("LGFedAvg", "FedRoD"): _part("share", "head", "full"),
    ("LGFedAvg", "LocalOnly"): _part("share", "head", "none"),
    ("FedRoD", "LocalOnly"): _part("share", "full", "none"),
    ("LocalOnly", "ServerData"): _NOBODY,
    ("PFedMe", "FedNova"): "LocalProgress changes gradients, MoreauEnvelope has its own",
    **{(name, "LocalOnly"): _NOBODY for name in ("FedNova", "FedDyn", "MOON", "FedALA")},
    **{("FedBABU", name): _part("train", "body", "full") for name in PRIVATE},
    **{("FedPer", name): _part("share", "body", "none") for name in PRIVATE},
    **{("FedRep", name): _part("share", "body", "none") for name in PRIVATE},
    **{("LGFedAvg", name): _part("share", "head", "none") for name in PRIVATE},
    **{("FedRoD", name): _part("share", "full", "none") for name in PRIVATE},
    **{(name, private): _NOBODY for name in GLOBAL for private in PRIVATE},
    **{(private, name): _NOBODY for name in ("FedRes", "FedImpro") for private in PRIVATE},
    **{(name, "ServerData"): _NOBODY for name in PRIVATE},
    **dict.fromkeys(combinations((*PERSONAL, "PerInvFL"), 2), _MODELS),
    ("FedRoD", "FedALA"): _MODELS,
    **dict.fromkeys(combinations(("FedProto", "KNNPer", "FedPN"), 2), _PREDICTORS),
    ("FedNova", "FedPN"): r"each has its own accumulator\(\)",
    **dict.fromkeys(combinations(("PerFedAvg", "PFedMe", "APFL", "FedRoD"), 2), _STEP),
    ("Ditto", "FedRoD"): _MODELS,
    **{("LocalOnly", name): _NOBODY for name in ("FedImpro", "PerInvFL")},
    **dict.fromkeys(
        combinations(
            ("PerFedAvg", "PFedMe", "APFL", "FedRoD", "FedRes", "FedImpro", "PerInvFL"), 2
        ),
        _STEP,
    ),
    **{("Ditto", name): _MODELS for name in ("PFedMe", "APFL", "FedRoD", "PerInvFL")},
    **{(name, "PersAFL"): _SERVER for name in (*SERVERS, "PFedMe")},
    ("PersAFL", "FedDyn"): _SERVER,
    ("PerFedAvg", "PersAFL"): "both are MetaGradient",
    **{("PersAFL", name): _STEP for name in ("APFL", "FedRoD", "FedRes", "FedImpro", "PerInvFL")},
    ("Ditto", "PersAFL"): _MODELS,
    **{("PersAFL", name): _MODELS for name in ("FedALA", *PRIVATE)},
    ("PersAFL", "LocalOnly"): _NOBODY,
}
PAIRS = [pytest.param(one, other, id=f"{one} + {other}") for one, other in combinations(NAMED, 2)]


def one_round(algorithm: Algorithm) -> dict[str, Any]:
    """Return all that a round leads to."""
    module = net(norm=True)
    return everything(fit(module, algorithm, rounds=1, cohort=2, datamodule=data((8, 6, 7, 6))))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_pair_runs_whatever_its_order_or_is_refused(one, other):
    a, b = NAMED[one], NAMED[other]
    reason = REFUSED.get((one, other))
    if reason is not None:
        with pytest.raises(ConfigError, match=rf"^{one} and {other} do not go together: {reason}"):
            _ = a + b
        with pytest.raises(ConfigError, match=f"^{other} and {one} do not go together: "):
            _ = b + a
        return
    found = one_round(a + b)
    assert same(found, one_round(b + a))
    if "FedAvg" in (one, other):
        assert same(found, one_round(b if one == "FedAvg" else a))


def test_no_pair_is_listed_that_there_is_not():
    assert set(REFUSED) <= set(combinations(NAMED, 2))


@pytest.mark.parametrize("name", [name for name, a in NAMED.items() if a.local])
def test_a_local_method_cannot_be_there_twice(name):
    with pytest.raises(ConfigError, match=f"two of {name} do not go together: both are "):
        _ = NAMED[name] + NAMED[name]


def test_many_compose_and_brackets_do_not_matter():
    a, b, c, d = FedBABU(), FedProx(0.1), FedAdam(), FedBN()
    left, right = ((a + b) + c) + d, a + (b + (c + d))
    assert left == right == Composite([a, b, c, d])
    assert left.name == "FedBABU + FedProx + FedAdam + FedBN"
    assert (left.train, left.share, left.weights) == ("body", "body - norm", "uniform")
    assert same(one_round(left), one_round(d + c + b + a))


def test_a_refusal_among_many_names_the_two():
    with pytest.raises(ConfigError, match=r"^FedBABU and FedPer do not go together: train is"):
        _ = FedProx() + FedBABU() + FedAdam() + FedPer()


class FirstTwo(Algorithm):
    """Merges the first two clients alone, by the inherited rule."""

    def aggregate(self, updates, merge=None):
        def first():
            for index, update in enumerate(updates):
                if index < 2:
                    yield update

        return super().aggregate(first(), merge)


class Doubled(Algorithm):
    """Gives client 1 twice the weight that it would have."""

    def weight(self, update):
        return super().weight(update) * (2 if update.client == 1 else 1)


def ends_of_clients() -> list[Any]:
    """Return where plain local training takes each client from the initial model."""
    ends = []
    for client in range(4):
        module = net()
        built = trainer(rounds=1, cohort=1)
        loop_of(built).cohort = [(client,)].__getitem__
        built.fit(module, datamodule=data((8, 6, 7, 6)))
        ends.append(state(module))
    return ends


@pytest.mark.parametrize(
    ("algorithm", "weights"),
    [
        (FirstTwo(), [8, 6]),
        (FedProx(0.0) + FirstTwo(), [8, 6]),
        (FirstTwo() + SCAFFOLD(), [1, 1]),
        (FirstTwo() + Doubled(), [8, 12]),
        (Doubled() + SCAFFOLD() + FirstTwo(), [1, 2]),
        (Doubled() + FedProx(0.0), [8, 12, 7, 6]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_own_rules_of_a_subclass_decide_with_the_choices_of_all(algorithm, weights):
    module = net()
    built = trainer(algorithm, rounds=1, cohort=4)
    loop_of(built).cohort = [(0, 1, 2, 3)].__getitem__
    built.fit(module, datamodule=data((8, 6, 7, 6)))
    ends = ends_of_clients()[: len(weights)]
    assert_close(state(module), mean(ends, [float(w) for w in weights], ends[0]), 1e-6)


class OwnBias(Algorithm):
    """Leaves one bias to the clients, whatever else is shared."""

    def roles(self, keys):
        roles, key = super().roles(keys), "body.0.bias"
        shared = tuple(k for k in roles.shared if k != key)
        return replace(roles, shared=shared, kept=(*roles.kept, key))


@pytest.mark.parametrize("order", [1, -1])
def test_own_roles_of_a_subclass_decide_with_the_choices_of_all(order):
    module = net()
    first, second = [OwnBias(), FedPer() + FedProx(0.1)][::order]
    loop = loop_of(fit(module, first + second, rounds=2, datamodule=data((8, 6, 7, 6))))
    assert loop.roles.shared == ("body.0.weight",)
    assert set(loop.personal_model(0)) == {"body.0.bias", "head.weight", "head.bias"}
    assert same({"": state(module)["body.0.bias"]}, {"": state(net())["body.0.bias"]})


def test_two_own_rules_are_refused():
    with pytest.raises(
        ConfigError, match=r"FirstTwo and Mean do not go together: each has its own"
    ):
        _ = FirstTwo() + type("Mean", (FirstTwo,), {})()


def test_what_is_no_algorithm_cannot_be_composed():
    with pytest.raises(ConfigError, match=re.escape("Composite takes algorithms, got 3")):
        Composite([FedAvg(), 3])
    with pytest.raises(ConfigError, match="needs two or more algorithms, got 1"):
        Composite([APFL()])
