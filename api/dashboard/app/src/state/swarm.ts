// The swarm as the page knows it, and what an event changes of it. Pure: `live.ts` does the asking.

import type { Load, MeshEvent, Node, RequestSummary, Swarm } from "../api/types";

/** A request that entered at this node and runs. */
export interface Flow {
  request: string;
  model: string;
  /** Where it runs; empty while it waits. */
  node: string;
}

export type Link =
  | { kind: "connecting" }
  | { kind: "live" }
  /** `retryAt` in the page's own milliseconds. */
  | { kind: "lost"; why: string; retryAt: number }
  /** The node takes part in no swarm, or wants a key that nobody gives. */
  | { kind: "refused"; why: string; status: number };

export interface SwarmState {
  view: Swarm | null;
  /** When each node was last heard, in the page's own milliseconds: no other clock is compared with it. */
  heardAt: ReadonlyMap<string, number>;
  /** When `view` was read, likewise. */
  readAt: number;
  flows: ReadonlyMap<string, Flow>;
  link: Link;
}

export const EMPTY: SwarmState = {
  view: null,
  heardAt: new Map(),
  readAt: 0,
  flows: new Map(),
  link: { kind: "connecting" },
};

/** The state with a freshly read view in it. */
export function withView(state: SwarmState, view: Swarm, now: number): SwarmState {
  const heardAt = new Map(view.nodes.map((node) => [node.id, now - node.last_heard_s * 1000]));
  return { ...state, view, heardAt, readAt: now };
}

/** The state with the requests in it that run, of a list of the last ones. */
export function withRunning(state: SwarmState, requests: readonly RequestSummary[]): SwarmState {
  const flows = new Map<string, Flow>();
  for (const { id, model, node, outcome } of requests) {
    if (outcome === "running") flows.set(id, { request: id, model, node });
  }
  return { ...state, flows };
}

const MAX_FLOWS = 500; // ends that got lost with missed events must not pile up

/** What an event makes of the state, and whether the view has to be read again to know all of it. */
export function withEvents(
  state: SwarmState,
  events: readonly MeshEvent[],
  now: number,
): { state: SwarmState; reread: boolean } {
  let reread = false;
  let nodes: Map<string, Node> | null = null;
  let flows: Map<string, Flow> | null = null;
  let heardAt: Map<string, number> | null = null;
  const change = (id: string, make: (node: Node) => Node): boolean => {
    nodes ??= new Map(state.view?.nodes.map((node) => [node.id, node]));
    const node = nodes.get(id);
    if (node) nodes.set(id, make(node));
    return node !== undefined;
  };
  const heard = (id: string): void => void (heardAt ??= new Map(state.heardAt)).set(id, now);

  for (const event of events) {
    switch (event.kind) {
      case "load":
        heard(event.id);
        if (!change(event.id, (node) => withLoads(node, event.loads ?? []))) reread = true;
        break;
      case "alive":
      case "suspect":
      case "dead":
      case "left":
      case "incompatible": {
        const becomes = event.kind;
        if (becomes === "alive") heard(event.id);
        change(event.id, (node) => ({ ...node, state: becomes }));
        reread = true;
        break;
      }
      case "route":
        (flows ??= new Map(state.flows)).set(event.request, event);
        break;
      case "ended":
        (flows ??= new Map(state.flows)).delete(event.request);
        break;
      default:
        reread = true; // joined, forgotten, record, banned, missed, and what a newer node may add
    }
  }
  flows = trimmed(flows);
  if (!nodes && !flows && !heardAt) return { state, reread };
  const view = state.view && nodes ? { ...state.view, nodes: [...(nodes as Map<string, Node>).values()] } : state.view;
  return { state: { ...state, view, flows: flows ?? state.flows, heardAt: heardAt ?? state.heardAt }, reread };
}

function trimmed(flows: Map<string, Flow> | null): Map<string, Flow> | null {
  if (flows && flows.size > MAX_FLOWS) return new Map([...flows].slice(-MAX_FLOWS));
  return flows;
}

function withLoads(node: Node, loads: readonly Load[]): Node {
  const byModel = new Map(loads.map((load) => [load.model, load]));
  return {
    ...node,
    models: node.models.map((model) => {
      const load = byModel.get(model.model);
      return load ? { ...model, load } : model;
    }),
  };
}
