"""A client's full model, or the global one, outside of a federation."""

from fedlightning.personalization.personalizer.models.export_formats import FORMATS, export_model, format_of
from fedlightning.personalization.personalizer.models.export import client_model, example_input

__all__ = ["FORMATS", "client_model", "example_input", "export_model", "format_of"]
