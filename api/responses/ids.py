"""Identities of responses and their items. Both say on which node they were made, so that any node can find them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

_RESPONSE = re.compile(r"resp_([0-9A-Za-z]{1,64})_([0-9a-f]{32})")
_ITEM = re.compile(r"[a-z]{2,4}_([0-9A-Za-z]{1,64})_([0-9a-f]{32})_[oi][0-9]{1,6}")


@dataclass(frozen=True, slots=True)
class ResponseId:
    """`resp_<node>_<uuid>`, and what is made of it."""

    node: str
    uuid: str

    def __str__(self) -> str:
        return f"resp_{self.node}_{self.uuid}"

    def item(self, prefix: str, place: str, number: int) -> str:
        """The id of an item: `place` is "i" for input, "o" for output."""
        return f"{prefix}_{self.node}_{self.uuid}_{place}{number}"

    @classmethod
    def new(cls, node: str) -> ResponseId:
        """One that there has never been."""
        return cls(node, uuid.uuid4().hex)

    @classmethod
    def read(cls, text: str) -> ResponseId | None:
        """The id that `text` is; None where it is none of ours."""
        found = _RESPONSE.fullmatch(text)
        return cls(found[1], found[2]) if found else None

    @classmethod
    def of_item(cls, text: str) -> ResponseId | None:
        """The response that the item of that id belongs to."""
        found = _ITEM.fullmatch(text)
        return cls(found[1], found[2]) if found else None
