"""FedPN: evidence, the loss's gradients, what travels, personal models and the switch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from fedlightning import FedAdam, FedAvg, FedPN, FedProx, PersonalizationCallback
from fedlightning.algorithms import SwitchingPredictor
from fedlightning.core.dirichlet import (
    dirichlet_entropy,
    dirichlet_parameters,
    expected_entropy,
    expected_log_likelihood,
    log_evidence,
    mutual_information,
)
from fedlightning.core.state import under
from fedlightning.datamodules import ClientDatasets
from fedlightning.errors import ConfigError
from fedlightning.models import PosteriorNetwork
from fedlightning.personalization.models import (
    client_model,
    client_network,
    client_predictor,
    export_model,
)
from tests.algorithms.one_client import update_of
from tests.toys import CLASSES, FEATURES, data, examples, fit, loop_of, net, same, state, trainer

PART = "head + density"


class Small(PosteriorNetwork):
    """For the toy data."""

    def __init__(self, density: str = "gaussian", **kwargs) -> None:
        super().__init__(
            **{
                "in_features": FEATURES, "hidden": [6], "num_classes": CLASSES, "features": 2,
                "transforms": 3, "density": density, "lr": 0.02, **kwargs,
            }
        )  # fmt: skip


def small(**kwargs) -> Small:
    return net(module=Small, **kwargs)


def tuning(**kwargs) -> PersonalizationCallback:
    return PersonalizationCallback(
        **{
            "part": PART, "epochs": 3, "nearest_mean": False,
            "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.02), **kwargs,
        }
    )  # fmt: skip


# -- the model ------------------------------------------------------------------------------------


def test_evidence_at_the_mode_and_what_follows():
    at_mode = torch.tensor(-math.log(2 * math.pi), dtype=torch.float64)
    evidence = log_evidence(at_mode, dim=2)
    assert float(evidence) == pytest.approx(math.log(2), abs=1e-12)
    alpha = dirichlet_parameters(torch.tensor([[0.5, 0.3, 0.2]]).double(), evidence[None])
    assert alpha[0].tolist() == pytest.approx([2.0, 1.6, 1.4], abs=1e-7)
    for d in (1, 3, 16):
        at_mode = torch.tensor(-0.5 * d * math.log(2 * math.pi), dtype=torch.float64)
        assert float(log_evidence(at_mode, d).exp()) == pytest.approx(2 ** (d / 2), rel=1e-12)


def test_without_evidence_nothing_is_known():
    far = log_evidence(torch.tensor([-1e6], dtype=torch.float64), 2)
    assert float(far) == -50
    alpha = dirichlet_parameters(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64), far)
    assert alpha[0].tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    first_term = -expected_log_likelihood(alpha, torch.tensor([0]))
    assert float(first_term) == pytest.approx(1.5, abs=1e-12)  # psi(3) - psi(1)


def test_the_clamp_stops_values_and_lets_gradients_pass():
    log_prob = torch.tensor([-500.0, 0.0, 500.0], requires_grad=True)
    found = log_evidence(log_prob, 2)
    assert found.detach()[[0, 2]].tolist() == [-50, 50]
    found.sum().backward()
    assert log_prob.grad.tolist() == [1, 1, 1]


def test_measures_of_uncertainty_against_sampling():
    alpha = torch.tensor([[2.0, 3.0, 1.5]], dtype=torch.float64)
    distribution = torch.distributions.Dirichlet(alpha[0])
    assert float(dirichlet_entropy(alpha)) == pytest.approx(float(distribution.entropy()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        p = distribution.sample((200_000,))
    entropies = -(p * p.log()).sum(dim=1)
    assert float(expected_entropy(alpha)) == pytest.approx(float(entropies.mean()), abs=3e-3)
    mean = alpha / alpha.sum()
    whole = float(-(mean * mean.log()).sum())
    gap = whole - float(expected_entropy(alpha))
    assert float(mutual_information(alpha)) == pytest.approx(gap, abs=1e-12)


def gradients(**settings) -> dict[str, torch.Tensor]:
    module = small(density="radial", **settings).double()
    x, y = examples(8, 0)
    module.loss(x.double(), y).backward()
    return {k: p.grad for k, p in module.named_parameters() if p.grad is not None}


def test_gradients_of_the_first_term_do_not_reach_the_density():
    without = gradients(likelihood_weight=0.0)
    density = [key for key in without if key.startswith("density")]
    assert all(without[key].abs().max() == 0 for key in density)
    assert without["body.1.weight"].abs().max() > 0
    assert without["head.0.weight"].abs().max() > 0
    with_likelihood = gradients(likelihood_weight=0.1)
    assert with_likelihood["density.centers"].abs().max() > 0
    assert not with_likelihood["body.1.weight"].equal(without["body.1.weight"])
    assert with_likelihood["head.0.weight"].equal(without["head.0.weight"])
    free = gradients(likelihood_weight=0.0, stop_gradient=False)
    assert free["density.centers"].abs().max() > 0


@pytest.mark.parametrize("density", ["gaussian", "radial"])
def test_outputs_are_the_logarithms_of_the_dirichlet_parameters(density):
    module = small(density=density).double()
    x = examples(5, 1)[0].double()
    module.density.prior.copy_(torch.tensor([0.5, 0.5, 0.0]))
    with torch.no_grad():
        z = module.body(x)
        p = (module.density.log_prob(z).exp() * module.density.prior).sum(dim=1)
        q = module.head(z).softmax(dim=1)
        alpha = 1 + q * (p * (4 * math.pi) ** (2 / 2))[:, None]
        assert torch.allclose(module(x), alpha.log(), atol=1e-10)
        assert torch.allclose(module.posterior(x).alpha, alpha, atol=1e-10)


# -- federation -----------------------------------------------------------------------------------


def test_with_radial_flows_it_is_fedavg_of_the_network_bit_for_bit():
    ours, plain = small(density="radial"), small(density="radial")
    fit(ours, FedPN(), rounds=3)
    fit(plain, FedAvg(), rounds=3)
    assert same(state(ours), state(plain))


def test_messages_are_the_parameters_and_nothing_is_kept():
    seen = []

    class Listening(FedPN):
        def weight(self, update):
            seen.append((set(update.state), dict(update.extras)))
            return super().weight(update)

    loop = loop_of(fit(small(), Listening(), rounds=2))
    assert all(keys == set(state(small())) and not extras for keys, extras in seen)
    assert not loop.server.state_dict()
    assert len(loop.client_store) == 0


def few_classes(missing: int = 2) -> ClientDatasets:
    """Return clients of which one alone has the class ``missing``."""
    pairs = []
    for client, n in enumerate((12, 10, 14)):
        x, y = examples(60, client)
        chosen = (y != missing) if client else torch.ones(60, dtype=torch.bool)
        pairs.append((x[chosen][:n], y[chosen][:n]))
    return ClientDatasets(pairs, [examples(6, 9)] * 3, num_classes=CLASSES, batch_size=4)


def test_a_class_that_nobody_of_a_round_has_keeps_its_density():
    def rounds(algorithm, cohorts):
        module = small()
        built = trainer(algorithm, rounds=len(cohorts), cohort=2)
        loop_of(built).cohort = cohorts.__getitem__
        built.fit(module, datamodule=few_classes())
        return module

    with_class = rounds(FedPN(), [(0, 1)])
    after = rounds(FedPN(), [(0, 1), (1, 2)])
    assert with_class.density.share[2] > 0
    for moment, before in zip(after.density.moments(), with_class.density.moments(), strict=True):
        assert torch.equal(moment[2], before[2])
        assert not torch.equal(moment[0], before[0])
    forgetting = rounds(FedAvg(), [(0, 1), (1, 2)])
    assert float(forgetting.density.share[2]) == 0


def test_gaussians_are_set_from_the_features_of_the_turn():
    module = small(lr=1e-30).double()
    x, y = examples(12, 3)
    batches = [(part.double(), own) for part, own in zip(x.split(4), y.split(4), strict=True)]
    update, _ = update_of(module, FedPN(), batches)
    with torch.no_grad():
        z = small().double().body(x.double())
    sent = small().double()
    sent.load_state_dict(update.state)
    mean, variance = sent.density.moments()
    for c in y.unique().tolist():
        assert torch.allclose(mean[c], z[y == c].mean(dim=0), atol=1e-10)
        if (y == c).sum() > 1:
            assert torch.allclose(variance[c], z[y == c].var(dim=0), atol=1e-10)


@pytest.mark.parametrize("density", ["gaussian", "radial"])
def test_a_stopped_run_goes_on(density, tmp_path):
    whole = small(density=density)
    fit(whole, FedPN(), rounds=3)
    first = fit(small(density=density), FedPN(), rounds=1)
    first.save_checkpoint(tmp_path / "one.ckpt")
    resumed = small(density=density, seed=5)
    fit(resumed, FedPN(), rounds=3, ckpt=tmp_path / "one.ckpt")
    assert same(state(whole), state(resumed))


def test_a_client_that_fails_leaves_no_features_behind():
    class Failing(Small):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            super().on_train_batch_end(outputs, batch, batch_idx)
            if len(batch[1]) == 3:
                raise ValueError("bad luck")

    module, other = net(module=Failing), small()
    with pytest.warns(UserWarning, match="bad luck"):
        fit(
            module, FedPN(), rounds=2, datamodule=data((8, 8, 7, 4)),
            federation={"on_client_failure": "skip"},
        )  # fmt: skip
    built = trainer(FedPN(), rounds=2, cohort=3)
    loop_of(built).cohort = [(0, 1, 3), (0, 1, 3)].__getitem__
    built.fit(other, datamodule=data((8, 8, 7, 4)))
    assert same(state(module), state(other))


# -- personalization ------------------------------------------------------------------------------


def finished(tmp_path, algorithm=None, val_fraction: float = 0.3, **kwargs):
    module, callback = small(), tuning(**kwargs)
    some = data((20, 16, 18, 20), val_fraction=val_fraction, seed=0)
    built = fit(
        module, algorithm or FedPN(quantile=0.6), datamodule=some, folder=tmp_path,
        callbacks=[callback], rounds=2,
    )  # fmt: skip
    return module, callback, some, built


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a finished run: module, callback, data, trainer."""
    return finished(tmp_path_factory.mktemp("fedpn"))


def predictor_of(run, client: int, algorithm=None) -> tuple[SwitchingPredictor, Small]:
    again = small(seed=3)
    made = client_predictor(run[3].log_dir, client, again, algorithm or FedPN(quantile=0.6))
    return made, again


def test_a_personal_model_has_its_own_head_and_density_and_the_global_encoder(run):
    module, _, some, _ = run
    model = state(module)
    for client in range(4):
        predictor, own = predictor_of(run, client)
        personal = state(own)
        for key, value in model.items():
            assert personal[key].equal(value) == key.startswith("body"), key
        counts = torch.bincount(torch.from_numpy(some.labels(client)), minlength=CLASSES)
        assert torch.allclose(own.density.prior, counts / counts.sum())
        assert model["density.prior"].tolist() == pytest.approx([1 / 3] * 3)
        keys = {k for k in model if not k.startswith("body")}
        assert predictor.state_dict().keys() == {"fedpn:threshold"} | {f"fedpn/{k}" for k in keys}
        assert same(under(predictor.state_dict(), "fedpn"), {k: model[k] for k in keys})


def test_the_threshold_is_a_quantile_over_data_set_apart(run):
    _, _, some, _ = run
    for client in range(4):
        predictor, own = predictor_of(run, client)
        with torch.no_grad():
            (x, _), *more = some.batches(client, "val")
            assert not more
            u = dirichlet_entropy(own.posterior(x).alpha.double()).sort().values
        place = 0.6 * (len(u) - 1)
        low = int(place)
        by_hand = u[low] + (place - low) * (u[min(low + 1, len(u) - 1)] - u[low])
        assert float(predictor.threshold) == pytest.approx(float(by_hand), abs=1e-6)


def test_the_switch_is_what_is_measured(run):
    module, callback, some, _ = run
    for client in range(4):
        predictor, own = predictor_of(run, client)
        ((x, y),) = some.batches(client, "test")
        with torch.no_grad():
            u = dirichlet_entropy(own.posterior(x).alpha.double())
            local = u < predictor.threshold
            answers = torch.where(local[:, None], own(x), module.eval()(x))
            assert torch.equal(predictor.predict(x), answers)
            accuracy = float((answers.argmax(1) == y).double().mean())
            before = float((module(x).argmax(1) == y).double().mean())
        assert callback.results[client].after["acc"] == pytest.approx(accuracy)
        assert callback.results[client].before["acc"] == pytest.approx(before)


def test_an_input_exactly_at_the_threshold_goes_to_the_global_model():
    module = small()
    general = {k: v for k, v in state(small(seed=8)).items() if not k.startswith("body")}
    x = examples(6, 4)[0]
    with torch.no_grad():
        u = dirichlet_entropy(module.posterior(x).alpha.double()).sort().values
    predictor = SwitchingPredictor(module, general, u[2])
    with torch.no_grad():
        chosen = predictor.is_local(x)
        assert int(chosen.sum()) == 2, "those below, not the one that is equal"
        by_hand = functional_call(module, general, (x,))
        assert torch.equal(predictor.predict(x)[~chosen], by_hand[~chosen])
        assert torch.equal(predictor.predict(x)[chosen], module(x)[chosen])


@pytest.mark.parametrize("answer", ["local", "global"])
def test_one_models_answers_alone(answer, run, tmp_path):
    _, callback, _, _ = finished(tmp_path, FedPN(quantile=0.6, answer=answer))
    module, _, some, _ = run
    for client in range(4):
        _, own = predictor_of(run, client)
        ((x, y),) = some.batches(client, "test")
        with torch.no_grad():
            logits = own(x) if answer == "local" else module.eval()(x)
        expected = float((logits.argmax(1) == y).double().mean())
        assert callback.results[client].after["acc"] == pytest.approx(expected)


def test_personalization_does_not_change_the_global_model_or_depend_on_the_others(run, tmp_path):
    module, _, _, built = run
    again = small()
    fit(again, FedPN(quantile=0.6), datamodule=data((20, 16, 18, 20), val_fraction=0.3, seed=0))
    assert same(state(module), state(again))
    with tuning().personalizer(built).at_work() as personalizer:
        personalizer.client(2)
        alone = state(module)
    _, own = predictor_of(run, 2)
    assert same(alone, state(own))
    assert same(state(module), state(again))


def test_a_curve_has_the_switch_of_every_epoch(tmp_path):
    _, callback, _, _ = finished(tmp_path, curve=True)
    _, plain, _, _ = finished(tmp_path / "plain")
    for result, other in zip(callback.results, plain.results, strict=True):
        assert len(result.scores) == 4
        assert result.after == other.after


def test_without_epochs_clients_answer_with_the_global_model(tmp_path):
    _, callback, _, built = finished(tmp_path, epochs=0)
    assert all(result.before == result.after for result in callback.results)
    assert same(state(client_model(built.log_dir, 1, small(seed=4))), state(built.lightning_module))


def test_without_data_set_apart_the_training_data_calibrates(tmp_path):
    _, _, some, built = finished(tmp_path, val_fraction=0.0)
    own = small(seed=3)
    predictor = client_predictor(built.log_dir, 1, own, FedPN(quantile=0.6))
    with torch.no_grad():
        x = torch.cat([x for x, _ in some.batches(1, "train")])
        u = dirichlet_entropy(own.posterior(x).alpha.double())
    assert float(predictor.threshold) == pytest.approx(float(u.quantile(0.6)), abs=1e-6)


def test_a_plain_model_cannot_be_had_of_a_client_that_switches(run):
    with pytest.raises(ConfigError, match=r"load it with client_predictor\(run, client"):
        client_model(run[3].log_dir, 1, small(seed=4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_client_that_switches_is_exported_whole(run, tmp_path):
    module, _, some, built = run
    network = client_network(built.log_dir, 2, small(seed=4), lambda: FedPN(quantile=0.6))
    file = export_model(network, tmp_path / "two.pt2", example=torch.zeros(2, FEATURES))
    predictor, _ = predictor_of(run, 2)
    ((x, _),) = some.batches(2, "test")
    with torch.no_grad():
        found = torch.export.load(file).module()(x)
        assert torch.allclose(found, predictor.predict(x), atol=1e-6)
    whole = client_network(built.log_dir, "global", small(seed=4), FedPN)
    assert same(state(whole), state(module))


def test_what_cannot_be_is_refused_before_the_first_round():
    with pytest.raises(ConfigError, match=r"needs a module with a posterior.* Net has none"):
        fit(net(), FedPN(), callbacks=[PersonalizationCallback(epochs=1)])
    with pytest.raises(ConfigError, match=r"set part='head \+ density'"):
        fit(small(), FedPN(), callbacks=[PersonalizationCallback(epochs=1)])
    with pytest.raises(
        ConfigError, match=r"measure must be one of entropy, log_prob.*Did you mean"
    ):
        FedPN(measure="entrpoy")
    with pytest.raises(ConfigError, match=r"quantile must be in \[0, 1\], got 1.5"):
        FedPN(quantile=1.5)
    with pytest.raises(ConfigError, match="density must be radial or gaussian, got 'normal'"):
        small(density="normal")


def test_it_composes():
    module = small(density="radial")
    fit(module, FedPN() + FedProx(0.1) + FedAdam(), rounds=2)
    assert all(torch.isfinite(value).all() for value in state(module).values())
