"""What operators and probes ask: health, readiness, version, metrics, and what the node is made of."""

from __future__ import annotations

from quart import Blueprint, Response, request

from api.services import Services, json_response


def blueprint(services: Services) -> Blueprint:
    """The routes of this family."""
    routes = Blueprint("system", __name__)

    @routes.get("/")
    async def greeting() -> Response:
        """What this node is, and where its API begins. Ollama's clients ask here whether it runs."""
        if "ollama" in request.headers.get("User-Agent", "").lower():
            return Response(b"Ollama is running", content_type="text/plain; charset=utf-8")
        return json_response(
            {
                "message": "This is a mesh node. Its API speaks the dialects of OpenAI and Anthropic under /v1, and "
                "Ollama's under /api.",
                "version": services.options.version,
                "endpoints": [
                    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses"),
                    *("/v1/messages", "/api/chat", "/api/generate", "/api/embed", "/api/tags"),
                ],
            }
        )

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
