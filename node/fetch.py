"""Downloads of weights: resumed where they stopped, and kept only if their checksum is right."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import httpx

_TIMEOUT = httpx.Timeout(30.0)
_ATTEMPTS = 5  # in a row without a single byte
_FILE_NAME = re.compile(r"[\w+-][\w .+-]{0,200}")

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be, if the server says."""


class FetchError(Exception):
    """The file did not come: one sentence that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete file and its digest, `sha256:` and hex."""

    path: Path
    digest: str


def address_of(source: str, hub_url: str) -> str:
    """The http(s) address of `source`; hf://OWNER/REPO/FILE is short for the hub's. Raises FetchError."""
    try:
        parts = urlsplit(source)
        parts.port  # noqa: B018  # raises when it is no number
    except ValueError as error:
        raise FetchError(f"This is no address: {error}.") from error
    if parts.scheme == "hf":
        owner, _, rest = f"{parts.netloc}{parts.path}".partition("/")
        repository, _, file = rest.partition("/")
        if not (owner and repository and file):
            raise FetchError(f"{source} is incomplete; it should be hf://OWNER/REPO/FILE.")
        return f"{hub_url.rstrip('/')}/{quote(owner)}/{quote(repository)}/resolve/main/{quote(unquote(file))}"
    if parts.scheme in ("http", "https") and parts.hostname:
        return source
    raise FetchError(f"{shown(source)} is neither an http(s) address nor hf://OWNER/REPO/FILE.")


def shown(source: str) -> str:
    """`source` without what may be secret in it: a password, and a query, which may hold a token."""
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def fetch(
    source: str,
    folder: Path,
    *,
    hub_url: str,
    digest: str | None = None,
    progress: Progress = lambda done, total: None,
    client: httpx.Client | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Download `source` into `folder` under its own name, continuing an earlier attempt.

    With `digest` the file must have it, else it is deleted. A connection that breaks is made again, after `pause`
    seconds that double. Raises FetchError; what has come so far then stays in a `.part` file for the next attempt.
    """
    address = address_of(source, hub_url)
    name = unquote(urlsplit(address).path.rpartition("/")[2])
    if not _FILE_NAME.fullmatch(name):
        raise FetchError(f"{shown(source)} does not end in a usable file name.")
    target = folder / name
    if target.exists():
        if digest is None:
            raise FetchError(f"{target} is there already. Add that file, delete it, or say which --digest is right.")
        return _checked(target, digest)
    part = _Part(target.with_name(name + ".part"), address, trusted=digest is not None)
    try:
        with client or httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as http:
            _persist(http, part, progress, pause)
        try:
            got = _checked(part.path, digest)
        except FetchError:
            part.drop()
            raise
        part.path.replace(target)
        part.drop()
    except OSError as error:
        raise FetchError(f"{target} cannot be written: {error.strerror or error}.") from error
    return Fetched(target, got.digest)


def digest_of(path: Path) -> str:
    """`sha256:` and the hex digest of a file."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@dataclass(frozen=True, slots=True)
class _Part:
    """An unfinished download, and beside it the source and version that it is a part of."""

    path: Path
    address: str
    trusted: bool  # a digest will tell whether the parts were of one file

    @property
    def _label(self) -> Path:
        return self.path.with_name(self.path.name + ".of")

    def range_headers(self) -> dict[str, str]:
        """Ask for the rest if it is sure to be the rest of the same file (RFC 9110, 13.1.5), else for all."""
        size = self.size
        if not size:
            return {}
        address, version = (*self._label.read_text().splitlines(), "", "")[:2] if self._label.exists() else ("", "")
        if address == _hash(self.address) and version:
            return {"Range": f"bytes={size}-", "If-Range": version}
        return {"Range": f"bytes={size}-"} if self.trusted else {}

    @property
    def size(self) -> int:
        """Bytes there are."""
        return self.path.stat().st_size if self.path.exists() else 0

    def label(self, answer: httpx.Response) -> None:
        """Note the version that is coming."""
        version = answer.headers.get("ETag", "W/")
        if version.startswith("W/"):  # a weak one does not promise the same bytes
            version = answer.headers.get("Last-Modified", "")
        self._label.write_text(f"{_hash(self.address)}\n{version}\n")

    def drop(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)
        self._label.unlink(missing_ok=True)


def _hash(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()  # an address may hold a token


def _checked(path: Path, digest: str | None) -> Fetched:
    actual = digest_of(path)
    if digest is not None and actual != digest:
        name = path.name.removesuffix(".part")
        raise FetchError(f"{name} has the digest {actual} instead of {digest}; the source has another file.")
    return Fetched(path, actual)


def _persist(http: httpx.Client, part: _Part, progress: Progress, pause: Callable[[float], None]) -> None:
    failures = 0
    while True:
        before = part.size
        try:
            return _continue(http, part, progress)
        except httpx.TransportError as error:
            failures = 1 if part.size > before else failures + 1
            if failures == _ATTEMPTS:
                raise FetchError(
                    f"The connection to {urlsplit(part.address).hostname} broke {_ATTEMPTS} times ({error}). "
                    "Run the same command again: it continues where this one stopped."
                ) from error
            pause(2.0 ** (failures - 1))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FetchError(f"{shown(part.address)} cannot be fetched: {error}") from error


def _continue(http: httpx.Client, part: _Part, progress: Progress) -> None:
    with part.path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"Another command is downloading {part.path.name.removesuffix('.part')}.") from None
        asked = part.range_headers()
        with http.stream("GET", part.address, headers={"Accept-Encoding": "identity"} | asked) as answer:
            have = part.size
            if asked and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if answer.headers.get("Content-Range") == f"bytes */{have}":
                    return  # all of it was there already
                file.truncate(0)
                raise httpx.RemoteProtocolError("the file has changed")  # the next attempt starts over
            if answer.is_error:
                raise FetchError(f"{urlsplit(part.address).hostname} answered {answer.status_code} for it.")
            if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                have = 0  # the server starts over
                file.truncate(0)
                part.label(answer)
            elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise FetchError(f"{urlsplit(part.address).hostname} sent another part than the one asked for.")
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdigit() else None
            _check_space(part.path.parent, (total or have) - have)
            for data in answer.iter_bytes():
                file.write(data)
                have += len(data)
                progress(have, total)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FetchError(f"{folder} has {free >> 20} MiB free; {needed >> 20} MiB are still to come.")
