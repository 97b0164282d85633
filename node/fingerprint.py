"""What a model IS, whatever it is called: two nodes may share an answer only if this is the same on both.

Hashing a 40 GB file takes minutes, and every node has to know before it offers anything. So the file's size, its first
and last mebibyte (the header, the vocabulary, the chat template) and 64 blocks spread evenly over the weights are
hashed: milliseconds, and enough to tell any two files apart that differ in more than a patched tensor. With it goes all
of the model's YAML that changes what it says: sampling defaults, stop strings, template, output limit.
"""

from __future__ import annotations

import hashlib
import stat
from functools import lru_cache
from pathlib import Path

import msgspec

from backends.types import LoadSpec

_ENDS_BYTES = 1 << 20
_BLOCKS = 64
_BLOCK_BYTES = 64 << 10


def fingerprint(backend: str, load: LoadSpec) -> str:
    """`mesh1:` and 32 hex digits; empty when the weights cannot be read. Reads at most about 6 MiB of each file."""
    try:
        weights = _weights(Path(load.path)) if load.path else b""
        mmproj = _weights(Path(load.mmproj)) if load.mmproj else b""
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""
    says = {
        "backend": backend,
        "weights": weights.hex(),
        **({"mmproj": mmproj.hex()} if mmproj else {}),
        "sampling": {name: load.sampling[name] for name in sorted(load.sampling)},
        "max_tokens": load.max_tokens,
        "stop": load.stop,
        "chat_template": load.chat_template,
        "deterministic": load.deterministic,
    }
    return "mesh1:" + hashlib.sha256(msgspec.json.encode(says)).hexdigest()[:32]


def _weights(path: Path) -> bytes:
    """Of a file, or of a folder of them. Raises OSError or ValueError."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(path.iterdir()):
            if file.is_file():
                digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + _weights(file))
        return digest.digest()
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("No regular file: reading it may never end.")
    return _sampled(str(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sampled(path: str, size: int, _mtime_ns: int) -> bytes:
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    with Path(path).open("rb") as file:
        digest.update(file.read(_ENDS_BYTES))
        for number in range(_BLOCKS):
            file.seek(size * number // _BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))
        file.seek(max(0, size - _ENDS_BYTES))
        digest.update(file.read(_ENDS_BYTES))
    return digest.digest()
