"""Downloads over a real socket, from a server that cuts connections."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from node.fetch import FetchError, address_of, digest_of, fetch

CONTENT = bytes(range(256)) * 16_384  # 4 MiB
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Source:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # how much of each next answer to send before hanging up
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def source() -> Iterator[Source]:
    state = Source()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.ranges.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = 0
            if asked and self.headers.get("If-Range", state.etag) == state.etag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start and start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if state.etag:
                self.send_header("ETag", state.etag)
            body = state.content[start:]
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts else None
            with suppress(ConnectionError):  # the client may have seen enough
                self.wfile.write(body[:cut])
            self.close_connection = cut is not None

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the base class's
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/dir/model.gguf"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def get(tmp_path: Path) -> Callable[..., Any]:
    def run(address: str, **options: Any) -> Any:
        client = httpx.Client(trust_env=False, follow_redirects=True)
        return fetch(address, tmp_path, hub_url="http://hub.test", client=client, pause=lambda seconds: None, **options)

    return run


def test_a_file_comes_whole_with_progress(source: Source, get: Callable[..., Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    got = get(f"{source.url}?token=1", digest=DIGEST, progress=lambda done, total: seen.append((done, total)))
    assert (got.path, got.digest) == (tmp_path / "model.gguf", DIGEST)
    assert got.path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_cut_connection_is_resumed_where_it_broke(source: Source, get: Callable[..., Any]) -> None:
    source.cuts = [3 << 20, 0]
    assert get(source.url).digest == DIGEST
    assert source.ranges[0] is None
    assert all(asked and asked != "bytes=0-" for asked in source.ranges[1:])


def test_only_attempts_without_progress_are_counted(source: Source, get: Callable[..., Any]) -> None:
    source.cuts = [1 << 19] * 7
    assert get(source.url).digest == DIGEST


def test_a_dead_source_is_given_up_and_the_part_kept_for_next_time(
    source: Source, get: Callable[..., Any], tmp_path: Path
) -> None:
    source.cuts = [3 << 20] + [0] * 5
    with pytest.raises(FetchError, match=r"broke 5 times.*continues where"):
        get(source.url)
    part = tmp_path / "model.gguf.part"
    assert 0 < part.stat().st_size < len(CONTENT)
    assert not (tmp_path / "model.gguf").exists()
    assert get(source.url).digest == DIGEST


def test_a_file_that_changed_meanwhile_is_fetched_anew(source: Source, get: Callable[..., Any]) -> None:
    source.cuts = [3 << 20] + [0] * 5
    with pytest.raises(FetchError):
        get(source.url)
    source.content, source.etag = CONTENT[::-1], '"two"'
    assert get(source.url).path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_version_or_a_digest_nothing_is_continued(
    source: Source, get: Callable[..., Any], etag: str | None
) -> None:
    source.etag = etag
    source.cuts = [3 << 20]
    assert get(source.url).digest == DIGEST
    assert source.ranges == [None, None]


def test_with_a_digest_it_is(source: Source, get: Callable[..., Any]) -> None:
    source.etag = None
    source.cuts = [3 << 20]
    assert get(source.url, digest=DIGEST).digest == DIGEST
    assert source.ranges[1] is not None


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_a_part_that_is_complete_or_too_long(
    source: Source, get: Callable[..., Any], tmp_path: Path, extra: bytes
) -> None:
    (tmp_path / "model.gguf.part").write_bytes(CONTENT + extra)
    assert get(source.url, digest=DIGEST).path.read_bytes() == CONTENT


def test_a_wrong_digest_leaves_nothing(source: Source, get: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="instead of sha256:00"):
        get(source.url, digest="sha256:" + "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_used_only_if_a_digest_says_it_is_the_same(
    source: Source, get: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    assert get(source.url, digest=DIGEST).digest == DIGEST
    with pytest.raises(FetchError, match="is there already"):
        get(source.url)
    with pytest.raises(FetchError, match="instead of"):
        get(source.url, digest="sha256:" + "0" * 64)
    assert source.ranges == []
    assert digest_of(tmp_path / "model.gguf") == DIGEST


def test_an_error_of_the_server_is_told_without_the_token(source: Source, get: Callable[..., Any]) -> None:
    source.status = 403
    with pytest.raises(FetchError, match="answered 403") as caught:
        get(f"{source.url}?token=sesame")
    assert "sesame" not in str(caught.value)


def test_a_full_disk_is_noticed_before_the_transfer(
    source: Source, get: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(FetchError, match="1 MiB free; 4 MiB are still to come"):
        get(source.url)
    assert (tmp_path / "model.gguf.part").stat().st_size == 0


def test_a_folder_that_is_not_there_is_a_fetch_error(source: Source, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="cannot be written"):
        fetch(source.url, tmp_path / "missing", hub_url="http://hub.test", client=httpx.Client(trust_env=False))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://host/a.gguf", "https://host/a.gguf"),
        ("hf://org/repo/sub/a.gguf", "http://hub.test/org/repo/resolve/main/sub/a.gguf"),
        ("hf://org/repo/a b.gguf", "http://hub.test/org/repo/resolve/main/a%20b.gguf"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert address_of(given, "http://hub.test/") == address


@pytest.mark.parametrize(
    "given",
    ["ftp://host/a", "hf://org/repo", "nothing", "http:///a", "http://h:x/a", "http://[/a", "file:///etc/passwd"],
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(FetchError):
        address_of(given, "http://hub.test")


@pytest.mark.parametrize("path", ["/", "/..", "/%2e%2e", "/a%2fb", "/a%00b", "/%0a"])
def test_file_names_cannot_leave_the_folder(get: Callable[..., Any], path: str) -> None:
    with pytest.raises(FetchError, match="usable file name"):
        get(f"http://127.0.0.1:9{path}")
