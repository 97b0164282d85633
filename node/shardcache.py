"""What a shard server keeps of others' weights on disk, from load to load.

The server writes a file while it receives a tensor, under the tensor's hash, and takes whatever it finds under a hash
for the tensor. One that was killed while it wrote leaves half a tensor, and every answer after that would be wrong,
without a word. So only files that are known to be whole survive the start of a server: those that were there when a
server had nothing more to write.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import msgspec

SETTLED_S = 60.0
"""What has not been written to for so long is whole, while its server lives."""

_log = logging.getLogger("mesh.shards")


class ShardCache:
    """A folder, and beside it a list of what is whole in it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """At most `limit_bytes` are kept."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._list = folder.with_suffix(".json")

    def begin(self) -> None:
        """Before a server starts: delete what may be half a tensor, and what was used longest ago beyond the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self._whole()
        for path in self._files():
            if whole.get(path.name) != path.stat().st_size:
                path.unlink(missing_ok=True)
        held = sum(path.stat().st_size for path in self._files())
        for path in sorted(self._files(), key=_used_at):
            if held <= self.limit_bytes:
                break
            held -= path.stat().st_size
            path.unlink(missing_ok=True)

    def settle(self, *, unused_s: float = 0.0) -> None:
        """What has not been written to for `unused_s` is whole. 0: the server has nothing to write at all."""
        now = time.time()
        found = {}
        for path in self._files():
            stat = path.stat()
            if now - stat.st_mtime >= unused_s:
                found[path.name] = stat.st_size
        if found != self._whole():
            draft = self._list.with_suffix(".draft")
            draft.write_bytes(msgspec.json.encode(found))
            draft.replace(self._list)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_file()] if self.folder.is_dir() else []

    def _whole(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._list.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("%s cannot be read, and what it lists is not used again: %s", self._list, error)
            return {}


def _used_at(path: Path) -> float:
    stat = path.stat()
    return max(stat.st_atime, stat.st_mtime)
