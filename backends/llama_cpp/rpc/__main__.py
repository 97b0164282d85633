"""The process of an RPC server."""

from backends.llama_cpp.rpc.server import main

main()
