"""A node that lends: llama.cpp's own RPC server behind a tunnel, and what may be done to it through that."""

from __future__ import annotations

import random
import signal
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import trio

from backends.llama_cpp import backend
from mesh.identity import Identity
from mesh.memory import Network
from mesh.transport import Transport
from mesh.tunnel import PROTOCOL, LocalEnd, TunnelRefused, Tunnels, lease
from node.shardcache import ShardCache
from node.shardserver import Holder

PATIENCE_S = 60.0


@dataclass
class Lender:
    """A node that lends, and two that may lease."""

    head: Transport
    rival: Transport
    worker: Transport
    holder: Holder
    changed: trio.Event

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something that is told of it holds."""
        with trio.fail_after(PATIENCE_S):
            while not true():
                self.changed = trio.Event()
                await self.changed.wait()

    async def offered(self) -> int:
        """Wait until it is; the process that is."""
        await self.until(lambda: bool(self.holder.targets()))
        assert self.holder.pid is not None
        return self.holder.pid


@asynccontextmanager
async def lending(folder: Path) -> AsyncIterator[Lender]:
    async with trio.open_nursery() as nursery:
        network = Network()
        await nursery.start(network.run)
        head, rival, worker = (network.join(Identity.generate().peer) for _ in range(3))
        for transport in (head, rival, worker):
            await nursery.start(transport.run)
        tunnels = Tunnels(named=lambda peer: "the head" if peer == head.peer else "the rival")
        worker.handle(PROTOCOL, tunnels.handle)
        for transport in (head, rival):
            await transport.dial(worker.addresses(), worker.peer, timeout_s=PATIENCE_S)
        holder = Holder(
            backend,
            tunnels,
            memory_bytes=64 << 20,
            cache=ShardCache(folder / "cache", 1 << 20),
            threads=1,
            device="",
            changed=lambda: made.changed.set(),
        )
        made = Lender(head, rival, worker, holder, trio.Event())
        nursery.start_soon(holder.run)
        await made.offered()
        yield made
        nursery.cancel_scope.cancel()


async def talk(end: LocalEnd, data: bytes) -> None:
    """Say something that is none of the protocol, and hear whatever there is to hear."""
    async with await trio.open_tcp_stream("127.0.0.1", end.port) as stream:
        try:
            await stream.send_all(data)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


async def test_random_bytes_end_the_server_at_worst_and_it_is_offered_again(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        for seed in range(6):
            await lender.offered()
            async with lease(lender.head.open, lender.worker.peer, "rpc") as end:
                data = random.Random(seed).randbytes(3000)
                greeting = bytes([14]) + struct.pack("<Q", 24) + bytes(24)
                await talk(end, greeting + data if seed % 2 else data)
        before = await lender.offered()
        async with lease(lender.head.open, lender.worker.peer, "rpc") as end:
            psutil.Process(before).send_signal(signal.SIGABRT)  # as its own assertions do
            with trio.fail_after(PATIENCE_S):
                await end.lost.wait()
        again = await lender.offered()
        assert again != before
        assert lender.holder.restarts >= 1
        async with lease(lender.head.open, lender.worker.peer, "rpc") as end:
            assert (await backend.probe(end.port, timeout_s=PATIENCE_S)).version == "7.0.0"


async def test_of_two_who_want_it_at_once_one_is_told_who_was_first(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        refused: list[str] = []
        served = 0
        both = trio.Event()

        async def want(transport: Transport) -> None:
            nonlocal served
            try:
                async with lease(transport.open, lender.worker.peer, "rpc") as end:
                    await backend.probe(end.port, timeout_s=PATIENCE_S)
                    served += 1
                    await both.wait()
            except TunnelRefused as error:
                refused.append(str(error))
                both.set()

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(want, lender.head)
                nursery.start_soon(want, lender.rival)
        assert served == 1
        [why] = refused
        assert "is leased to the " in why
        async with lease(lender.rival.open, lender.worker.peer, "rpc") as end:
            await backend.probe(end.port, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("leased", [True, False])
async def test_one_that_somebody_has_stopped_is_ended_and_back(tmp_path: Path, leased: bool) -> None:
    async with lending(tmp_path) as lender:
        before = await lender.offered()
        if leased:
            async with lease(lender.head.open, lender.worker.peer, "rpc") as end:
                psutil.Process(before).suspend()
                with trio.fail_after(PATIENCE_S):
                    await end.lost.wait()  # nobody waits for what never answers
        else:
            psutil.Process(before).suspend()
            await lender.until(lambda: not lender.holder.targets())
        assert await lender.offered() != before
