"""Just enough HTTP/1.1 for a load generator: a request as bytes, and an answer put together after the clock stopped."""

from __future__ import annotations

import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import msgspec

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_NODE = re.compile(rb"\r\nx-mesh-node: *([^\r]*)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Without a body it is a GET."""

    path: str
    body: str = ""


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one request. Times are of the monotonic clock, which all processes of a machine share."""

    status: int
    started_s: float
    ended_s: float
    event_s: list[float]  # of each server-sent event but [DONE]
    content_s: list[float]  # of those that carry text
    text: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    node: str = ""  # that answered, as X-Mesh-Node says

    @property
    def took_s(self) -> float:
        """From the request to the answer's end."""
        return self.ended_s - self.started_s

    @property
    def first_content_after_s(self) -> float:
        """Time to first token."""
        return self.content_s[0] - self.started_s


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def chat(messages: list[dict[str, str]], **fields: Any) -> Ask:
    """A chat completion."""
    return Ask(path="/v1/chat/completions", body=json.dumps({"messages": messages, **fields}))


def encode(ask: Ask, host: str, *, last: bool = False) -> bytes:
    """The request as bytes; `last` asks for the connection's end after the answer."""
    head = f"{'POST' if ask.body else 'GET'} {ask.path} HTTP/1.1\r\nHost: {host}\r\n"
    if last:
        head += "Connection: close\r\n"
    body = ask.body.encode()
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Exchange:
    """An answer as it arrives. While the clock runs it only keeps the pieces and looks for the end."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._pieces: list[tuple[float, bytes]] = []
        self._left: int | None = None  # bytes to come; None: chunked, or not known yet
        self._head: bytes | None = None
        self.closes = False  # the connection cannot be used again

    def feed(self, now_s: float, data: bytes) -> bool:
        """Take what arrived; True when the answer is complete."""
        if self._head is None:
            if self._pieces:
                data = self._pieces.pop()[1] + data
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._pieces.append((now_s, data))
                return False
            self._head, data = head, rest
            self.closes = _CLOSE.search(head) is not None
            if length := _LENGTH.search(head):
                self._left = int(length[1])
        self._pieces.append((now_s, data))
        if self._left is not None:
            self._left -= len(data)
            return self._left <= 0
        # The last chunk. A server-sent event ends with an empty line, never with a bare 0.
        return data.endswith(b"0\r\n\r\n") or (len(data) < 5 and self._tail().endswith(b"0\r\n\r\n"))

    @property
    def events(self) -> int:
        """How many events have come so far; slow, for those who stop early."""
        return len(self._events())

    def outcome(self) -> Outcome:
        """What the answer says."""
        assert self._head is not None, "no answer came"
        status = int(self._head.split(b" ", 2)[1])
        outcome = Outcome(
            status=status,
            started_s=self._started_s,
            ended_s=self._pieces[-1][0],
            event_s=[],
            content_s=[],
            text="",
            finish_reason=None,
            usage=None,
            node=node[1].decode() if (node := _NODE.search(self._head)) else "",
        )
        for at_s, event in self._events():
            outcome.event_s.append(at_s)
            _note(outcome, at_s, event)
        if not outcome.event_s and self._left is not None:
            _note_whole(outcome, b"".join(data for _, data in self._pieces))
        return outcome

    def _tail(self) -> bytes:
        return b"".join(data for _, data in self._pieces[-5:])

    def _events(self) -> list[tuple[float, bytes]]:
        """All data lines but [DONE], each with the time at which it was complete."""
        chunked = _CHUNKED.search(self._head or b"") is not None
        events = []
        raw = line = b""
        for at_s, data in self._pieces:
            raw += data
            if chunked:
                body, raw = _dechunk(raw)
            else:
                body, raw = raw, b""
            *lines, line = (line + body).split(b"\n")
            events += [(at_s, one[5:].strip()) for one in lines if one.startswith(b"data:")]
        return [event for event in events if event[1] != b"[DONE]"]


def _dechunk(raw: bytes) -> tuple[bytes, bytes]:
    """The content of the complete chunks in `raw`, and the rest."""
    body = []
    at = 0
    while (end := raw.find(b"\r\n", at)) > at:
        size = int(raw[at:end], 16)
        if size == 0 or len(raw) < end + 2 + size + 2:
            break
        body.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(body), raw[at:]


def _note(outcome: Outcome, at_s: float, event: bytes) -> None:
    content = json.loads(event)
    outcome.usage = content.get("usage") or outcome.usage
    for choice in content.get("choices", ()):
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            outcome.content_s.append(at_s)
            outcome.text += text
        outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason


def _note_whole(outcome: Outcome, body: bytes) -> None:
    if not body.startswith(b"{"):
        return
    content = json.loads(body)
    outcome.usage = content.get("usage")
    for choice in content.get("choices", ()):
        outcome.text = choice.get("text") or choice.get("message", {}).get("content") or ""
        outcome.finish_reason = choice.get("finish_reason")


def free_port() -> int:
    """A TCP port that was free a moment ago, for servers that cannot say which one they took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
