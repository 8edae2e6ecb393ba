"""Any torchvision classifier, its last layer found, resized and made the head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedlightning.core.validation import check_integer
from fedlightning.errors import ConfigError, did_you_mean
from fedlightning.models.base import FederatedModule

__all__ = ["TorchvisionClassifier"]


class TorchvisionClassifier(FederatedModule):
    """A torchvision classification network by name, randomly initialised.

    The head is the last layer that has parameters: ``net.fc`` of a ResNet, ``net.classifier.1`` of
    a MobileNetV2 or SqueezeNet, ``net.heads.head`` of a ViT.

    Args:
        name: Name of the network in torchvision, such as ``"resnet18"``.
        num_classes: Number of classes.
        network: Further arguments of torchvision's builder, such as ``{"image_size": 32}`` of a
            ViT.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``momentum``, ``weight_decay``,
            ``head``, ...

    Raises:
        ConfigError: If torchvision has no such classifier, or it does not end in one layer.

    Example:
        >>> TorchvisionClassifier("resnet18", num_classes=7).part_keys("head")
        ('net.fc.weight', 'net.fc.bias')
    """

    def __init__(
        self,
        name: str = "resnet18",
        num_classes: int = 10,
        network: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ConfigError(
                f"model.name={name!r} is not a torchvision classifier.{did_you_mean(name, known)}"
            )
        check_integer("num_classes", num_classes, at_least=1)
        given = {**_without_auxiliary_outputs(name), **(network or {})}
        try:
            net = torchvision.models.get_model(name, weights=None, **given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"model.network={network}: {error}.") from None
        path, last = [
            (p, m) for p, m in net.named_modules() if any(True for _ in m.parameters(False))
        ][-1]
        net.set_submodule(path, _resized(name, last, num_classes))
        kwargs["head"] = kwargs.get("head") or f"net.{path}"
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (batch, classes)."""
        logits: Tensor = self.net(x)
        return logits


def _without_auxiliary_outputs(name: str) -> dict[str, Any]:
    return {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}


def _resized(name: str, last: nn.Module, num_classes: int) -> nn.Module:
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    if isinstance(last, nn.Conv2d):
        return nn.Conv2d(last.in_channels, num_classes, kernel_size=1)
    raise ConfigError(
        f"{name} ends in a {type(last).__name__}: build the module yourself and name its head."
    )
