"""What engines for conversations share: a model's chat template, and its family's notation of tool calls."""
