"""Joins the links of a ring, beside the head's own process: that one must not wait for Python while it computes.

    python -m backends.mlx.relay OWN_PORT ACCEPT_FD ENDPOINT_PORT...

OWN_PORT: where rank 0 listens. ACCEPT_FD: a listening socket that rank 0 dials as its next one. It ends with its
standard input, or with any of the links.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from itertools import pairwise

from backends.mlx.ring import MEETING_S, Ends, Hello, dial, join


async def _relay(own_port: int, listener: socket.socket, ports: list[int]) -> None:
    arrived: asyncio.Future[Ends] = asyncio.get_running_loop().create_future()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if arrived.done():
            writer.close()
        else:
            arrived.set_result((reader, writer))

    server = await asyncio.start_server(accept, sock=listener)

    async def first() -> None:
        far = await dial(ports[0], Hello(role="in"))
        await join(await arrived, far)

    async def between(left: int, right: int) -> None:
        one = await dial(left, Hello(role="out"))
        await join(one, await dial(right, Hello(role="in")))

    async def last() -> None:
        far = await dial(ports[-1], Hello(role="out"))
        await join(far, await dial(own_port, patience_s=MEETING_S))

    async with server:
        links = [first(), *(between(*pair) for pair in pairwise(ports)), last()]
        tasks = [asyncio.create_task(link) for link in links]
        tasks.append(asyncio.create_task(asyncio.to_thread(_end_of_input)))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)  # not by way of the thread that reads


def _end_of_input() -> None:
    sys.stdin.buffer.read()


if __name__ == "__main__":
    asyncio.run(_relay(int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), [int(port) for port in sys.argv[3:]]))
