"""Transformers of Hugging Face as clients' models, with adapters of PEFT on a frozen backbone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlightning.core.validation import check_integer
from fedlightning.errors import CheckpointError, ConfigError, EnvironmentFailure
from fedlightning.models.base import FederatedModule

__all__ = ["CausalLM", "PretrainedModule", "TransformersClassifier"]

_SAVED = "frozen_backbone_sha256"


class PretrainedModule(FederatedModule):
    """A network of ``transformers`` whose frozen weights stay out of the federation.

    With adapters the network's own weights are frozen. They are loaded once, and are in no state
    dict: not sent, not copied for a client, not counted, and in no checkpoint, which has their
    SHA-256 instead and is refused beside others.

    Args:
        model: Name or folder of a pre-trained network, or a mapping for one with random weights:
            ``model_type`` and settings of its configuration.
        adapters: Adapters by name, each with the arguments of ``peft.LoraConfig`` (``r``,
            ``lora_alpha``, ``target_modules``). Each is a part of that name for the algorithm's
            ``train`` and ``share``; several act together, such as one that is shared and one that
            every client keeps. ``None`` trains all weights.
        auto: The class of ``transformers`` that builds it.
        settings: Further arguments of its constructor.
        init_seed: Seed of random weights, so that every run has the same frozen ones.
        **kwargs: Arguments of :class:`FederatedModule`: ``lr``, ``head``, ...

    Raises:
        EnvironmentFailure: ``transformers`` or ``peft`` is not installed, or the network is not
            there and cannot be downloaded.
        ConfigError: An adapter's settings do not fit the network.

    Reference:
        Hu et al. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022.
        https://arxiv.org/abs/2106.09685
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        adapters: dict[str, dict[str, Any]] | None,
        auto: str,
        settings: dict[str, Any],
        init_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        net = _built(model, auto, settings, init_seed)
        head = _head_of(net)
        names: dict[str, Any] = {}
        for name, config in (adapters or {}).items():
            _inject(net, name, config)
            names[name] = f"*.lora_*.{name}.*"
        if adapters:
            _activate(net, list(adapters), head)
            names |= {} if "adapter" in names else {"adapter": "*.lora_*"}
        if head is not None and kwargs.get("head") is None:
            kwargs["head"] = f"net.{head}"
        if names and kwargs.get("parts") is None:
            kwargs["parts"] = names
        super().__init__(**kwargs)
        self.net = net
        self._left_out = frozenset(
            f"net.{key}" for key, value in net.named_parameters() if not value.requires_grad
        ) if adapters else frozenset()  # fmt: skip
        self._digest = _digest(net) if self._left_out else ""
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_not_missing)  # type: ignore[no-untyped-call]

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trainable parameters, as transformers are trained."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = self.optimizer_groups(trainable)
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which frozen weights the checkpoint goes with."""
        if self._digest:
            checkpoint[_SAVED] = self._digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other frozen weights."""
        saved = checkpoint.get(_SAVED, "")
        if saved and saved != self._digest:
            raise CheckpointError(
                f"the checkpoint's adapters go with another frozen backbone ({saved[:8]}, this one "
                f"is {self._digest[:8]}): build the module with the same model and init_seed."
            )


class TransformersClassifier(PretrainedModule):
    """Classifies sequences; batches are ``(inputs, labels)`` with inputs of a tokenizer.

    Args:
        model: See :class:`PretrainedModule`.
        num_classes: Number of classes.
        adapters: See :class:`PretrainedModule`; the classification head is trained beside them.
        init_seed: See :class:`PretrainedModule`.
        **kwargs: Arguments of :class:`FederatedModule`.

    Example:
        >>> tiny = {"model_type": "bert", "vocab_size": 50, "hidden_size": 8,
        ...         "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> lora = {"adapter": {"r": 2, "target_modules": ["query", "value"]}}
        >>> module = TransformersClassifier(tiny, num_classes=3, adapters=lora)
        >>> [key.rpartition("self.")[2] for key in module.part_keys("adapter")][:2]
        ['query.lora_A.adapter.weight', 'query.lora_B.adapter.weight']
        >>> sum(value.numel() for value in module.state_dict().values())
        91
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        num_classes: int = 2,
        adapters: dict[str, dict[str, Any]] | None = None,
        init_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_integer("num_classes", num_classes, at_least=1)
        auto = "AutoModelForSequenceClassification"
        settings = {"num_labels": num_classes}
        kwargs.setdefault("lr", 1e-3)
        super().__init__(model, adapters, auto, settings, init_seed, **kwargs)
        self.save_hyperparameters()

    def forward(self, x: Any) -> Tensor:
        """Return logits of shape (batch, classes)."""
        inputs = dict(x) if isinstance(x, Mapping) else {"input_ids": x}
        logits: Tensor = self.net(**inputs).logits
        return logits


class CausalLM(PretrainedModule):
    """Predicts the next token; batches are token ids, or mappings with ``input_ids``.

    ``labels`` of a batch, if it has any, say which tokens count: those of -100 do not, nor does
    what ``attention_mask`` leaves out. ``loss`` is the mean negative log-likelihood of a token,
    ``perplexity`` its exponential over all of a client's tokens.

    Args:
        model: See :class:`PretrainedModule`.
        adapters: See :class:`PretrainedModule`.
        init_seed: See :class:`PretrainedModule`.
        **kwargs: Arguments of :class:`FederatedModule`.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        adapters: dict[str, dict[str, Any]] | None = None,
        init_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        auto = "AutoModelForCausalLM"
        kwargs.setdefault("lr", 1e-3)
        super().__init__(model, adapters, auto, {}, init_seed, **kwargs)
        self.save_hyperparameters()
        from torchmetrics.text import Perplexity

        self.perplexity = Perplexity(ignore_index=-100)

    def forward(self, x: Any) -> Tensor:
        """Return logits of shape (batch, length, vocabulary)."""
        inputs = dict(x) if isinstance(x, Mapping) else {"input_ids": x}
        inputs.pop("labels", None)
        logits: Tensor = self.net(**inputs).logits
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean negative log-likelihood of a token."""
        logits, targets = self._predicted(batch)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(targets))
        return loss

    def _evaluate_batch(self, batch: Any, prefix: str) -> None:
        logits, targets = self._predicted(batch)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        self.perplexity(logits, targets)
        self.log(f"{prefix}/perplexity", self.perplexity, batch_size=len(targets))
        self.log(f"{prefix}/loss", loss, batch_size=len(targets))

    def _predicted(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits of all tokens but the first, and those tokens, -100 for none."""
        given = batch[0] if isinstance(batch, (tuple, list)) else batch
        inputs: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"input_ids": given}
        targets: Tensor = inputs.get("labels", inputs["input_ids"])
        if "attention_mask" in inputs:
            targets = targets.masked_fill(inputs["attention_mask"] == 0, -100)
        return self(inputs)[:, :-1], targets[:, 1:]


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, meta: Any) -> None:
    for key in getattr(module, "_left_out", ()):
        state.pop(prefix + key, None)


def _not_missing(module: nn.Module, keys: Any) -> None:
    left_out: frozenset[str] = getattr(module, "_left_out", frozenset())
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in left_out]


def _built(model: Any, auto: str, settings: dict[str, Any], seed: int) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise EnvironmentFailure(
            "models of transformers need them: pip install 'fedlightning[hf]'"
        ) from None
    kind = getattr(transformers, auto)
    if isinstance(model, Mapping):
        options = dict(model)
        name = options.pop("model_type", None)
        try:
            config = transformers.AutoConfig.for_model(name, **options, **settings)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model.model={dict(model)}: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net: nn.Module = kind.from_config(config)
    else:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # a new head's weights
                net = kind.from_pretrained(model, **settings)
        except OSError as error:
            raise EnvironmentFailure(f"model.model={model}: {error}") from error
    built: Any = getattr(net, "config", None)
    if built is not None and getattr(built, "pad_token_id", None) is None:
        built.pad_token_id = 0  # a classifier of sequences looks for the last token before it
    return net


def _inject(net: nn.Module, name: str, config: Mapping[str, Any]) -> None:
    try:
        import peft
    except ImportError:
        raise EnvironmentFailure("adapters need PEFT: pip install 'fedlightning[hf]'") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of another adapter
            peft.inject_adapter_in_model(peft.LoraConfig(**config), net, adapter_name=name)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.adapters.{name}={dict(config)}: {error}") from error


def _activate(net: nn.Module, names: list[str], head: str | None) -> None:
    """Freeze everything but the adapters, which all act, and the head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in net.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(names)
    for key, parameter in net.named_parameters():
        in_head = head is not None and key.startswith(f"{head}.")
        parameter.requires_grad_(".lora_" in key or in_head)


def _head_of(net: nn.Module) -> str | None:
    """Return the name of the layer that a classifier of sequences ends with."""
    names = ("classifier", "score", "classification_head", "logits_proj")
    return next((name for name in names if isinstance(getattr(net, name, None), nn.Module)), None)


def _digest(net: nn.Module) -> str:
    content = hashlib.sha256()
    for key, value in net.named_parameters():
        if not value.requires_grad:
            content.update(f"{key} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            content.update(flat.view(torch.uint8).numpy().data)
    return content.hexdigest()
