"""FedImpro: upper layers also train on features that all clients draw from the same Gaussians."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import Aggregation, ClientHook
from fedlightning.core.batches import Batch, class_labels
from fedlightning.core.class_moments import ClassSums
from fedlightning.core.messages import Down, Up
from fedlightning.core.seeding import Key, default_seed
from fedlightning.core.state import State
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlightning.algorithms.context import ClientContext

__all__ = ["FedImpro", "SharedFeatures"]

_NAME, _SUMS = "fedimpro", "fedimpro_sums"

Form = Literal["joint", "sum", "mixture"]
Fakes = Literal["batch", "balanced"]


class SharedFeatures(ClientHook):
    """Trains the layers above a cut on drawn features, too, and collects the moments to draw from.

    Args:
        cut: The layer, by name, whose outputs are the features.
        form: How the two losses are joined; see :meth:`joined`.
        fakes: Whose labels the drawn features have: those of the ``batch``, or as many of every
            class (``balanced``).
        weight: Weight of the loss on drawn features; with 0 none are drawn.
        ramp_rounds: Rounds in which the weight rises from 0 to ``weight``; ``None`` means none.
        momentum: Share of the old moments in the server's new ones.
        noise: Standard deviation of Gaussian noise that the server adds to new moments.
    """

    messages = (Down(_NAME), Up(_SUMS, merge="sum"))

    def __init__(
        self,
        cut: str,
        form: Form,
        fakes: Fakes,
        weight: float,
        ramp_rounds: int | None,
        momentum: float,
        noise: float,
    ) -> None:
        for name, value, known in (
            ("form", form, get_args(Form)),
            ("fakes", fakes, get_args(Fakes)),
        ):
            if value not in known:
                raise ConfigError(
                    f"algorithm.{name} must be one of {', '.join(known)}, got {value!r}."
                    f"{did_you_mean(str(value), known)}"
                )
        check_number("algorithm.weight", weight, at_least=0)
        if form == "mixture":
            check_number("algorithm.weight", weight, at_least=0, at_most=1)
        if ramp_rounds is not None:
            check_integer("algorithm.ramp_rounds", ramp_rounds, at_least=1)
        check_number("algorithm.momentum", momentum, at_least=0, below=1)
        check_number("algorithm.noise", noise, at_least=0)
        self.cut = cut
        self.form = form
        self.fakes = fakes
        self.weight = weight
        self.ramp_rounds = ramp_rounds
        self.momentum = momentum
        self.noise = noise

    # -- at the client -------------------------------------------------------------------------

    def weight_in(self, version: int) -> float:
        """Return the weight of the drawn features' loss, given the number of commits so far.

        Example:
            >>> hook = FedImpro(weight=0.5, ramp_rounds=10).local[0]
            >>> hook.weight_in(0), hook.weight_in(5), hook.weight_in(99)
            (0.0, 0.25, 0.5)
        """
        if self.ramp_rounds is None:
            return self.weight
        return self.weight * min(1.0, version / self.ramp_rounds)

    def fake_labels(self, labels: Tensor, known: Tensor) -> Tensor:
        """Return the labels of the features that are drawn for a batch.

        Args:
            labels: The batch's own, shape (n,).
            known: Whether the moments of each class are known, shape (C,).
        """
        labels = labels[labels >= 0]
        if self.fakes == "balanced":
            classes = torch.arange(len(known), device=labels.device)
            labels = classes.repeat(len(labels) // len(classes) + 1)
        return labels[known[labels]]

    def draw(self, mean: Tensor, std: Tensor, labels: Tensor) -> Tensor:
        """Return a feature for each label: elementwise normal, a constant for every gradient.

        Args:
            mean: Shape (C, d).
            std: Shape (C, d).
            labels: Shape (n,).
        """
        return mean[labels] + std[labels] * torch.randn_like(std[labels])

    def joined(self, real: Tensor, fake: Tensor, num_real: int, num_fake: int, w: float) -> Tensor:
        r"""Return the loss of a batch, given the means over its two kinds of samples.

        ``joint`` is the mean over all samples, those that were drawn with weight w:
        :math:`(N \ell + w \hat N \hat\ell) / (N + w \hat N)`; ``sum`` is
        :math:`\ell + w \hat\ell`; ``mixture`` is :math:`(1 - w) \ell + w \hat\ell`.
        """
        if self.form == "joint":
            weights = num_real, w * num_fake
            return (weights[0] * real + weights[1] * fake) / sum(weights)
        return real + w * fake if self.form == "sum" else (1 - w) * real + w * fake

    def on_update_start(self, context: ClientContext) -> None:
        """Read the moments that all clients share."""
        context.scratch[_NAME] = _Splice(self, context)

    def local_step(self, context: ClientContext, batch: Batch, batch_idx: int) -> Tensor | None:
        """Take a step on the batch, with drawn features beside its own above the cut."""
        splice: _Splice = context.scratch[_NAME]
        with splice.at_work(context, class_labels(batch, "FedImpro")):
            loss = context.gradient(batch, batch_idx)
        context.update(batch_idx)
        return loss

    def on_loss(self, context: ClientContext, batch: Batch, loss: Tensor) -> Tensor:
        """Join the loss on drawn features; take the batch's own into the class sums."""
        splice: _Splice = context.scratch[_NAME]
        splice.collect()
        if splice.logits is None:
            return loss
        fake = F.cross_entropy(splice.logits, splice.fake_labels)
        sizes = len(splice.labels), len(splice.fake_labels)
        return self.joined(loss, fake, *sizes, splice.weight)

    def on_update_end(self, context: ClientContext) -> None:
        """Send the class sums."""
        sums: ClassSums | None = context.scratch[_NAME].sums
        if sums is not None:
            context.send_extra(_SUMS, vars(sums))

    # -- at the server -------------------------------------------------------------------------

    def on_aggregate(self, aggregation: Aggregation) -> State:
        r"""Return :math:`\mu_c \leftarrow \beta \mu_c + (1 - \beta) \mu_c^{new}`, variances alike.

        A class that nobody had keeps its moments; one that is new takes what was found.
        """
        names = ("count", "total", "squares")
        if any(f"{_SUMS}/{name}" not in aggregation.extras for name in names):
            return {}
        sums = ClassSums(*(aggregation.extras[f"{_SUMS}/{name}"].double() for name in names))
        new = dict(zip(("mean", "variance"), sums.moments(), strict=True))
        if self.noise:
            key = Key(default_seed(), "server", round=aggregation.version, client=1)
            noise = key.torch()
            for value in new.values():
                value += self.noise * torch.randn(
                    value.shape, generator=noise, dtype=value.dtype
                ).to(value.device)
            new["variance"].clamp_(min=0)
        present = (sums.count > 0).unsqueeze(1)
        known = aggregation.state.get(f"{_NAME}/known")
        before = known.bool().unsqueeze(1) if known is not None else torch.zeros_like(present)
        result: State = {f"{_NAME}/known": (present | before).squeeze(1).long()}
        for name, value in new.items():
            old = aggregation.state.get(f"{_NAME}/{name}", value)
            mixed = torch.where(before, self.momentum * old + (1 - self.momentum) * value, value)
            result[f"{_NAME}/{name}"] = torch.where(present, mixed, old)
        return result


class _Splice:
    """Puts drawn features into forward passes at the cut, and takes out what comes of them."""

    def __init__(self, hook: SharedFeatures, context: ClientContext) -> None:
        self._hook = hook
        self._layer = context.layer(hook.cut)
        received = context.received_extra(_NAME)
        self.weight = hook.weight_in(context.version) if received else 0.0
        if received:
            self._moments = received["mean"], received["variance"].sqrt()
            self._known = received["known"].bool()
        self.sums: ClassSums | None = None
        self._forget()

    def _forget(self) -> None:
        self._inside = False
        self._features: Tensor | None = None
        self._num_classes = 0
        self.logits: Tensor | None = None
        self.labels = self.fake_labels = torch.empty(0, dtype=torch.long)

    @contextmanager
    def at_work(self, context: ClientContext, labels: Tensor) -> Iterator[None]:
        """Take part in the forward pass of the ``with`` block."""
        module = context.module
        self.labels = labels
        handles = [
            module.register_forward_pre_hook(self._begin),
            self._layer.register_forward_hook(self._insert),
            module.register_forward_hook(self._take_out),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._forget()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._inside = torch.is_grad_enabled()  # what looks on does so without gradients

    def _insert(self, layer: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not self._inside:
            return None
        if not isinstance(output, Tensor) or len(output) != len(self.labels):
            raise ConfigError(
                f"algorithm.cut={self._hook.cut!r}: the layer must give one row of features for "
                "each label; name another layer."
            )
        self._features = output.detach()
        if not self.weight:
            return None
        self.fake_labels = self._hook.fake_labels(self.labels, self._known)
        if not len(self.fake_labels):
            return None
        mean, std = (v.reshape(-1, *output.shape[1:]).to(output.dtype) for v in self._moments)
        return torch.cat([output, self._hook.draw(mean, std, self.fake_labels).detach()])

    def _take_out(self, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not self._inside or self._features is None:
            return None
        self._inside = False
        size = len(self.labels)
        if not isinstance(output, Tensor) or output.ndim != 2:
            raise ConfigError("FedImpro needs a module that returns logits, shape (n, classes).")
        self._num_classes = output.shape[1]
        if not len(self.fake_labels):
            return None
        self.logits = output[size:]
        return output[:size]

    def collect(self) -> None:
        """Take the features of the forward pass into the sums."""
        if self._features is None or not self._num_classes:
            raise ConfigError(
                f"algorithm.cut={self._hook.cut!r}: no features were seen; call self(inputs) in "
                "training_step, and name a layer that it reaches."
            )
        rows = self._features.flatten(1)
        if self.sums is None:
            self.sums = ClassSums.zeros(self._num_classes, rows.shape[1], rows.device)
        self.sums.add(rows, self.labels)


class FedImpro(Algorithm):
    r"""FedImpro.

    The network is cut into a low part :math:`\phi` and a high part :math:`\psi`. For every batch
    (x, y) of N examples a client draws :math:`\hat N` features :math:`\tilde h \sim
    N(\mu_{\tilde y}, \sigma_{\tilde y}^2)`, elementwise, and minimises the cross-entropies of
    :math:`\psi(\phi(x)), y` and of :math:`\psi(\tilde h), \tilde y`. Into :math:`\phi` and the
    moments no gradient of the latter flows. Beside the model a client sends, for each of C classes,
    count, sum and sum of squares of its d features: C (1 + 2d) numbers. The server adds them up and
    takes :math:`\mu_c \leftarrow \beta \mu_c + (1 - \beta) \mu_c^{new}`, variances alike.

    ``form="joint"``, the mean over all samples, is the one for which the paper's bound holds: with
    the same drawn features at all clients and :math:`\hat N = N`, squared distances between their
    gradients of :math:`\psi` are a quarter. The paper writes the ``sum`` (eq. 5), which leaves
    them as they are.

    This is FedImpro's loss and its exchange of class moments, as in the paper, with class sums that
    merge exactly where the paper has moving averages. It does not promise the paper's accuracies.
    Further deviations: a class has drawn features only once a client has had it, so there are none
    in the first round; the weight's ramp ends at ``weight``. BatchNorm layers above the cut
    normalise real and drawn features together; GroupNorm or LayerNorm do not.

    The cut is named as a layer of the module: its outputs are the features. For classification;
    the module's ``training_step`` must call ``self(inputs)``. It trains on a batch in its own way,
    so methods that do so, too, and robust rules, which cannot protect sums, are refused.

    Args:
        cut: Name of the last layer of :math:`\phi`, such as ``body`` or ``body.3``.
        form: ``joint``, ``sum`` or ``mixture``; see :meth:`SharedFeatures.joined`.
        fakes: Labels :math:`\tilde y`: those of the ``batch``, so :math:`\hat N = N`, or
            ``balanced``, C (N // C + 1) of them.
        weight: Weight w of the loss on drawn features. With 0 none are drawn, which is FedAvg.
        ramp_rounds: w rises linearly to ``weight`` over so many rounds.
        momentum: :math:`\beta`; the paper gives no value.
        noise: Standard deviation of Gaussian noise on the server's new moments.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a value is out of its range.

    Example:
        >>> FedImpro(cut="body", form="sum", ramp_rounds=100).local[0].weight_in(50)
        0.5

    Source:
        Tang, Zhang, Shi, Tian, Liu, Han, Chu. FedImpro: Measuring and Improving Client Update in
        Federated Learning. ICLR 2024. https://arxiv.org/abs/2402.07011
    """

    def __init__(
        self,
        cut: str = "body",
        form: Form = "joint",
        fakes: Fakes = "batch",
        weight: float = 1.0,
        ramp_rounds: int | None = None,
        momentum: float = 0.5,
        noise: float = 0.0,
        **choices: Any,
    ) -> None:
        hook = SharedFeatures(cut, form, fakes, weight, ramp_rounds, momentum, noise)
        super().__init__(local=[hook], **choices)
