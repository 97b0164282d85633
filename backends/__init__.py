"""Engines and the child processes they run in. Knows prompts, not peers."""
