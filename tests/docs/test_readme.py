"""The README is one screen, and what it tells one to type works."""

from __future__ import annotations

import json
import shutil
import subprocess

import httpx
import pytest

from node.config import Settings
from tests.docs.pages import commands, page
from tests.support.nodes import RunningNode

README = page("README.md")
SCREEN_LINES = 75


def curl_line() -> list[str]:
    [line] = commands(README, "curl")
    return line


def answered(stream: str) -> str:
    """The text of a stream of chat chunks, which must be whole."""
    events = stream.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert len(chunks) > 2, "an answer that streams has several pieces"
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_it_is_one_screen_with_the_commands() -> None:
    assert len(README.splitlines()) <= SCREEN_LINES
    made = [words[1] for words in commands(README, "make")]
    assert {"run", "test"} <= set(made)
    assert ["mesh", "chat"] in list(commands(README, "mesh"))


def test_its_address_is_the_default_one() -> None:
    fields = Settings.model_fields
    assert curl_line()[2].startswith(f"http://{fields['host'].default}:{fields['port'].default}/")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed; the next test sends the same request")
def test_the_curl_line_streams_an_answer(real_node: RunningNode) -> None:
    [line] = [line for line in README.splitlines() if line.startswith("curl ")]
    command = line.replace("http://127.0.0.1:8080", real_node.url) + " --silent --noproxy '*'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert answered(done.stdout).strip()


def test_what_the_curl_line_sends_streams_an_answer(real_node: RunningNode) -> None:
    program, unbuffered, url, *options = curl_line()
    assert (program, unbuffered, options[::2]) == ("curl", "-N", ["-H", "-d"])
    name, _, value = options[1].partition(": ")
    with httpx.Client(trust_env=False, timeout=120.0) as http:
        answer = http.post(
            url.replace("http://127.0.0.1:8080", real_node.url),
            headers={name: value},
            content=json.dumps(json.loads(options[3]) | {"max_tokens": 8}),
        )
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answered(answer.text).strip()
