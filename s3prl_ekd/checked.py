"""The base of every configuration section: unknown keys and wrong types are errors, field docstrings are its manual."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Checked(BaseModel):
    """A strict pydantic model without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
