"""A streamed answer through the official `openai` client (pip install openai).

    python examples/chat.py "Why is the sky blue?"
    python examples/chat.py "Why is the sky blue?" http://127.0.0.1:8081/v1

A node that asks for an API key finds it in OPENAI_API_KEY.
"""

from __future__ import annotations

import os
import sys

import openai


def main(question: str = "Why is the sky blue?", url: str = "http://127.0.0.1:8080/v1") -> None:
    """Print the answer as it comes."""
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none")
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=60,
        stream=True,
    )
    for chunk in answer:
        if chunk.choices:
            sys.stdout.write(chunk.choices[0].delta.content or "")
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
