"""Peers: tokens, membership, routing and transport. Knows peers, not prompts; imports nothing else of ours."""
