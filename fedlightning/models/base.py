"""`FederatedModule`: a LightningModule with a body to share and a head to freeze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.parts import Part, Parts, split_parts
from fedlightning.core.state import State, copy_into, live_state
from fedlightning.core.validation import check_number
from fedlightning.errors import ConfigError

__all__ = ["FederatedModule", "freeze", "names_its_head", "resolve_parts"]


class FederatedModule(pl.LightningModule):
    """One client's model: a body, a head, and default steps for classification.

    A subclass sets ``self.body`` and ``self.head`` and needs nothing else. A network that is built
    otherwise names its head by key prefix instead (``head="net.fc"``) and defines ``forward``.
    Every default below can be overridden as in any LightningModule.

    Args:
        lr: Learning rate of the clients' SGD.
        momentum: Momentum of the clients' SGD, in [0, 1).
        weight_decay: L2 penalty of the clients' SGD.
        head: Key prefix, or prefixes, of the head; ``None`` means the attribute ``head``.
        lr_milestones: Shares of all rounds after which the learning rate drops: FedBABU's
            (0.5, 0.75). Empty for a constant rate.
        lr_gamma: Factor of each drop.
        fused: Whether SGD's step is one kernel; ``None`` means where that works. It saves a pass
            or two over the weights, and rounds momentum otherwise than torch's default.

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
    ) -> None:
        super().__init__()
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
        self.head_prefix: str | list[str] = head if head is not None else "head"

    # -- body and head -------------------------------------------------------------------------

    @property
    def parts(self) -> Parts:
        """The keys of body and head.

        Raises:
            ConfigError: If they cannot be told apart (see
            :func:`fedlightning.core.parts.split_parts`).
        """
        return split_parts(self, self.head_prefix)

    def part_keys(self, part: Part) -> tuple[str, ...]:
        """Return the state-dict keys of a part."""
        return self.parts.keys(part)

    def part_state_dict(self, part: Part) -> State:
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
        """Keep the head still: called before a client trains its body alone.

        Extend it to freeze more, e.g. a temperature or an embedding:
        ``super().freeze_head(); self.scale.requires_grad_(False)``.
        """
        _freeze_keys(self, self.parts.head)

    def freeze_body(self) -> None:
        """Keep the body still: called before a client trains its head alone."""
        _freeze_keys(self, self.parts.body)

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
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
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
            trainable,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=self._fuses() if self.fused is None else self.fused,
        )
        rounds = self._trainer.max_epochs if self._trainer is not None else None
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

    def _fuses(self) -> bool:
        """Whether there is a fused SGD here, and nothing that cannot do with it."""
        precision = self._trainer.precision_plugin if self._trainer is not None else None
        scales = getattr(precision, "scaler", None) is not None  # Lightning then refuses to clip
        return self.device.type in ("cpu", "cuda") and not scales


def resolve_parts(module: pl.LightningModule, head: str | Sequence[str] | None = None) -> Parts:
    """Return body and head of any LightningModule.

    Args:
        module: A :class:`FederatedModule`, or a LightningModule that knows nothing of federation.
        head: Key prefix or prefixes of the head (``federation.head``); overrides the module's own.

    Raises:
        ConfigError: If there is no way to know the head, or the one given does not exist.
    """
    if head is not None:
        return split_parts(module, head)
    if isinstance(module, FederatedModule):
        return module.parts
    if isinstance(getattr(module, "head", None), nn.Module):
        return split_parts(module, "head")
    last = [path for path, child in module.named_modules() if isinstance(child, nn.Linear)][-1:]
    hint = f"; its last linear layer is {last[0]!r}" if last else ""
    raise ConfigError(
        f"{type(module).__name__} does not say which part is its head: "
        f"set federation.head to a key prefix{hint}."
    )


def names_its_head(module: pl.LightningModule) -> bool:
    """Whether a module says which part is its head, rightly or wrongly."""
    return isinstance(module, FederatedModule) and (
        module.head_prefix != "head"
        or hasattr(module, "head")
        or type(module).forward is FederatedModule.forward  # which calls it by that name
    )


def freeze(module: pl.LightningModule, parts: Parts, part: Part) -> None:
    """Freeze ``"body"`` or ``"head"``, through the module's own hook where it has one.

    Args:
        module: The client's model; its ``requires_grad`` flags change.
        parts: Its keys.
        part: The part that shall not move. ``"full"`` freezes all of it.
    """
    own_hook = getattr(module, f"freeze_{part}", None)
    if callable(own_hook):
        own_hook()
    _freeze_keys(module, parts.keys(part))


def _freeze_keys(module: nn.Module, keys: Sequence[str]) -> None:
    frozen = set(keys)
    for key, parameter in module.named_parameters():
        if key in frozen:
            parameter.requires_grad_(False)
