"""A client's full model, or the global one, outside of a federation."""

from typing import TYPE_CHECKING

from fedlightning.core.near_names import suggesting
from fedlightning.personalization.models.export import (
    client_model,
    client_network,
    client_predictor,
    example_input,
)
from fedlightning.personalization.models.export_formats import (
    FORMATS,
    export_model,
    format_of,
)

__all__ = [
    "FORMATS",
    "client_model",
    "client_network",
    "client_predictor",
    "example_input",
    "export_model",
    "format_of",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
