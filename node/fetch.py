"""Downloads of weights: resumed where they stopped, and kept only if their checksum is right."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

_CHUNK_BYTES = 1 << 20
_TIMEOUT = httpx.Timeout(30.0)
_ATTEMPTS = 5
_HUB = "https://huggingface.co"
_FILE_NAME = re.compile(r"[\w.+-][\w .+-]{0,200}")

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be, if the server says."""


class FetchError(Exception):
    """The file did not come: one sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file and its digest, `sha256:` and hex."""

    path: Path
    digest: str


def address_of(source: str) -> str:
    """The http(s) address of `source`; hf://OWNER/REPO/FILE is short for the hub's. Raises FetchError."""
    parts = urlsplit(source)
    if parts.scheme == "hf":
        owner, _, rest = f"{parts.netloc}{parts.path}".partition("/")
        repository, _, file = rest.partition("/")
        if not (owner and repository and file):
            raise FetchError(f"{source} is incomplete; it should be hf://OWNER/REPO/FILE.")
        return f"{_HUB}/{owner}/{repository}/resolve/main/{file}"
    if parts.scheme in ("http", "https") and parts.netloc:
        return source
    raise FetchError(f"{source} is neither an http(s) address nor hf://OWNER/REPO/FILE.")


def fetch(
    source: str,
    folder: Path,
    *,
    digest: str | None = None,
    progress: Progress = lambda done, total: None,
    client: httpx.Client | None = None,
) -> Fetched:
    """Download `source` into `folder` under its own name, continuing an earlier attempt.

    With `digest` the file must have it, else it is deleted. Raises FetchError; what has come so far then stays in a
    `.part` file for the next attempt.
    """
    address = address_of(source)
    name = unquote(urlsplit(address).path.rpartition("/")[2])
    if not _FILE_NAME.fullmatch(name):
        raise FetchError(f"{source} does not end in a usable file name.")
    target = folder / name
    if target.exists():
        return _checked(target, digest, keep=True)
    part = target.with_name(name + ".part")
    with client or httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as http:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _continue(http, address, part, progress)
                break
            except httpx.TransportError as error:
                if attempt == _ATTEMPTS:
                    raise FetchError(
                        f"The connection to {urlsplit(address).netloc} broke {_ATTEMPTS} times ({error}). "
                        "Run the same command again: it continues where this one stopped."
                    ) from error
    got = _checked(part, digest, keep=False)
    part.replace(target)
    return Fetched(target, got.digest)


def digest_of(path: Path) -> str:
    """`sha256:` and the hex digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _checked(path: Path, digest: str | None, *, keep: bool) -> Fetched:
    actual = digest_of(path)
    if digest is not None and actual != digest:
        if not keep:
            path.unlink()
        raise FetchError(f"{path.name} has the digest {actual} instead of {digest}; the source has another file.")
    return Fetched(path, actual)


def _continue(http: httpx.Client, address: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with http.stream("GET", address, headers=headers) as answer:
        if have and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it was there already; the digest decides
        if answer.is_error:
            raise FetchError(f"{urlsplit(address).netloc} answered {answer.status_code} for {address}.")
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            have = 0  # the server starts over
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        _check_space(part.parent, (total or 0) - have)
        with part.open("ab" if have else "wb") as file:
            for data in _pieces(answer):
                file.write(data)
                have += len(data)
                progress(have, total)


def _pieces(answer: httpx.Response) -> Iterator[bytes]:
    return answer.iter_bytes(_CHUNK_BYTES)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(f"{folder} has {free >> 20} MiB free; {needed >> 20} MiB are still to come.")
