"""FedVI: divergences, the bound in a linear-Gaussian model, one step of the objective."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as kl_of
from torch.nn import functional as F

from fedlightning import Algorithm, FedVI
from fedlightning.algorithms import AmortizedHead
from fedlightning.core.gaussian import DiagonalGaussian
from fedlightning.datamodules import ClientDatasets
from fedlightning.models import VariationalModule
from tests.algorithms.references.reference import Reference, close
from tests.toys import trainer


def replay(reference: Reference) -> None:
    """Replay the three cases."""
    _divergence(reference)
    _linear(reference)
    _objective(reference)


def number(text: str, pattern: str) -> float:
    """Return the number that a setting's text states."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return float(found[1])


def _divergence(reference: Reference) -> None:
    tolerance = reference.tolerance()
    q = DiagonalGaussian(reference["in.kl.q_mean"], reference["in.kl.q_std"])
    p = DiagonalGaussian(reference["in.kl.p_mean"], reference["in.kl.p_std"])
    close(q.kl(p), reference["out.kl"], tolerance, "divergence")
    close(q.kl(q), reference["out.kl_same"], tolerance, "divergence from itself")


def _linear(reference: Reference) -> None:
    """The bound: the expected log likelihood in closed form, minus the divergence."""
    text, tolerance = reference.about["settings"]["linear"], reference.tolerance()
    noise = number(text, r"X b \+ N\(0, ([\d.]+)\^2\)")
    spread = number(text, r"b ~ N\(0, ([\d.]+)\^2 I\)")
    x, y = reference["in.linear.x"], reference["in.linear.y"]
    mean, var = reference["in.linear.q_mean"], reference["in.linear.q_var"]
    q = DiagonalGaussian(mean, var.sqrt())
    prior = DiagonalGaussian(torch.zeros_like(mean), torch.full_like(mean, spread))

    def expected(mean: Tensor, cov: Tensor) -> Tensor:
        squares = (y - x @ mean).square().sum() + (x @ cov @ x.T).trace()
        return -0.5 * len(y) * math.log(2 * math.pi * noise**2) - squares / (2 * noise**2)

    bound = expected(mean, var.diag()) - q.kl(prior)
    close(bound, reference["out.linear.elbo_at_q"], tolerance, "bound at q")
    cov = torch.linalg.inv(x.T @ x / noise**2 + torch.eye(len(mean), dtype=x.dtype) / spread**2)
    best = cov @ x.T @ y / noise**2
    close(best, reference["out.linear.posterior_mean"], tolerance, "posterior mean")
    close(cov, reference["out.linear.posterior_cov"], tolerance, "posterior covariance")
    whole = MultivariateNormal(best, cov)
    wide = MultivariateNormal(prior.mean, torch.eye(len(mean), dtype=x.dtype) * spread**2)
    top = expected(best, cov) - kl_of(whole, wide)
    close(top, reference["out.linear.elbo_at_posterior"], tolerance, "bound at the posterior")
    close(top, reference["out.linear.log_evidence"], tolerance, "evidence")
    gap = kl_of(MultivariateNormal(mean, var.diag()), whole)
    close(gap, reference["out.linear.gap"], tolerance, "gap")
    close(top - bound, reference["out.linear.gap"], tolerance, "what the bound lacks")


class Given(VariationalModule):
    """Embeddings as inputs; prior and posterior are given as they are."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(lr=1.0, momentum=0.0, lr_milestones=(), fused=False)
        weight = reference["in.cls.global_head"]
        self.body = nn.Identity()
        self.head = nn.Linear(*weight.shape[::-1], bias=False)
        self.build_posterior()
        self.double()
        self.q_mean = nn.Parameter(reference["in.cls.q_mean"].clone())
        self.q_rho = nn.Parameter(reference["in.cls.q_rho"].clone())
        self.load_state_dict(
            {"head.weight": weight, "prior_mean": reference["in.cls.p_mean"],
             "prior_scale": reference["in.cls.p_rho"]}, strict=False,
        )  # fmt: skip

    def posterior(self, x: Tensor, y: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.q_mean, F.softplus(self.q_rho))


class GivenNoise(AmortizedHead):
    """Draws what it is given, and notes the loss; the first example is the support set."""

    def __init__(self, tau: float, given: Tensor, noted: list[Tensor]) -> None:
        super().__init__(tau)
        self.given, self.noted = given, noted

    def support_size(self, examples: int) -> int:
        return 1

    def noise(self, like: Tensor) -> Tensor:
        return self.given

    def on_loss(self, context: Any, batch: Any, loss: Tensor) -> Tensor:
        total = super().on_loss(context, batch, loss)
        self.noted.append(total.detach())
        return total


def _objective(reference: Reference) -> None:
    """One step of SGD with rate 1 moves each parameter by its gradient."""
    tolerance = reference.tolerance()
    tau = number(reference.about["settings"]["cls"], r"tau = ([\d.e-]+)")
    x, y = reference["in.cls.embeddings"], reference["in.cls.y"]
    module, noted = Given(reference), []
    before = {key: value.clone() for key, value in module.state_dict().items()}
    support = torch.zeros(1, dtype=torch.int64)
    pair = (torch.cat([x[:1], x]), torch.cat([support, y]))
    hook = GivenNoise(tau, reference["in.cls.noise"], noted)
    data = InOrder(train=[pair], test=[(x, y)], batch_size=len(x) + 1, num_classes=int(y.max()) + 1)
    trainer(Algorithm(local=[hook]), rounds=1, cohort=1.0).fit(module, datamodule=data)
    (loss,) = noted
    close(loss, reference["out.cls.loss"], tolerance, "loss")
    for name, key in {"q_mean": "q_mean", "q_rho": "q_rho", "p_mean": "prior_mean",
                      "p_rho": "prior_scale"}.items():  # fmt: skip
        moved = before[key] - module.state_dict()[key]
        close(moved, reference[f"out.cls.grad_{name}"], tolerance, f"gradient of {name}")
    module.load_state_dict(before)
    local_hook = FedVI(tau).hooks[0]
    kept = local_hook.adapt([(x, y)], module)
    predictor = local_hook.predictor(kept, module)
    assert predictor is not None
    predicted = predictor.predict(x).argmax(dim=1)
    assert torch.equal(predicted, reference["out.cls.prediction_at_mean"])


class InOrder(ClientDatasets):
    """Clients whose examples are visited in their order."""

    def epoch_order(self, key: Any, num_examples: int) -> Tensor:
        return torch.arange(num_examples)
