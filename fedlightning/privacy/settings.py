"""The privacy of a whole client as a setting: what ``federation.privacy`` takes."""

from __future__ import annotations

from fedlightning.core.validation import Setting, check_instance, check_number
from fedlightning.errors import ConfigError

__all__ = ["AdaptiveClipping", "ClientDP"]


class AdaptiveClipping(Setting):
    r"""Let the clipping norm follow a quantile of the norms of updates.

    A client sends whether its update was within the norm, :math:`b_i = [\lVert\Delta_i\rVert \le
    C]`; the server moves :math:`\log C \leftarrow \log C - \eta\,(\tilde b - \gamma)`, where
    :math:`\tilde b = \frac1m (\sum_i (b_i - \frac12) + \mathcal N(0, \sigma_b^2)) + \frac12` and
    :math:`m` is the expected cohort. The updates' noise is raised to :math:`z_\Delta = (z^{-2} -
    (2\sigma_b)^{-2})^{-1/2}`, so that both together cost what :math:`z` says.

    Args:
        initial: The norm to start with, > 0.
        quantile: The share of updates that are not scaled down, :math:`\gamma`, in [0, 1].
        lr: :math:`\eta`, > 0.
        bit_noise: :math:`\sigma_b`, > 0; ``None`` means the paper's :math:`m / 20`.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Andrew, Thakkar, McMahan, Ramaswamy. Differentially Private Learning with Adaptive Clipping.
        NeurIPS 2021. https://arxiv.org/abs/1905.03871

    Example:
        >>> AdaptiveClipping(initial=0.5)
        AdaptiveClipping(initial=0.5, quantile=0.5, lr=0.2, bit_noise=None)
    """

    def __init__(
        self,
        initial: float = 1.0,
        quantile: float = 0.5,
        lr: float = 0.2,
        bit_noise: float | None = None,
    ) -> None:
        name = "federation.privacy.max_norm"
        self.initial = check_number(f"{name}.initial", initial, above=0)
        self.quantile = check_number(f"{name}.quantile", quantile, at_least=0, at_most=1)
        self.lr = check_number(f"{name}.lr", lr, above=0)
        self.bit_noise = bit_noise
        if bit_noise is not None:
            self.bit_noise = check_number(f"{name}.bit_noise", bit_noise, above=0)

    def bit_noise_of(self, expected_cohort: float) -> float:
        r"""Return :math:`\sigma_b`."""
        return expected_cohort / 20 if self.bit_noise is None else self.bit_noise


class ClientDP(Setting):
    r"""Differential privacy for whole clients: the shared part hides who has taken part.

    Every round releases

    .. math:: \theta \leftarrow \theta + \frac1m \Big( \sum_{i \in S} \Delta_i
        \min\Big(1, \frac{C}{\lVert \Delta_i \rVert}\Big) + \mathcal N(0, (zC)^2 I) \Big)

    where :math:`\Delta_i` is all that client :math:`i` sends (the change of the shared parameters
    and declared extras, as one vector, in float64) and :math:`m` the expected size of a cohort, a
    constant. What clients keep (the heads of FedPer, FedRep and FedBABU) is neither clipped nor
    noised: it stays where the data is. ``docs/privacy.md`` says what is promised and what is not.

    Needs ``pip install 'fedlightning[dp]'``.

    Args:
        noise_multiplier: :math:`z`, >= 0: the noise's standard deviation as a multiple of C.
        target_epsilon: The budget, > 0. Alone it determines z, for ``trainer.max_epochs`` rounds;
            beside z, the run ends before the round that would exceed it (exit code 5).
        delta: :math:`\delta`, in (0, 1): far less than one in the number of clients.
        max_norm: :math:`C`, > 0, or :class:`AdaptiveClipping`.
        secure: Draw the noise and the cohorts from the system's source of randomness. What was
            released is written down before it is, so a round that is run again after a crash
            counts twice. False draws them from the run's seed: a simulation that can be repeated,
            and no protection against those who know the seed.
        bands: How many rounds' noise is correlated (:class:`~fedlightning.privacy.BandedNoise`);
            1 means that each round's is independent. More need a ``SeparatedSampler`` whose
            separation is as large, and a checkpoint of ``bands - 1`` times the shared part.

    Raises:
        ConfigError: If a value is out of its range, or neither z nor a budget is given.

    Source:
        McMahan, Ramage, Talwar, Zhang. Learning Differentially Private Recurrent Language Models.
        ICLR 2018. https://arxiv.org/abs/1710.06963. That what stays with a client needs no noise:
        Jain, Rush, Smith, Song, Thakurta. Differentially Private Model Personalization. NeurIPS
        2021. https://arxiv.org/abs/2112.07087

    Example:
        >>> ClientDP(noise_multiplier=1.0, delta=1e-5, max_norm=0.5).max_norm
        0.5
        >>> ClientDP()
        Traceback (most recent call last):
        fedlightning.errors.ConfigError: federation.privacy: ClientDP needs noise_multiplier or ...
    """

    def __init__(
        self,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        delta: float = 1e-5,
        max_norm: float | AdaptiveClipping = 1.0,
        secure: bool = False,
        bands: int = 1,
    ) -> None:
        name = "federation.privacy"
        if noise_multiplier is None and target_epsilon is None:
            raise ConfigError(
                f"{name}: ClientDP needs noise_multiplier or target_epsilon; set one of them."
            )
        if noise_multiplier is not None:
            check_number(f"{name}.noise_multiplier", noise_multiplier, at_least=0)
        if target_epsilon is not None:
            check_number(f"{name}.target_epsilon", target_epsilon, above=0)
        if isinstance(max_norm, (int, float)):
            check_number(f"{name}.max_norm", max_norm, above=0, other="AdaptiveClipping")
        else:
            check_instance(f"{name}.max_norm", max_norm, AdaptiveClipping)
        check_instance(f"{name}.secure", secure, bool)
        if isinstance(bands, bool) or not isinstance(bands, int) or bands < 1:
            raise ConfigError(f"{name}.bands must be an integer >= 1, got {bands!r}.")
        if bands > 1 and isinstance(max_norm, AdaptiveClipping):
            raise ConfigError(
                f"{name}.bands={bands} needs a clipping norm that stays, or the noises of two "
                "rounds would not cancel; set max_norm to a number."
            )
        self.noise_multiplier = noise_multiplier
        self.target_epsilon = target_epsilon
        self.delta = check_number(f"{name}.delta", delta, above=0, below=1)
        self.max_norm = max_norm
        self.secure = secure
        self.bands = bands

    @property
    def adaptive(self) -> AdaptiveClipping | None:
        """How the clipping norm moves; ``None`` if it stays."""
        return self.max_norm if isinstance(self.max_norm, AdaptiveClipping) else None

    @property
    def first_norm(self) -> float:
        """The clipping norm of the first round."""
        adaptive = self.adaptive
        return float(adaptive.initial if adaptive is not None else self.max_norm)  # type: ignore[arg-type]
