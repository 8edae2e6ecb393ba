"""FedPN: densities, loss and gradients, clamp, prediction, switch, aggregation."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from fedlightning import FedPN
from fedlightning.algorithms import ClientUpdate, FineTuning, Switch
from fedlightning.algorithms.aggregation import Mean
from fedlightning.core.dirichlet import (
    dirichlet_entropy,
    dirichlet_parameters,
    expected_entropy,
    expected_log_likelihood,
    log_evidence,
    mutual_information,
    uncertainty,
)
from fedlightning.models import GaussianClasses, PosteriorNetwork, RadialFlows
from fedlightning.models.posterior import posterior_loss
from tests.algorithms.references.reference import Reference, close

LAYERS = ("x0", "alpha_prime", "beta_prime")
APPROXIMATED = 1e4
"""The published measures are approximations where the sum of alpha is beyond."""


def replay(reference: Reference) -> None:
    """Replay a reference by its kind."""
    kind = reference.name.partition("_")[2]
    {
        "radial_flow": _radial_flow, "gaussian_density": _gaussian, "training_loss": _training,
        "clamp": _clamp, "prediction": _prediction, "switch": _switch, "aggregation": _aggregation,
    }[kind](reference)  # fmt: skip


def count(reference: Reference, pattern: str) -> int:
    """Return one more than the largest number that a pattern finds in the tensors' names."""
    return 1 + max(int(found[1]) for key in reference.tensors if (found := re.search(pattern, key)))


def chain(reference: Reference, start: str, length: int) -> list[Tensor]:
    """Return the parameters of one chain, or their gradients: (T, d), (T,), (T,)."""
    parts = [[reference[f"{start}radial{t}.{layer}"] for t in range(length)] for layer in LAYERS]
    return [torch.stack(parts[0]), torch.cat(parts[1]), torch.cat(parts[2])]


def flows(reference: Reference, start: str, classes: int) -> list[Tensor]:
    """Return the parameters of all classes, or their gradients."""
    length = count(reference, rf"{re.escape(start)}class0\.radial(\d+)")
    chains = [chain(reference, f"{start}class{c}.", length) for c in range(classes)]
    return [torch.stack(values) for values in zip(*chains, strict=True)]


def network(reference: Reference, start: str = "in.", **settings: Any) -> PosteriorNetwork:
    """Return the network of a reference, its encoder a linear layer."""
    weight = reference[f"{start}encoder.weight"]
    classes = len(reference[f"{start}head.2.bias"])
    centers, alpha, beta = flows(reference, f"{start}density.", classes)
    made = PosteriorNetwork(
        num_classes=classes, features=weight.shape[0], transforms=alpha.shape[1],
        encoder=nn.Linear(*weight.shape[::-1]), **settings,
    ).double()  # fmt: skip
    keys = ("body", "encoder"), ("head.0", "head.0"), ("head.2", "head.2")
    state = {
        f"{own}.{kind}": reference[f"{start}{theirs}.{kind}"]
        for own, theirs in keys
        for kind in ("weight", "bias")
    }
    state |= {"density.centers": centers, "density.alpha_prime": alpha, "density.beta_prime": beta}
    made.load_state_dict(state | {"density.prior": made.density.prior})
    return made.eval()


def _radial_flow(reference: Reference) -> None:
    z = reference["in.z"].clone().requires_grad_()
    length = count(reference, r"in\.radial(\d+)")
    density = RadialFlows(1, z.shape[1], length).double()
    values = chain(reference, "in.", length)
    with torch.no_grad():
        for parameter, value in zip(density.parameters(), values, strict=True):
            parameter.copy_(value[None])
    log_prob = density.log_prob(z)[:, 0]
    close(log_prob.detach(), reference["out.log_prob"], reference.tolerance(), "log_prob")
    ended, _ = density.flow(z, torch.tensor(0))
    close(ended.detach(), reference["out.flow_output"], reference.tolerance(), "flow_output")
    log_prob.sum().backward()
    bound = reference.tolerance("gradients")
    close(z.grad, reference["out.grad_z_of_sum"], bound, "gradient of z")
    wanted = chain(reference, "out.grad.", length)
    for name, parameter, want in zip(LAYERS, density.parameters(), wanted, strict=True):
        close(parameter.grad[0], want, bound, f"gradient of {name}")


def _gaussian(reference: Reference) -> None:
    bound, classes = reference.tolerance(), reference["out.means_after_1"].shape[0]
    density = GaussianClasses(classes, reference["in.embeddings1"].shape[1]).double()
    density.start()
    turn = 1
    while f"in.embeddings{turn}" in reference.tensors:
        density.observe(reference[f"in.embeddings{turn}"], reference[f"in.labels{turn}"])
        density.settle()
        mean, variance = density.moments()
        close(mean, reference[f"out.means_after_{turn}"], bound, f"means {turn}")
        close(variance.sqrt(), reference[f"out.stds_after_{turn}"], bound, f"stds {turn}")
        turn += 1
    found = density.log_prob(reference["in.query"]).T
    close(found, reference["out.log_prob"], bound, "log_prob")
    single = GaussianClasses(1, mean.shape[1])
    single.observe(torch.ones(1, mean.shape[1]), torch.tensor([0]))
    single.settle()
    assert torch.isfinite(single.log_prob(torch.zeros(1, mean.shape[1]))).all()


def _training(reference: Reference) -> None:
    values, gradients = reference.tolerance(), reference.tolerance("gradients")
    x, y = reference["in.x"], reference["in.y"]
    settings = reference.about["settings"]
    weights = {name: float(value) for said, value in settings.items()
               for name in re.findall(r"\w+", said.partition("(")[2])}  # fmt: skip
    for case, weight in weights.items():
        module = network(reference, likelihood_weight=weight, stop_gradient=case.startswith("stop"))
        loss = module.loss(x, y)
        close(loss.detach(), reference[f"out.{case}.loss"], values, f"{case} loss")
        loss.backward()
        wanted = dict(zip(("centers", "alpha_prime", "beta_prime"),
                          flows(reference, f"out.{case}.grad.density.", module.num_classes),
                          strict=True))  # fmt: skip
        wanted = {f"density.{key}": value for key, value in wanted.items()}
        for own, theirs in (("body", "encoder"), ("head.0", "head.0"), ("head.2", "head.2")):
            for kind in ("weight", "bias"):
                wanted[f"{own}.{kind}"] = reference[f"out.{case}.grad.{theirs}.{kind}"]
        for key, parameter in module.named_parameters():
            got = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            close(got, wanted[key], gradients, f"{case} gradient of {key}")
    with torch.no_grad():
        z = module.body(x)
        close(z, reference["out.embeddings"], values, "embeddings")
        q = module.head(z).softmax(dim=-1)
        close(q, reference["out.class_probabilities"], values, "class_probabilities")
        evidence = log_evidence(module.density.log_prob_of(z, y), z.shape[1])
        close(evidence, reference["out.log_evidence"], values, "log_evidence")
        alpha = dirichlet_parameters(q, evidence)
        close(alpha, reference["out.alpha"], values, "alpha")
        found = expected_log_likelihood(alpha, y)
        close(found, reference["out.expected_log_likelihood"], values, "expected_log_likelihood")


def _clamp(reference: Reference) -> None:
    bound = float(str(reference.about["tolerance"]["values"]).split()[0])
    settings, y = reference.about["settings"], reference["in.y"]
    log_prob = reference["in.log_prob"].clone().requires_grad_()
    q = reference["in.class_probabilities"]
    evidence = log_evidence(log_prob, settings["d"])
    close(evidence.detach(), reference["out.log_evidence"], bound, "log_evidence")
    alpha = dirichlet_parameters(q, evidence).detach()
    close(alpha, reference["out.alpha"], bound, "alpha")
    without = posterior_loss(q, evidence, evidence, y, 0.0)
    close(without.detach(), reference["out.loss_without_likelihood"], bound, "loss")
    posterior_loss(q, evidence, evidence, y, settings["lambda"]).sum().backward()
    close(log_prob.grad, reference["out.grad_log_prob"], bound, "gradient")


def compare(got: Tensor, want: Tensor, alpha: Tensor, bound: float, what: str) -> None:
    """Compare a measure, loosely where the published one is an approximation."""
    exact = alpha.sum(dim=-1) < APPROXIMATED
    close(got[exact], want[exact], bound, what)
    assert torch.allclose(got[~exact], want[~exact].to(got.dtype), rtol=1e-3, atol=1e-3), what


def _prediction(reference: Reference) -> None:
    module, bound = network(reference), reference.tolerance()
    module.density.prior.zero_()
    labels = reference["in.client_labels"]
    module.density.prior[labels] = reference["in.client_label_frequency"]
    with torch.no_grad():
        found = module.posterior(reference["in.x"])
        clamped = log_evidence(
            module.density.log_mixture(module.body(reference["in.x"])), module.density.features
        )
        logits = module(reference["in.x"])
    alpha = found.alpha
    close(alpha, reference["out.alpha"], bound, "alpha")
    close(logits.exp(), alpha, bound, "the network's outputs")
    close(clamped, reference["out.log_evidence_clamped"], bound, "evidence")
    close(found.evidence, reference["out.log_evidence_unclamped"], bound, "evidence, unclamped")
    assert torch.equal(logits.argmax(dim=1), reference["out.prediction"])
    for name, measure in (
        ("dirichlet_entropy", dirichlet_entropy),
        ("expected_categorical_entropy", expected_entropy),
        ("mutual_information", mutual_information),
    ):
        compare(measure(alpha), reference[f"out.{name}"], alpha, bound, name)


def _switch(reference: Reference) -> None:
    settings, bound = reference.about["settings"], reference.tolerance()
    classes, frequencies = settings["local: classes and frequencies"]
    x, y = reference["in.test_x"], reference["in.test_y"]
    general = {k: v.clone() for k, v in network(reference, "in.global.").state_dict().items()}
    local = network(reference, "in.local.")
    local.density.prior.zero_()
    local.density.prior[torch.tensor(classes)] = torch.tensor(frequencies, dtype=torch.float64)
    calibration = reference["in.calibration_x"]

    def batches(split: str) -> Any:
        assert split == "val", "calibration data is set apart"
        none = torch.zeros(len(calibration), dtype=torch.long)
        return iter([(calibration[:7], none[:7]), (calibration[7:], none[7:])])

    tuning = FineTuning(
        0, local, general, tuple(general), lambda c: torch.zeros(c),
        lambda split: len(calibration), batches,
    )  # fmt: skip
    measures = {key.split(".")[1] for key in reference.tensors if key.endswith(".threshold")}
    for measure in sorted(measures):
        sign = -1 if measure == "log_prob" else 1  # ours is the uncertainty
        hook = Switch(settings["quantile"], measure, "switch")
        with torch.no_grad():
            kept = hook.on_finetuning_end(tuning)
            predictor = hook.predictor(kept, local)
            found = local.posterior(calibration)
            at = local.posterior(x)
            compare(
                sign * uncertainty(measure, found.alpha, found.evidence),
                reference[f"out.{measure}.calibration_values"], found.alpha, bound, measure,
            )  # fmt: skip
            compare(
                sign * predictor.uncertainty(x), reference[f"out.{measure}.local_uncertainty"],
                at.alpha, bound, measure,
            )  # fmt: skip
            close(sign * predictor.threshold, reference[f"out.{measure}.threshold"], bound, measure)
            answers = [
                predict(x).argmax(dim=1)
                for predict in (predictor.predict, predictor.local, predictor.general)
            ]
        assert torch.equal(answers[0], reference[f"out.{measure}.switch_prediction"])
        assert torch.equal(answers[1], reference["out.local_prediction"])
        assert torch.equal(answers[2], reference["out.global_prediction"])
        correct = torch.tensor([int((answer == y).sum()) for answer in answers])
        assert torch.equal(correct, reference[f"out.{measure}.correct_switch_local_global"])


def _aggregation(reference: Reference) -> None:
    names = sorted(reference.under("in.global."))
    before = {name: reference[f"in.global.{name}"] for name in names}
    merging = FedPN().accumulator(Mean().start(before, names))
    for client, number in enumerate(reference["in.num_examples"].tolist()):
        state = {name: reference[f"in.client{client}.{name}"] for name in names}
        merging.push(ClientUpdate(client, state, number, received=before))
    merged = merging.result()
    for name in names:
        close(merged[name], reference[f"out.global.{name}"], reference.tolerance(), name)
