// The models of all nodes, by name. Pure.

import type { ModelRow, NodeModels } from "../../api/types";

export interface Place {
  node: Pick<NodeModels, "id" | "name" | "self" | "state" | "answered">;
  row: ModelRow;
}

export interface ModelGroup {
  name: string;
  places: Place[];
  /** What all agree on is said once; of what differs, nothing. */
  quantisation: string;
  backend: string;
  capabilities: readonly string[];
  sizeBytes: number;
  memoryBytes: number;
  contextTokens: number;
  loaded: number;
  digests: number;
  /** Some node cannot hold it alone. */
  large: boolean;
}

/** By name; within a model the answering node first, then those that have it loaded, then by name. */
export function grouped(nodes: readonly NodeModels[]): ModelGroup[] {
  const groups = new Map<string, Place[]>();
  for (const node of nodes) {
    for (const row of node.models) {
      const places = groups.get(row.name);
      if (places) places.push({ node, row });
      else groups.set(row.name, [{ node, row }]);
    }
  }
  return [...groups]
    .map(([name, places]) => {
      places.sort((a, b) => rank(a) - rank(b) || compare(a.node.name, b.node.name));
      const rows = places.map(({ row }) => row);
      return {
        name,
        places,
        quantisation: same(rows.map((row) => row.quantisation).filter(Boolean)) ?? "",
        backend: same(rows.map((row) => row.backend)) ?? "",
        capabilities: rows.find((row) => row.capabilities.length)?.capabilities ?? [],
        sizeBytes: Math.max(0, ...rows.map((row) => row.size_bytes)),
        memoryBytes: Math.max(0, ...rows.map((row) => row.memory_bytes)),
        contextTokens: Math.max(0, ...rows.map((row) => row.context_tokens)),
        loaded: rows.filter((row) => row.state === "ready").length,
        digests: new Set(rows.map((row) => row.digest).filter(Boolean)).size,
        large: rows.some((row) => row.sharded || (row.state === "unusable" && /memory|budget/i.test(row.error))),
      };
    })
    .sort((a, b) => compare(a.name, b.name));
}

function rank({ node, row }: Place): number {
  if (node.self) return 0;
  return row.state === "ready" ? 1 : row.state === "unknown" ? 3 : 2;
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function same<T>(values: readonly T[]): T | undefined {
  return values.every((value) => value === values[0]) ? values[0] : undefined;
}

export type Action = "load" | "unload" | "pin" | "unpin";

/** What can be done with a model at a place now. */
export function actions({ node, row }: Place): Action[] {
  if (node.state !== "alive" || !node.answered) return [];
  const found: Action[] = [];
  if (row.state === "ready") found.push("unload");
  else if (row.state === "absent" || row.state === "failed" || row.state === "unusable") found.push("load");
  if (row.pinnable) found.push(row.pinned ? "unpin" : "pin");
  return found;
}

/** All words of the text are in the model's name, its aliases, backend, quantisation, or in a node that has it. */
export function found(groups: readonly ModelGroup[], text: string): ModelGroup[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return groups.filter((group) => {
    const parts = [group.name, group.backend, group.quantisation, ...group.capabilities];
    for (const { node, row } of group.places) parts.push(node.name, ...row.aliases);
    const all = parts.join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
  });
}
