"""From a plan in layers to llama.cpp's devices and its tensor_split."""

from __future__ import annotations

from backends.llama_cpp.native import Layout
from backends.llama_cpp.rpc.devices import device_array, own_devices, remote_devices
from backends.types import LoadFailed, LoadSpec


def lay_out(load: LoadSpec, layers: int, *, on_cpu: bool) -> Layout:
    """Where the `layers` layers of `load` go. Connects to all its shards; raises LoadFailed.

    llama.cpp gives the layers from the first offloaded one on to the devices in order, in proportion to tensor_split;
    with whole numbers of layers for proportions each gets exactly its own. The output's weights count as one layer, the
    last.
    """
    told = load.local_layers + sum(shard.layers for shard in load.shards)
    if told != layers:
        raise LoadFailed(f"Model {load.name} has {layers} layers; the plan knows of {told}.")
    devices: list[int] = []
    counts: list[int] = []
    if load.local_layers and not on_cpu:
        own = own_devices()
        devices += own
        counts += _evenly(load.local_layers, len(own))
    for shard in load.shards:
        remote = remote_devices(shard.endpoint)[: max(1, shard.layers)]
        devices += remote
        counts += _evenly(shard.layers + (shard is load.shards[-1]), len(remote))
    return Layout(device_array(devices), tuple(counts))


def _evenly(layers: int, parts: int) -> list[int]:
    """As even as it goes, the more to the first."""
    return [layers // parts + (index < layers % parts) for index in range(parts)]
