"""Densities of classes: they integrate to one, mix, and Gaussians merge exactly over clients."""

from __future__ import annotations

import math

import pytest
import torch

from fedlightning.errors import ConfigError
from fedlightning.models import GaussianClasses, RadialFlows


def gaussian(features: int) -> GaussianClasses:
    density = GaussianClasses(2, features).double()
    generator = torch.Generator().manual_seed(features)
    z = 0.8 * torch.randn(40, features, generator=generator, dtype=torch.float64) + 0.3
    density.observe(z, torch.arange(40) % 2)
    density.settle()
    return density


def radial(features: int) -> RadialFlows:
    with torch.random.fork_rng():
        torch.manual_seed(features)
        return RadialFlows(2, features, transforms=6).double()


@pytest.mark.parametrize("make", [gaussian, radial])
def test_a_density_integrates_to_one_in_one_dimension(make):
    z = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    with torch.no_grad():
        total = make(1).log_prob(z[:, None]).exp().sum(dim=0) * (z[1] - z[0])
    assert torch.allclose(total, torch.ones_like(total), atol=1e-4)


@pytest.mark.parametrize("make", [gaussian, radial])
def test_a_density_integrates_to_one_in_two_dimensions(make):
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = make(2).log_prob(grid).exp().sum(dim=0) * (axis[1] - axis[0]) ** 2
    assert torch.allclose(total, torch.ones_like(total), atol=1e-3)


def test_a_transform_is_what_its_formula_says():
    density = RadialFlows(1, 3, transforms=1).double()
    z = torch.tensor([0.4, -1.2, 0.7], dtype=torch.float64)
    with torch.no_grad():
        center, a_, b_ = density.centers[0, 0], density.alpha_prime[0, 0], density.beta_prime[0, 0]
        a = math.log1p(math.exp(a_))
        b = -a + math.log1p(math.exp(b_))

        def moved(point):
            r = float((point - center).norm())
            return point + b / (a + r) * (point - center)

        jacobian = torch.autograd.functional.jacobian(
            lambda p: p + b / (a + (p - center).norm()) * (p - center), z
        )
        want = -0.5 * float(moved(z).square().sum()) - 1.5 * math.log(2 * math.pi)
        want += float(torch.linalg.det(jacobian).abs().log())
        assert float(density.log_prob(z[None])[0, 0]) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("make", [gaussian, radial])
def test_a_mixture_of_one_class_is_its_density(make):
    density, z = make(2), torch.randn(7, 2, dtype=torch.float64)
    density.prior.copy_(torch.tensor([0.0, 1.0]))
    assert torch.allclose(density.log_mixture(z), density.log_prob(z)[:, 1], atol=1e-12)
    density.prior.copy_(torch.tensor([0.25, 0.75]))
    by_hand = (density.log_prob(z).exp() * torch.tensor([0.25, 0.75])).sum(dim=1).log()
    assert torch.allclose(density.log_mixture(z), by_hand, atol=1e-12)


@pytest.mark.parametrize("make", [gaussian, radial])
def test_the_density_of_an_examples_class_is_that_column(make):
    density, z = make(3), torch.randn(6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    want = density.log_prob(z)[torch.arange(6), labels]
    for constant in (False, True):
        assert torch.allclose(density.log_prob_of(z, labels, constant), want, atol=1e-12)


def test_constant_parameters_get_no_gradients_and_features_do():
    density = radial(2)
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    density.log_prob_of(z, torch.zeros(5, dtype=torch.long), constant=True).sum().backward()
    assert z.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in density.parameters())


def test_moments_are_the_unbiased_ones_of_all_that_the_turn_has_seen():
    density = GaussianClasses(4, 2).double()
    first, second = torch.randn(6, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 1, 3]), torch.tensor([0, 1, 1, 0, 0])
    density.start()
    density.observe(first, labels[0])
    density.settle()
    density.observe(second, labels[1])
    density.settle()
    z, y = torch.cat([first, second]), torch.cat(labels)
    mean, variance = density.moments()
    for c in (0, 1):
        assert torch.allclose(mean[c], z[y == c].mean(dim=0), atol=1e-12)
        assert torch.allclose(variance[c], z[y == c].var(dim=0), atol=1e-12)
    assert torch.equal(mean[2], torch.zeros(2, dtype=torch.float64)), "nobody's class"
    assert torch.equal(variance[2], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(mean[3], z[y == 3][0], atol=1e-12), "one example has no deviation"
    assert torch.allclose(variance[3], torch.ones(2, dtype=torch.float64), atol=1e-12)
    density.start()
    density.observe(second, labels[1])
    density.settle()
    assert torch.allclose(density.moments()[0][0], second[labels[1] == 0].mean(dim=0), atol=1e-12)


def test_the_mean_over_clients_is_the_mixture_and_absent_classes_do_not_pull():
    parts = [torch.randn(n, 2, dtype=torch.float64) + n for n in (8, 20, 5)]
    labels = [torch.arange(8) % 2, torch.zeros(20, dtype=torch.long), torch.ones(5).long()]
    clients = []
    for z, y in zip(parts, labels, strict=True):
        density = GaussianClasses(3, 2).double()
        density.observe(z, y)
        density.settle()
        clients.append(density)
    merged, sizes = GaussianClasses(3, 2).double(), torch.tensor([8.0, 20.0, 5.0]).double() / 33
    for name in ("share", "first", "second"):
        parts_of = torch.stack([getattr(density, name) for density in clients])
        getattr(merged, name).copy_(torch.einsum("k,k...->...", sizes, parts_of))
    z, y = torch.cat(parts), torch.cat(labels)
    mean, variance = merged.moments()
    for c in (0, 1):
        assert torch.allclose(mean[c], z[y == c].mean(dim=0), atol=1e-12)
        groups = [p[own == c] for p, own in zip(parts, labels, strict=True) if (own == c).any()]
        within = sum(len(g) * g.var(dim=0) for g in groups)
        between = sum(len(g) * (g.mean(dim=0) - mean[c]).square() for g in groups)
        assert torch.allclose(variance[c], (within + between) / (y == c).sum(), atol=1e-10)
    assert torch.equal(variance[2], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("make", [gaussian, radial])
def test_reset_starts_anew(make):
    density = make(2)
    density.prior.copy_(torch.tensor([0.9, 0.1]))
    before = {key: value.clone() for key, value in density.state_dict().items()}
    density.reset_parameters()
    assert density.prior.tolist() == [0.5, 0.5]
    moved = {key for key, value in density.state_dict().items() if not value.equal(before[key])}
    assert moved == set(before)
    assert all(p.abs().max() <= 2**-0.5 for p in density.parameters())


def test_no_features_are_refused():
    with pytest.raises(ConfigError, match="features must be an integer >= 1, got 0"):
        GaussianClasses(3, 0)
    with pytest.raises(ConfigError, match="transforms must be an integer >= 1, got 0"):
        RadialFlows(3, 2, transforms=0)
