"""Who may ask: API keys, and which other sites' pages may use a browser to do so."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from quart import Request, Websocket

from api.errors import Forbidden, Unauthorised
from api.ports import ApiOptions

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes carry no keys
PAGE_PATHS = "/assets/"  # the dashboard's files hold nothing that is not in the source
LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Checks requests against the operator's keys and origins."""

    def __init__(self, options: ApiOptions) -> None:
        self._keys = tuple(key.encode() for key in options.api_keys)
        self._origins = frozenset(options.cors_origins)
        self._hosts = LOCAL_NAMES | {urlsplit(origin).hostname for origin in options.cors_origins}

    @property
    def configured(self) -> bool:
        """Whether any origin is allowed at all; otherwise CORS is off."""
        return bool(self._origins)

    def admit(self, request: Request) -> str:
        """The fairness key of the caller: a digest of its API key, or its address.

        Raises Unauthorised without a valid key (where keys are set), and Forbidden for a page of another site or a
        name that is not this machine's (where they are not).
        """
        if member := request.scope.get("mesh.member"):
            return f"peer:{member}"  # another node has checked its client, and has proved itself a member
        given = _presented_key(request)
        if not _is_open(request):
            self._check(given)
            self._refuse_foreign_name(request)
        if not given:
            self._refuse_foreign_page(request)
        return self._client(request, given)

    def admit_socket(self, socket: Websocket) -> str:
        """As `admit`. No browser asks a server before it opens a WebSocket for a page, of whatever origin."""
        given = _presented_key(socket)
        self._check(given)
        self._refuse_foreign_name(socket)
        origin = socket.headers.get("Origin")
        if not given and not _is_own(socket, origin) and self.allowed_origin(origin) is None:
            raise Forbidden("A page of another site may not use this API; the operator can allow its origin.")
        return self._client(socket, given)

    def _check(self, given: bytes) -> None:
        # All keys are compared, each in constant time, so that timing tells neither a key nor its position.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if self._keys and not any(matches):
            raise Unauthorised("An authentication key is required")

    def _client(self, request: Request | Websocket, given: bytes) -> str:
        client = request.scope.get("client")
        return f"key:{hashlib.sha256(given).hexdigest()[:16]}" if self._keys else client[0] if client else "-"

    def allowed_origin(self, origin: str | None) -> str | None:
        """The value of Access-Control-Allow-Origin for `origin`; None when CORS is off or does not name it."""
        if not origin or not self._origins:
            return None
        if "*" in self._origins:
            return "*"
        return origin if origin in self._origins else None

    def _refuse_foreign_name(self, request: Request | Websocket) -> None:
        """A web page may point its own name at this machine once it is loaded (DNS rebinding): to the browser this
        API is then of the page's own site. Without keys, only names that nobody else can hold are answered to.
        """
        if self._keys or "*" in self._origins:
            return
        name = _host_name(request.headers.get("Host", ""))
        if name and name not in self._hosts and not name.endswith(".localhost") and not _is_address(name):
            raise Forbidden(
                f'This node has no API key, so it answers to localhost and IP addresses, not to "{name[:100]}". '
                "Set an API key, or allow an origin of that name."
            )

    def _refuse_foreign_page(self, request: Request) -> None:
        """Any web page can make a browser POST text to a loopback address, and the CORS rules do not stop that.

        Browsers say so in Sec-Fetch-Site, old ones in Origin alone; other clients send neither. Another port of this
        machine is the same site and yet another's page.
        """
        if request.method in _SAFE_METHODS:
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        own = _is_own(request, origin) if site is None else site in ("same-origin", "none")
        if not own and self.allowed_origin(origin) is None:
            raise Forbidden("A page of another site may not use this API; the operator can allow its origin.")


def _is_open(request: Request) -> bool:
    """Whether it is answered without a key: probes, and the page that asks for the key."""
    if request.path.rstrip("/") in OPEN_PATHS:
        return True
    page = request.path == "/" and "text/html" in request.headers.get("Accept", "")
    return request.method in ("GET", "HEAD") and (page or request.path.startswith(PAGE_PATHS))


def _is_own(request: Request | Websocket, origin: str | None) -> bool:
    """Whether no page asked, or one of this node's own."""
    host = request.headers.get("Host", "")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _host_name(host: str) -> str:
    """The name or address in a Host header, without its port; empty without one."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _presented_key(request: Request | Websocket) -> bytes:
    """The key of `Authorization: Bearer`, `x-api-key` or `xi-api-key` (as LocalAI accepts them); empty without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        given = token.strip()
    else:
        given = request.headers.get("x-api-key") or request.headers.get("xi-api-key") or ""
    # Headers arrive as latin-1; a key may be any UTF-8, so give it its bytes back.
    return given.encode("latin-1", "replace")
