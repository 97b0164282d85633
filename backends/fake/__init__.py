"""A real backend without a real model: settable speed, slots and faults, for tests, benchmarks and trying a swarm.

Its text is a pure function of the prompt and the position, so that an answer can be checked wherever it was made.
"""

from __future__ import annotations

import sys

from backends.fake.settings import read_settings
from backends.types import Capability, LoadSpec, ModelNeeds

CAPABILITIES = (Capability.CHAT, Capability.COMPLETION, Capability.EMBEDDING, Capability.TOKENIZE)
CONTEXT_TOKENS = 8192
SLOTS = 4
_MEMORY_BYTES = 64 << 20


class FakeBackend:
    """Implements backends.engine.Backend."""

    name = "fake"
    aliases: tuple[str, ...] = ()
    licence = "MIT"
    requirements: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def unavailable(self) -> str | None:
        return None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "backends.fake"]

    def environment(self) -> dict[str, str]:
        return {}

    def needs(self, load: LoadSpec) -> ModelNeeds:
        settings = read_settings(load.engine)
        return ModelNeeds(
            memory_bytes=settings.memory_bytes or _MEMORY_BYTES,
            context_tokens=load.context_tokens or CONTEXT_TOKENS,
            slots=load.slots or SLOTS,
            capabilities=CAPABILITIES,
        )


backend = FakeBackend()
