"""Fetching what a stranger names: with real servers, whose every trick is tried."""

from __future__ import annotations

import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import assume, given
from hypothesis import strategies as st

from backends.types import Busy, CallerError
from node import imagefetch
from node.imagefetch import MAX_REDIRECTS, MAX_URL_CHARS, PARALLEL, ImageFetcher
from node.publicaddress import is_public
from tests.support.certificates import certified
from tests.support.images import PNG

Answer = Callable[[trio.abc.Stream, str], Awaitable[None]]
HERE, INSIDE = "127.0.0.1", "127.0.0.2"


class Names:
    """A resolver of the test's own: what each name stands for, one answer after the other; the last one stays."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = {name.replace("_", "."): found for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Iterable[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such name")
        found = self.answers[host]
        return [found.pop(0) if len(found) > 1 else found[0]]


@asynccontextmanager
async def server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """A server on this machine; where it is, and the heads of the requests that it got."""
    heads: list[str] = []

    async def handle(stream: trio.abc.Stream) -> None:
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True)
        try:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            heads.append(head.decode())
            await answer(stream, head.decode())
            await stream.aclose()
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # the fetcher has had enough

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host=HERE))
        yield f"{HERE}:{listener.socket.getsockname()[1]}", heads
        nursery.cancel_scope.cancel()


def saying(status: str, body: bytes = b"", **headers: str) -> Answer:
    """Always the same answer."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]

    async def answer(stream: trio.abc.Stream, head: str) -> None:
        await stream.send_all("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)

    return answer


def fetcher(*, max_bytes: int = 1 << 20, timeout_s: float = 20.0, private: bool = True, **more: object) -> ImageFetcher:
    return ImageFetcher(max_bytes=max_bytes, timeout_s=timeout_s, private=private, **more)  # type: ignore[arg-type]


async def refusal(fetch: ImageFetcher, url: str) -> str:
    """Why there is no image."""
    with pytest.raises(CallerError) as refused:
        await fetch(url)
    assert refused.value.code == "invalid_image_url"
    return refused.value.message


@pytest.fixture
def public_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 127.0.0.1, and it alone, were an address of the internet."""
    monkeypatch.setattr(imagefetch, "is_public", lambda address: address == HERE)
    monkeypatch.setattr(imagefetch, "_own_addresses", frozenset)


async def test_an_image_comes() -> None:
    async with server(saying("200 OK", PNG, Content_Type="image/png", Content_Length=str(len(PNG)))) as (place, heads):
        assert await fetcher()(f"http://{place}/a%20b.png?size=1#part") == PNG
    [head] = heads
    assert head.startswith("GET /a%20b.png?size=1 HTTP/1.1\r\n")
    assert f"Host: {place}\r\n" in head
    assert "accept-encoding: identity" in head.lower()
    assert not any(word in head.lower() for word in ("cookie", "authorization", "referer"))


async def test_without_a_type_or_a_length() -> None:
    async with server(saying("200 OK", PNG)) as (place, _):
        assert await fetcher()(f"http://{place}/") == PNG


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://127.1:{port}/", "http://2130706433:{port}/"),
        *("http://0x7f.0.0.1:{port}/", "http://[::1]:{port}/", "http://[::ffff:127.0.0.1]:{port}/"),
        *(
            "http://0.0.0.0:{port}/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[fe80::1]/",
            "http://10.0.0.1/",
        ),
        *("https://127.0.0.1:{port}/", "http://LOCALHOST.:{port}/", "http://[::]:{port}/"),
    ],
)
async def test_this_machine_and_its_neighbours_are_not_asked(url: str) -> None:
    async with server(saying("200 OK", PNG)) as (place, heads):
        why = await refusal(fetcher(private=False), url.format(port=place.partition(":")[2]))
    assert "not a place on the public internet" in why or "nobody knows the name" in why
    assert not heads


@given(st.ip_addresses())
def test_no_name_leads_inside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assume(not is_public(str(address)))
    fetch = fetcher(private=False, resolve=Names(name=[str(address)]))

    async def main() -> None:
        assert "public internet" in await refusal(fetch, "http://name/")

    trio.run(main)


async def test_an_address_of_this_machine_is_inside_whatever_it_is(
    monkeypatch: pytest.MonkeyPatch, public_here: None
) -> None:
    own = frozenset({ipaddress.IPv4Address(HERE)})
    monkeypatch.setattr(imagefetch, "_own_addresses", lambda: own)
    async with server(saying("200 OK", PNG)) as (place, heads):
        assert "public internet" in await refusal(fetcher(private=False), f"http://{place}/")
    assert not heads
    monkeypatch.undo()
    assert ipaddress.IPv4Address(HERE) in imagefetch._own_addresses()


async def test_a_name_is_asked_for_once(public_here: None) -> None:
    names = Names(flips_example=[HERE, INSIDE])
    async with server(saying("200 OK", PNG)) as (place, heads):
        port = place.partition(":")[2]
        fetch = fetcher(private=False, resolve=names)
        assert await fetch(f"http://flips.example:{port}/") == PNG
        assert f"Host: flips.example:{port}\r\n" in heads[0]
        assert names.asked == ["flips.example"]
        assert "public internet" in await refusal(fetch, f"http://flips.example:{port}/")
    assert len(heads) == 1


@pytest.mark.parametrize("to", ["http://inside.example:{port}/", "http://127.0.0.2:{port}/", "//127.0.0.2/"])
async def test_a_redirect_inside_is_not_followed(public_here: None, to: str) -> None:
    async def answer(stream: trio.abc.Stream, head: str) -> None:
        port = head.partition("Host: ")[2].partition("\r\n")[0].partition(":")[2]
        await saying("302 Found", Location=to.format(port=port))(stream, head)

    names = Names(outside_example=[HERE], inside_example=[INSIDE])
    names.answers[INSIDE] = [INSIDE]
    async with server(answer) as (place, heads):
        fetch = fetcher(private=False, resolve=names)
        assert "public internet" in await refusal(fetch, f"http://outside.example:{place.partition(':')[2]}/")
    assert len(heads) == 1


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "gopher://x/"])
async def test_a_redirect_to_what_is_not_asked_for(to: str) -> None:
    async with server(saying("301 Moved", Location=to)) as (place, heads):
        await refusal(fetcher(), f"http://{place}/")
    assert len(heads) == 1


async def test_redirects_are_few() -> None:
    async def answer(stream: trio.abc.Stream, head: str) -> None:
        left = int(head.split()[1].strip("/"))
        found = saying("200 OK", PNG) if not left else saying("307 There", Location=f"{left - 1}", Set_Cookie="a=b")
        await found(stream, head)

    async with server(answer) as (place, heads):
        assert await fetcher()(f"http://{place}/{MAX_REDIRECTS}") == PNG
        assert len(heads) == MAX_REDIRECTS + 1
        assert not any("cookie" in head.lower() for head in heads)
        assert "redirects" in await refusal(fetcher(), f"http://{place}/{MAX_REDIRECTS + 1}")
    async with server(saying("302 Found", Location="/")) as (place, heads):
        assert "redirects" in await refusal(fetcher(), f"http://{place}/")
    assert len(heads) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (saying("404 Not Found", b"x"), "404"),
        (saying("304 Not Modified"), "304"),
        (saying("302 Found"), "302"),
        (saying("200 OK", PNG, Content_Length="1000001"), "more than 1000 bytes"),
        (saying("200 OK", b"x" * 1001), "more than 1000 bytes"),
        (saying("200 OK", b"fff\r\n" + b"x" * 4095, Transfer_Encoding="chunked"), "more than 1000 bytes"),
        (saying("200 OK", gzip.compress(b"\0" * 10_000_000)[:900], Content_Encoding="gzip"), "compressed"),
        (saying("200 OK", b"<html>", Content_Type="text/html; charset=utf-8"), "no image"),
        (saying("200 OK", b"x", Content_Length="100"), "broke"),
        (saying("garbage"), "broke"),
        (saying("200 OK", PNG, **{f"X{number}": "y" * 1000 for number in range(200)}), "broke"),
    ],
)
async def test_servers_that_have_none(answer: Answer, why: str) -> None:
    async with server(answer) as (place, _):
        assert why in await refusal(fetcher(max_bytes=1000), f"http://{place}/")


async def test_a_server_that_takes_its_time() -> None:
    async def drips(stream: trio.abc.Stream, head: str) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)  # each of its bytes is in time, the image never is

    async def silent(stream: trio.abc.Stream, head: str) -> None:
        await trio.sleep_forever()

    for answer in (drips, silent):
        async with server(answer) as (place, _):
            assert "within 0.2 s" in await refusal(fetcher(timeout_s=0.2), f"http://{place}/")


async def test_a_name_server_that_takes_its_time() -> None:
    async def never(host: str, port: int) -> Iterable[str]:
        await trio.sleep_forever()
        return ()

    assert "within 0.1 s" in await refusal(fetcher(timeout_s=0.1, resolve=never), "http://name/")


async def test_nobody_there() -> None:
    async with server(saying("200 OK")) as (place, _):
        pass
    assert "cannot be connected to" in await refusal(fetcher(), f"http://{place}/")
    assert "nobody knows the name" in await refusal(fetcher(resolve=Names()), "http://name/")


async def test_another_address_of_the_name() -> None:
    async def both(host: str, port: int) -> Iterable[str]:
        return ["::1", HERE]  # the server listens on the second alone

    async with server(saying("200 OK", PNG)) as (place, _):
        assert await fetcher(resolve=both)(f"http://name:{place.partition(':')[2]}/") == PNG


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "/x", "//x/", "ftp://x/", "file:///etc/passwd", "http://", "http:///x", "javascript:alert(1)"),
        *(
            "http://user:s3cret@example.com/",
            "http://user@example.com/",
            "http://x:99999/",
            "http://x:0/",
            "http://x:a/",
        ),
        *("http://ex\nample/", "http://\0/", "http://[::1/", "http://" + "a" * MAX_URL_CHARS, "http://\udce4/"),
    ],
)
async def test_what_is_no_address(url: str) -> None:
    names = Names()
    message = await refusal(fetcher(resolve=names), url)
    assert "s3cret" not in message
    assert len(message) < 500
    assert not names.asked


@given(st.text(max_size=40))
def test_any_text_is_refused_or_asked_for(text: str) -> None:
    async def main() -> None:
        for url in (text, f"http://{text}", f"http://name/{text}"):
            await refusal(fetcher(resolve=Names()), url)

    trio.run(main)


async def test_a_secret_in_the_address_is_not_told() -> None:
    message = await refusal(fetcher(resolve=Names()), "https://name/image.png?signature=secret")
    assert "https://name/image.png" in message
    assert "secret" not in message


async def test_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with server(saying("200 OK", PNG)) as (place, _):
        assert await fetcher()(f"http://{place}/") == PNG


async def test_a_few_at_a_time() -> None:
    now, peak = 0, 0

    async def answer(stream: trio.abc.Stream, head: str) -> None:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await trio.testing.wait_all_tasks_blocked()
        now -= 1
        await saying("200 OK", PNG)(stream, head)

    fetch = fetcher()
    async with server(answer) as (place, heads), trio.open_nursery() as nursery:
        for number in range(2 * PARALLEL):
            nursery.start_soon(fetch, f"http://{place}/{number}")
    assert len(heads) == 2 * PARALLEL
    assert peak <= PARALLEL


async def test_too_many() -> None:
    fetch = fetcher(timeout_s=0.1)
    for number in range(PARALLEL):
        fetch._places.acquire_on_behalf_of_nowait(number)
    with pytest.raises(Busy):
        await fetch("http://127.0.0.1/")


async def test_a_node_that_fetches_none() -> None:
    assert "image_fetch_bytes" in await refusal(fetcher(max_bytes=0), "http://127.0.0.1/")


async def test_the_certificate_is_the_names(tmp_path: Path) -> None:
    serves, trusts = certified(tmp_path, "pics.example")
    names = Names(pics_example=[HERE], other_example=[HERE])
    async with server(saying("200 OK", PNG), serves) as (place, heads):
        port = place.partition(":")[2]
        fetch = fetcher(resolve=names, tls=trusts)
        assert await fetch(f"https://pics.example:{port}/") == PNG
        assert "cannot be connected to" in await refusal(fetch, f"https://other.example:{port}/")
        assert "cannot be connected to" in await refusal(fetcher(resolve=names), f"https://pics.example:{port}/")
    assert len(heads) == 1
