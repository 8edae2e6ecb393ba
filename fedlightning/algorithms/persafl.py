"""PersA-FL: personalized objectives for clients whose updates are merged as they arrive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.algorithms.method import ClientHook
from fedlightning.algorithms.per_fedavg import MetaBatches, PerFedAvg, Variant
from fedlightning.algorithms.pfedme import PFedMe
from fedlightning.algorithms.server_step import ServerOptimizer, ServerSGD
from fedlightning.core.state import State
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError, did_you_mean

__all__ = ["Option", "PersAFL", "ServerShare"]

Option = Literal["A", "B", "C"]


class ServerShare(ServerOptimizer):
    r"""Moves by the share of the clients that are merged, :math:`x \leftarrow x + (m / K) \Delta`.

    Of :math:`K` training clients :math:`m` are merged. The mean of all of them is taken as it is; a
    single one counts :math:`1 / K`, so that an asynchronous run moves as far per client update as
    rounds of all clients do.
    """

    def __init__(self) -> None:
        pass  # the learning rate follows from the numbers of clients

    def move(
        self,
        model: Mapping[str, Tensor],
        mean: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        clients: int,
        among: int,
    ) -> tuple[State, State]:
        """Return the next values; nothing is remembered."""
        if clients >= among:
            return {key: mean[key] for key in model}, {}
        return ServerSGD(clients / among).move(model, mean, state, clients, among)


class PersAFL(Algorithm):
    r"""Asynchronous federated learning with MAML and Moreau-envelope objectives.

    A client reads the global model :math:`w`, takes Q steps (``federation.local_steps``)
    :math:`w_{q+1} = w_q - \eta\, g(w_q)` from :math:`w_0 = w`, and sends
    :math:`\Delta = w_0 - w_Q`; :math:`\eta` is the learning rate of the module's optimizer. The
    server takes :math:`w \leftarrow w - \beta \Delta` with the mean of what has arrived, however
    old the model that it was computed from. What :math:`g` is, by option:

    - A, plain: :math:`\nabla f(w; D)`. Clients have no models of their own.
    - B, MAML: :math:`(I - \alpha \nabla^2 f(w; D'')) \nabla f(w - \alpha \nabla f(w; D); D')`; the
      objective is :math:`f_i(w - \alpha \nabla f_i(w))`. A client predicts with
      :math:`w - \alpha \nabla f_i(w)`. It is :class:`PerFedAvg`, with the exact Hessian.
    - C, Moreau envelope: :math:`\lambda (w - \tilde\theta)`, where :math:`\tilde\theta` minimises
      :math:`f(\theta; D) + \frac{\lambda}{2} \|\theta - w\|^2` up to a gradient of norm
      :math:`\nu`. A client predicts with its :math:`\tilde\theta(w)`. It is :class:`PFedMe` with
      that tolerance.

    Clients' own models are made where they are evaluated
    (:class:`~fedlightning.PersonalizationCallback` with ``epochs: 0``), from the global model as it
    is then and all of a client's training examples: clients keep nothing.

    When clients train is the schedule's. With ``federation.schedule: Buffered``, a buffer of one
    and constant weights every arrival makes a new model, which is PersA-FL; weights that fall with
    staleness are FedAsync's rule, a buffer of several is FedBuff's. Without a schedule, rounds are
    synchronous.

    Asynchronous federated learning with MAML and Moreau-envelope objectives, in the manner of
    PersA-FL: the formulas are from memory of the paper, and consistent with its abstract, with its
    synchronous ancestors and with FedBuff. Its rates and results are not claimed. Ours are how
    batches are drawn (:math:`D, D', D''` are thirds of one local batch), the start of an inner
    problem (where the last batch's was left, within one client update) and the defaults. That MAML
    gets further than option A with one step of fine-tuning did not clearly show in our
    experiments.

    Args:
        option: ``A`` (plain), ``B`` (MAML) or ``C`` (Moreau envelope).
        alpha: :math:`\alpha` of B.
        strength: :math:`\lambda` of C.
        tolerance: :math:`\nu` of C.
        inner_steps: The most steps of the module's optimizer for one :math:`\tilde\theta`.
        lr: :math:`\eta` of C, where inner steps need another; ``None`` means the optimizer's.
        first_order: Whether B leaves the Hessian out.
        batches: ``same`` takes the whole local batch for :math:`D`, :math:`D'` and :math:`D''`.
        beta: :math:`\beta`; 1 is the plain mean. ``None`` means the share of the training clients
            whose updates are merged: 1/K for each arrival (see :class:`ServerShare`).
        **choices: Those of :class:`Algorithm`; the mean is uniform unless ``weights`` is given.

    Raises:
        ConfigError: If a value is out of its range.

    Source:
        Toghani, Lee, Uribe. PersA-FL: Personalized Asynchronous Federated Learning. Optimization
        Methods and Software, 2023. https://arxiv.org/abs/2210.01176. FedAsync: Xie, Koyejo, Gupta.
        2019. https://arxiv.org/abs/1903.03934. FedBuff: Nguyen et al. AISTATS 2022.
        https://arxiv.org/abs/2106.06639

    Example:
        >>> PersAFL("B", alpha=0.1).local[0]
        MetaGradient(alpha=0.1, variant='exact', delta=0.001)
        >>> PersAFL("C", beta=0.5).server
        ServerSGD(lr=0.5, momentum=0.0)
    """

    def __init__(
        self,
        option: Option = "B",
        alpha: float = 0.05,
        strength: float = 15.0,
        tolerance: float = 0.01,
        inner_steps: int = 20,
        lr: float | None = None,
        first_order: bool = False,
        batches: MetaBatches = "split",
        beta: float | None = None,
        **choices: Any,
    ) -> None:
        if option not in get_args(Option):
            raise ConfigError(
                f"algorithm.option must be A (plain), B (MAML) or C (Moreau envelope), got "
                f"{option!r}.{did_you_mean(str(option), get_args(Option))}"
            )
        if beta is not None:
            check_number("algorithm.beta", beta, above=0)
        local: list[ClientHook] = []
        if option == "B":
            variant: Variant = "first_order" if first_order else "exact"
            local += PerFedAvg(alpha, variant, batches=batches, personal_step=True).local
        if option == "C":
            local += PFedMe(
                strength, inner_steps, lr, tolerance=tolerance, personal_solve=True
            ).local
        server = ServerShare() if beta is None else ServerSGD(beta) if beta != 1 else None
        super().__init__(local=local, server=server, **{"weights": "uniform", **choices})
