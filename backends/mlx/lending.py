"""This machine as a rank of others' models, as the node sees it: what starts the server, and what asks one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio

from backends.mlx import MlxBackend, backend, interpreter
from backends.mlx.folder import identity
from backends.mlx.rankserver import Settings
from backends.mlx.ring import Facts, Hello, line
from backends.sharding import Device, ServerFacts, ServerSettings, Shape
from backends.types import LoadFailed, LoadSpec, ModelNeeds

_MAX_ANSWER_BYTES = 1 << 20


class RankLender(MlxBackend):
    """Implements backends.sharding.ShardingBackend as far as a lender needs it."""

    target = MlxBackend.rank_target

    def __init__(self, models: Path) -> None:
        """`models`: a file in which the node keeps the folders of its models, as a JSON array."""
        self._models = models

    def server_command(self, settings: ServerSettings) -> list[str]:
        """What starts the server."""
        own = Settings(port=settings.port, models=str(self._models), memory_bytes=settings.memory_bytes)
        return [str(interpreter()), "-m", "backends.mlx.rankserver", msgspec.json.encode(own).decode()]

    def shape(self, load: LoadSpec, needs: ModelNeeds) -> Shape:
        """Raises LoadFailed."""
        raise LoadFailed("The mlx backend shares a model among ranks; it does not put its layers elsewhere.")

    async def probe(self, port: int, *, timeout_s: float) -> ServerFacts:
        """What the server at 127.0.0.1:`port` says of itself. Raises LoadFailed."""
        facts = await ask(port, timeout_s=timeout_s)
        device = Device(free_bytes=facts.free_bytes, total_bytes=facts.total_bytes)
        return ServerFacts(version=facts.version, devices=(device,))


async def check_rank(load: LoadSpec, port: int, *, memory_bytes: int, timeout_s: float) -> None:
    """Raises LoadFailed, with the reason, unless the server at 127.0.0.1:`port` can take part in that model."""
    facts = await ask(port, timeout_s=timeout_s)
    if why := backend.refuses(facts.version):
        raise LoadFailed(why)
    if await trio.to_thread.run_sync(identity, Path(load.path)) not in facts.identities:
        raise LoadFailed("it has no model with these weights.")
    if facts.free_bytes < memory_bytes:
        raise LoadFailed(f"it has {facts.free_bytes >> 20} MiB free, and a rank takes {memory_bytes >> 20} MiB.")


async def ask(port: int, *, timeout_s: float) -> Facts:
    """The facts of the server at 127.0.0.1:`port`. Raises LoadFailed: nobody answers, or says what is none."""
    answer = b""
    try:
        with trio.fail_after(timeout_s):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(line(Hello(role="probe")))
                while not answer.endswith(b"\n") and len(answer) < _MAX_ANSWER_BYTES:
                    piece = await stream.receive_some()
                    if not piece:
                        break
                    answer += piece
        return msgspec.json.decode(answer, type=Facts)
    except trio.TooSlowError:
        raise LoadFailed(f"a rank's server does not answer within {timeout_s:g} s.") from None
    except (OSError, trio.BrokenResourceError) as error:
        raise LoadFailed(f"a rank's server is not to be reached: {error}") from error
    except msgspec.MsgspecError as error:
        raise LoadFailed(f"what answers is no rank's server: {error}") from error
