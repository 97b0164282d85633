"""What operators and probes ask: health, readiness, version, metrics, and what the node is made of."""

from __future__ import annotations

from quart import Blueprint, Response

from api.services import Services, json_response


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("system", __name__)

    @routes.get("/healthz")
    async def healthz() -> Response:
        """200 while the process lives: a liveness probe without a key."""
        return Response(b"", content_type="text/plain")

    @routes.get("/readyz")
    async def readyz() -> Response:
        """200 when requests are welcome, 503 while the node starts or shuts down: a readiness probe without a key."""
        if services.node.starting():
            return json_response({"status": "starting"}, 503)
        return json_response({"status": "ready"})

    @routes.get("/version")
    async def version() -> Response:
        """The version of the node."""
        return json_response({"version": services.options.version})

    @routes.get("/metrics")
    async def metrics() -> Response:
        """The node's metrics in Prometheus' text format."""
        body, content_type = services.node.metrics()
        return Response(body, content_type=content_type)

    @routes.get("/system")
    async def system() -> Response:
        """Hardware, memory budget, backends and loaded models."""
        return json_response(services.node.system())

    return routes
