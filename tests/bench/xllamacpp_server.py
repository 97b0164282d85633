"""xllamacpp's server on one model. Runs in the throwaway environment, by its path: it imports nothing of ours."""

import signal
import sys

import xllamacpp  # type: ignore[import-not-found,unused-ignore]

path, slots, context_tokens, threads, port = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.n_parallel = int(slots)
params.n_ctx = int(slots) * int(context_tokens)
params.kv_unified = False  # a cache for each sequence, as the node has it
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.fit_params = False
params.cache_ram_mib = 0
params.ui = False
params.hostnames = ["127.0.0.1"]
params.port = int(port)
server = xllamacpp.Server(params)
signal.pause()
