"""Who may ask: API keys, and which other sites' pages may use a browser to do so."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from quart import Request, Websocket

from api.errors import Forbidden, Unauthorised
from api.ports import ApiOptions

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes carry no keys
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """Checks requests against the operator's keys and origins."""

    def __init__(self, options: ApiOptions) -> None:
        self._keys = tuple(key.encode() for key in options.api_keys)
        self._origins = frozenset(options.cors_origins)

    @property
    def configured(self) -> bool:
        """Whether any origin is allowed at all; otherwise CORS is off."""
        return bool(self._origins)

    def admit(self, request: Request) -> str:
        """The fairness key of the caller: a digest of its API key, or its address.

        Raises Unauthorised without a valid key (where keys are set) and Forbidden for a page of another site.
        """
        if member := request.scope.get("mesh.member"):
            return f"peer:{member}"  # another node has checked its client, and has proved itself a member
        given = _presented_key(request)
        if request.path.rstrip("/") not in OPEN_PATHS:
            self._check(given)
        if not given:
            self._refuse_foreign_page(request)
        return self._client(request, given)

    def admit_socket(self, socket: Websocket) -> str:
        """As `admit`. No browser asks a server before it opens a WebSocket for a page, of whatever origin."""
        given = _presented_key(socket)
        self._check(given)
        origin = socket.headers.get("Origin")
        own = origin is not None and urlsplit(origin).netloc == socket.headers.get("Host")
        if not given and origin is not None and not own and self.allowed_origin(origin) is None:
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

    def _refuse_foreign_page(self, request: Request) -> None:
        """Any web page can make a browser POST text to a loopback address, and the CORS rules do not stop that.

        Browsers say so in Sec-Fetch-Site; other clients do not send it.
        """
        if request.method in _SAFE_METHODS or request.headers.get("Sec-Fetch-Site") != "cross-site":
            return
        if self.allowed_origin(request.headers.get("Origin")) is None:
            raise Forbidden("A page of another site may not use this API; the operator can allow its origin.")


def _presented_key(request: Request | Websocket) -> bytes:
    """The key of `Authorization: Bearer`, `x-api-key` or `xi-api-key` (as LocalAI accepts them); empty without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        given = token.strip()
    else:
        given = request.headers.get("x-api-key") or request.headers.get("xi-api-key") or ""
    # Headers arrive as latin-1; a key may be any UTF-8, so give it its bytes back.
    return given.encode("latin-1", "replace")
