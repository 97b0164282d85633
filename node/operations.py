"""The operations of LocalAI's published API, and which of them this node serves: a table in docs/endpoints.md."""

from __future__ import annotations

import re
from collections.abc import Iterable

from werkzeug.routing import Rule

OPERATIONS: tuple[tuple[str, str], ...] = (
    ("GET", "/api/agent/jobs"),
    ("POST", "/api/agent/jobs/execute"),
    ("DELETE", "/api/agent/jobs/{id}"),
    ("GET", "/api/agent/jobs/{id}"),
    ("POST", "/api/agent/jobs/{id}/cancel"),
    ("GET", "/api/agent/tasks"),
    ("POST", "/api/agent/tasks"),
    ("DELETE", "/api/agent/tasks/{id}"),
    ("GET", "/api/agent/tasks/{id}"),
    ("PUT", "/api/agent/tasks/{id}"),
    ("POST", "/api/agent/tasks/{name}/execute"),
    ("GET", "/api/backend-logs"),
    ("GET", "/api/backend-logs/{modelId}"),
    ("POST", "/api/backend-logs/{modelId}/clear"),
    ("GET", "/api/backend-traces"),
    ("POST", "/api/backend-traces/clear"),
    ("GET", "/api/instructions"),
    ("GET", "/api/instructions/{name}"),
    ("PATCH", "/api/models/config-json/{name}"),
    ("GET", "/api/models/config-metadata"),
    ("GET", "/api/models/config-metadata/autocomplete/{provider}"),
    ("PUT", "/api/models/toggle-pinned/{name}/{action}"),
    ("POST", "/api/models/vram-estimate"),
    ("PUT", "/api/models/{name}/{action}"),
    ("GET", "/api/p2p"),
    ("GET", "/api/p2p/token"),
    ("GET", "/api/traces"),
    ("POST", "/api/traces/clear"),
    ("GET", "/backend/monitor"),
    ("POST", "/backend/shutdown"),
    ("GET", "/backends"),
    ("POST", "/backends/apply"),
    ("GET", "/backends/available"),
    ("POST", "/backends/delete/{name}"),
    ("GET", "/backends/galleries"),
    ("GET", "/backends/jobs"),
    ("GET", "/backends/jobs/{uuid}"),
    ("POST", "/backends/upgrade/{name}"),
    ("GET", "/backends/upgrades"),
    ("POST", "/backends/upgrades/check"),
    ("GET", "/metrics"),
    ("POST", "/models/apply"),
    ("GET", "/models/available"),
    ("POST", "/models/delete/{name}"),
    ("GET", "/models/galleries"),
    ("GET", "/models/jobs"),
    ("GET", "/models/jobs/{uuid}"),
    ("GET", "/system"),
    ("GET", "/tokenMetrics"),
    ("POST", "/tts"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/detection"),
    ("POST", "/v1/edits"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/inpainting"),
    ("POST", "/v1/mcp/chat/completions"),
    ("POST", "/v1/messages"),
    ("GET", "/v1/models"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{id}"),
    ("POST", "/v1/responses/{id}/cancel"),
    ("POST", "/v1/sound-generation"),
    ("POST", "/v1/text-to-speech/{voice-id}"),
    ("GET", "/v1/tokenMetrics"),
    ("POST", "/v1/tokenize"),
    ("POST", "/vad"),
    ("POST", "/video"),
    ("GET", "/ws/backend-logs/{modelId}"),
)
"""Method and path, as LocalAI's swagger of 2026 has them."""


def served(rules: Iterable[Rule]) -> set[tuple[str, str]]:
    """Those of `OPERATIONS` that `rules` route."""
    routed = {
        (method, re.sub(r"<.*?>", "{}", rule.rule))
        for rule in rules
        for method in ({"GET"} if rule.websocket else rule.methods or ())
    }
    return {(method, path) for method, path in OPERATIONS if (method, re.sub(r"{.*?}", "{}", path)) in routed}


def operations_markdown(rules: Iterable[Rule]) -> list[str]:
    """The lines of the table."""
    found = served(rules)
    return [
        "## LocalAI's operations",
        "",
        f"LocalAI publishes {len(OPERATIONS)} operations; this node serves {len(found)} of them.",
        "",
        "| method | path | served |",
        "| --- | --- | --- |",
        *(f"| {method} | `{path}` | {'yes' if (method, path) in found else 'no'} |" for method, path in OPERATIONS),
    ]
