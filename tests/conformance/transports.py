"""The transports that must pass the conformance suite. Each is a world: a place where nodes join one network.

async with world() as join:
    transport = await join()                   # running, listening, on a key of the suite's swarm
    stranger = await join(network_key=OTHER)   # of another swarm
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias

import trio

from mesh.identity import Identity
from mesh.memory import Network
from mesh.transport import Transport

KEY, OTHER_KEY = "ab" * 32, "cd" * 32
"""Private-network keys of two swarms."""


class Join(Protocol):
    """A new node, running until the world ends."""

    def __call__(self, *, network_key: str = KEY) -> Awaitable[Transport]: ...


World: TypeAlias = Callable[[], AbstractAsyncContextManager[Join]]


@asynccontextmanager
async def memory() -> AsyncIterator[Join]:
    """mesh/memory.py, on the real clock, with a millisecond each way."""
    async with trio.open_nursery() as nursery:
        network = Network(latency_s=0.001)
        await nursery.start(network.run)

        async def join(*, network_key: str = KEY) -> Transport:
            transport = network.join(Identity.generate().peer, network_key=network_key)
            await nursery.start(transport.run)
            return transport

        yield join
        nursery.cancel_scope.cancel()


WORLDS: dict[str, World] = {"memory": memory}
