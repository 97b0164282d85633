"""The mesh's transport alone, between two processes: streams, messages, bytes.

`python -m tests.bench.streams` is the other process.
"""

from __future__ import annotations

import subprocess
import sys
import time

import trio

from mesh.transport import Stream
from tests.bench.harness import Bench, BenchError, Row, Session, percentile
from tests.mesh.nodes import ECHO, node, running

_SOURCE = "/bench/source/1"
_SINK = "/bench/sink/1"
_MESSAGE = b"x" * 100
_PIECE = 1 << 16


async def run(session: Session) -> list[Row]:
    """Figures of one connection."""
    opens, trips = session.rounds(100, 500), session.rounds(1000, 5000)
    messages, upload = session.rounds(10_000, 100_000), session.rounds(20, 200) << 20
    session.tell(f"{opens} streams, {trips:,} round trips, {messages:,} messages, {upload >> 20} MiB")
    command = [sys.executable, "-m", "tests.bench.streams"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:  # noqa: ASYNC220
        try:
            assert other.stdout is not None
            address = other.stdout.readline().strip()
            transport = node()
            async with running(transport):
                peer = await transport.dial((address,), None, timeout_s=5)
                open_ms: list[float] = []
                for _ in range(opens):
                    started = time.perf_counter()
                    stream = await transport.open(peer, ECHO)
                    open_ms.append((time.perf_counter() - started) * 1e3)
                    await stream.aclose()
                stream = await transport.open(peer, ECHO)
                trip_ms: list[float] = []
                for _ in range(trips):
                    started = time.perf_counter()
                    await stream.send(_MESSAGE)
                    await stream.receive()
                    trip_ms.append((time.perf_counter() - started) * 1e3)
                rate = await _drain(await transport.open(peer, _SOURCE), messages)
                bytes_per_s = await _upload(await transport.open(peer, _SINK), upload)
        finally:
            other.kill()
    return [
        _row("opening a stream, with its protocol agreed on", open_ms),
        _row("a round trip of 100 bytes on an open stream", trip_ms),
        Row(what="messages of 100 bytes, each sent by itself, one stream", value=f"{rate:,.0f}/s"),
        Row(what="one stream's throughput, pieces of 64 KiB", value=f"{bytes_per_s / 1e6:,.0f} MB/s"),
    ]


def _row(what: str, times_ms: list[float]) -> Row:
    return Row(what=what, value=f"p50 {percentile(times_ms, 50):.2f} ms, p99 {percentile(times_ms, 99):.2f} ms")


async def _drain(stream: Stream, messages: int) -> float:
    await stream.send(str(messages).encode())
    started = time.perf_counter()
    got = 0
    while data := await stream.receive():
        got += len(data)
    if got != messages * len(_MESSAGE):
        raise BenchError(f"{got} bytes came of {messages} messages.")
    return messages / (time.perf_counter() - started)


async def _upload(stream: Stream, size: int) -> float:
    piece = bytes(_PIECE)
    started = time.perf_counter()
    for _ in range(size // _PIECE):
        await stream.send(piece)
    await stream.close_write()
    if int(await stream.receive()) != size:
        raise BenchError("Not all of the upload arrived.")
    return size / (time.perf_counter() - started)


async def _source(stream: Stream) -> None:
    for _ in range(int(await stream.receive())):
        await stream.send(_MESSAGE)
    await stream.close_write()


async def _sink(stream: Stream) -> None:
    size = 0
    while data := await stream.receive():
        size += len(data)
    await stream.send(str(size).encode())
    await stream.close_write()


async def _serve() -> None:
    other = node()
    other.handle(_SOURCE, _source)
    other.handle(_SINK, _sink)
    async with running(other):
        print(other.addresses()[0], flush=True)
        await trio.sleep_forever()


BENCH = Bench("streams", "the mesh's transport: streams, round trips and messages a second", run)

if __name__ == "__main__":
    trio.run(_serve)
