"""Any classifier of timm (PyTorch Image Models), its head found."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.models.base import FederatedModule

__all__ = ["TimmClassifier"]


class TimmClassifier(FederatedModule):
    """A classification network of timm by name, such as ``"vit_tiny_patch16_224"``.

    Needs the extra ``timm``. The head is what timm calls the network's classifier.

    Args:
        name: Name of the network in timm.
        num_classes: Number of classes.
        network: Further arguments of ``timm.create_model``, such as ``{"img_size": 32}`` or
            ``{"pretrained": True}``, which downloads weights.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Raises:
        ConfigError: If timm is not installed, has no such network, or does not say which layer is
            its classifier.
    """

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        num_classes: int = 10,
        network: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            import timm
        except ImportError:
            raise ConfigError(
                "TimmClassifier needs timm: pip install 'fedlightning[timm]', or take "
                "TorchvisionClassifier."
            ) from None
        if not timm.is_model(name):
            known = timm.list_models()
            raise ConfigError(
                f"model.name={name!r} is not a network of timm.{did_you_mean(name, known)}"
            )
        check_integer("num_classes", num_classes, at_least=1)
        try:
            net = timm.create_model(name, num_classes=num_classes, **(network or {}))
        except TypeError as error:
            raise ConfigError(f"model.network={network}: {error}.") from None
        kwargs["head"] = kwargs.get("head") or _head_of(name, net)
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.net(x)
        return logits


def _head_of(name: str, net: Any) -> list[str]:
    """Return the key prefixes of what timm calls the classifier: one, or several of a network."""
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", {})
    found = config.get("classifier")
    paths = (found,) if isinstance(found, str) else tuple(found or ())
    if not paths:
        raise ConfigError(
            f"timm does not say which layer of {name} is its classifier; name it: model.head."
        )
    return [f"net.{path}" for path in paths]
