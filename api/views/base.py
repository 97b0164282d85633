"""What all views have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

NodeState = Literal["alive", "suspect", "dead", "left", "incompatible"]
LoadState = Literal["absent", "loading", "ready", "failed"]


class View(BaseModel):
    """Base of all: every field is there, and no other."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
