"""One tunnel in the pump process: bytes from a socket of this machine into a TLS connection, and back.

Neither side is read from while the other still holds what came before, so that nothing piles up. On the TLS side each
direction is a row of frames (see mesh/tunnel): a break is told from an end by the frame that is missing.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress

PIECE_BYTES = 64 << 10
_RECORD_BYTES = 16 << 10  # of TLS, at most; a buffer with less room would leave part of one in OpenSSL, unannounced

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_LENGTH = struct.Struct("!I")
_BREAK, _NO_BREAK = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)  # SO_LINGER: whether close is a reset

Count = Callable[[int, int, int], None]
"""Is told bytes out, bytes in and round trips so far."""


class Pipe:
    """Runs as soon as it is made, driven by `selector`, whose keys' data are to be called with the events."""

    def __init__(
        self,
        near: socket.socket,
        far: ssl.SSLSocket,
        selector: selectors.BaseSelector,
        count: Count,
        over: Callable[[bool], None],
    ) -> None:
        """`over` is told whether both directions came to their end."""
        self._near, self._far, self._selector, self._count, self._over = near, far, selector, count, over
        self._masks = {near: 0, far: 0}
        self._running = True
        self._sent = self._received = self._trips = 0
        self._asked = False
        # Outward: a frame, and what of it is still to be sent.
        self._frame = bytearray(_LENGTH.size + PIECE_BYTES)
        self._frame_view = memoryview(self._frame)
        self._frame_left: memoryview | None = None
        self._frame_waits_to_read = False  # TLS wants to hear something before it can say more
        self._near_ended = False
        # Inward: what has come, and what of it is still to be taken apart.
        self._come = bytearray(PIECE_BYTES + _RECORD_BYTES)
        self._come_view = memoryview(self._come)
        self._come_left = self._come_view[:0]
        self._header = b""
        self._body_left = 0
        self._blocked = False  # near does not take more
        self._far_ended = False
        for sock in (near, far):
            _linger(sock, _BREAK)  # also of the close that the end of this process is
            sock.setblocking(False)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def close(self, *, whole: bool = False) -> None:
        """End it; unless it is `whole`, both sides get a reset."""
        if not self._running:
            return
        self._running = False
        for sock, mask in self._masks.items():
            if mask:
                self._selector.unregister(sock)
            if whole:
                _linger(sock, _NO_BREAK)
            sock.close()
        self._over(whole)

    def _on_near(self, events: int) -> None:
        try:
            if events & _WRITE:
                self._deliver()
            if events & _READ and self._frame_left is None and not self._near_ended:
                self._take()
        except (OSError, ValueError):
            self.close()
        else:
            self._watch()

    def _on_far(self, events: int) -> None:
        try:
            if self._frame_left is not None and (events & _WRITE or self._frame_waits_to_read):
                self._send()
            if events & _READ and not self._blocked:
                self._hear()
        except (OSError, ValueError):  # ssl.SSLError is an OSError
            self.close()
        else:
            self._watch()

    # Outward

    def _take(self) -> None:
        try:
            count = self._near.recv_into(self._frame_view[_LENGTH.size :])
        except BlockingIOError:
            return
        _LENGTH.pack_into(self._frame, 0, count)
        if count:
            self._sent += count
            self._asked = True
            self._count(self._sent, self._received, self._trips)
        else:
            self._near_ended = True
        self._frame_left = self._frame_view[: _LENGTH.size + count]
        self._send()

    def _send(self) -> None:
        assert self._frame_left is not None
        self._frame_waits_to_read = False
        try:
            count = self._far.send(self._frame_left)
        except ssl.SSLWantWriteError:
            return
        except ssl.SSLWantReadError:
            self._frame_waits_to_read = True
            return
        self._frame_left = self._frame_left[count:] if count < len(self._frame_left) else None

    # Inward

    def _hear(self) -> None:
        filled, gone = 0, False
        try:
            while (
                filled <= PIECE_BYTES and not gone
            ):  # TLS gives a record of 16 KiB at a time: pass on several together
                count = self._far.recv_into(self._come_view[filled:])
                filled += count
                gone = not count
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            gone = True  # what came before it was sealed all the same
        self._come_left = self._come_view[:filled]
        self._deliver()
        if gone and not self._ended:
            raise ConnectionResetError

    def _deliver(self) -> None:
        """As much of what has come as the near side takes."""
        self._blocked = False
        while self._come_left:
            if self._far_ended:
                raise ValueError("more after the end")
            if not self._body_left:
                missing = _LENGTH.size - len(self._header)
                self._header += bytes(self._come_left[:missing])
                self._come_left = self._come_left[missing:]
                if len(self._header) < _LENGTH.size:
                    return
                (self._body_left,) = _LENGTH.unpack(self._header)
                self._header = b""
                if self._body_left > PIECE_BYTES:
                    raise ValueError("a frame that is too long")
                if not self._body_left:
                    self._far_ended = True
                    self._near.shutdown(socket.SHUT_WR)
                continue
            try:
                count = self._near.send(self._come_left[: self._body_left])
            except BlockingIOError:
                self._blocked = True
                return
            self._body_left -= count
            self._come_left = self._come_left[count:]
            self._received += count
            self._trips += self._asked
            self._asked = False
            self._count(self._sent, self._received, self._trips)

    @property
    def _ended(self) -> bool:
        return self._near_ended and self._far_ended and self._frame_left is None and not self._come_left

    # What to wait for

    def _watch(self) -> None:
        if self._ended:
            self.close(whole=True)
            return
        idle = self._frame_left is None
        near = (_READ if idle and not self._near_ended else 0) | (_WRITE if self._blocked else 0)
        far = (0 if self._blocked else _READ) | (0 if idle or self._frame_waits_to_read else _WRITE)
        self._wait_for(self._near, near, self._on_near)
        self._wait_for(self._far, far, self._on_far)

    def _wait_for(self, sock: socket.socket, mask: int, ready: Callable[[int], None]) -> None:
        before = self._masks[sock]
        if mask == before:
            return
        if not mask:
            self._selector.unregister(sock)
        elif before:
            self._selector.modify(sock, mask, ready)
        else:
            self._selector.register(sock, mask, ready)
        self._masks[sock] = mask


def _linger(sock: socket.socket, how: bytes) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
