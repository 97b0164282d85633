"""Images that a request names by address, fetched for it. The address is a stranger's: it may name anything.

What keeps a stranger from reaching through this node what only this node can reach (server-side request forgery): names
are resolved here, addresses that are not public are refused, and the connection goes to the very address that was
checked, so that another answer of the name's server changes nothing. Each redirect goes the same way. What limits the
harm of a hostile server: bytes, seconds, redirects, and fetches at a time have bounds.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import httpx
import psutil
import trio

from backends.types import Busy, CallerError
from node.fetch import shown
from node.publicaddress import Address, is_public, stands_for

Resolver = Callable[[str, int], Awaitable[Iterable[str]]]
"""From a name and a port to addresses in digits. Raises OSError."""

MAX_REDIRECTS = 3
MAX_URL_CHARS = 8192
PARALLEL = 8
_ADDRESSES = 3  # of one name that are tried
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "mesh"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ANY_BYTES = frozenset({"", "application/octet-stream", "binary/octet-stream"})


class _Refused(Exception):
    """Why there is no image: one sentence."""


class ImageFetcher:
    """Implements api.ports.ImageFetcher."""

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_s: float,
        private: bool = False,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`max_bytes` of one image, 0 for no images at all; `timeout_s` for all of a fetch; `private` allows addresses
        that are not public. `resolve` and `tls` stand in for the system's resolver and for the public authorities."""
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._private = private
        self._resolve = resolve or partial(_resolve, trio.CapacityLimiter(PARALLEL))
        self._tls = tls
        self._places = trio.CapacityLimiter(PARALLEL)

    async def __call__(self, url: str) -> bytes:
        """What lies at `url`. Raises CallerError that says why it cannot be had, or Busy."""
        try:
            return await self._fetch(url)
        except _Refused as refused:
            message = (
                f"The image at '{_place(url)}' cannot be fetched: {refused} The image itself can be sent in base64."
            )
            raise CallerError(message, code="invalid_image_url") from refused

    async def _fetch(self, url: str) -> bytes:
        if not self._max_bytes:
            raise _Refused("this node fetches none (image_fetch_bytes is 0).")
        target = _parsed(url)
        with trio.move_on_after(self._timeout_s) as waiting:
            await self._places.acquire()
        if waiting.cancelled_caught:
            raise Busy("This node fetches too many images at the moment.")
        try:
            with trio.move_on_after(self._timeout_s):
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._get(target)
                    if isinstance(found, bytes):
                        return found
                    target = found
                raise _Refused(f"its server redirects more than {MAX_REDIRECTS} times.")
        finally:
            self._places.release()
        raise _Refused(f"it did not come within {self._timeout_s:g} s.")

    async def _get(self, target: httpx.URL) -> bytes | httpx.URL:
        """The image, or where it is instead."""
        host = target.raw_host.decode("ascii")
        try:
            found = dict.fromkeys(await self._resolve(host, target.port or _PORTS[target.scheme]))
        except (OSError, UnicodeError):
            raise _Refused(f"nobody knows the name {host}.") from None
        own = _own_addresses()
        addresses = [at for at in found if self._private or (is_public(at) and stands_for(at) not in own)]
        if not addresses:
            raise _Refused(f"{host} is not a place on the public internet (image_fetch_private allows others).")
        for address in addresses[:_ADDRESSES]:
            try:
                return await self._get_from(address, target)
            except httpx.ConnectError:
                continue
            except httpx.HTTPError as error:
                raise _Refused(f"the connection to {host} broke ({type(error).__name__}).") from error
        raise _Refused(f"{host} cannot be connected to.")

    async def _get_from(self, address: str, target: httpx.URL) -> bytes | httpx.URL:
        headers = {**_HEADERS, "Host": target.netloc.decode("ascii")}
        # The certificate is to be the name's, not the address's.
        extensions = {"sni_hostname": target.raw_host.decode("ascii")}
        place = target.copy_with(host=address, fragment=None)
        self._tls = self._tls or httpx.create_ssl_context(trust_env=False)
        # A client for each step, so that no cookie survives one; nothing of the environment, so no proxy either.
        async with (
            httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=None) as client,  # noqa: S113  # ours is around it
            client.stream("GET", place, headers=headers, extensions=extensions) as answer,
        ):
            if answer.status_code in _REDIRECTS and "Location" in answer.headers:
                return _parsed(answer.headers["Location"], base=target)
            if answer.status_code != httpx.codes.OK:
                raise _Refused(f"its server answers {answer.status_code}.")
            return await self._read(answer)

    async def _read(self, answer: httpx.Response) -> bytes:
        media = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media not in _ANY_BYTES and not media.startswith("image/"):
            raise _Refused("its server says that it is no image.")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Refused("its server has compressed it, unasked.")  # and a few bytes may become any number
        too_large = _Refused(f"it has more than {self._max_bytes} bytes.")
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise too_large
        data = bytearray()
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > self._max_bytes:
                raise too_large
        return bytes(data)


def _parsed(url: str, *, base: httpx.URL | None = None) -> httpx.URL:
    """`url` as an address that may be asked for. Raises _Refused."""
    if len(url) > MAX_URL_CHARS:
        raise _Refused(f"its address has more than {MAX_URL_CHARS} characters.")
    try:
        target = httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise _Refused("that is no valid address.") from None
    if target.scheme not in _PORTS or not target.host:
        raise _Refused("only http and https addresses can be.")
    if target.port is not None and not 0 < target.port < 1 << 16:
        raise _Refused("that is no valid address.")
    if target.userinfo:
        raise _Refused("an address with a user name or a password is not asked for.")
    return target


def _place(url: str) -> str:
    """`url` as an error may show it: without what may be secret in it."""
    try:
        return shown(url)[:200]
    except ValueError:
        return "?"


def _own_addresses() -> frozenset[Address]:
    """This machine's addresses, public ones, too: what listens there may be meant for its neighbours only."""
    families = (socket.AF_INET, socket.AF_INET6)
    items = (item for interface in psutil.net_if_addrs().values() for item in interface)
    return frozenset(stands_for(item.address) for item in items if item.family in families)


async def _resolve(threads: trio.CapacityLimiter, host: str, port: int) -> list[str]:
    """By the system's resolver, in a thread of a few of our own: one that hangs must not keep others from theirs."""
    found = await trio.to_thread.run_sync(
        partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM), limiter=threads, abandon_on_cancel=True
    )
    return [str(entry[4][0]) for entry in found]
