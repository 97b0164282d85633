"""Images of requests: what they are, where they come from, and models that cannot see them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.images import MAX_BYTES_TOGETHER, MAX_IMAGES, MAX_PIXELS, MAX_PIXELS_TOGETHER, Look, NoImage, look
from backends.types import Busy, CallerError, Capability, ChatRequest, ImagePart
from tests.api.double import MODEL
from tests.api.serving import Served, serving_in_thread
from tests.support.images import PNG, data_url, png

SIDE = 1 << 12  # of a square image that is half as large as may be


def jpeg(width: int, height: int, *before: bytes) -> bytes:
    """The beginning of a JPEG, with segments before its frame."""
    pairs = zip(before[::2], before[1::2], strict=True)
    segments = b"".join(kind + struct.pack(">H", len(data) + 2) + data for kind, data in pairs)
    return b"\xff\xd8" + segments + b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


def webp(kind: bytes, data: bytes) -> bytes:
    """The beginning of a WebP file."""
    return b"RIFF" + struct.pack("<I", len(data) + 12) + b"WEBP" + kind + struct.pack("<I", len(data)) + data


APP0, TABLE = (b"\xff\xe0", b"JFIF\0" + bytes(9)), (b"\xff\xc4", b"\xff\xc0" * 20)
IMAGES: list[tuple[bytes, Look]] = [
    (png(3, 5), Look("image/png", 3, 5)),
    (jpeg(640, 480), Look("image/jpeg", 640, 480)),
    (jpeg(640, 480, *APP0, *TABLE), Look("image/jpeg", 640, 480)),
    (b"\xff\xd8\xff\xff\xff" + jpeg(7, 9)[3:], Look("image/jpeg", 7, 9)),  # markers may be padded
    (b"GIF89a" + struct.pack("<HH", 20, 30) + bytes(3), Look("image/gif", 20, 30)),
    (b"GIF87a" + struct.pack("<HH", 1, 1) + bytes(3), Look("image/gif", 1, 1)),
    (b"BM" + bytes(12) + struct.pack("<Iii", 40, 17, -19), Look("image/bmp", 17, 19)),
    (b"BM" + bytes(12) + struct.pack("<IHH", 12, 17, 19), Look("image/bmp", 17, 19)),
    (webp(b"VP8X", bytes(4) + b"\x09\0\0\x13\0\0"), Look("image/webp", 10, 20)),
    (webp(b"VP8L", b"\x2f" + struct.pack("<I", 9 | 19 << 14)), Look("image/webp", 10, 20)),
    (webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 10 | 1 << 14, 20)), Look("image/webp", 10, 20)),
]


@pytest.mark.parametrize(("data", "found"), IMAGES)
def test_what_an_image_says_of_itself(data: bytes, found: Look) -> None:
    assert look(data) == found


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"x",
            b"<svg/>",
            b"%PDF-1.7",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"\xff\xd8\xff",
            b"RIFF\0\0\0\0WEBP",
        ),
        *(b"RIFF\0\0\0\0WAVEfmt ", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\0" * 9, b"\xff" * 99, b"\0" * 99),
        *(png(0, 1), jpeg(0, 0), jpeg(0xFFFF, 0xFFFF)),
        PNG[:16] + struct.pack(">II", MAX_PIXELS, 2) + PNG[24:],
        PNG[:16] + struct.pack(">II", 2**32 - 1, 2**32 - 1) + PNG[24:],
    ],
)
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(NoImage):
        look(data)


@given(st.sampled_from(IMAGES), st.integers(0, 40), st.binary(max_size=8))
def test_any_bytes_are_judged(image: tuple[bytes, Look], at: int, put: bytes) -> None:
    data, _ = image
    for broken in (data[:at], data[:at] + put, data[:at] + put + data[at + len(put) :]):
        with suppress(NoImage):
            assert look(broken).width * look(broken).height <= MAX_PIXELS


class Web:
    """A fetcher that has a few images, and notes what it was asked for."""

    def __init__(self) -> None:
        self.images: dict[str, bytes | Exception] = {"http://pics/a": PNG, "https://pics/b": png(2, 2)}
        self.asked: list[str] = []

    async def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        found = self.images.get(url, CallerError("There is none.", code="invalid_image_url"))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="module")
def fetching() -> Iterator[Served]:
    with serving_in_thread(Served(fetch_image=Web())) as served:
        yield served


@pytest.fixture
def served(fetching: Served) -> Served:
    """A double whose fetcher has what `Web` has."""
    fetching.dispatcher.reset()
    fetching.node.reset()
    fetching.fetch_image.__init__()  # type: ignore[misc]
    return fetching


@pytest.fixture
def web(served: Served) -> Web:
    assert isinstance(served.fetch_image, Web)
    return served.fetch_image


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=30.0) as client:
        yield client


# How each dialect names an image by its address, and sends one along.
def chat(*urls: str) -> tuple[str, dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


def responses(*urls: str) -> tuple[str, dict[str, Any]]:
    parts = [{"type": "input_image", "image_url": url} for url in urls]
    content = [{"type": "input_text", "text": "?"}, *parts]
    return "/v1/responses", {"input": [{"role": "user", "content": content}]}


def anthropic(*urls: str) -> tuple[str, dict[str, Any]]:
    sources = [
        {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
        if url.startswith("data:")
        else {"type": "url", "url": url}
        for url in urls
    ]
    content = [{"type": "text", "text": "?"}, *({"type": "image", "source": source} for source in sources)]
    return "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": content}]}


DIALECTS = [chat, responses, anthropic]


def seen(served: Served) -> list[bytes]:
    """The images that the engine has got, in order."""
    request = served.dispatcher.asked[-1]
    assert isinstance(request, ChatRequest)
    parts = [part for message in request.messages if isinstance(message.content, tuple) for part in message.content]
    images = [part for part in parts if isinstance(part, ImagePart)]
    assert all(type(part) is ImagePart and part.media_type == "image/png" for part in images)
    return [part.data for part in images]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_by_address_and_sent_along(client: httpx.Client, served: Served, web: Web, dialect: Any) -> None:
    path, body = dialect("http://pics/a", data_url(png(1, 1)), "https://pics/b", "http://pics/a")
    assert client.post(path, json={"model": MODEL, **body}).status_code == 200
    assert seen(served) == [PNG, png(1, 1), png(2, 2), PNG]
    assert sorted(web.asked) == ["http://pics/a", "https://pics/b"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_image_that_does_not_come(client: httpx.Client, served: Served, dialect: Any, stream: bool) -> None:
    path, body = dialect("http://pics/a", "http://pics/none")
    answer = client.post(path, json={"model": MODEL, "stream": stream, **body})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "There is none.")
    assert not served.dispatcher.asked


def test_its_place_is_named(client: httpx.Client, web: Web) -> None:
    path, body = chat("http://pics/a", "http://pics/none")
    error = client.post(path, json={"model": MODEL, **body}).json()["error"]
    assert (error["param"], error["code"]) == ("messages[0].content[2]", "invalid_image_url")
    web.images["http://pics/a"] = b"<html>"
    error = client.post(path, json={"model": MODEL, **body}).json()["error"]
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "invalid_image")
    web.images["http://pics/a"] = Busy("Later.")
    assert client.post(path, json={"model": MODEL, **body}).status_code == 429


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_is_fetched_for_a_model_without_eyes(
    client: httpx.Client, served: Served, web: Web, dialect: Any
) -> None:
    served.node.capabilities = (Capability.CHAT,)
    for url in ("http://pics/a", data_url(PNG)):
        path, body = dialect(url)
        answer = client.post(path, json={"model": MODEL, **body})
        assert answer.status_code == 400
        assert "understands no images" in answer.json()["error"]["message"]
    assert not web.asked
    assert not served.dispatcher.asked


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "url", ["data:image/png;base64,!", "data:image/png;base64,", data_url(b"GIF"), "ftp://x/", "data:,x", "x"]
)
def test_what_is_no_image(client: httpx.Client, web: Web, dialect: Any, url: str) -> None:
    path, body = dialect(url)
    answer = client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert any(word in answer.json()["error"]["message"] for word in ("image", "base64"))
    assert not web.asked


def test_ollama_takes_images_in_base64_alone(client: httpx.Client, served: Served) -> None:
    image = base64.b64encode(PNG).decode()
    message = {"role": "user", "content": "?", "images": [image]}
    assert client.post("/api/chat", json={"model": MODEL, "messages": [message]}).status_code == 200
    assert seen(served) == [PNG]
    assert client.post("/api/generate", json={"model": MODEL, "prompt": "?", "images": [image]}).status_code == 200
    assert seen(served) == [PNG]
    for wrong in ("http://pics/a", "eA==", data_url(PNG)):
        body = {"model": MODEL, "prompt": "?", "images": [image, wrong]}
        answer = client.post("/api/generate", json=body)
        assert (answer.status_code, "images[1]" in answer.json()["error"]) == (400, True)


def test_anthropic_is_told_the_truth_about_the_type(client: httpx.Client) -> None:
    path, body = anthropic(data_url(PNG))
    body["messages"][0]["content"][1]["source"]["media_type"] = "image/gif"
    answer = client.post(path, json={"model": MODEL, **body})
    assert answer.status_code == 400
    assert "image/png" in answer.json()["error"]["message"]


def test_images_are_few_and_small_together(client: httpx.Client, served: Served) -> None:
    large = PNG[:16] + struct.pack(">II", SIDE, SIDE) + PNG[24:]
    most = MAX_PIXELS_TOGETHER // SIDE**2
    for urls, good in (
        ([data_url(PNG)] * MAX_IMAGES, True),
        ([data_url(PNG)] * (MAX_IMAGES + 1), False),
        ([data_url(large)] * most, True),
        ([data_url(large)] * (most + 1), False),
    ):
        path, body = chat(*urls)
        answer = client.post(path, json={"model": MODEL, **body})
        assert (answer.status_code == 200) is good
        assert good or answer.json()["error"]["code"] == "invalid_image", answer.text


def test_images_are_light_together(client: httpx.Client, served: Served, web: Web) -> None:
    for count, status in ((3, 200), (5, 400)):
        urls = [f"http://pics/heavy/{number}" for number in range(count)]
        web.images |= {url: PNG + bytes(MAX_BYTES_TOGETHER // 4) for url in urls}
        path, body = chat(*urls)
        assert client.post(path, json={"model": MODEL, **body}).status_code == status


def test_tokens_of_an_image_are_counted(client: httpx.Client, served: Served) -> None:
    path, body = anthropic("http://pics/a")
    body.pop("max_tokens")
    answer = client.post(f"{path}/count_tokens", json={"model": MODEL, **body})
    assert answer.json()["input_tokens"] > 0
    assert seen(served) == [PNG]
