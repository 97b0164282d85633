"""The worker process of the llama.cpp backend."""

from backends.llama_cpp.opening import open_engine
from backends.worker import main

main(open_engine)
