// Nodes for tests.

import type { Load, Node, OfferedModel, Swarm } from "../api/types";

export function load(model: string, changes: Partial<Load> = {}): Load {
  return {
    model,
    state: "ready",
    slots_used: 0,
    slots: 4,
    queued: 0,
    queued_tokens: 0,
    prefill_tokens_per_s: 0,
    decode_tokens_per_s: 0,
    decode_batch: 0,
    decode_gain: 0,
    load_s: 0,
    error_rate: 0,
    ...changes,
  };
}

export function offered(model: string, changes: Partial<OfferedModel> = {}): OfferedModel {
  return {
    model,
    digest: `digest of ${model}`,
    backend: "fake",
    capabilities: ["chat"],
    context_tokens: 4096,
    slots: 4,
    aliases: [],
    load_s: 0,
    memory_bytes: 1 << 30,
    sharded: false,
    load: load(model),
    ...changes,
  };
}

export function node(name: string, changes: Partial<Node> = {}): Node {
  return {
    self: false,
    state: "alive",
    round_trip_s: 0.001,
    last_heard_s: 0.5,
    last_seen: "2026-11-27T12:00:00+00:00",
    relayed: false,
    in_flight: 0,
    id: `id-${name}`,
    name,
    version: "1",
    protocol: 1,
    addresses: ["/ip4/192.0.2.1/tcp/4801"],
    roles: [],
    exposes: [],
    targets: [],
    memory_budget_bytes: 8 * (1 << 30),
    api_url: "",
    hardware: {
      system: "Linux",
      processor: "any",
      cores: 4,
      memory_bytes: 16 * (1 << 30),
      accelerators: [],
      accelerator_memory_bytes: 0,
    },
    models: [offered("m")],
    ...changes,
  };
}

export function view(...nodes: Node[]): Swarm {
  return { name: nodes[0]?.name ?? "", id: nodes[0]?.id ?? "", left: false, nodes, banned: [], variants: [] };
}
