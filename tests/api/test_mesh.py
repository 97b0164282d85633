"""/api/mesh and LocalAI's /api/p2p: shapes, events, and who may do what to the swarm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from api.mesh import QUIET_S
from api.ports import ApiOptions
from tests.api.double import MODEL, TOKEN, DoubleMesh, swarm_node
from tests.api.serving import VERSION, Served, serving, serving_in_thread
from tests.api.test_bad_input import error_of

ORIGIN = "https://ui.example"
ACTIONS = ("/api/mesh/kick", "/api/mesh/pardon", "/api/mesh/leave")
READS = (
    "/api/mesh",
    "/api/mesh/events",
    "/api/mesh/requests",
    "/api/mesh/requests/req/1/explain",
    "/api/mesh/requests/req/1/trace",
)
P2P = ("/api/p2p", "/api/p2p/token", "/api/p2p/workers", "/api/p2p/federation", "/api/p2p/stats")


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Served, httpx.Client]]:
    served = Served(mesh=DoubleMesh())
    once = {"Connection": "close"}  # what is refused before its body was read costs the connection
    with (
        serving_in_thread(served),
        httpx.Client(base_url=served.url, headers=once, trust_env=False, timeout=30) as client,
    ):
        yield served, client


@pytest.fixture
def mesh(shared: tuple[Served, httpx.Client]) -> DoubleMesh:
    served, _ = shared
    assert served.mesh is not None
    served.mesh.reset()
    return served.mesh


@pytest.fixture
def client(shared: tuple[Served, httpx.Client], mesh: DoubleMesh) -> httpx.Client:
    return shared[1]


def test_the_view_is_passed_on(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert client.get("/api/mesh").json() == mesh.view()


def test_requests_newest_first_as_many_as_wanted(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert client.get("/api/mesh/requests").json() == {"requests": [{"id": "req/1", "model": MODEL}]}
    assert client.get("/api/mesh/requests?limit=1").status_code == 200
    assert client.get("/api/mesh/requests?limit=1000").status_code == 200
    assert mesh.asked == [100, 1, 1000]
    for limit in ("0", "-1", "1001", "x", "", "1.5", "9" * 5000, "\u0661"):
        error = error_of(client.get("/api/mesh/requests", params={"limit": limit}), 400)
        assert error["param"] == "limit"
    assert len(mesh.asked) == 3


@pytest.mark.parametrize("what", ["explain", "trace"])
def test_a_request_may_have_any_id_that_a_client_chose(client: httpx.Client, mesh: DoubleMesh, what: str) -> None:
    for path in (f"/api/mesh/requests/req/1/{what}", f"/api/mesh/requests/req%2F1/{what}"):
        assert client.get(path).json()["id"] == "req/1"
    error = error_of(client.get(f"/api/mesh/requests/another/{what}"), 404)
    assert "knows of no request" in error["message"]


def test_kick_and_pardon(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert client.post("/api/mesh/kick", json={"node": "there"}).json() == {"banned": "ID-there"}
    assert mesh.banned == ["ID-there"]
    assert client.post("/api/mesh/pardon", json={"node": "ID-there"}).json() == {"pardoned": "ID-there"}
    assert mesh.banned == []
    for path, node in (("/api/mesh/kick", "nobody"), ("/api/mesh/pardon", "there")):
        error = error_of(client.post(path, json={"node": node}), 400)
        assert error["param"] == "node"


@pytest.mark.parametrize("path", ACTIONS[:2])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"{}", b'{"node": 7}', b'{"node": ""}', b'{"node": "%s"}' % (b"x" * 129)]
)
def test_bodies_that_name_no_node(client: httpx.Client, mesh: DoubleMesh, path: str, body: bytes) -> None:
    error_of(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400)
    assert mesh.banned == []


def test_leaving_needs_no_body(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert "left" in client.post("/api/mesh/leave").json()["message"]
    assert mesh.left
    assert client.get("/api/p2p/token").text == ""


@pytest.mark.parametrize("path", ACTIONS)
def test_a_page_of_another_site_cannot_do_it(client: httpx.Client, mesh: DoubleMesh, path: str) -> None:
    """A form of text/plain needs no leave of CORS; the browser only says where it comes from."""
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://attacker.example", "Content-Type": "text/plain"}
    error_of(client.post(path, content=b'{"node": "there"}', headers=headers), 403)
    assert not mesh.left
    assert mesh.banned == []


@pytest.mark.parametrize("path", ACTIONS)
def test_a_look_does_nothing(client: httpx.Client, mesh: DoubleMesh, path: str) -> None:
    assert client.get(path).status_code == 405
    assert not mesh.left


@pytest.mark.parametrize("path", [*READS, *P2P, *ACTIONS])
def test_keys_are_asked_for(path: str) -> None:
    mesh = DoubleMesh()
    served = Served(ApiOptions(version=VERSION, api_keys=("sesame",)), mesh=mesh)
    with serving_in_thread(served), httpx.Client(base_url=served.url, trust_env=False) as client:
        answer = client.post(path, json={"node": "there"}) if path in ACTIONS else client.get(path)
        error_of(answer, 401)
        assert TOKEN not in answer.text
    with serving_in_thread(served), httpx.Client(base_url=served.url, trust_env=False) as client:
        headers = {"Authorization": "Bearer sesame"}
        assert client.get("/api/p2p/token", headers=headers).text == TOKEN
    assert mesh.banned == []
    assert not mesh.left


@pytest.mark.parametrize("path", [*READS, *ACTIONS])
def test_without_a_swarm_there_is_nothing_to_see(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"node": "there"}) if path in ACTIONS else http.get(path)
    error = error_of(answer, 404)
    assert "--solo" in error["message"]


def test_without_a_swarm_localais_pages_are_empty(http: httpx.Client) -> None:
    assert http.get("/api/p2p").json() == {"llama_cpp_nodes": [], "federated_nodes": [], "mlx_nodes": []}
    assert http.get("/api/p2p/federation").json() == {"nodes": []}
    assert http.get("/api/p2p/workers").json() == {"llama_cpp": {"nodes": []}, "mlx": {"nodes": []}, "nodes": []}
    none = {"online": 0, "total": 0}
    assert http.get("/api/p2p/stats").json() == {"llama_cpp_workers": none, "federated": none, "mlx_workers": none}
    answer = http.get("/api/p2p/token")
    assert (answer.status_code, answer.text) == (200, "")


# -- LocalAI's words --


def lending(name: str, *targets: str, **changes: Any) -> dict[str, Any]:
    """A node that lends targets, under the old key and the new one."""
    return swarm_node(name, exposes=list(targets), targets=[{"name": target} for target in targets], **changes)


def test_a_node_has_both_spellings(client: httpx.Client, mesh: DoubleMesh) -> None:
    page = client.get("/api/p2p").json()
    assert set(page) == {"llama_cpp_nodes", "federated_nodes", "mlx_nodes"}
    here, there = page["federated_nodes"]
    for key, other, value in (
        ("Name", "name", "here"),
        ("ID", "id", "ID-here"),
        ("TunnelAddress", "tunnelAddress", "/ip4/192.0.2.1/tcp/4801"),
        ("ServiceID", "serviceID", "infer"),
        ("LastSeen", "lastSeen", "2026-11-27T12:00:00.123456+00:00"),
    ):
        assert here[key] == here[other] == value
    assert here["isOnline"] is True
    assert datetime.fromisoformat(here["lastSeen"]).tzinfo is not None
    assert there["TunnelAddress"] == "", "of a node that nobody can dial"


def test_each_kind_has_its_list(client: httpx.Client, mesh: DoubleMesh) -> None:
    mesh.nodes += [lending("lends", "rpc"), lending("ranks", "mlx-rank"), lending("gone", "rpc", state="dead")]
    mesh.nodes += [lending("left", "rpc", state="left")]
    page = client.get("/api/p2p").json()
    assert [node["Name"] for node in page["llama_cpp_nodes"]] == ["gone", "lends"]
    assert [node["Name"] for node in page["mlx_nodes"]] == ["ranks"]
    assert [node["Name"] for node in page["federated_nodes"]] == ["gone", "here", "lends", "ranks", "there"], (
        "by their ids"
    )
    workers = client.get("/api/p2p/workers").json()
    assert [node["name"] for node in workers["llama_cpp"]["nodes"]] == ["gone", "lends"]
    assert workers["nodes"] == workers["llama_cpp"]["nodes"]
    assert [node["isOnline"] for node in workers["nodes"]] == [False, True]
    assert [node["name"] for node in workers["mlx"]["nodes"]] == ["ranks"]
    assert client.get("/api/p2p/federation").json() == {"nodes": page["federated_nodes"]}
    assert client.get("/api/p2p/stats").json() == {
        "llama_cpp_workers": {"online": 1, "total": 2},
        "federated": {"online": 4, "total": 5},
        "mlx_workers": {"online": 1, "total": 1},
    }


@pytest.mark.parametrize("state", ["suspect", "dead", "incompatible"])
def test_who_cannot_be_asked_is_not_online(client: httpx.Client, mesh: DoubleMesh, state: str) -> None:
    mesh.nodes = [swarm_node("here", own=True), swarm_node("other", state=state)]
    online = {node["name"]: node["isOnline"] for node in client.get("/api/p2p/federation").json()["nodes"]}
    assert online == {"here": True, "other": False}


def test_the_token_is_plain_text(client: httpx.Client, mesh: DoubleMesh) -> None:
    answer = client.get("/api/p2p/token")
    assert (answer.text, answer.headers["Content-Type"]) == (TOKEN, "text/plain; charset=utf-8")


# -- events --


def read_events(lines: Iterator[str], count: int) -> list[tuple[str, Any]]:
    """So many events: their names and data."""
    found = []
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append((name, json.loads(line.removeprefix("data: "))))
            if len(found) == count:
                break
    return found


def test_events_are_server_sent(client: httpx.Client, mesh: DoubleMesh) -> None:
    mesh.events = [
        {"kind": "joined", "id": "ID-there", "node": "zwei\nZeilen"},
        {"kind": "load", "id": "ID-there", "loads": [{"model": "m", "slots_used": 1}]},
        {"kind": "missed", "count": 3},
    ]
    with client.stream("GET", "/api/mesh/events") as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert "no-cache" in answer.headers["Cache-Control"]
        lines = answer.iter_lines()
        assert next(lines).startswith(":"), "something comes at once"
        assert read_events(lines, 3) == [(event["kind"], event) for event in mesh.events]
        assert mesh.watching == 1


async def test_silence_is_filled_and_a_watcher_that_leaves_is_forgotten(autojump_clock: MockClock) -> None:
    mesh = DoubleMesh()
    async with serving(Served(mesh=mesh)) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(b"GET /api/mesh/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        began = trio.current_time()
        while received.count(b": quiet") < 2:
            received += await stream.receive_some()
        assert trio.current_time() - began >= 2 * QUIET_S
        assert mesh.watching == 1
        await stream.aclose()
        with trio.fail_after(60):
            await mesh.unwatched.wait()


# -- models and charts --

MODELS = "/api/mesh/models"


def test_charts_of_all_or_of_one_node(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert client.get("/api/mesh/charts").json() == {"nodes": []}
    assert client.get("/api/mesh/charts", params={"node": "<b>there"}).json() == {"nodes": [{"name": "<b>there"}]}


def test_models_of_all_nodes(client: httpx.Client, mesh: DoubleMesh) -> None:
    assert client.get(MODELS).json() == {"nodes": [{"name": "here", "models": []}]}


@pytest.mark.parametrize("node", ["", "here", "ID-here"])
def test_a_model_of_this_node_is_acted_on_here(client: httpx.Client, mesh: DoubleMesh, node: str) -> None:
    for action in ("load", "unload", "pin", "unpin"):
        body = {"node": node, "model": MODEL, "action": action}
        assert client.post(MODELS, json=body).json() == {"model": MODEL, "action": action}
    assert mesh.acted == [(MODEL, action) for action in ("load", "unload", "pin", "unpin")]
    assert mesh.forwarded == []


def test_a_model_of_another_node_is_acted_on_there(client: httpx.Client, mesh: DoubleMesh) -> None:
    body = {"node": "there", "model": MODEL, "action": "unload"}
    assert "cannot be reached" in error_of(client.post(MODELS, json=body), 502)["message"]
    [(owner, call)] = mesh.forwarded
    assert (owner, call.method, call.path) == ("ID-there", "POST", MODELS)
    assert json.loads(call.body) == body | {"node": "ID-there"}, "names are each node's own; ids are not"
    assert mesh.acted == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": MODEL}, "action"),
        ({"model": MODEL, "action": "delete"}, "action"),
        ({"model": "", "action": "load"}, "model"),
        ({"model": 7, "action": "load"}, "model"),
        ({"model": MODEL, "action": "load", "node": "nobody"}, "node"),
        ({"model": MODEL, "action": "load", "node": ["there"]}, "node"),
    ],
)
def test_actions_that_are_none(client: httpx.Client, mesh: DoubleMesh, body: Any, param: str) -> None:
    assert error_of(client.post(MODELS, json=body), 400)["param"] == param
    assert (mesh.acted, mesh.forwarded) == ([], [])


def test_a_model_that_is_not_there_is_not_found(client: httpx.Client, mesh: DoubleMesh) -> None:
    error_of(client.post(MODELS, json={"model": "<script>", "action": "load"}), 404)


def test_a_page_of_another_site_cannot_act_on_models(client: httpx.Client, mesh: DoubleMesh) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://attacker.example", "Content-Type": "text/plain"}
    body = json.dumps({"model": MODEL, "action": "unload"})
    error_of(client.post(MODELS, content=body, headers=headers), 403)
    assert mesh.acted == []
