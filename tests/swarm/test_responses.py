"""Responses that one node keeps, from another: OpenAI's own client against three nodes."""

from __future__ import annotations

import openai
import pytest

from tests.support.nodes import Swarm


def client(nodes: Swarm, name: str) -> openai.OpenAI:
    """OpenAI's client for one of the nodes."""
    return openai.OpenAI(base_url=f"{nodes[name].url}/v1", api_key=nodes[name].key or "none", max_retries=0)


def test_a_conversation_goes_from_node_to_node(three: Swarm) -> None:
    with client(three, "a") as one, client(three, "b") as two:
        first = one.responses.create(model="far", input="Hello", max_output_tokens=8)
        assert two.responses.retrieve(first.id).output_text == first.output_text
        second = two.responses.create(
            model="far", input="And then?", previous_response_id=first.id, max_output_tokens=8
        )
        third = one.responses.create(model="far", input="More", previous_response_id=second.id, max_output_tokens=8)
        alone = one.responses.create(
            model="far",
            input=[
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": first.output_text},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": second.output_text},
                {"role": "user", "content": "More"},
            ],
            max_output_tokens=8,
        )
        assert third.output_text == alone.output_text  # the whole chain was read, over both nodes
        assert next(item.id for item in two.responses.input_items.list(third.id)).startswith("msg_")


def test_deleted_from_another_node(three: Swarm) -> None:
    with client(three, "a") as one, client(three, "c") as three_:
        kept = one.responses.create(model="far", input="Hello", max_output_tokens=4)
        three_.responses.delete(kept.id)
        for node in (one, three_):
            with pytest.raises(openai.NotFoundError):
                node.responses.retrieve(kept.id)


def test_a_stream_is_read_again_and_cancelled_from_another_node(three: Swarm) -> None:
    with client(three, "a") as one, client(three, "c") as three_:
        begun = one.responses.create(model="slow", input="Hello", background=True, stream=True, max_output_tokens=2000)
        identity = next(iter(begun)).response.id  # type: ignore[union-attr]
        begun.close()
        numbers = []
        with three_.responses.retrieve(identity, stream=True, starting_after=1) as again:
            for event in again:
                numbers.append(event.sequence_number)
                if len(numbers) == 5:
                    break
        assert numbers == [2, 3, 4, 5, 6]
        assert three_.responses.cancel(identity).status == "cancelled"
        assert one.responses.retrieve(identity).status == "cancelled"
