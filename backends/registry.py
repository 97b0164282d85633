"""Which backends this installation has.

Each package that brings one registers it under the entry point group `mesh.backends`; adding an engine touches
nothing else.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

from backends.engine import Backend

GROUP = "mesh.backends"

_log = logging.getLogger(__name__)


def find_backends() -> dict[str, Backend]:
    """The installed backends by name, sorted. One that cannot be imported is left out and logged."""
    found: dict[str, Backend] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            backend: Backend = point.load()
        except (ImportError, AttributeError) as error:
            _log.warning("Backend %s cannot be imported and is left out: %s", point.name, error)
            continue
        found[backend.name] = backend
    return found


def backend_for(path: str, backends: dict[str, Backend]) -> Backend | None:
    """The first backend that opens files with the ending of `path`."""
    return next((backend for backend in backends.values() if path.lower().endswith(backend.suffixes)), None)
