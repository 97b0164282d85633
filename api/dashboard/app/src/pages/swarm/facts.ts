// What is said of nodes, reckoned from what they tell.

import type { Node, OfferedModel } from "../../api/types";
import type { Tone } from "../../ui/parts";

export interface StateLook {
  word: string;
  tone: Tone;
  /** Beside the colour, for those who see none. */
  mark: string;
  meaning: string;
}

const STATES: Record<string, StateLook> = {
  alive: { word: "alive", tone: "good", mark: "", meaning: "It answers." },
  suspect: { word: "suspect", tone: "warn", mark: "?", meaning: "Not heard of for a while; nothing is sent there." },
  dead: { word: "dead", tone: "bad", mark: "×", meaning: "It went away without a word." },
  left: { word: "left", tone: "idle", mark: "–", meaning: "It has said good-bye." },
  incompatible: { word: "incompatible", tone: "warn", mark: "!", meaning: "It speaks another version of the mesh." },
};

export function look(state: string): StateLook {
  return STATES[state] ?? { word: state, tone: "idle", mark: "?", meaning: "" };
}

/** Whether its figures are of now. */
export function present(node: Node): boolean {
  return node.state === "alive" || node.state === "suspect";
}

export interface Work {
  slotsUsed: number;
  slots: number;
  queued: number;
  prefill: number;
  decode: number;
  loaded: number;
  /** Of loaded models. */
  memoryUsed: number;
  /** Largest share of failed calls among the models. */
  errorRate: number;
}

const held = (model: OfferedModel): boolean => model.load?.state === "ready" || model.load?.state === "loading";

/** What a node does now; of one that is gone nothing. */
export function work(node: Node): Work {
  const sum: Work = {
    slotsUsed: 0,
    slots: 0,
    queued: 0,
    prefill: 0,
    decode: 0,
    loaded: 0,
    memoryUsed: 0,
    errorRate: 0,
  };
  if (!present(node)) return sum;
  for (const model of node.models) {
    const load = model.load;
    if (!load) continue;
    sum.queued += load.queued;
    sum.errorRate = Math.max(sum.errorRate, load.error_rate);
    if (!held(model)) continue;
    sum.loaded += 1;
    sum.memoryUsed += model.memory_bytes;
    sum.slots += load.slots;
    sum.slotsUsed += load.slots_used;
    if (load.slots_used > 0) {
      sum.prefill += load.prefill_tokens_per_s;
      sum.decode += load.decode_tokens_per_s;
    }
  }
  return sum;
}

/** How large a node is beside others: what its models may take, or what it lends. */
export function capacity(node: Node): number {
  return Math.max(node.memory_budget_bytes, ...node.targets.map((target) => target.memory_bytes), 0);
}

export interface ShardLink {
  /** Ids: the node that has the model, and one that holds layers of it. */
  head: string;
  worker: string;
  target: string;
}

/** Who holds layers for whom. */
export function shardLinks(nodes: readonly Node[]): ShardLink[] {
  const byName = new Map(nodes.map((node) => [node.name, node.id]));
  const links: ShardLink[] = [];
  for (const worker of nodes) {
    for (const { leased_by: leasedBy, name: target } of worker.targets) {
      const head = byName.get(leasedBy);
      if (head && head !== worker.id) links.push({ head, worker: worker.id, target });
    }
  }
  return links;
}

export interface Totals {
  alive: number;
  nodes: number;
  models: number;
  loadedModels: number;
  slotsUsed: number;
  slots: number;
  queued: number;
  decode: number;
}

/** The swarm in a row of figures. */
export function totals(nodes: readonly Node[]): Totals {
  const names = new Set<string>();
  const loaded = new Set<string>();
  const sum: Totals = { alive: 0, nodes: 0, models: 0, loadedModels: 0, slotsUsed: 0, slots: 0, queued: 0, decode: 0 };
  for (const node of nodes) {
    if (node.state !== "left") sum.nodes += 1;
    if (node.state !== "alive") continue;
    sum.alive += 1;
    for (const model of node.models) {
      names.add(model.model);
      if (model.load?.state === "ready") loaded.add(model.model);
    }
    const does = work(node);
    sum.slots += does.slots;
    sum.slotsUsed += does.slotsUsed;
    sum.queued += does.queued;
    sum.decode += does.decode;
  }
  return { ...sum, models: names.size, loadedModels: loaded.size };
}
