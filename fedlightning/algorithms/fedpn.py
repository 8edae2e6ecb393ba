"""FedPN: clients choose, input by input, between a model of their own and the global one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from fedlightning.algorithms.aggregation import Accumulator
from fedlightning.algorithms.algorithm import Algorithm, UpdateAccumulator
from fedlightning.algorithms.method import ClientHook
from fedlightning.core.batches import class_labels
from fedlightning.core.dirichlet import Measure, uncertainty
from fedlightning.core.messages import ClientUpdate
from fedlightning.core.predictors import Predictor
from fedlightning.core.state import State, under
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from fedlightning.algorithms.finetuning import FineTuning

__all__ = ["FedPN", "Switch", "SwitchingPredictor"]

_NAME, _THRESHOLD = "fedpn", "fedpn:threshold"

Answer = Literal["switch", "local", "global"]


@runtime_checkable
class HasPosterior(Protocol):
    """A module with a posterior, such as :class:`~fedlightning.models.PosteriorNetwork`."""

    num_classes: int

    def posterior(self, x: Tensor) -> Any:
        """Return Dirichlet parameters ``alpha``, ``log_alpha`` and log ``evidence``."""

    def reset_personal(self, frequencies: Tensor) -> None:
        """Draw head and density anew."""

    def part_keys(self, part: str) -> tuple[str, ...]:
        """Return the keys of a part."""


class SwitchingPredictor:
    r"""Answers with the local model where it is certain, else with the global one.

    Args:
        module: The network, holding the client's own values.
        general: The global model's values of the same keys.
        threshold: t: the local model answers where its uncertainty u < t.
        measure: What uncertainty is.
        answer: ``switch``, or always the ``local`` or the ``global`` model.
    """

    def __init__(
        self,
        module: nn.Module,
        general: State,
        threshold: Tensor,
        measure: Measure = "entropy",
        answer: Answer = "switch",
    ) -> None:
        self._module = cast(HasPosterior, module)
        self._general = general
        self.threshold = threshold
        self._measure = measure
        self._answer = answer

    def local(self, inputs: Tensor) -> Tensor:
        r"""Return the local model's :math:`\log \alpha`, shape (n, C)."""
        return cast(Tensor, self._module.posterior(inputs).log_alpha)

    def general(self, inputs: Tensor) -> Tensor:
        r"""Return the global model's :math:`\log \alpha`, shape (n, C)."""
        module = cast(nn.Module, self._module)
        device = next(module.parameters()).device
        state = {key: value.to(device) for key, value in self._general.items()}
        return cast(Tensor, torch.func.functional_call(module, state, (inputs,)))

    def uncertainty(self, inputs: Tensor) -> Tensor:
        """Return the local model's uncertainty, shape (n,), in float64."""
        found = self._module.posterior(inputs)
        return uncertainty(self._measure, found.alpha.double(), found.evidence.double())

    def is_local(self, inputs: Tensor) -> Tensor:
        """Return for which inputs the local model answers, shape (n,)."""
        values = self.uncertainty(inputs)
        return values < self.threshold.to(values.device)

    def predict(self, inputs: Tensor) -> Tensor:
        r"""Return :math:`\log \alpha` of the model that answers, shape (n, C)."""
        if self._answer == "local":
            return self.local(inputs)
        if self._answer == "global":
            return self.general(inputs)
        chosen = self.is_local(inputs).unsqueeze(1)
        return torch.where(chosen, self.local(inputs), self.general(inputs))

    def state_dict(self) -> State:
        """Return the threshold, and the global model's values that the client's replace."""
        general = {f"{_NAME}/{key}": value for key, value in self._general.items()}
        return {_THRESHOLD: self.threshold, **general}


class Switch(ClientHook):
    """Gives each client, in personalization, a model of its own and a threshold for its use.

    Args:
        quantile: Share of the calibration data on which the local model is to answer.
        measure: What uncertainty is.
        answer: Whose answers count.
    """

    needs_global = False

    def __init__(self, quantile: float, measure: Measure, answer: Answer) -> None:
        check_number("algorithm.quantile", quantile, at_least=0, at_most=1)
        choices: tuple[tuple[str, str, Sequence[str]], ...] = (
            ("measure", measure, get_args(Measure)),
            ("answer", answer, get_args(Answer)),
        )
        for name, value, known in choices:
            if value not in known:
                raise ConfigError(
                    f"algorithm.{name} must be one of {', '.join(known)}, got {value!r}."
                    f"{did_you_mean(str(value), known)}"
                )
        self.quantile = quantile
        self.measure = measure
        self.answer = answer

    def check_finetuning(self, module: nn.Module, keys: Sequence[str]) -> None:
        """Refuse a module without a posterior, and a part that is not head and density."""
        if not isinstance(module, HasPosterior):
            raise ConfigError(
                f"FedPN needs a module with a posterior, such as PosteriorNetwork; "
                f"{type(module).__name__} has none."
            )
        if set(keys) != set(module.part_keys("head + density")):
            raise ConfigError(
                "FedPN fine-tunes head and density, on an encoder that stays: set "
                "part='head + density' of PersonalizationCallback."
            )

    def on_finetuning_start(self, tuning: FineTuning) -> None:
        """Draw head and density anew; the mixture has the client's class frequencies."""
        module = cast(HasPosterior, tuning.module)
        counts = tuning.class_counts(module.num_classes)
        module.reset_personal(counts / counts.sum())

    def on_finetuning_end(self, tuning: FineTuning) -> State:
        """Return the threshold, and the global model's head and density."""
        split = "val" if tuning.num_examples("val") else "train"
        module = cast(HasPosterior, tuning.module)
        values = []
        for batch in tuning.batches(split):
            _ = class_labels(batch, "FedPN")
            found = module.posterior(batch[0])
            values.append(uncertainty(self.measure, found.alpha.double(), found.evidence.double()))
        threshold = torch.quantile(torch.cat(values), self.quantile)
        general = {f"{_NAME}/{key}": tuning.received[key].clone() for key in tuning.keys}
        return {_THRESHOLD: threshold, **general}

    def predictor(self, kept: Mapping[str, Tensor], module: nn.Module) -> Predictor | None:
        """Return the switch between the module and the global model, once it is personal."""
        if _THRESHOLD not in kept:
            return None
        general = under(kept, _NAME)
        return SwitchingPredictor(module, general, kept[_THRESHOLD], self.measure, self.answer)


class _KeepsAbsentClasses:
    """Merges states by a rule; Gaussians of classes that nobody had stay as they were.

    Args:
        states: What merges them.
        density: Key prefix of the density.
    """

    def __init__(self, states: UpdateAccumulator, density: str) -> None:
        self._states = states
        self._density = density
        self._received: Mapping[str, Tensor] = {}

    def push(self, update: ClientUpdate) -> None:
        self._received = update.received
        self._states.push(update)

    def result(self) -> State:
        merged = self._states.result()
        share = merged.get(f"{self._density}.share")
        if share is None:
            return merged
        absent = share == 0
        for name in ("share", "first", "second"):
            key = f"{self._density}.{name}"
            before = self._received[key].to(merged[key].device)
            where = absent.reshape(-1, *[1] * (before.ndim - 1))
            merged[key] = torch.where(where, before, merged[key])
        return merged


class FedPN(Algorithm):
    r"""FedPN: Dirichlet posterior networks, and a switch between a local and the global model.

    Federation is that of all parameters, weighted by examples; the loss is the module's own, that
    of :class:`~fedlightning.models.PosteriorNetwork`. Afterwards ``PersonalizationCallback(part=
    "head + density")`` makes each client's model: a copy of the global one whose head and density
    are drawn anew and trained on the same loss, on an encoder that stays, with the client's class
    frequencies in the mixture; the global model's are uniform. The client's calibration data give
    a threshold t, the quantile Q of the local model's uncertainty u. For an input with u < t the
    local model answers, otherwise (u = t included) the global one.

    Calibration data is the split ``val`` (``data.val_fraction``), which is never trained on;
    without one it is the training data, on which the local model is too sure of itself. Results
    before fine-tuning (``initial/acc``) are the global model's, results after it the switch's, in
    every view; ``answer="local"`` gives the local model's instead. A client predicts with more than
    a state of the network, so load it with ``client_predictor``.

    FedPN's model, loss and switch follow the authors' published code; of the paper's text no more
    than the introduction was read. Deviations: optimizers start anew in every client update, so no
    moments of Adam pass from client to client or are averaged; calibration is not on test data;
    Gaussian densities merge exactly, and classes that no client of a round has keep theirs; there
    is no abstention, which would need a second threshold.

    Args:
        quantile: Q. The authors take .6 to .9, depending on the data.
        measure: u: ``entropy`` of the Dirichlet distribution, ``log_prob`` (minus the log
            evidence), ``mi`` (mutual information) or ``categorical_entropy``.
        answer: ``switch``, or for comparison always the ``local`` or the ``global`` model.
        density: Key prefix of the module's density.
        **choices: Those of :class:`Algorithm`.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Kotelevskii, Horváth, Nandakumar, Takáč, Panov. Dirichlet-based Uncertainty Quantification
        for Personalized Federated Learning with Improved Posterior Networks. IJCAI 2024.
        https://arxiv.org/abs/2312.11230
    """

    def __init__(
        self,
        quantile: float = 0.9,
        measure: Measure = "entropy",
        answer: Answer = "switch",
        density: str = "density",
        **choices: Any,
    ) -> None:
        super().__init__(local=[Switch(quantile, measure, answer)], **choices)
        self.density = density

    def accumulator(self, rule: Accumulator) -> UpdateAccumulator:
        """Return what merges updates, and keeps the densities of classes that nobody had."""
        return _KeepsAbsentClasses(super().accumulator(rule), self.density)
