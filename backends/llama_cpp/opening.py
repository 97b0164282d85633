"""From a LoadSpec to a running engine: the model, its contexts and its template."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import llama_cpp as native
import psutil

from backends.chat.template import ChatTemplate
from backends.llama_cpp.batch import ECHO_TOKENS
from backends.llama_cpp.embeddings import Embedder
from backends.llama_cpp.engine import LlamaEngine
from backends.llama_cpp.gguf import read_header
from backends.llama_cpp.jobs import Preparer
from backends.llama_cpp.native import Context, Model, has_gpu
from backends.llama_cpp.needs import BATCH_TOKENS, embeds_only, estimate, pools, ranks
from backends.llama_cpp.rpc.layout import lay_out
from backends.llama_cpp.settings import cache_types, read_settings
from backends.types import Capability, EngineInfo, LoadFailed, LoadSpec

if TYPE_CHECKING:
    from backends.llama_cpp.vision import Sight


def open_engine(load: LoadSpec, progress: Callable[[float], None]) -> LlamaEngine:
    """Open the GGUF that `load` names. Raises LoadFailed."""
    settings = read_settings(load.engine)
    header = read_header(load.path)
    needs = estimate(header, load)
    threads = load.threads or psutil.cpu_count(logical=False) or 1
    encoder = embeds_only(header)
    on_cpu = load.gpu_layers == 0 or not has_gpu()  # of this machine: asked before there are others' devices
    layout = lay_out(load, len(header.block_bytes), on_cpu=on_cpu) if load.shards else None
    model = Model(load.path, gpu_layers=load.gpu_layers, progress=progress, layout=layout)
    context = None
    if not encoder:
        params = native.llama_context_default_params()
        params.n_ctx = needs.context_tokens * needs.slots
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = needs.slots
        params.n_outputs_max = needs.slots + ECHO_TOKENS
        params.n_threads = threads
        params.n_threads_batch = settings.threads_batch or threads
        # A KV cache per sequence and flash attention left on: without both, the text of a call depends on its
        # neighbours in the batch. So it does with cache types other than these.
        params.kv_unified = False
        params.type_k, params.type_v = cache_types(settings.cache_type, on_cpu=on_cpu)
        params.no_perf = True
        context = Context(model, params, batch_tokens=BATCH_TOKENS)
    context_tokens = context.context_tokens if context else needs.context_tokens
    source = load.chat_template or model.meta("tokenizer.chat_template")
    template = ChatTemplate(source, bos=model.bos, eos=model.eos) if source and not encoder else None
    sight = None
    if load.mmproj and context is not None:
        sight = _sight(model, load.mmproj, threads=threads, on_cpu=on_cpu)
    embedder = Embedder(model, pools=pools(header), ranks=ranks(header), context_tokens=context_tokens, threads=threads)
    info = EngineInfo(
        capabilities=needs.capabilities,
        context_tokens=context_tokens,
        slots=needs.slots,
        embedding_size=embedder.size if Capability.EMBEDDING in needs.capabilities else 0,
        details={
            "architecture": header.architecture,
            "description": model.description,
            "threads": threads,
            "deterministic": load.deterministic,
            "machines": 1 + len(load.shards),
        },
    )
    preparer = Preparer(
        model,
        template,
        generates=not encoder,
        context_tokens=context_tokens,
        sight=sight,
        ranks=ranks(header),
    )
    return LlamaEngine(
        model,
        context,
        embedder,
        preparer,
        info,
        batch_tokens=BATCH_TOKENS,
        exact=load.deterministic,
        sight=sight,
    )


def _sight(model: Model, path: str, *, threads: int, on_cpu: bool) -> Sight:
    """The opened encoder of images. Raises LoadFailed."""
    try:
        from backends.llama_cpp.vision import Sight
    except OSError as error:  # this is how the bindings say that they find no library
        raise LoadFailed(
            "llama.cpp's library for images is not built. Run `make run` in a source checkout, which builds it."
        ) from error
    return Sight(model, path, threads=threads, batch_tokens=BATCH_TOKENS, on_cpu=on_cpu)
