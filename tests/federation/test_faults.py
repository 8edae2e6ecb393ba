"""A client that fails: named, kept out of every mean, and without a trace once it is retried."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from fedlightning import Algorithm, FedAvg, FedBABU, Federation
from fedlightning.datamodules import ClientDatasets
from fedlightning.engine.resident import TensorBindings
from fedlightning.errors import ConfigError, FederationError
from fedlightning.federation.failures import ClientFailed, ClientFailure
from tests.toys import Net, data, fit, loop_of, net, same, state, trainer

KEPT = Algorithm(train="full", share="body")
BAD = 2  # the client with seven examples: one batch of four, one of three


class Faulty(Net):
    """Fails in client 2 of round 1, after its first step; once, or always."""

    def __init__(self, fault: str = "exception", times: int = 99, **kwargs) -> None:
        super().__init__(**{"norm": True, "dropout": 0.3, **kwargs})
        self.fault, self.memory = fault, SimpleNamespace(left=times)
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.tries: list[int] = []

    def training_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("acc", self.accuracy)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.trainer.current_epoch == 1 and len(batch[1]) == 3 and self.memory.left:
            self.memory.left -= 1
            getattr(self, self.fault)()

    def exception(self):
        self.eval()
        self.head.weight.requires_grad_(False)
        self.body[0].weight.grad = torch.full((5, 4), 7.0)
        self.trainer.optimizers[0].param_groups[0]["lr"] = 9.0
        raise ValueError("bad luck")

    def non_finite(self):
        with torch.no_grad():
            self.body[0].bias[1] = float("nan")

    def infinite_buffer(self):
        self.body[1].running_mean[0] = float("inf")

    def shape(self):
        self.body[0].weight = nn.Parameter(torch.zeros(2, 2))

    def dtype(self):
        self.body[0].weight = nn.Parameter(self.body[0].weight.detach().double())

    def missing(self):
        del self.body[0].weight

    def extra(self):
        self.body.register_buffer("more", torch.zeros(1))

    def late(self):
        time.sleep(0.6)


CAUSES = [
    ("exception", "exception", r"ValueError: bad luck \(.*test_faults\.py:\d+\)"),
    ("non_finite", "non_finite", r"body\.0\.bias of its update is non-finite after 2 steps"),
    ("infinite_buffer", "non_finite", r"body\.1\.running_mean of its update is non-finite"),
    ("shape", "bad_update", r"shapes differ: body\.0\.weight .* \(2, 2\), .* \(5, 4\)"),
    ("dtype", "bad_update", r"dtypes differ: body\.0\.weight .*float64.*float32"),
    ("missing", "bad_update", r"its update lacks body\.0\.weight"),
    ("extra", "bad_update", r"its update has body\.more"),
    ("late", "timeout", r"not done after federation\.client_timeout=0\.5 s \(2 steps\)"),
]
ids = [fault for fault, _, _ in CAUSES]


class Events(pl.Callback):
    """Keeps the failures that it is told of."""

    def __init__(self) -> None:
        self.failures: list[ClientFailure] = []

    def on_client_failure(self, trainer, pl_module, failure):
        self.failures.append(failure)


COHORTS = [(0, 1, 3), (3, 2, 0), (1, 2, 3)]
WITHOUT = [(0, 1, 3), (3, 0), (1, 2, 3)]


def run(policy: str, module, cohorts=COHORTS, federation=None, **kwargs):
    """Fit three rounds with these cohorts; clients keep their heads."""
    settings = {"on_client_failure": policy, **(federation or {})}
    if module.fault == "late":
        settings |= {"client_timeout": 0.5}
    built = trainer(KEPT, rounds=3, cohort=3, federation=settings, **kwargs)
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module, datamodule=data((8, 6, 7, 6)))
    return built


def healthy(**kwargs):
    return net(module=Faulty, times=0, **kwargs)


def assert_same_run(one, other) -> None:
    """Weights, what clients keep, and optimizers' settings."""
    assert same(state(one.lightning_module), state(other.lightning_module))
    kept = [loop_of(built).personal for built in (one, other)]
    assert sorted(kept[0]) == sorted(kept[1])
    assert all(same(kept[0].get(client), kept[1].get(client)) for client in kept[0])
    rates = [built.optimizers[0].param_groups[0]["lr"] for built in (one, other)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize(("fault", "cause", "text"), CAUSES, ids=ids)
def test_fail_ends_the_run_and_names_client_round_and_cause(fault, cause, text):
    events, module = Events(), net(module=Faulty, fault=fault)
    before = None

    class Keep(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            nonlocal before
            before = state(pl_module)

    with pytest.raises(FederationError, match=f"^client 2, round 1: {text}") as raised:
        run("fail", module, callbacks=[events, Keep()])
    assert isinstance(raised.value, ClientFailed)
    assert [(f.client, f.round, f.cause) for f in events.failures] == [(BAD, 1, cause)]
    assert same(state(module), before)  # the global model of the round before


@pytest.mark.parametrize(("fault", "cause", "text"), CAUSES, ids=ids)
def test_skip_gives_the_bits_of_a_cohort_without_that_client(fault, cause, text):
    events = Events()
    with pytest.warns(UserWarning, match=rf"client 2, round 1: {text}.* \(skipped\)"):
        skipped = run("skip", net(module=Faulty, fault=fault), callbacks=[events])
    without = run("fail", healthy(), WITHOUT)
    assert_same_run(skipped, without)
    assert [failure.retried for failure in events.failures] == [False]
    assert skipped.global_step == without.global_step == 8


@pytest.mark.parametrize(("fault", "cause", "text"), CAUSES, ids=ids)
def test_retry_leaves_no_trace_of_a_fault_that_passes(fault, cause, text):
    events = Events()
    with pytest.warns(UserWarning, match=rf"client 2, round 1: {text}.* \(tried again\)"):
        retried = run("retry", net(module=Faulty, fault=fault, times=2), callbacks=[events])
    untouched = run("retry", healthy())
    assert_same_run(retried, untouched)
    for name in ("train/loss", "acc", "global/loss"):
        assert retried.callback_metrics[name] == untouched.callback_metrics[name]
    assert [failure.retried for failure in events.failures] == [True, True]


def test_a_fault_that_stays_ends_the_run_when_no_try_is_left():
    events = Events()
    with (
        pytest.warns(UserWarning, match="tried again"),
        pytest.raises(ClientFailed, match=r"client 2, round 1: .* \(after 3 tries\)"),
    ):
        run("retry", net(module=Faulty), callbacks=[events])
    assert [failure.retried for failure in events.failures] == [True, True, False]


@pytest.mark.filterwarnings("ignore:client 2, round 1")
def test_every_round_counts_who_was_selected_who_succeeded_and_who_failed_why():
    class Log(pl.Callback):
        rounds: list[dict[str, float]] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer, pl_module):
            self.rounds.append(
                {
                    name.removeprefix("clients/"): float(value)
                    for name, value in trainer.callback_metrics.items()
                    if name.startswith("clients/")
                }
            )

    log = Log()
    run("skip", net(module=Faulty, fault="non_finite"), callbacks=[log])
    none = {f"failed_{c}": 0 for c in ("exception", "bad_update", "bad_weight", "timeout")}
    good = {"selected": 3, "succeeded": 3, "retries": 0, "failed_non_finite": 0, **none}
    assert log.rounds == [good, good | {"succeeded": 2, "failed_non_finite": 1}, good]
    log.rounds.clear()
    run("retry", net(module=Faulty, times=1), callbacks=[log])
    assert log.rounds == [good, good | {"retries": 1}, good]
    log.rounds.clear()
    run("fail", healthy(), callbacks=[log])
    assert log.rounds == [{}, {}, {}]


@pytest.mark.filterwarnings("ignore:client 2, round 1")
def test_a_round_with_too_few_clients_ends_the_run_and_the_round_before_is_saved(tmp_path):
    message = (
        r"round 1: 2 of 3 clients succeeded, federation\.min_clients=3\. exception: client 2\. "
        r"The first: client 2, round 1: ValueError: bad luck"
    )
    with pytest.raises(FederationError, match=message):
        run("skip", net(module=Faulty), federation={"min_clients": 3}, folder=tmp_path)
    saved = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert saved["epoch"] == 0
    run("skip", net(module=Faulty), federation={"min_clients": 2})


@pytest.mark.filterwarnings("ignore:client ")
def test_a_round_without_any_client_ends_the_run():
    class Broken(Net):
        fault = ""

        def training_step(self, batch, batch_idx):
            raise KeyError("x")

    with pytest.raises(FederationError, match=r"round 0: 0 of 3 .* exception: clients 0, 1, 3"):
        run("skip", net(module=Broken))


class NoWeight(FedAvg):
    """Gives client 2 a weight that would spoil the mean."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def weight(self, update):
        return self.value if update.client == BAD else 1.0


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_a_failure_of_that_client(weight):
    with pytest.raises(FederationError, match=r"client 2, round 0: its weight must be .* > 0, got"):
        fit(net(), NoWeight(weight))


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda state: state.pop("head.bias"), "its update lacks head.bias"),
        (lambda state: state.update({"x": torch.ones(1)}), "its update has x"),
        (lambda state: state.update({"head.bias": torch.ones(9)}), "shapes differ: head.bias"),
        (lambda state: state.update({"head.bias": 3.0}), "head.bias of its update is not a tensor"),
        (
            lambda state: state.update({"head.bias": torch.full((3,), float("nan"))}),
            "head.bias of its update is non-finite",
        ),
    ],
    ids=["lacks", "more", "shape", "number", "nan"],
)
def test_what_a_callback_makes_of_an_update_is_checked_too(harm, text):
    class Compress(pl.Callback):
        def on_client_end(self, trainer, pl_module, update):
            if update.client == BAD:
                harm(update.state)

    with pytest.raises(FederationError, match=rf"client 2, round 0: {text}"):
        fit(net(), FedAvg(), callbacks=[Compress()])


def test_a_callbacks_own_error_is_no_clients_failure():
    class Breaks(pl.Callback):
        def on_client_end(self, trainer, pl_module, update):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(net(), FedAvg(), callbacks=[Breaks()], federation={"on_client_failure": "skip"})


def test_a_dataset_that_raises_is_a_failure_that_names_the_sample():
    class Rows(torch.utils.data.Dataset):
        bad = False

        def __len__(self):
            return 6

        def __getitem__(self, index):
            if self.bad and index == 4:
                raise OSError("cannot read")
            return torch.ones(4), index % 3

    rows = [Rows() for _ in range(3)]
    clients = ClientDatasets(train=rows, test=[Rows()] * 3, num_classes=3, batch_size=2)
    clients.setup()  # reads every sample once: later faults are what is left
    rows[1].bad = True
    with pytest.warns(UserWarning, match=r"client 1, round 0: .*sample 4.*cannot read.*skipped"):
        fit(net(), FedAvg(), rounds=1, datamodule=clients, federation={"on_client_failure": "skip"})


def test_a_tensor_that_a_client_puts_in_place_of_another_counts_and_does_not_stay():
    starts: list[float] = []

    class Assigns(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("cache", torch.zeros(1), persistent=False)

        def on_train_start(self):
            starts.append(float(self.mean[0]))

        def training_step(self, batch, batch_idx):
            self.mean = self.mean + 1.0
            self.cache = self.cache + 1.0
            return super().training_step(batch, batch_idx)

    module = net(module=Assigns)
    mean, cache = module.mean, module.cache
    fit(module, FedAvg())
    assert starts == [0.0] * 4 + [2.0] * 4  # two batches each
    assert module.mean.tolist() == [4.0] * 3
    assert module.mean is mean
    assert module.cache is cache
    assert float(cache) == 0.0


def test_anchors_keep_the_order_of_a_state_and_let_caches_stay():
    layer = nn.Linear(2, 1)
    keys, anchors = list(layer.state_dict()), TensorBindings(layer)
    del layer.weight
    layer.register_buffer("cache", torch.ones(1), persistent=False)
    layer.more = nn.Linear(1, 1)
    assert anchors.changed()
    with anchors.rebound():
        assert list(layer.state_dict()) == keys
    assert "weight" not in layer.state_dict()
    anchors.restore()
    assert list(layer.state_dict()) == keys
    assert hasattr(layer, "cache")
    assert not anchors.changed()


def test_a_cache_that_is_no_state_is_no_fault():
    layer = nn.Linear(2, 1)
    anchors = TensorBindings(layer)
    layer.register_buffer("cache", torch.ones(1), persistent=False)
    assert not anchors.changed()


def test_metrics_of_a_failed_try_do_not_count():
    module = net(module=Faulty, times=1)
    with pytest.warns(UserWarning, match="tried again"):
        run("retry", module)
    assert module.accuracy.update_count == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_client_failure": "ignore"}, "on_client_failure must be one of fail, skip, retry"),
        ({"on_client_failure": "Skip"}, "got 'Skip'. Did you mean 'skip'"),
        ({"max_retries": -1}, "max_retries must be an integer >= 0, got -1"),
        ({"min_clients": 0}, "min_clients must be an integer >= 1, got 0"),
        ({"min_clients": True}, "min_clients must be an integer >= 1, got True"),
        ({"client_timeout": 0}, "client_timeout must be a finite number of seconds > 0"),
        ({"client_timeout": float("inf")}, "client_timeout must be a finite .* got inf"),
        (
            {"min_clients": 5, "cohort_size": 4},
            "min_clients=5 with a cohort of 4 clients can never be met",
        ),
    ],
)
def test_settings_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Federation(**settings)


def test_min_clients_is_held_against_a_share_of_the_clients_before_anything_is_trained():
    with pytest.raises(ConfigError, match="min_clients=3 with a cohort of 2 clients can never"):
        fit(net(), FedBABU(), cohort=0.5, federation={"min_clients": 3})
