"""A store of responses that ends with the process, for an API without a data folder."""

from __future__ import annotations

from collections.abc import Sequence

from api.ports import StoredResponse


class MemoryResponses:
    """Implements api.ports.ResponseStore."""

    node = "memory"

    def __init__(self) -> None:
        self._responses: dict[str, StoredResponse] = {}
        self._events: dict[str, bytes] = {}

    async def put(self, response: StoredResponse, events: bytes | None = None) -> None:
        self._responses[response.id] = response
        if events is not None:
            self._events[response.id] = events

    async def get(self, identity: str) -> StoredResponse | None:
        return self._responses.get(identity)

    async def chain(self, identity: str) -> Sequence[StoredResponse]:
        found: list[StoredResponse] = []
        response = self._responses.get(identity)
        while response is not None:
            found.insert(0, response)
            response = self._responses.get(response.previous_id or "")
        return found

    async def events(self, identity: str) -> bytes | None:
        return self._events.get(identity)

    async def delete(self, identity: str) -> bool:
        self._events.pop(identity, None)
        return self._responses.pop(identity, None) is not None
