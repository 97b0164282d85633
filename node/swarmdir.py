"""What a node keeps of its swarm in its data folder: its key, the token, the peers it knew, how often it has started.

    swarm/identity.pem   its own key: its id over restarts          swarm/known   remembered records and bans
    swarm/token          the join token, with current addresses     swarm/state   starts so far, the last port

All of mode 600 in a folder of mode 700.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from mesh.identity import Identity
from mesh.records import SignedRecord
from mesh.secretfile import SecretFileError, read_secret, write_secret
from mesh.swarm import Remembered
from mesh.token import JoinToken

_log = logging.getLogger("mesh.swarm")
MAX_KNOWN_BYTES = 64 << 20


class _State(msgspec.Struct):
    starts: Annotated[int, Meta(ge=0, le=2**52)] = 0
    port: Annotated[int, Meta(ge=0, le=65535)] = 0


class _Known(msgspec.Struct):
    records: list[SignedRecord]
    bans: list[bytes]


class SwarmDir:
    """Implements mesh.swarm.Memory, too."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "swarm"

    def identity(self) -> Identity:
        """This node's key, made at its first start. Raises mesh.identity.IdentityError or SecretFileError."""
        return Identity.load_or_create(self.folder / "identity.pem")

    def token(self) -> JoinToken | None:
        """The token of the swarm that this node is in. Raises TokenError or SecretFileError."""
        data = read_secret(self.folder / "token")
        return None if data is None else JoinToken.parse(data.decode("ascii", "replace"))

    def save_token(self, token: JoinToken) -> None:
        """Replace the stored token."""
        write_secret(self.folder / "token", (token.encode() + "\n").encode())

    def begin(self) -> int:
        """Count one more start; the number of this one. It orders the node's records without any clock."""
        state = self._state()
        state.starts += 1
        self._save(state)
        return state.starts

    @property
    def port(self) -> int:
        """The port that the mesh listened on last; 0 before the first start."""
        return self._state().port

    def save_port(self, port: int) -> None:
        """Remember the port, so that others find this node where it was."""
        state = self._state()
        if state.port != port:
            state.port = port
            self._save(state)

    def forget_swarm(self) -> None:
        """Leave no trace of the swarm; the node keeps its identity and its count of starts."""
        for name in ("token", "known"):
            (self.folder / name).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """As if the node had never been in a swarm."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- mesh.swarm.Memory --

    def load(self) -> Remembered:
        try:
            data = read_secret(self.folder / "known", max_bytes=MAX_KNOWN_BYTES)
            if data is None:
                return Remembered()
            known = msgspec.msgpack.decode(data, type=_Known)
        except (SecretFileError, msgspec.MsgspecError, RecursionError) as error:
            _log.warning("the remembered peers cannot be read and are forgotten: %s", error)
            return Remembered()
        return Remembered(tuple(known.records), tuple(known.bans))

    async def save(self, remembered: Remembered) -> None:
        data = msgspec.msgpack.encode(_Known(list(remembered.records), list(remembered.bans)))
        try:
            await trio.to_thread.run_sync(write_secret, self.folder / "known", data)
        except (SecretFileError, OSError) as error:
            _log.warning("the peers cannot be remembered: %s", error)

    def _state(self) -> _State:
        data = read_secret(self.folder / "state")
        try:
            return _State() if data is None else msgspec.json.decode(data, type=_State)
        except (msgspec.MsgspecError, RecursionError) as error:
            _log.warning("the count of starts cannot be read and goes on from the clock: %s", error)
            # A node that counted from 1 again would pass for its own past. Seconds are ahead of any count of starts.
            return _State(starts=int(time.time()))

    def _save(self, state: _State) -> None:
        write_secret(self.folder / "state", msgspec.json.encode(state))
