"""Nothing stands between backward and the clipping of single examples' gradients."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

pytest.importorskip("opacus", reason="needs the extra opacus")

from pytorch_lightning.plugins.precision import MixedPrecision

from fedlightning import FedAvg, PrivateSGD
from fedlightning.errors import ConfigError
from fedlightning.privacy import example_level
from tests.privacy.test_example_level import SIZES, fitted, one_at_a_time
from tests.toys import examples, loop_of, net, state

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
C = 0.05


def private(**settings):
    return FedAvg() + PrivateSGD(0.0, max_grad_norm=C, batch_size=99, **settings)


@pytest.fixture
def seen(monkeypatch):
    """Note the norms of examples' gradients that reach the clipping, and of the sum after it."""
    noted, privatize = [], example_level.privatize

    def look(parameters, samples, *rest):
        privatize(parameters, samples, *rest)
        each = torch.stack([samples[p].flatten(1).double().norm(dim=1) for p in parameters])
        whole = torch.stack([p.grad.double().norm() for p in parameters]).norm()
        noted.append((each.norm(dim=0), float(whole) * 99))

    monkeypatch.setattr(example_level, "privatize", look)
    return noted


def true_norms(client):
    """Return the norms of the examples' gradients at the start, one backward pass each."""
    module, (x, y) = net(dropout=0.0), examples(SIZES[client], client)
    norms = []
    for at in range(len(x)):
        module.zero_grad()
        F.cross_entropy(module(x[at : at + 1]), y[at : at + 1]).backward()
        norms.append(torch.cat([p.grad.reshape(-1).double() for p in module.parameters()]).norm())
    return torch.stack(norms)


def test_a_gradient_scaler_is_refused_because_it_would_scale_what_is_clipped(seen):
    """A scaled gradient of 65,536 times the norm would be clipped to C and then divided by that.

    16-mixed is the precision that brings a scaler; the plugin with a real one, on this processor.
    """
    scaled = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match=r"PrivateSGD .* so does gradient scaling"):
        fitted(private(), cohort=1, plugins=[scaled])
    assert not seen


def test_bfloat16_has_no_scaler_and_clips_gradients_as_they_are(seen):
    built, _ = fitted(private(), cohort=1, precision="bf16-mixed")
    (client,) = loop_of(built).cohort(0)
    torch.testing.assert_close(seen[0][0], true_norms(client), rtol=0.05, atol=0.01)
    assert all(whole <= C * SIZES[client] for _, whole in seen)


def test_accumulation_is_refused():
    with pytest.raises(ConfigError, match=r"so does trainer\.accumulate_grad_batches=2"):
        fitted(private(), cohort=1, accumulate_grad_batches=2)


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_a_callback_or_a_module_that_changes_gradients_is_refused(hook):
    class Doubles(pl.Callback):
        pass

    setattr(Doubles, hook, lambda *args: None)
    with pytest.raises(ConfigError, match=rf"so does Doubles\.{hook}"):
        fitted(private(), cohort=1, callbacks=[Doubles()])

    class Own(type(net())):
        pass

    setattr(Own, hook, lambda *args: None)
    with pytest.raises(ConfigError, match=rf"so does Own\.{hook}"):
        fitted(private(), module=net(module=Own, dropout=0.0), cohort=1)


def test_clip_val_acts_on_the_noised_sum_and_not_on_examples(seen):
    """One step of plain loops: clip each example, sum, divide, then clip the result."""
    bound = 1e-4
    built, module = fitted(
        private(), cohort=1, gradient_clip_val=bound, federation={"seed": 1, "local_steps": 1}
    )
    (client,) = loop_of(built).cohort(0)
    torch.testing.assert_close(seen[0][0], true_norms(client), rtol=1e-6, atol=1e-9)
    by_hand = net(dropout=0.0)
    gradients = one_at_a_time(by_hand, *examples(SIZES[client], client), C)
    norm = float(torch.cat([g.reshape(-1) for g in gradients.values()]).norm()) / 99
    assert norm > bound
    for key, value in state(by_hand).items():
        moved = 0.1 * gradients[key] / 99 * bound / norm
        torch.testing.assert_close(state(module)[key], value - moved, rtol=1e-5, atol=1e-8)


def test_two_workers_do_not_average_gradients():
    """Each client's update is its own: the bits are those of one process."""
    one = state(fitted(private())[1])
    two = state(fitted(private(), devices=2)[1])
    assert all(torch.equal(one[key], two[key]) for key in one)
