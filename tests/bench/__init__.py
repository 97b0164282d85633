"""`make bench`: what the node costs, measured beside the bare engine and beside others, in one run. Never a test."""
