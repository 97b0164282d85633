"""`mesh`, but that what it lends is behind tests/support/rpcproxy.py, which lies, dies and hangs as it is told."""

from __future__ import annotations

import sys

import msgspec

from backends.llama_cpp import LlamaCppBackend
from backends.sharding import ServerSettings
from node.cli import main


def _command(_backend: LlamaCppBackend, settings: ServerSettings) -> list[str]:
    return [sys.executable, "-m", "tests.support.rpcproxy", msgspec.json.encode(settings).decode()]


LlamaCppBackend.server_command = _command  # type: ignore[assignment, method-assign]

if __name__ == "__main__":
    main()
