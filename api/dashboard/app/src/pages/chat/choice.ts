// Which models can be talked to, and where. Pure.

import type { Swarm } from "../../api/types";

export interface ChatModel {
  name: string;
  /** Names of nodes that have it and can be asked now. */
  nodes: string[];
  loaded: boolean;
  sees: boolean;
}

/** Models that can chat, those in memory first. */
export function chatModels(view: Swarm): ChatModel[] {
  const found = new Map<string, ChatModel>();
  for (const node of view.nodes) {
    if (node.state !== "alive") continue;
    for (const { model, capabilities, load } of node.models) {
      if (!capabilities.includes("chat")) continue;
      const known = found.get(model) ?? { name: model, nodes: [], loaded: false, sees: false };
      known.nodes.push(node.name);
      known.loaded ||= load?.state === "ready";
      known.sees ||= capabilities.includes("vision");
      found.set(model, known);
    }
  }
  return [...found.values()].sort((a, b) => Number(b.loaded) - Number(a.loaded) || (a.name < b.name ? -1 : 1));
}

/** A number that a person has typed, within bounds; null for none. */
export function typed(text: string, low: number, high: number, whole = false): number | null {
  const value = Number(text.replace(",", "."));
  if (!text.trim() || !Number.isFinite(value)) return null;
  const inside = Math.min(high, Math.max(low, value));
  return whole ? Math.round(inside) : inside;
}
