"""A client's full model, or the global one, outside of a federation."""

from fedlightning.export.formats import FORMATS, export_model, format_of
from fedlightning.export.models import client_model, example_input

__all__ = ["FORMATS", "client_model", "example_input", "export_model", "format_of"]
