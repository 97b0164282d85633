"""LocalAI's own endpoints, beside the OpenAI ones that it shares."""
