"""Open Responses: answers as items, kept so that a conversation can go on from any of them."""
