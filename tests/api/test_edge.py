"""What holds for every request: keys, origins, headers, limits, unknown routes, and requests that are barely HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from api.parse import LINGER_S
from api.ports import ApiOptions
from tests.api.double import MODEL
from tests.api.serving import VERSION, Served, run_asgi, serving, serving_in_thread
from tests.api.test_bad_input import error_of

BODY = {"model": MODEL, "prompt": "x", "max_tokens": 2}
KEYS = ("first-key", "schlüssel")
ORIGIN = "https://ui.example"


def raw(headers: Mapping[str, str | bytes]) -> list[tuple[bytes, bytes]]:
    """`headers` as bytes: httpx would refuse what is not ASCII."""
    return [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()]


@contextmanager
def client_of(served: Served) -> Iterator[httpx.Client]:
    with serving_in_thread(served), httpx.Client(base_url=served.url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def locked() -> Iterator[tuple[Served, httpx.Client]]:
    """A node with keys and one allowed origin."""
    served = Served(ApiOptions(version=VERSION, api_keys=KEYS, cors_origins=(ORIGIN,)))
    with client_of(served) as client:
        yield served, client


@pytest.mark.parametrize("given", ["a", "req-42", "x y", "~" * 128])
@pytest.mark.parametrize("path", ["/version", "/v1/models", "/nowhere", "/v1/completions"])
def test_a_correlation_id_is_echoed(http: httpx.Client, given: str, path: str) -> None:
    assert http.get(path, headers={"X-Correlation-ID": given}).headers.get_list("X-Correlation-ID") == [given]


@pytest.mark.parametrize("given", [None, "", "x" * 129, "tab\there", b"\xe9t\xe9", b"\x80"])
def test_a_correlation_id_is_made(http: httpx.Client, double: Served, given: str | bytes | None) -> None:
    headers: Mapping[str, str | bytes] = {} if given is None else {"X-Correlation-ID": given}
    answer = http.post("/v1/completions", json=BODY, headers=raw(headers))
    made = answer.headers["X-Correlation-ID"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert double.dispatcher.contexts[-1].request_id == made


def test_security_headers(http: httpx.Client) -> None:
    for path in ("/", "/nowhere", "/v1/models"):
        headers = http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer  first-key"},
        {"x-api-key": "first-key"},
        {"xi-api-key": "first-key"},
        {"Authorization": "Basic Zm9v", "x-api-key": "first-key"},
        {"Authorization": "Bearer schlüssel".encode()},
    ],
)
def test_right_keys(locked: tuple[Served, httpx.Client], headers: Mapping[str, str | bytes]) -> None:
    served, client = locked
    assert client.post("/v1/completions", json=BODY, headers=raw(headers)).status_code == 200
    fairness = served.dispatcher.contexts[-1].client
    assert fairness.startswith("key:")
    assert "first-key" not in fairness


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "first-key"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"x-api-key": b"\xff\xfe"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/system", "/metrics", "/nowhere", "/"])
def test_wrong_keys(locked: tuple[Served, httpx.Client], headers: Mapping[str, str | bytes], path: str) -> None:
    answer = locked[1].get(path, headers=raw(headers))
    error = error_of(answer, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert error["code"] == 401  # LocalAI's
    assert error["message"] == "An authentication key is required"


def test_probes_need_no_key(locked: tuple[Served, httpx.Client]) -> None:
    assert locked[1].get("/healthz").status_code == 200
    assert locked[1].get("/readyz").status_code == 200


def test_clients_have_different_fairness_keys(locked: tuple[Served, httpx.Client]) -> None:
    served, client = locked
    for key in KEYS:
        client.post("/v1/completions", json=BODY, headers=raw({"x-api-key": key.encode()}))
    first, second = served.dispatcher.contexts[-2:]
    assert first.client != second.client


def test_without_keys_the_address_counts(http: httpx.Client, double: Served) -> None:
    http.post("/v1/completions", json=BODY, headers={"x-api-key": "any"})
    assert double.dispatcher.contexts[-1].client == "127.0.0.1"


def test_cors_is_off_unless_asked_for(http: httpx.Client) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    for answer in (http.get("/v1/models", headers=headers), http.options("/v1/models", headers=headers)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_cors_for_the_named_origin(locked: tuple[Served, httpx.Client]) -> None:
    client = locked[1]
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = client.options("/v1/completions", headers={"Origin": ORIGIN, **wanted})
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization"
    refused = client.get("/v1/models", headers={"Origin": ORIGIN})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN  # so that a page can read the error
    assert refused.headers["Vary"] == "Origin"


def test_cors_for_another_origin(locked: tuple[Served, httpx.Client]) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = locked[1].options("/v1/completions", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_foreign_page_cannot_post(http: httpx.Client, double: Served) -> None:
    answer = http.post("/v1/completions", json=BODY, headers={"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN})
    assert error_of(answer, 403)["code"] == "cross_site"
    assert double.dispatcher.asked == []


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nowhere", "/v1/engines/x", "/%ff", "/a%00b"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PROPFIND"])
def test_unknown_routes(http: httpx.Client, path: str, method: str) -> None:
    error = error_of(http.request(method, f"{http.base_url}".rstrip("/") + path), 404)
    assert error["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/completions", "POST"), ("POST", "/v1/models", "GET"), ("DELETE", "/v1/embeddings", "POST")],
)
def test_wrong_methods(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert allowed in answer.headers["Allow"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/v1/tokenize"])
def test_body_limit(path: str, chunked: bool) -> None:
    served = Served(ApiOptions(version=VERSION, max_body_bytes=1000))

    def body(size: int) -> Iterator[bytes] | bytes:
        padding = b" " * (size - 2)
        return iter((b"{", padding, b"}")) if chunked else b"{" + padding + b"}"

    with client_of(served) as client:
        assert error_of(client.post(path, content=body(1000)), 400)["param"]
        for size in (1001, 5_000_000):
            error = error_of(client.post(path, content=body(size)), 413)
            assert error["code"] == "request_too_large"
            assert "1000 bytes" in error["message"]


@pytest.mark.parametrize("finishes", [True, False])
async def test_an_oversized_body_is_read_before_it_is_refused(autojump_clock: MockClock, finishes: bool) -> None:
    """A socket closed on unread data is reset, and its sender may not see why. The wait is bounded."""
    served = Served(ApiOptions(version=VERSION, max_body_bytes=10))
    parts = [{"type": "http.request", "body": b" " * 20, "more_body": True}]
    if finishes:
        parts.append({"type": "http.request", "body": b"", "more_body": False})
    statuses: list[int] = []

    async def receive() -> Any:
        await wait_all_tasks_blocked()
        assert statuses == []
        if parts:
            return parts.pop(0)
        return await trio.sleep_forever()

    async def send(message: Any) -> None:
        if "status" in message:
            statuses.append(message["status"])

    await run_asgi(served, "/v1/completions", receive, send)
    assert statuses == [413]
    assert trio.current_time() == pytest.approx(0.0 if finishes else LINGER_S)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\xff HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET /v1/models?filter=%ff HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET /v1/models?\xe9=1 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
        b"GET / HTTP/1.1\r\nHost: [::]\r\nX-Correlation-ID: \xff\r\nOrigin: \xff\r\nAuthorization: Bearer \xff\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_barely_http(sent: bytes) -> None:
    """Whatever comes, the answer (if there is one) is not a 500, and the next client is served."""
    with trio.fail_after(10):
        async with serving(Served()) as served:
            for request in (sent, b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n"):
                async with await trio.open_tcp_stream("127.0.0.1", served.port) as stream:
                    await stream.send_all(request)
                    status = (await stream.receive_some(65536))[:12]
                    assert not status or 200 <= int(status[9:]) < 500
            assert status == b"HTTP/1.1 200"


@pytest.fixture(scope="module")
def named() -> Iterator[httpx.Client]:
    """A node without keys and one allowed origin."""
    with client_of(Served(ApiOptions(version=VERSION, cors_origins=(ORIGIN,)))) as client:
        yield client


OWN_HOSTS = [
    "localhost",
    "localhost:8080",
    "LocalHost.",
    "node.localhost:1",
    "127.0.0.1",
    "127.0.0.1:8080",
    "192.168.1.7:8080",
    "[::1]:8080",
    "[fe80::1]",
    "ui.example",
    "ui.example:443",
]
FOREIGN_HOSTS = [
    "attacker.example",
    "attacker.example:8080",
    "localhost.attacker.example",
    "127.0.0.1.nip.io",
    "notlocalhost",
    "xui.example",
    "1.2.3.4.5",
]


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_without_keys_a_node_answers_to_its_own_names(named: httpx.Client, host: str) -> None:
    assert named.get("/v1/models", headers={"Host": host}).status_code == 200
    assert named.post("/v1/completions", json=BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/v1/models", "/api/p2p/token", "/api/mesh", "/", "/nowhere"])
def test_without_keys_a_name_that_a_page_could_hold_is_refused(named: httpx.Client, host: str, path: str) -> None:
    """DNS rebinding: to the browser the page and the node are one site, so nothing else stops it."""
    error = error_of(named.get(path, headers={"Host": host, "Authorization": "Bearer guessed"}), 403)
    assert "API key" in error["message"]
    assert host.partition(":")[0] in error["message"]


def test_probes_come_by_any_name(named: httpx.Client) -> None:
    assert named.get("/healthz", headers={"Host": "node-7.cluster.example"}).status_code == 200


def test_with_keys_any_name_will_do(locked: tuple[Served, httpx.Client]) -> None:
    headers = {"Host": "mesh.example", "Authorization": "Bearer first-key"}
    assert locked[1].get("/v1/models", headers=headers).status_code == 200


def test_where_any_origin_may_ask_any_name_may() -> None:
    with client_of(Served(ApiOptions(version=VERSION, cors_origins=("*",)))) as client:
        assert client.get("/v1/models", headers={"Host": "mesh.example"}).status_code == 200
