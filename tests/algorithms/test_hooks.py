"""What a hook can do: change the loss, see features, send and receive declared extras."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlightning import SCAFFOLD, Algorithm, FedAvg, Federation, FedProx, FedRoD
from fedlightning.algorithms import Aggregation, ClientContext, ClientHook, Down, LocalMethod, Up
from fedlightning.algorithms.aggregation import CoordinateMedian, Krum, Mean
from fedlightning.errors import ConfigError, FederationError
from tests.toys import CLASSES, FEATURES, Net, data, fit, loop_of, net, same, state

SIZES = (8, 6, 7, 5)


class WeightNorm(ClientHook):
    """Half the squared norm of the head's weight, as a term of the loss."""

    def on_loss(self, context: ClientContext, batch: Any, loss: Tensor) -> Tensor:
        weight: Tensor = context.module.head.weight  # type: ignore[union-attr, assignment]
        return loss + 0.05 * weight.square().sum()


class OwnTerm(Net):
    """The same term in the module's own training step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 0.05 * self.head.weight.square().sum()


class Slow(Net):
    """With a hook that makes Lightning's own step necessary."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass


class SlowOwnTerm(OwnTerm, Slow):
    pass


def algorithm(*hooks: ClientHook) -> Algorithm:
    return Algorithm(local=list(hooks))


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}]
)
@pytest.mark.parametrize(("plain", "own"), [(Net, OwnTerm), (Slow, SlowOwnTerm)])
def test_a_term_of_the_loss_is_as_if_the_module_had_it(plain, own, settings):
    by_hook, by_hand = net(module=plain, dropout=0.3), net(module=own, dropout=0.3)
    fit(by_hook, algorithm(WeightNorm()), **settings)
    fit(by_hand, FedAvg(), **settings)
    assert same(state(by_hook), state(by_hand))
    assert not same(state(by_hook), state(fit_plain(plain, settings)))


def fit_plain(module: type[Net], settings: dict[str, Any]) -> Net:
    untouched = net(module=module, dropout=0.3)
    fit(untouched, FedAvg(), **settings)
    return untouched


def test_a_term_composes_with_another_algorithm():
    by_hook, by_hand = net(), net(module=OwnTerm)
    fit(by_hook, algorithm(WeightNorm()) + FedProx(mu=0.5))
    fit(by_hand, FedProx(mu=0.5))
    assert same(state(by_hook), state(by_hand))


def test_terms_are_added_in_the_order_of_the_hooks():
    class Doubled(ClientHook):
        def on_loss(self, context, batch, loss):
            return 2 * loss

    first, second = net(), net()
    fit(first, algorithm(WeightNorm(), Doubled()))
    fit(second, algorithm(Doubled(), WeightNorm()))
    assert not same(state(first), state(second))


def test_a_term_reaches_a_hook_that_replaces_the_step():
    from fedlightning import PerFedAvg

    with_term, without = net(), net()
    fit(with_term, algorithm(WeightNorm()) + PerFedAvg(alpha=0.05))
    fit(without, PerFedAvg(alpha=0.05))
    assert not same(state(with_term), state(without))


def test_a_module_that_optimizes_by_hand_cannot_have_a_term():
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ConfigError, match=r"changes the loss, which Manual differentiates itself"):
        fit(net(module=Manual), algorithm(WeightNorm()))


class Pulled(ClientHook):
    """MOON's ingredients: own features, and the global model's on the same batch."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def on_update_start(self, context: ClientContext) -> None:
        context.watch("body")

    def on_loss(self, context: ClientContext, batch: Any, loss: Tensor) -> Tensor:
        own = context.features("body")
        globally = context.forward_with(context.received, batch[0], layer="body")
        assert own.requires_grad
        assert not globally.requires_grad
        return loss + self.strength * F.mse_loss(own, globally)


class PulledByHand(Net):
    def on_train_start(self) -> None:
        frozen = net()
        frozen.load_state_dict(self.state_dict())
        self.__dict__["frozen"] = frozen

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad():
            globally = self.frozen.body(batch[0])
        return loss + 2.0 * F.mse_loss(self.body(batch[0]), globally)


def test_features_of_the_same_forward_pass_and_of_other_weights():
    by_hook, by_hand = net(), net(module=PulledByHand)
    fit(by_hook, algorithm(Pulled(2.0)), federation={"local_epochs": 2})
    fit(by_hand, FedAvg(), federation={"local_epochs": 2})
    for key, value in state(by_hook).items():
        torch.testing.assert_close(value, state(by_hand)[key], rtol=1e-6, atol=1e-7)
    assert not by_hook.body._forward_hooks  # removed with the update


class LooksElsewhere(ClientHook):
    """Runs other weights on the batch and changes nothing."""

    def on_loss(self, context: ClientContext, batch: Any, loss: Tensor) -> Tensor:
        context.forward_with({key: 0 * v for key, v in context.received.items()}, batch[0])
        return loss


def test_a_pass_with_other_weights_does_not_reach_what_another_hook_sees():
    one, other = net(), net()
    alone = loop_of(fit(one, FedRoD()))
    beside = loop_of(fit(other, FedRoD() + algorithm(LooksElsewhere())))
    assert same(state(one), state(other))
    for client in range(4):
        assert same(alone.client_store.get(client), beside.client_store.get(client))


@pytest.mark.parametrize("watched", [("bdy",), ()])
def test_a_layer_that_is_not_there_or_not_watched_is_named(watched):
    class Wrong(ClientHook):
        def on_update_start(self, context):
            for layer in watched:
                context.watch(layer)

        def on_loss(self, context, batch, loss):
            return loss + context.features("body").sum()

    expected = "has no layer 'bdy'" if watched else r"call context\.watch\('body'\)"
    with pytest.raises(ConfigError, match=expected):
        fit(net(), algorithm(Wrong()))


class Statistics(ClientHook):
    """Sends one of everything: counts, sums, rows and a value of one's own; gets them back."""

    messages = (
        Down("total"),
        Down("mine", per_client=True),
        Up("count", merge="sum"),
        Up("plain", merge="mean"),
        Up("weighted", merge="weighted_mean"),
        Up("rows", merge="concatenate"),
        Up("own", merge="keep"),
    )
    seen: list[Any] = []  # noqa: RUF012
    got: list[Any] = []  # noqa: RUF012

    def server_state(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"total": torch.zeros((), dtype=torch.int64), "private": torch.ones(1)}

    def on_update_start(self, context: ClientContext) -> None:
        mine = context.received_value("mine")
        total = context.received_value("total")
        assert context.received_value("private") is None  # of the server, and not declared
        Statistics.got.append((context.client, total, mine))

    def on_update_end(self, context: ClientContext) -> None:
        n = context.num_examples
        context.send_extra(
            "count",
            {"examples": torch.tensor(n), "per_class": context.class_counts(CLASSES).long()},
        )
        context.send_extra("plain", torch.tensor(float(n)))
        context.send_extra("weighted", torch.tensor(float(n)))
        context.send_extra("rows", torch.full((context.client + 1, 2), float(context.client)))
        context.send_extra("own", torch.tensor([10 + context.client]))
        context.keep("statistics", {"shape": torch.zeros(context.client + 1, dtype=torch.int64)})

    def on_aggregate(self, aggregation: Aggregation) -> dict[str, Tensor]:
        Statistics.seen.append(aggregation)
        return {
            "total": aggregation.state["total"] + aggregation.extras["count/examples"],
            **{f"mine/{client}": values["own"] for client, values in aggregation.individual},
        }


def test_extras_merge_as_declared_and_nothing_is_lost_for_its_dtype(tmp_path):
    Statistics.seen.clear()
    Statistics.got.clear()
    built = fit(net(), algorithm(Statistics()), rounds=2, folder=tmp_path, datamodule=data(SIZES))
    cohort = [client for client, *_ in Statistics.got[:4]]
    labels = [torch.bincount(data_of(client)[1], minlength=CLASSES) for client in range(4)]
    first = Statistics.seen[0]
    assert first.extras["count/examples"].dtype == torch.int64
    assert first.extras["count/examples"].item() == sum(SIZES)
    assert torch.equal(first.extras["count/per_class"], sum(labels))
    assert first.extras["plain"].item() == sum(SIZES) / 4
    expected = sum(n * n for n in SIZES) / sum(SIZES)
    assert first.extras["weighted"].item() == pytest.approx(expected, rel=1e-7)
    rows = torch.cat([torch.full((client + 1, 2), float(client)) for client in cohort])
    assert torch.equal(first.extras["rows"], rows)
    assert [(client, values["own"].item()) for client, values in first.individual] == [
        (client, 10 + client) for client in cohort
    ]
    assert (first.num_clients, first.num_training_clients) == (4, 4)
    # in the second round each client gets the total, and what the server has for it alone
    for client, total, mine in Statistics.got[4:]:
        assert total.item() == sum(SIZES)
        assert mine.item() == 10 + client
    for client in range(4):
        assert loop_of(built).client_store.get(client)["statistics/shape"].shape == (client + 1,)
    # and all of it is there after a resume
    again = net()
    resumed = fit(
        again,
        algorithm(Statistics()),
        rounds=3,
        folder=tmp_path,
        datamodule=data(SIZES),
        ckpt="last",
    )
    assert loop_of(resumed).server.state_dict()["total"].item() == 3 * sum(SIZES)
    assert [mine.item() - client for client, _, mine in Statistics.got[8:]] == [10] * 4


def data_of(client: int) -> tuple[Tensor, Tensor]:
    from tests.toys import examples

    return examples(SIZES[client], client)


def test_integers_have_no_mean():
    class Counts(ClientHook):
        messages = (Up("count"),)

        def on_update_end(self, context):
            context.send_extra("count", torch.tensor(3))

    with pytest.raises(ConfigError, match=r"'count' is torch\.int64, which has no mean: declare"):
        fit(net(), algorithm(Counts()))


def test_what_is_not_declared_is_not_sent():
    class Silent(ClientHook):
        def on_update_end(self, context):
            context.send_extra("secret", torch.ones(1))

    with pytest.raises(
        FederationError, match=r"it sends secret, which .* does not declare: add Up"
    ):
        fit(net(), algorithm(Silent()))


def test_a_hook_of_an_earlier_release_still_works():
    class Old(LocalMethod):
        seen: list[Any] = []  # noqa: RUF012

        def server_state(self, parameters):
            return {"old/n": torch.zeros(())}

        def begin(self, turn):
            assert "n" in turn.server("old")

        def adjust(self, turn):
            for gradient in turn.gradients().values():
                gradient.mul_(0.5)

        def end(self, turn):
            turn.send("old", {"n": torch.tensor(2.0)})

        def merge(self, server, extras, clients, among):
            Old.seen.append((float(extras["old/n"]), clients, among))
            return {"old/n": server["old/n"] + extras["old/n"]}

    module = net()
    built = fit(module, algorithm(Old()), rounds=2)
    assert Old.seen == [(2.0, 4, 4)] * 2
    assert loop_of(built).server.state_dict()["old/n"].item() == 4.0
    assert not same(state(module), state(fit_plain(Net, {})))


class HostileControl(Net):
    """Client 1 (with six examples) is honest about its weights and lies about everything else."""

    bad = True


class Lies(ClientHook):
    """Sends a huge extra from one client."""

    messages = (Down("drift"), Up("drift", merge="mean"))

    def __init__(self, size: float) -> None:
        self.size = size

    def server_state(self, parameters):
        return {"drift/x": torch.zeros(FEATURES)}

    def on_update_end(self, context):
        honest = torch.full((FEATURES,), 0.01 * context.client)
        lie = torch.full((FEATURES,), self.size)
        context.send_extra("drift", {"x": lie if context.client == 1 else honest})

    def on_aggregate(self, aggregation):
        return dict(aggregation.extras)


@pytest.mark.parametrize("rule", [Krum(1), CoordinateMedian()], ids=str)
def test_a_robust_rule_bounds_extras_too(rule):
    sizes = (8, 6, 7, 5, 9)
    built = fit(
        net(), algorithm(Lies(1e6)), rounds=1, datamodule=data(sizes),
        federation={"aggregator": rule},
    )  # fmt: skip
    drift = loop_of(built).server.state_dict()["drift/x"]
    assert float(drift.abs().max()) <= 0.04
    plain = fit(
        net(), algorithm(Lies(1e6)), rounds=1, datamodule=data(sizes),
        federation={"aggregator": Mean()},
    )  # fmt: skip
    assert float(loop_of(plain).server.state_dict()["drift/x"].max()) > 1e5


def test_a_robust_rule_without_extras_is_as_before():
    with_extra, without = net(), net()
    fit(with_extra, algorithm(Lies(0.01)), federation={"aggregator": CoordinateMedian()})
    fit(without, FedAvg(), federation={"aggregator": CoordinateMedian()})
    assert same(state(with_extra), state(without))


def test_extras_that_a_robust_rule_cannot_protect_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"CoordinateMedian cannot protect 'count' of Statistics"):
        Federation(algorithm=algorithm(Statistics()), aggregator=CoordinateMedian())
    assert Federation(algorithm=SCAFFOLD(), aggregator=CoordinateMedian())


def test_two_hooks_with_a_message_of_one_name_do_not_go_together():
    class Other(ClientHook):
        messages = (Up("drift"),)

    with pytest.raises(ConfigError, match="each has a message 'drift'"):
        _ = algorithm(Lies(1.0)) + algorithm(Other())


def hook(**members: Any) -> ClientHook:
    """Return a hook with some methods or messages."""
    return type("Odd", (ClientHook,), members)()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"on_loss": lambda *_: None}, r"Odd\.on_loss returned None; return the loss, a tensor"),
        ({"server_state": lambda *_: None}, r"Odd\.server_state must return a dict of tensors"),
        ({"on_aggregate": lambda *_: None}, r"Odd\.on_aggregate must return a dict of tensors"),
        ({"on_aggregate": lambda *_: {"n": 3.0}}, r"must return a dict of tensors, got \{'n': 3"),
        (
            {
                "messages": (Down("d", per_client=True),),
                "server_state": lambda *_: {"d": torch.ones(1)},
            },
            r"'d', which is declared per client; name its entries 'd/CLIENT'",
        ),
    ],
)
def test_a_hook_that_gives_something_else_is_named(members, text):
    with pytest.raises(ConfigError, match=text):
        fit(net(), algorithm(hook(**members)))


def test_messages_of_one_name_in_one_algorithm_are_refused():
    with pytest.raises(ConfigError, match="Odd and Statistics both have a message 'count'"):
        algorithm(hook(messages=(Up("count", "sum"),)), Statistics())
