"""Fed-Influence by hand, as an observer, resumed, with several workers, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning import (
    SCAFFOLD,
    ClientInfluence,
    FedAdam,
    FedBABU,
    FedNova,
    FedPer,
    FedProx,
    LocalOnly,
    ServerData,
)
from fedlightning.algorithms.aggregation import CoordinateMedian
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import CheckpointError, ConfigError
from fedlightning.federation import Buffered
from fedlightning.federation.uplink import ClipNorm, Int8
from fedlightning.reporting.influence_table import read_influence_csv
from tests.algorithms.cases import everything
from tests.toys import Net, data, examples, loop_of, net, same, state, trainer

SIZES = (8, 6, 7, 6)
COHORTS = [(0, 1, 3), (3, 2, 0), (1, 2, 3), (0, 2)]
PLAIN: dict[str, Any] = {"momentum": 0.0, "lr_milestones": ()}
SILENT = pytest.mark.filterwarnings(
    "ignore:ClientInfluence. a batch is a part", "ignore:ClientInfluence. statistics such as"
)
pytestmark = SILENT


class Scalars(pl.LightningModule):
    """A weight per layer; the loss of layer j is h_j (w_j - b_j)^2 / 2, batch (h, b)."""

    def __init__(self, layers: int = 1, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.layers = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(layers)])

    def loss(self, batch: Any) -> Tensor:
        (h,), (b,) = batch
        return (h * (torch.cat(list(self.layers)) - b) ** 2).sum() / 2

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("global/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def scalars(
    clients: list[tuple[list[float], list[float]]], cohorts: list[tuple[int, ...]], **kwargs: Any
) -> Any:
    """Fit one full-gradient step a round on (curvatures, minima) of each client; return module."""
    pairs = [(torch.tensor([h]), torch.tensor([b])) for h, b in clients]
    observer = kwargs.pop("observer", None)
    module = Scalars(len(clients[0][0]))
    built = trainer(
        rounds=len(cohorts), federation=kwargs, limit_val_batches=0,
        callbacks=[observer] if observer is not None else [],
    )  # fmt: skip
    loop_of(built).cohort = cohorts.__getitem__
    built.fit(module, datamodule=ClientDatasets(pairs, pairs, batch_size=1))
    return module


def run(*observers: Any, module: Any = None, ckpt: Any = None, **kwargs: Any) -> Any:
    """Fit four rounds of two local epochs of toy clients and return the trainer."""
    federation = {"local_epochs": 2, **kwargs.pop("federation", {})}
    built = trainer(
        kwargs.pop("algorithm", None), cohort=3, federation=federation,
        callbacks=[*observers, *kwargs.pop("callbacks", [])], **{"rounds": 4, **kwargs},
    )  # fmt: skip
    loop_of(built).cohort = COHORTS.__getitem__
    built.fit(module or net(**PLAIN), datamodule=data(SIZES), ckpt_path=ckpt)
    return built


def estimates(observer: ClientInfluence) -> dict[str, Tensor]:
    """Return all estimates."""
    return {
        f"{client} {key}": value
        for client in observer.estimates.clients
        for key, value in observer.parameters(client).items()
    }


# -- by hand -------------------------------------------------------------------------------------


def test_quadratic_losses_are_exact():
    clients = [([1.0], [1.0]), ([1.0], [3.0])]
    for rounds, (full, epsilon, without) in enumerate(
        [(0.2, -0.1, 0.1), (0.38, -0.19, 0.19), (0.542, -0.271, 0.271)], start=1
    ):
        observer = ClientInfluence()
        module = scalars(clients, [(0, 1)] * rounds, observer=observer)
        assert float(module.layers[0].detach()) == pytest.approx(full, abs=1e-6)
        assert float(observer.parameters(1)["layers.0"]) == pytest.approx(epsilon, abs=1e-6)
        replay = scalars(clients, [(0, 1)] * rounds, leave_out=[1])
        assert float(replay.layers[0].detach()) == pytest.approx(without, abs=1e-6)


def test_the_influence_on_a_metric_is_that_of_the_moved_model():
    observer = ClientInfluence()
    scalars([([1.0], [1.0]), ([1.0], [3.0])], [(0, 1)] * 3, observer=observer)
    # the mean over both clients of (w - b)^2 / 2, at .271 and at .542
    at = {w: ((w - 1) ** 2 + (w - 3) ** 2) / 4 for w in (0.271, 0.542)}
    found = {record.client_id: record for record in observer.results}
    assert found[1].on("global/loss") == pytest.approx(at[0.271] - at[0.542], abs=1e-6)
    assert found[1].parameters == pytest.approx(0.271, abs=1e-6)
    assert (found[1].rounds, found[1].num_train) == (3, 1)
    # without client 0 the weight would be .1, .19, .271 times 3
    assert found[0].on("global/loss") == pytest.approx(
        ((0.813 - 1) ** 2 + (0.813 - 3) ** 2) / 4 - at[0.542], abs=1e-6
    )
    assert [record.client_id for record in observer.results] == [0, 1]  # removing 0 lowers it


def test_a_cohort_that_nobody_is_left_of_is_skipped_by_estimate_and_replay():
    clients = [([1.0], [1.0]), ([1.0], [3.0])]
    cohorts = [(0, 1), (1,), (0,)]
    observer = ClientInfluence()
    module = scalars(clients, cohorts, observer=observer)
    # .2; client 1 alone .2 + .1 * 2.8 = .48; client 0 alone .48 + .1 * .52 = .532
    assert float(module.layers[0].detach()) == pytest.approx(0.532, abs=1e-6)
    # without client 1: .1, .1, .19
    assert float(observer.parameters(1)["layers.0"]) == pytest.approx(0.19 - 0.532, abs=1e-6)
    replay = scalars(clients, cohorts, leave_out=[1])
    assert float(replay.layers[0].detach()) == pytest.approx(0.19, abs=1e-6)


@pytest.mark.parametrize("curvature", [30.0, -1.0], ids=["beyond 2 / lr", "negative"])
def test_a_layer_whose_estimate_would_grow_is_cut_off_from_that_round_on(curvature):
    clients = [([1.0, curvature], [1.0, 1.0])] * 2 + [([1.0, 1.0], [3.0, 2.0])]
    cohorts = [(0, 1), (0, 1, 2), (0, 1), (0, 1, 2)]
    for rounds, dropped in enumerate([set(), set(), {"layers.1"}, {"layers.1"}], start=1):
        observer = ClientInfluence([2], "layerwise")
        scalars(clients, cohorts[:rounds], observer=observer)
        cut = observer.estimates.dropped.get(2, set())
        assert {key for key, _ in cut} == dropped, rounds
        if rounds == 3:  # client 2 is in no bracket: what is cut off is zero
            assert float(observer.parameters(2)["layers.1"]) == 0
            assert observer.results[0].dropped_layers == 1
            kept = ClientInfluence([2], "layerwise", truncation="never")
            scalars(clients, cohorts[:rounds], observer=kept)
            same_layer = observer.parameters(2)["layers.0"], kept.parameters(2)["layers.0"]
            assert torch.equal(*same_layer)
            assert float(kept.parameters(2)["layers.1"]) != 0


def test_the_finer_truncation_drops_the_terms_of_those_clients_that_let_it_grow():
    clients = [([1.0], [1.0]), ([-1.0], [1.0]), ([1.0], [3.0])]
    observer = ClientInfluence([2], "layerwise", truncation="client")
    scalars(clients, [(0, 1, 2), (0, 1)], observer=observer)
    # w = (.1 - .1 + .3) / 3 = .1, without client 2: 0; then client 0 keeps .9 of -.1, half weight
    assert float(observer.parameters(2)["layers.0"]) == pytest.approx(-0.1 * 0.9 / 2, abs=1e-6)
    assert observer.estimates.dropped == {2: {("layers.0", 1)}}


class OneFeature(pl.LightningModule):
    """A linear loss: the gradient of an example is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (batch[0] @ self.w).mean()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("global/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("inputs", "kept"), [([[0.0, 2, 0], [0, 0, 1]], 1.0), ([[3.0, 0, 0]], 0.1)]
)
def test_fisher_changes_an_estimate_along_the_gradients_alone(inputs, kept):
    # client 1 moves along the first axis only; client 0's examples lie across it, or along it
    pairs = [(torch.tensor(x), torch.zeros(len(x))) for x in (inputs, [[1.0, 0, 0]])]
    observer = ClientInfluence([1], "fisher")
    built = trainer(rounds=2, callbacks=[observer], limit_val_batches=0)
    loop_of(built).cohort = [(0, 1), (0,)].__getitem__
    built.fit(OneFeature(), datamodule=ClientDatasets(pairs, pairs, batch_size=5))
    first = torch.tensor(inputs).mean(dim=0) * -0.1
    n = len(inputs)  # weights of the mean are numbers of examples
    mean = (n * first + torch.tensor([-0.1, 0, 0])) / (n + 1)
    want = (first - mean) * torch.tensor([kept, 1, 1]) if kept < 1 else first - mean
    if kept == 1.0:  # the second and third coordinates shrink by their own gradients
        want = want - 0.1 * torch.tensor([0.0, want[1] * 4 / 2, want[2] / 2])
    torch.testing.assert_close(observer.parameters(1)["w"], want)


def by_hand(blocks: bool) -> dict[int, Tensor]:
    """Return the estimates of a toy run, with whole Hessian matrices, in float64."""
    module = net(**PLAIN).double()
    keys = [key for key, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    sizes = [p.numel() for p in module.parameters()]
    mask = torch.block_diag(*[torch.ones(n, n).double() for n in sizes]) if blocks else 1.0
    w = torch.cat([p.detach().flatten() for p in module.parameters()])
    pairs = [examples(n, seed) for seed, n in enumerate(SIZES)]
    found = {client: torch.zeros_like(w) for client in range(len(SIZES))}

    def loss_at(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        weights = dict(zip(keys, parts, strict=True))
        return F.cross_entropy(torch.func.functional_call(module, weights, (x.double(),)), y)

    second = torch.autograd.functional.hessian
    for cohort in COHORTS:
        ends, through = {}, {}
        for client in cohort:
            flat, product = w, torch.eye(len(w)).double()
            for _ in range(2):
                hessian = second(lambda f, pair=pairs[client]: loss_at(f, *pair), flat)
                at = flat.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(loss_at(at, *pairs[client]), at)
                product = product - 0.1 * mask * hessian @ product
                flat = flat - 0.1 * gradient
            ends[client], through[client] = flat, product
        total = sum(SIZES[k] for k in cohort)
        after = sum(SIZES[k] * ends[k] for k in cohort) / total
        for client in found:
            others = [k for k in cohort if k != client]
            n = sum(SIZES[k] for k in others)
            carried = sum(SIZES[k] * through[k] @ found[client] for k in others) / n
            without = sum(SIZES[k] * ends[k] for k in others) / n
            found[client] = carried + without - after
        w = after
    return found


@pytest.mark.parametrize("method", ["exact", "layerwise"])
def test_products_are_those_of_whole_hessian_matrices(method):
    observer = ClientInfluence(method=method, truncation=None if method == "exact" else "never")
    built = trainer(cohort=3, rounds=4, federation={"local_epochs": 2}, callbacks=[observer])
    loop_of(built).cohort = COHORTS.__getitem__
    module = net(**PLAIN).double()
    clients = ClientDatasets(
        [(x.double(), y) for x, y in (examples(n, seed) for seed, n in enumerate(SIZES))],
        [(x.double(), y) for x, y in [examples(4, 9)] * len(SIZES)], batch_size=8, num_classes=3,
    )  # fmt: skip
    built.fit(module, datamodule=clients)
    for client, want in by_hand(blocks=method == "layerwise").items():
        got = torch.cat([value.flatten() for value in observer.parameters(client).values()])
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


# -- an observer ---------------------------------------------------------------------------------

OBSERVERS = {
    "exact": ClientInfluence, "layerwise": lambda: ClientInfluence(method="layerwise"),
    "client": lambda: ClientInfluence(method="layerwise", truncation="client"),
    "fisher": lambda: ClientInfluence(method="fisher", fisher_examples=3),
    "truncated": lambda: ClientInfluence([2, 0], "truncated"),
}  # fmt: skip
every_method = pytest.mark.parametrize("name", OBSERVERS)


class Drawing(Net):
    """Logs, counts and draws in its steps."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dropout=0.4, **PLAIN, **kwargs)
        self.steps_seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps_seen += 1
        self.log("steps_seen", float(self.steps_seen))
        return super().training_step(batch, batch_idx) + 0.01 * torch.rand(())


@every_method
def test_a_run_that_is_observed_has_the_same_bits_and_numbers(name, tmp_path):
    def ended(folder: Path, *observers: Any) -> Any:
        built = run(*observers, module=net(module=Drawing), folder=folder)
        return everything(built), next(folder.rglob("metrics.csv")).read_bytes()

    alone, metrics = ended(tmp_path / "alone")
    observed, same_metrics = ended(tmp_path / "observed", OBSERVERS[name]())
    assert same(alone, observed)
    assert metrics == same_metrics


def test_batch_statistics_are_the_same_with_products(tmp_path):
    alone = everything(run(module=net(norm=True, **PLAIN)))
    assert same(alone, everything(run(ClientInfluence(), module=net(norm=True, **PLAIN))))


def test_a_client_that_was_in_no_cohort_has_no_influence():
    observer = ClientInfluence()
    built = trainer(cohort=2, rounds=3, callbacks=[observer])
    loop_of(built).cohort = [(0, 1), (3, 0), (1, 3)].__getitem__
    built.fit(net(**PLAIN), datamodule=data(SIZES))
    assert all(float(value.abs().max()) == 0 for value in observer.parameters(2).values())
    (record,) = [record for record in observer.results if record.client_id == 2]
    assert (record.rounds, record.parameters, record.on("global/loss")) == (0, 0.0, 0.0)
    assert all(r.parameters > 0 for r in observer.results if r.client_id != 2)


@pytest.mark.filterwarnings("ignore:client 2, round 1")
@pytest.mark.parametrize("policy", ["skip", "retry"])
def test_a_client_that_fails_is_left_out_or_counted_once(policy):
    class Faulty(Net):
        failed: ClassVar[list[int]] = []

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            last_of_client_2 = self.trainer.current_epoch == 1 and len(batch[1]) == 3
            if last_of_client_2 and (policy == "skip" or len(self.failed) < 1):
                self.failed.append(batch_idx)
                raise ValueError("bad luck")

    Faulty.failed.clear()
    observer, want = ClientInfluence(), ClientInfluence()
    run(observer, module=net(module=Faulty, **PLAIN), federation={"on_client_failure": policy})
    assert Faulty.failed
    if policy == "skip":
        built = trainer(cohort=3, rounds=4, federation={"local_epochs": 2}, callbacks=[want])
        loop_of(built).cohort = [(0, 1, 3), (3, 0), (1, 2, 3), (0, 2)].__getitem__
        built.fit(net(**PLAIN), datamodule=data(SIZES))
    else:
        run(want)
    assert same(estimates(observer), estimates(want))


def test_the_body_alone_is_examined_where_it_alone_is_trained():
    observer = ClientInfluence([0])
    run(observer, algorithm=FedBABU())
    assert set(observer.parameters(0)) == {"body.0.weight", "body.0.bias"}


def test_table_and_figure_are_in_the_run_folder(tmp_path):
    observer = ClientInfluence([1, 3])
    run(observer, folder=tmp_path)
    table = next(tmp_path.rglob("influence.csv"))
    assert read_influence_csv(table) == observer.results
    influences = [record.on("global/loss") for record in observer.results]
    assert influences == sorted(influences)
    assert len(influences) == 2
    assert (table.parent / "influence.png").read_bytes()[:4] == b"\x89PNG"


def test_cost_and_memory_are_said_beforehand(caplog):
    with caplog.at_level("INFO", "pytorch_lightning"):
        run(ClientInfluence([0, 1]), rounds=1)
    (said,) = [r.message for r in caplog.records if "ClientInfluence" in r.message]
    # 4*5+5 + 5*3+3 = 43 parameters; 3 clients, 2 epochs of 2 batches, 2 examined
    assert "2 clients x 43 parameters are 344 bytes" in said
    assert "up to 24 products with Hessians a round" in said


def test_batches_that_are_a_part_of_the_data_are_said_to_be_no_full_gradients():
    with pytest.warns(UserWarning, match="the paper assumes full gradients"):
        run(ClientInfluence([0]), rounds=1)


# -- resumed, and with several workers -----------------------------------------------------------


class StopIn(pl.Callback):
    """Saves and raises at the end of a client of a round."""

    def __init__(self, path: Path, hook: str) -> None:
        self.path = path
        setattr(self, hook, self.strike)

    def strike(self, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            raise KeyError("stopped")


@every_method
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_aggregate_end", "on_train_epoch_end"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name, hook, tmp_path):
    whole, first, second = (OBSERVERS[name]() for _ in range(3))
    run(whole)
    with pytest.raises(KeyError, match="stopped"):  # its callback comes before the observer
        run(callbacks=[StopIn(tmp_path / "stopped.ckpt", hook), first])
    run(second, module=net(seed=9, **PLAIN), ckpt=tmp_path / "stopped.ckpt")
    assert same(estimates(whole), estimates(second))
    assert whole.results == second.results
    assert whole.estimates.dropped == second.estimates.dropped


def test_rounds_that_were_not_observed_and_other_settings_are_refused(tmp_path):
    run(rounds=2).save_checkpoint(tmp_path / "alone.ckpt")
    with pytest.raises(ConfigError, match="has observed 0 of the run's 2 rounds"):
        run(ClientInfluence(), ckpt=tmp_path / "alone.ckpt")
    run(ClientInfluence([1]), rounds=2).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(CheckpointError, match=r"clients is \[1, 2\], and \[1\] in the checkpoint"):
        run(ClientInfluence([1, 2]), ckpt=tmp_path / "one.ckpt")


@every_method
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_workers_give_the_numbers_of_one(name, tmp_path):
    one = OBSERVERS[name]()
    run(one, folder=tmp_path / "one")
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"}
    run(OBSERVERS[name](), folder=tmp_path / "two", **two)
    tables = [next((tmp_path / n).rglob("influence.csv")).read_text() for n in ("one", "two")]
    assert tables[0] == tables[1]
    saved = [
        torch.load(next((tmp_path / n).rglob("last.ckpt")), weights_only=True)["callbacks"]
        for n in ("one", "two")
    ]
    values = [s[one.state_key]["estimates"]["values"] for s in saved]
    assert values[0].keys() == values[1].keys()
    assert all(same(values[0][client], values[1][client]) for client in values[0])


# -- refused -------------------------------------------------------------------------------------


class Other(Net):
    """Trains with another optimizer, or another setting of it."""

    def __init__(self, make: Any) -> None:
        super().__init__(**PLAIN)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__(**PLAIN)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


class Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters)


def decaying(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": FedProx(0.1)}, r"federation.algorithm=FedProx: Proximal takes part"),
        ({"algorithm": SCAFFOLD()}, r"federation.algorithm=SCAFFOLD: \w+ takes part"),
        ({"algorithm": FedAdam()}, r"federation.algorithm=FedAdam: .* a step of its own"),
        ({"algorithm": FedNova()}, r"federation.algorithm=FedNova: .*take FedAvg"),
        ({"algorithm": ServerData(fraction=0.5)}, "the server trains on data of its own"),
        ({"algorithm": LocalOnly()}, "it shares nothing"),
        ({"algorithm": FedPer()}, r"clients keep head\.\w+, .*such as FedAvg or FedBABU"),
        ({"federation": {"aggregator": CoordinateMedian()}}, r"federation.aggregator=Coord"),
        ({"federation": {"compression": Int8()}}, "federation.compression=Int8"),
        ({"federation": {"uplink": [ClipNorm(1.0)]}}, r"federation.uplink=\[ClipNorm"),
        ({"federation": {"clients_per_kernel": 2}}, "clients_per_kernel=2: .* set it to 1"),
        ({"federation": {"schedule": Buffered()}}, r"federation.schedule=Buffered\(.*Synchronous"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val=1.0: .* leave it out"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches=2: .* set it to 1"),
        ({"precision": "bf16-mixed"}, "trainer.precision=bf16-mixed: .* set it to 32-true"),
        ({"module": net(momentum=0.9)}, r"momentum=0.9; .* set it to 0 \(model.momentum=0\)"),
        ({"module": net(module=Other, make=decaying)}, "weight_decay=0.001; .* set it to 0"),
        ({"module": net(module=Other, make=adam)}, "trains with Adam; the estimate is for plain"),
        ({"module": net(module=ByHand)}, "manual optimization takes part in clients' steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_rounds_are_refused_with_the_way_out(settings, message):
    with pytest.raises(ConfigError, match=f"ClientInfluence: .*{message}"):
        run(ClientInfluence(), **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "exakt"}, "method must be one of exact, .* Did you mean 'exact'"),
        ({"truncation": "layer"}, "truncation='layer' needs a Hessian of blocks"),
        ({"method": "fisher", "truncation": "layers"}, "Did you mean 'layer'"),
        ({"clients": []}, r"clients must be a list of client ids, got \[\]"),
        ({"clients": [1.5]}, "clients must be an integer >= 0, got 1.5"),
        ({"fisher_examples": 0}, "fisher_examples must be an integer >= 1, got 0"),
    ],
)
def test_arguments_out_of_their_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ClientInfluence(**arguments)


def test_clients_that_do_not_train_are_refused():
    with pytest.raises(ConfigError, match="client 7 does not exist; choose from the 4 clients"):
        run(ClientInfluence([1, 7]))


def test_layers_without_second_derivatives_are_refused():
    class Once(Net):
        def forward(self, x: Tensor) -> Tensor:
            return Rounds.apply(super().forward(x) ** 2)

    with pytest.raises(ConfigError, match="the second derivative of Once cannot be computed"):
        run(ClientInfluence(), module=net(module=Once, **PLAIN))


@pytest.mark.parametrize("method", ["exact", "truncated"])
def test_the_trainers_state_is_as_without(method):
    module = net(**PLAIN)
    built = run(ClientInfluence(method=method), module=module)
    assert loop_of(built).borrower is None
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert same(state(module), state(run().lightning_module))
