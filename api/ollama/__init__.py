"""Ollama's dialect: chat, generate, embeddings, and what its clients ask about models."""
