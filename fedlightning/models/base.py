"""`FederatedModule`: a LightningModule with a body to share and a head to freeze."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.arguments import NamedArguments
from fedlightning.core.batches import inputs_of
from fedlightning.core.lr_schedules import CosineWithWarmup
from fedlightning.core.parts import Names, Parts, norm_keys, split_parts
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.core.validation import check_integer, check_number
from fedlightning.errors import ConfigError

__all__ = [
    "FederatedModule",
    "freeze_all_but",
    "named_parts",
    "names_its_head",
    "resolve_parts",
    "undivided",
]


class FederatedModule(NamedArguments, pl.LightningModule):
    """One client's model: a body, a head, and default steps for classification.

    A subclass sets ``self.body`` and ``self.head`` and needs nothing else. A network that is built
    otherwise names its head by key prefix instead (``head="net.fc"``) and defines ``forward``.
    Further parts are named by ``parts``, an argument or an attribute of class or instance.
    Every default below can be overridden as in any LightningModule.

    Args:
        lr: Learning rate of the clients' SGD.
        momentum: Momentum of the clients' SGD, in [0, 1).
        weight_decay: L2 penalty of the clients' SGD.
        head: Key prefix, or prefixes, of the head; ``None`` means the attribute ``head``.
        lr_milestones: Shares of all rounds after which the learning rate drops: FedBABU's
            (0.5, 0.75). Empty for a constant rate.
        lr_gamma: Factor of each drop.
        warmup_steps: If it is given, the learning rate does not drop but rises over so many
            optimizer steps and then falls to 0 along a cosine
            (:class:`~fedlightning.models.CosineWithWarmup`).
        fused: Whether SGD's step is one kernel; ``None`` means where that works. It saves a pass
            or two over the weights, and rounds momentum otherwise than torch's default.
        parts: Key prefixes or patterns of further parts by name, such as
            ``{"adapter": "*.lora_*"}``, for the algorithm's ``train`` and ``share``; ``head`` may
            be among them.

    Raises:
        ConfigError: If a number is out of its range.

    Example:
        >>> class Net(FederatedModule):
        ...     def __init__(self, width=64, num_classes=10):
        ...         super().__init__()
        ...         self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU())
        ...         self.head = nn.Linear(width, num_classes)
        >>> Net(width=8).part_keys("head")
        ('head.weight', 'head.bias')
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        head: str | list[str] | None = None,
        lr_milestones: Sequence[float] = (0.5, 0.75),
        lr_gamma: float = 0.1,
        fused: bool | None = None,
        parts: dict[str, str | list[str]] | None = None,
        warmup_steps: int | None = None,
    ) -> None:
        super().__init__()
        if warmup_steps is not None:
            check_integer("warmup_steps", warmup_steps, at_least=0)
        check_number("lr", lr, above=0)
        check_number("momentum", momentum, at_least=0, below=1)
        check_number("weight_decay", weight_decay, at_least=0)
        if not all(0 < share < 1 for share in lr_milestones):
            raise ConfigError(f"lr_milestones must be shares in (0, 1), got {list(lr_milestones)}.")
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.lr_milestones = tuple(lr_milestones)
        self.lr_gamma = lr_gamma
        self.fused = fused
        self.warmup_steps = warmup_steps
        self.head_prefix: str | list[str] = head if head is not None else "head"
        if parts is not None:
            self.parts = parts

    # -- parts ---------------------------------------------------------------------------------

    @property
    def parts(self) -> Any:
        """The names of parts, as the module states them; where it states none, the keys by part.

        Raises:
            ConfigError: If body and head cannot be told apart (see
                :func:`fedlightning.core.parts.split_parts`).
        """
        stated = vars(self).get("parts")
        return resolve_parts(self) if stated is None else stated

    @parts.setter
    def parts(self, names: Names) -> None:
        vars(self)["parts"] = names

    def part_keys(self, part: str) -> tuple[str, ...]:
        """Return the state-dict keys of a part, or of an expression such as ``"full - norm"``."""
        return resolve_parts(self).keys(part)

    def part_state_dict(self, part: str) -> State:
        """Return a copy of a part's state."""
        state = live_state(self)
        return {key: state[key].clone() for key in self.part_keys(part)}

    def load_part(self, state: State) -> None:
        """Copy a part's state into the module, in place.

        Raises:
            KeyError: If a key is not the module's.
        """
        copy_into(live_state(self), state)

    def freeze_head(self) -> None:
        """Freeze the head: called before a client trains nothing of it.

        Extend it to freeze more, e.g. a temperature or an embedding:
        ``super().freeze_head(); self.scale.requires_grad_(False)``.
        """
        _freeze(self, self.part_keys("head"))

    def freeze_body(self) -> None:
        """Freeze the body: called before a client trains nothing of it."""
        _freeze(self, self.part_keys("body"))

    # -- default steps: classification with cross-entropy ---------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.head(self.body(x))  # type: ignore[operator]
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of one local batch ``(x, y)``."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(y))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy on one batch of a client's validation data."""
        self._evaluate_batch(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy on one batch of a client's test data."""
        self._evaluate_batch(batch, "global")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return class probabilities of shape (batch, classes)."""
        x = inputs_of(batch)
        probabilities: Tensor = self(x).softmax(dim=-1)
        return probabilities

    def _evaluate_batch(self, batch: Any, prefix: str) -> None:
        from torchmetrics.functional.classification import multiclass_accuracy

        x, y = batch
        logits = self(x)
        accuracy = multiclass_accuracy(
            logits, y, num_classes=logits.shape[-1], average="micro", validate_args=False
        )
        self.log(f"{prefix}/loss", F.cross_entropy(logits, y), batch_size=len(y))
        self.log(f"{prefix}/acc", accuracy, prog_bar=True, batch_size=len(y))

    def configure_optimizers(self) -> Any:
        """Return SGD over the trainable parameters, and a learning rate that drops by the round."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            raise ConfigError(f"{type(self).__name__} has no trainable parameters.")
        optimizer = torch.optim.SGD(
            self.optimizer_groups(trainable),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=self._fuses() if self.fused is None else self.fused,
        )
        if self.warmup_steps is not None:
            cosine = CosineWithWarmup(optimizer, self.warmup_steps, self._total_steps())
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": cosine, "interval": "step"},
            }
        rounds = self._of_trainer("max_epochs")
        drops = sorted(
            {int(rounds * share) for share in self.lr_milestones} - {0} if rounds else ()
        )
        if not drops or drops[0] < 0:
            return optimizer
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=self.lr_gamma)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }

    def optimizer_groups(self, trainable: list[nn.Parameter]) -> Any:
        """Return the parameters as the optimizer takes them: a list, or groups with own settings.

        Override it for, say, a learning rate of its own for a part.

        Args:
            trainable: The parameters that may move.
        """
        return trainable

    def _fuses(self) -> bool:
        """Return whether there is a fused SGD here, and nothing that cannot work with it."""
        precision = self._of_trainer("precision_plugin")
        scales = getattr(precision, "scaler", None) is not None  # Lightning then refuses to clip
        real = all(p.is_floating_point() for p in self.parameters() if p.requires_grad)
        sparse = any(getattr(layer, "sparse", False) is True for layer in self.modules())
        return self.device.type in ("cpu", "cuda") and real and not (scales or sparse)

    def _total_steps(self) -> float | None:
        """Return the number of optimizer steps, where the trainer knows it by now."""
        try:
            steps = self._of_trainer("estimated_stepping_batches")
        except ConfigError:  # clients have numbers of their own, which the schedule is told
            return None
        return steps if steps is not None and steps < math.inf else None

    def _of_trainer(self, attribute: str) -> Any:
        """Return an attribute of the trainer; ``None`` without one, and in Fabric."""
        try:
            return getattr(self.trainer, attribute)
        except RuntimeError:
            return None


def named_parts(module: pl.LightningModule) -> dict[str, Any]:
    """Return the names of parts that a module states: attribute ``parts``, or hyperparameter.

    Example:
        >>> class Net(pl.LightningModule):
        ...     parts = {"adapter": "*.lora_*"}
        >>> named_parts(Net())
        {'adapter': '*.lora_*'}
    """
    hparams = module.hparams
    for stated in (
        vars(module).get("parts"),
        getattr(type(module), "parts", None),
        hparams.get("parts") if isinstance(hparams, Mapping) else None,
    ):
        if isinstance(stated, Mapping):
            return dict(stated)
    return {}


def resolve_parts(module: pl.LightningModule, head: str | Sequence[str] | None = None) -> Parts:
    """Return the parts of any LightningModule.

    A module that does not say which part is its head has parts all the same; only asking for the
    head, or for the body where no other part is named, is an error then.

    Args:
        module: A :class:`FederatedModule`, or a LightningModule that knows nothing of federation.
        head: Key prefix or prefixes of the head (``federation.head``); overrides the module's own.

    Raises:
        ConfigError: If a part that is named does not exist.
    """
    own_head, names = _stated_parts(module)
    head = head if head is not None else own_head
    parts = split_parts(module, head, names)
    return parts if head is not None else replace(parts, headless=_why_headless(module))


def undivided(module: pl.LightningModule) -> Parts:
    """Return the parts of a module whose head and body need not be told apart."""
    state = live_state(module)
    return Parts(tuple(state), norm=norm_keys(module, state), owner=type(module).__name__)


def names_its_head(module: pl.LightningModule) -> bool:
    """Return whether a module says which part is its head, rightly or wrongly."""
    return isinstance(module, FederatedModule) and (
        "head" in named_parts(module)
        or module.head_prefix != "head"
        or hasattr(module, "head")
        or type(module).forward is FederatedModule.forward  # which calls it by that name
    )


def freeze_all_but(module: pl.LightningModule, parts: Parts, trained: Collection[str]) -> None:
    """Freeze what is not trained, through the module's own hooks for head and body.

    Args:
        module: The client's model; its ``requires_grad`` flags change.
        parts: Its parts.
        trained: The keys that stay as trainable as they are. If none of them is in the head (in the
            body), the module's own ``freeze_head()`` (``freeze_body()``) is called first.
    """
    trained = frozenset(trained)
    for name, keys in (("head", parts.named.get("head")), ("body", parts.body)):
        hook = getattr(module, f"freeze_{name}", None)
        default = getattr(FederatedModule, f"freeze_{name}")  # does nothing more than what follows
        still = bool(keys) and trained.isdisjoint(keys or ())
        if still and callable(hook) and getattr(hook, "__func__", None) is not default:
            hook()
    _freeze(module, [key for key in parts.full if key not in trained])


def _freeze(module: nn.Module, keys: Collection[str]) -> None:
    frozen = frozenset(keys)
    for key, parameter in module.named_parameters():
        if key in frozen:
            parameter.requires_grad_(False)


def _stated_parts(module: pl.LightningModule) -> tuple[Any, dict[str, Any]]:
    """Return the prefixes of the head, ``None`` if the module states none, and of other parts."""
    names = named_parts(module)
    if (head := names.pop("head", None)) is not None:
        return head, names
    if isinstance(module, FederatedModule):
        return (module.head_prefix if names_its_head(module) else None), names
    return ("head" if isinstance(getattr(module, "head", None), nn.Module) else None), names


def _why_headless(module: pl.LightningModule) -> str:
    if isinstance(module, FederatedModule):
        try:
            split_parts(module, module.head_prefix)
        except ConfigError as error:
            return str(error)
    last = [path for path, child in module.named_modules() if isinstance(child, nn.Linear)][-1:]
    hint = f"; its last linear layer is {last[0]!r}" if last else ""
    return (
        f"{type(module).__name__} does not say which part is its head: "
        f"set federation.head to a key prefix{hint}."
    )
