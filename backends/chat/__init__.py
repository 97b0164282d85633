"""What engines for conversations share: chat templates, notations of tool calls, the way from a request to a job."""
