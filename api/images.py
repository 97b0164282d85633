"""Images of a request: what their bytes say they are, and those that are named by address instead of sent along.

A few bytes may stand for an image of any size, and an engine makes pixels of them; so its size is read here, from the
image's own head, before anybody else looks into it. W3C's PNG, CompuServe's GIF 89a, ITU-T T.81 (JPEG), Google's WebP.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import msgspec
import trio

from api.parse import wrong
from api.ports import Call, CallContext, Dispatcher, ImageFetcher, Node
from backends.types import (
    CallerError,
    Capability,
    ChatRequest,
    ImagePart,
    MeshError,
    Message,
    Part,
    Request,
    Unsupported,
    sees,
)

MAX_PIXELS = 1 << 25
MAX_PIXELS_TOGETHER = 1 << 27  # of all images of a request: 400 MB as an engine has them
MAX_BYTES_TOGETHER = 32 << 20  # a request goes to workers and to other nodes as one message
MAX_IMAGES = 64  # of a request

# JPEG's markers that start a frame, and so tell its size; between them lie those of tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)


class RemoteImage(ImagePart, frozen=True, kw_only=True, tag="remote"):
    """An image by its address. `Images` puts the image itself in its place; nobody else ever sees one."""

    url: str


def inline(text: str, *path: int | str, detail: str | None = None) -> ImagePart:
    """The image that `text` is in base64. Raises (as a validator does), `path` leading to it."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise wrong("not valid base64", *path) from None
    try:
        return ImagePart(data=data, media_type=look(data).media_type, detail=detail)
    except NoImage as error:
        raise wrong(str(error), *path) from None


def named(url: str, *path: int | str, detail: str | None = None) -> ImagePart:
    """The image at `url`: in it, if it is a data URL, else still to be fetched. Raises (as a validator does)."""
    if found := _DATA_URL.match(url):
        return inline(url[found.end() :], *path, detail=detail)
    if not url.lower().startswith(("http://", "https://")):
        raise wrong("expected a data URL in base64, or an http(s) address", *path, kind="unsupported_value")
    return RemoteImage(data=b"", url=url, detail=detail)


class Look(NamedTuple):
    """What an image says of itself."""

    media_type: str
    width: int
    height: int


class NoImage(ValueError):
    """The bytes are none, or none that may be used: half a sentence that says why."""


def look(data: bytes) -> Look:
    """What the image in `data` is. Raises NoImage."""
    try:
        found = _look(data)
    except (struct.error, IndexError):
        raise NoImage("its beginning is broken") from None
    if found is None:
        raise NoImage("it is no PNG, JPEG, GIF, WebP or BMP image")
    if not 0 < found.width * found.height <= MAX_PIXELS:
        raise NoImage(f"it has {found.width} x {found.height} pixels; {MAX_PIXELS} are the most")
    return found


def _look(data: bytes) -> Look | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return Look("image/png", *struct.unpack_from(">II", data, 16))
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return Look("image/gif", *struct.unpack_from("<HH", data, 6))
    if data[:3] == b"\xff\xd8\xff":
        height, width = struct.unpack_from(">HH", data, _frame(data) + 5)
        return Look("image/jpeg", width, height)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Look("image/webp", *_webp(data))
    if data[:2] == b"BM":
        old = struct.unpack_from("<I", data, 14)[0] == 12  # OS/2's
        width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        return Look("image/bmp", abs(width), abs(height))
    return None


def _frame(data: bytes) -> int:
    """Where a JPEG's frame begins."""
    at = 2
    while data[at + 1] not in _FRAMES:
        if data[at] != 0xFF:
            raise IndexError
        # A marker may be padded; the others are followed by their length.
        at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return at


def _webp(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":
            bits = struct.unpack_from("<I", data, 21)[0]
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF


async def no_images(url: str) -> bytes:
    """The fetcher of a node that fetches nothing. Raises CallerError."""
    message = "This node fetches no images; they can be sent themselves, in base64."
    raise CallerError(message, code="invalid_image_url")


class Images:
    """A dispatcher whose requests have their images with them. Implements api.ports.Dispatcher.

    Raises on entry, beside what the other one raises, what the fetcher raises, and CallerError that names an image.
    """

    def __init__(self, dispatcher: Dispatcher, node: Node, fetch: ImageFetcher) -> None:
        self._dispatcher = dispatcher
        self._node = node
        self._fetch = fetch

    def open(self, request: Request, context: CallContext) -> AbstractAsyncContextManager[Call]:
        if isinstance(request, ChatRequest) and sees(request):
            return self._open(request, context)
        return self._dispatcher.open(request, context)

    @asynccontextmanager
    async def _open(self, request: ChatRequest, context: CallContext) -> AsyncIterator[Call]:
        async with self._dispatcher.open(await self._complete(request), context) as call:
            yield call

    async def _complete(self, request: ChatRequest) -> ChatRequest:
        places = {
            (number, place): part
            for number, message in enumerate(request.messages)
            for place, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        }
        first = next(iter(places))
        if not self._may_see(request.model):
            raise Unsupported(f"Model {request.model} understands no images.", param=_param(first))
        if len(places) > MAX_IMAGES:
            message = f"A request may have {MAX_IMAGES} images; this one has {len(places)}."
            raise CallerError(message, param=_param(first), code="invalid_image")
        found = await self._fetched({part.url for part in places.values() if isinstance(part, RemoteImage)})
        pixels = size = 0
        images: dict[tuple[int, int], Part] = {}
        for at, part in places.items():
            data = part.data
            if isinstance(part, RemoteImage):
                data = _arrived(found[part.url], at)
            try:
                seen = look(data)
            except NoImage as error:
                raise CallerError(
                    f"The image is not usable: {error}.", param=_param(at), code="invalid_image"
                ) from None
            pixels += seen.width * seen.height
            size += len(data)
            images[at] = ImagePart(data=data, media_type=seen.media_type, detail=part.detail)
        if pixels > MAX_PIXELS_TOGETHER:
            raise _too_much("pixels", pixels, MAX_PIXELS_TOGETHER)
        if size > MAX_BYTES_TOGETHER:
            raise _too_much("bytes", size, MAX_BYTES_TOGETHER)
        return msgspec.structs.replace(
            request, messages=tuple(_with(message, number, images) for number, message in enumerate(request.messages))
        )

    def _may_see(self, model: str) -> bool:
        """False of a model that certainly does not. That there is none of that name is the dispatcher's to say."""
        cards = [card for card in self._node.models() if model == card.name or model in card.aliases]
        return not cards or any(Capability.VISION in card.capabilities for card in cards)

    async def _fetched(self, urls: set[str]) -> dict[str, bytes | MeshError]:
        """What lies at the addresses, or why it is not here. All are fetched side by side, each once.

        Raises CallerError when they are too large together."""
        found: dict[str, bytes | MeshError] = {}
        size = 0

        async def fetch(url: str) -> None:
            nonlocal size
            try:
                data = found[url] = await self._fetch(url)
            except MeshError as error:
                found[url] = error
                return
            size += len(data)
            if size > MAX_BYTES_TOGETHER:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for url in urls:
                nursery.start_soon(fetch, url)
        if size > MAX_BYTES_TOGETHER:
            raise _too_much("bytes", size, MAX_BYTES_TOGETHER)
        return found


def _too_much(unit: str, found: int, most: int) -> CallerError:
    return CallerError(f"The images have {found} {unit} together; {most} are the most.", code="invalid_image")


def _arrived(result: bytes | MeshError, at: tuple[int, int]) -> bytes:
    if isinstance(result, bytes):
        return result
    if isinstance(result, CallerError):
        raise type(result)(result.message, param=_param(at), code=result.code)
    raise result


def _param(at: tuple[int, int]) -> str:
    """A part as an engine names it, too."""
    return f"messages[{at[0]}].content[{at[1]}]"


def _with(message: Message, number: int, images: dict[tuple[int, int], Part]) -> Message:
    if isinstance(message.content, str):
        return message
    parts = tuple(images.get((number, place), part) for place, part in enumerate(message.content))
    return msgspec.structs.replace(message, content=parts)
