"""OpenAI's dialect, one module a family of endpoints."""
