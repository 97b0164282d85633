"""GET /api/p2p…: what LocalAI tells of its swarm, in its own words (shared/api/LOCALAI-BEHAVIOUR.md, A10).

LocalAI's server writes a node's fields in Go's spelling, its pages read camel case; both are sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quart import Blueprint, Response

from api.services import Services, json_response

Node = Mapping[str, Any]


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("localai_p2p", __name__)

    def nodes() -> tuple[list[Node], list[Node], list[Node]]:
        """llama.cpp RPC workers, nodes that serve requests, MLX ranks."""
        view = services.mesh.view() if services.mesh is not None else {"nodes": []}
        found = sorted((node for node in view["nodes"] if node["state"] != "left"), key=lambda node: str(node["id"]))
        return (
            [_node(node, "rpc") for node in found if "rpc" in node["exposes"]],
            [_node(node, "infer") for node in found],
            [_node(node, "mlx-rank") for node in found if "mlx-rank" in node["exposes"]],
        )

    @routes.get("/api/p2p")
    async def p2p() -> Response:
        """The swarm as LocalAI shows it: workers of llama.cpp and MLX, and federated nodes."""
        llama, federated, mlx = nodes()
        return json_response({"llama_cpp_nodes": llama, "federated_nodes": federated, "mlx_nodes": mlx})

    @routes.get("/api/p2p/token")
    async def token() -> Response:
        """The join token, as plain text; empty for a node without a swarm."""
        text = services.mesh.token() if services.mesh is not None else None
        return Response((text or "").encode(), content_type="text/plain; charset=utf-8")

    @routes.get("/api/p2p/workers")
    async def workers() -> Response:
        """Nodes that hold shards of a model."""
        llama, _, mlx = nodes()
        return json_response({"llama_cpp": {"nodes": llama}, "mlx": {"nodes": mlx}, "nodes": llama})

    @routes.get("/api/p2p/federation")
    async def federation() -> Response:
        """Nodes that serve requests."""
        _, federated, _ = nodes()
        return json_response({"nodes": federated})

    @routes.get("/api/p2p/stats")
    async def stats() -> Response:
        """How many of each kind are known, and how many can be reached."""
        llama, federated, mlx = nodes()
        return json_response(
            {"llama_cpp_workers": _count(llama), "federated": _count(federated), "mlx_workers": _count(mlx)}
        )

    return routes


def _node(node: Node, service: str) -> Node:
    addresses = node["addresses"]
    values = {
        "Name": node["name"],
        "ID": node["id"],
        "TunnelAddress": addresses[0] if addresses else "",
        "ServiceID": service,
        "LastSeen": node["last_seen"],
    }
    camel = {name[0].lower() + name[1:]: value for name, value in values.items() if name != "ID"}
    lent = [target for target in node["targets"] if target["name"] == service]
    facts = {"target": lent[0]} if lent else {}  # no word of LocalAI's
    return values | camel | facts | {"id": node["id"], "serviceID": service, "isOnline": node["state"] == "alive"}


def _count(nodes: Iterable[Node]) -> Mapping[str, int]:
    known = list(nodes)
    return {"online": sum(node["isOnline"] for node in known), "total": len(known)}
