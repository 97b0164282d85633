"""The dialects: a handler parses, dispatches and renders. Knows neither peers nor engines, only backends.types."""
