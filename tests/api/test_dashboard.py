"""The dashboard as a browser gets it, what it may do, and that no other page may act through a browser."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.dashboard import files
from api.ports import ApiOptions
from scripts import typescript
from tests.api.double import MODEL, TOKEN, DoubleMesh
from tests.api.serving import VERSION, Served, serving_in_thread
from tests.api.test_bad_input import error_of

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE = b"<!doctype html><title>mesh</title>" + b"<p>the same again</p>" * 50
SCRIPT = b"console.log('a page');" * 50
ORIGIN = "https://ui.example"


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A built page of the test's own."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_bytes(PAGE)
    (tmp_path / "assets" / "index-1a2b.js").write_bytes(SCRIPT)
    (tmp_path / "assets" / "notes.txt").write_bytes(b"of no use to a page")
    monkeypatch.setattr(files, "STATIC", tmp_path)
    files.built.cache_clear()
    yield tmp_path
    files.built.cache_clear()


@pytest.fixture
def locked() -> Iterator[httpx.Client]:
    """A node that wants a key."""
    served = Served(ApiOptions(version=VERSION, api_keys=("sesame",), cors_origins=(ORIGIN,)), mesh=DoubleMesh())
    with serving_in_thread(served), httpx.Client(base_url=served.url, trust_env=False) as client:
        yield client


@pytest.fixture
def swarming() -> Iterator[tuple[httpx.Client, DoubleMesh]]:
    """A node of a swarm, without keys."""
    mesh = DoubleMesh()
    served = Served(mesh=mesh)
    with serving_in_thread(served), httpx.Client(base_url=served.url, trust_env=False) as client:
        yield client, mesh


def test_a_browser_gets_the_page(http: httpx.Client) -> None:
    answer = http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.content) == (200, PAGE)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "Accept" in answer.headers["Vary"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_may_load_only_what_is_its_own(http: httpx.Client) -> None:
    policy = dict(
        directive.split(" ", 1)
        for directive in http.get("/", headers=BROWSER).headers["Content-Security-Policy"].split("; ")
    )
    assert policy.pop("img-src") == "'self' data: blob:"
    assert {policy.pop(name) for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert set(policy) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(policy.values()) == {"'none'"}


@pytest.mark.parametrize("accept", [None, "application/json", "*/*"])
def test_a_program_gets_the_greeting(http: httpx.Client, accept: str | None) -> None:
    answer = http.get("/", headers={"Accept": accept} if accept else {})
    assert answer.json()["version"] == VERSION
    assert "Accept" in answer.headers["Vary"]


def test_ollamas_clients_get_their_own(http: httpx.Client) -> None:
    assert http.get("/", headers=BROWSER | {"User-Agent": "ollama/0.9"}).text == "Ollama is running"


def test_files_are_kept_for_ever_under_their_hashed_names(http: httpx.Client) -> None:
    answer = http.get("/assets/index-1a2b.js", headers={"Accept-Encoding": "identity"})
    assert (answer.status_code, answer.content) == (200, SCRIPT)
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert "immutable" in answer.headers["Cache-Control"]
    assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize(("path", "data"), [("/", PAGE), ("/assets/index-1a2b.js", SCRIPT)])
def test_files_travel_packed(http: httpx.Client, path: str, data: bytes) -> None:
    with http.stream("GET", path, headers=BROWSER | {"Accept-Encoding": "gzip, br"}) as answer:
        packed = b"".join(answer.iter_raw())
    assert answer.headers["Content-Encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert len(packed) < len(data) == len(gzip.decompress(packed))


@pytest.mark.parametrize(
    "name", ["index-0000.js", "notes.txt", "../index.html", "%2e%2e/index.html", "..%2fresponse.db", "", "/etc/passwd"]
)
def test_nothing_else_is_served(http: httpx.Client, name: str) -> None:
    assert http.get(f"/assets/{name}").status_code == 404


def test_without_a_built_page_it_says_how_to_build_it(http: httpx.Client, built: Path) -> None:
    (built / "index.html").unlink()
    files.built.cache_clear()
    answer = http.get("/", headers=BROWSER)
    assert answer.status_code == 200
    assert "make run" in answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert http.get("/assets/index-1a2b.js").status_code == 404


def test_the_page_needs_no_key_and_everything_else_does(locked: httpx.Client) -> None:
    assert locked.get("/", headers=BROWSER).content == PAGE
    assert locked.get("/assets/index-1a2b.js").status_code == 200
    for path in ("/", "/api/mesh", "/api/mesh/events", "/api/p2p/token", "/api/mesh/token/qr", "/system", "/v1/models"):
        error_of(locked.get(path), 401)
    error_of(locked.post("/", headers=BROWSER), 401)
    error_of(locked.post("/assets/index-1a2b.js"), 401)


def test_the_token_as_a_picture(swarming: tuple[httpx.Client, DoubleMesh]) -> None:
    client, mesh = swarming
    answer = client.get("/api/mesh/token/qr")
    assert answer.headers["Content-Type"].startswith("image/svg+xml")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.text.startswith("<svg")
    assert TOKEN not in answer.text
    mesh.left = True
    error_of(client.get("/api/mesh/token/qr"), 404)


def test_without_a_swarm_there_is_no_picture(http: httpx.Client) -> None:
    error_of(http.get("/api/mesh/token/qr"), 404)


# -- pages of others --

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
ELSEWHERE = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},  # another port of this machine
    {"Origin": "https://evil.example"},  # a browser of 2021
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "null"},
    {"Origin": "http://["},
]


@pytest.mark.parametrize("headers", ELSEWHERE)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_pages_of_others_change_nothing(
    swarming: tuple[httpx.Client, DoubleMesh], method: str, headers: dict[str, str]
) -> None:
    client, mesh = swarming
    text = {"Content-Type": "text/plain"}  # needs no leave of CORS
    answer = client.request(method, "/api/mesh/kick", content=b'{"node": "there"}', headers=headers | text)
    error_of(answer, 403)
    assert mesh.banned == []


@pytest.mark.parametrize("headers", ELSEWHERE)
def test_pages_of_others_start_no_work(http: httpx.Client, headers: dict[str, str]) -> None:
    error_of(http.post("/v1/chat/completions", json=CHAT, headers=headers), 403)


@pytest.mark.parametrize(
    "headers",
    [
        {},  # no browser
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://mesh.example"},  # behind a proxy that changes Host
        {"Sec-Fetch-Site": "none"},
        {"Origin": "OWN"},
    ],
)
def test_the_page_itself_and_programs_may_act(
    swarming: tuple[httpx.Client, DoubleMesh], headers: dict[str, str]
) -> None:
    client, mesh = swarming
    sent = {name: str(client.base_url).rstrip("/") if value == "OWN" else value for name, value in headers.items()}
    assert client.post("/api/mesh/kick", json={"node": "there"}, headers=sent).status_code == 200
    assert mesh.banned == ["ID-there"]


def test_an_allowed_origin_and_whoever_has_the_key_may_act(locked: httpx.Client) -> None:
    key = {"Authorization": "Bearer sesame"}
    for headers in ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, {"Origin": "https://app.example"}):
        assert locked.post("/v1/chat/completions", json=CHAT, headers=headers | key).status_code == 200


# -- the types --


def test_the_dashboards_types_are_in_step() -> None:
    assert typescript.FILE.read_text(encoding="utf-8") == typescript.typescript(), "run `make docs`"
