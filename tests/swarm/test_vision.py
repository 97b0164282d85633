"""Images in a swarm: they go where the model has eyes, and again when the node that saw them dies."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.support.images import data_url, flat
from tests.support.models import smollm2
from tests.support.nodes import RunningNode, Swarm, swarm
from tests.support.visionmodels import write_mmproj

RED, BLUE = flat((255, 0, 0)), flat((0, 0, 255))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """`a` has no model with eyes; `b` and `c` have one, and `b` one of a name that is blind on `a`."""
    folder = tmp_path_factory.mktemp("seeing")
    mmproj = write_mmproj(folder / "mmproj.gguf", width=576)
    blind = {"parameters": {"model": os.fspath(smollm2())}, "slots": 2, "context_size": 1024, "threads": 1}
    eyes = blind | {"mmproj": os.fspath(mmproj)}
    models = {"a": {"mixed": blind}, "b": {"eyes": eyes, "mixed": eyes}, "c": {"eyes": eyes}}
    with swarm(folder, models, image_fetch_private="true") as made:
        yield made


@contextmanager
def serving(image: bytes) -> Iterator[str]:
    """A web server that has one image; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(image)))
            self.end_headers()
            self.wfile.write(image)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/image.png"
        finally:
            server.shutdown()
            thread.join()


def asking(url: str, model: str = "eyes", tokens: int = 24) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What do you see?"}]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}


def answer(node: RunningNode, body: dict[str, Any]) -> tuple[str, str]:
    """What is said, and who says it."""
    with node.http as client:
        response = client.post("/v1/chat/completions", json=body).raise_for_status()
    return response.json()["choices"][0]["message"]["content"], response.headers["X-Mesh-Node"]


def test_images_go_where_they_are_seen(seeing: Swarm) -> None:
    red, node = answer(seeing["a"], asking(data_url(RED)))
    blue, _ = answer(seeing["a"], asking(data_url(BLUE)))
    assert node in "bc"
    assert red != blue
    with serving(RED) as address:
        assert answer(seeing["a"], asking(address))[0] == red
    assert answer(seeing["a"], asking(data_url(RED), "mixed")) == (red, "b")
    [card] = [model for model in seeing["a"].get("/api/tags")["models"] if model["name"] == "eyes"]
    with seeing["a"].http as client:
        assert "vision" in client.post("/api/show", json={"model": card["name"]}).json()["capabilities"]


def test_all_dialects_see_the_same(seeing: Swarm) -> None:
    said, _ = answer(seeing["a"], asking(data_url(RED)))
    image = data_url(RED).partition(",")[2]
    text = "What do you see?"
    source = {"type": "base64", "media_type": "image/png", "data": image}
    anthropic = {
        "model": "eyes",
        "max_tokens": 24,
        "temperature": 0,
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": text}]}
        ],
    }
    parts = [{"type": "input_image", "image_url": data_url(RED)}, {"type": "input_text", "text": text}]
    responses = {
        "model": "eyes",
        "max_output_tokens": 24,
        "temperature": 0,
        "input": [{"role": "user", "content": parts}],
    }
    ollama = {
        "model": "eyes",
        "stream": False,
        "options": {"temperature": 0, "num_predict": 24},
        "messages": [{"role": "user", "content": text, "images": [image]}],
    }
    with seeing["a"].http as client:
        told = client.post("/v1/messages", json=anthropic).json()["content"][0]["text"]
        made = client.post("/v1/responses", json=responses).json()["output"][0]["content"][0]["text"]
        chatted = client.post("/api/chat", json=ollama).json()["message"]["content"]
    assert {told, made, chatted} == {said[: len(told)]}
    assert len(told) > 0


def test_an_answer_about_an_image_survives_its_node(seeing: Swarm) -> None:
    body = asking(data_url(BLUE), tokens=120)
    undisturbed, _ = answer(seeing["a"], body)
    text, killed = "", ""
    with (
        seeing["a"].http as client,
        client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as events,
    ):
        for line in events.iter_lines():
            if not line.startswith("data: {"):
                continue
            text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
            if len(text) > 20 and not killed:
                killed = events.headers["X-Mesh-Node"]
                seeing.kill(killed)
    assert killed in ("b", "c")
    assert text == undisturbed
    assert sum(request["resumed"] for request in seeing["a"].get("/api/mesh/requests?limit=10")["requests"]) == 1
    seeing.heal()


def test_who_is_blind_says_so(seeing: Swarm) -> None:
    with seeing["a"].http as client:
        refused = client.post("/v1/chat/completions", json=asking(data_url(RED), "mixed"), headers={"X-Mesh-Node": "a"})
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert "vision" in refused.json()["error"]["message"] or "images" in refused.json()["error"]["message"]
