"""An agent framework end to end: Pydantic AI's loop of calls and results, which has to terminate.

The fake model says what it is told to, so the loop is exact: the question makes it call the tool, and the tool's result
makes it answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pydantic_ai
import pytest
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.support.nodes import running_node, write_model

CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
ANSWER = "It is sunny in Oslo."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIChatModel]:
    data: Path = tmp_path_factory.mktemp("agent")
    write_model(data, "agent", backend="fake", engine={"obeys": True, "calls": "json"})
    with running_node(data) as node:
        yield OpenAIChatModel("agent", provider=OpenAIProvider(base_url=f"{node.url}/v1", api_key="none"))


def agent_with_tool(model: OpenAIChatModel, asked: list[str]) -> pydantic_ai.Agent[None, str]:
    agent = pydantic_ai.Agent(model, system_prompt="You tell the weather.")

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"say: {ANSWER}"

    return agent


def test_a_loop_of_calls_and_results_ends(model: OpenAIChatModel) -> None:
    asked: list[str] = []
    done = agent_with_tool(model, asked).run_sync(f"say: {CALL}")
    assert asked == ["Oslo"]
    assert done.output == ANSWER
    assert done.usage.requests == 2
