import { expect, test } from "vitest";
import type { MeshEvent } from "../api/types";
import { EMPTY, withEvents, withRunning, withView, type SwarmState } from "./swarm";
import { load, node, view } from "./testing";

const START = withView(EMPTY, view(node("here", { self: true }), node("there", { last_heard_s: 3 })), 10_000);

function after(state: SwarmState, ...events: MeshEvent[]) {
  return withEvents(state, events, 20_000);
}

test("a view brings when each was heard, by the page's own clock", () => {
  expect(START.heardAt.get("id-there")).toBe(7_000);
  expect(START.readAt).toBe(10_000);
});

test("a load replaces that of its model alone, and is a sign of life", () => {
  const loads = [load("m", { slots_used: 3 }), load("unknown")];
  const { state, reread } = after(START, { kind: "load", id: "id-there", node: "there", loads });
  expect(reread).toBe(false);
  expect(state.view?.nodes[1]?.models.map((model) => model.load?.slots_used)).toEqual([3]);
  expect(state.view?.nodes[0]).toBe(START.view?.nodes[0]);
  expect(state.heardAt.get("id-there")).toBe(20_000);
  expect(START.view?.nodes[1]?.models[0]?.load?.slots_used, "the state before is as it was").toBe(0);
});

test.each(["suspect", "dead", "left", "incompatible", "alive"] as const)("%s shows at once, and the view is read", (kind) => {
  const { state, reread } = after(START, { kind, id: "id-there", node: "there" });
  expect(state.view?.nodes[1]?.state).toBe(kind);
  expect(reread).toBe(true);
});

test.each([
  { kind: "joined", id: "id-new", node: "new" },
  { kind: "record", id: "id-there", node: "there" },
  { kind: "forgotten", id: "id-there", node: "there" },
  { kind: "banned", id: "id-there", node: "there" },
  { kind: "missed", count: 4 },
  { kind: "load", id: "id-of-nobody", node: "x", loads: [] },
  { kind: "of a newer version" } as unknown as MeshEvent,
] as MeshEvent[])("what an event does not say in full is read: %o", (event) => {
  const { state, reread } = after(START, event);
  expect(reread).toBe(true);
  expect(state.view?.nodes.map((one) => one.id)).toEqual(["id-here", "id-there"]);
});

test("requests flow from their route to their end", () => {
  const routed: MeshEvent = { kind: "route", request: "r", model: "m", node: "there" };
  const { state, reread } = after(START, routed, { ...routed, node: "here" });
  expect(reread).toBe(false);
  expect([...state.flows.values()].map((flow) => flow.node)).toEqual(["here"]);
  const ended = after(state, { kind: "ended", request: "r", model: "m", node: "here", outcome: "ok" });
  expect(ended.state.flows.size).toBe(0);
});

test("flows whose ends are lost do not pile up", () => {
  const routes = Array.from({ length: 2000 }, (_, index): MeshEvent => ({ kind: "route", request: `r${index}`, model: "m", node: "x" }));
  const { state } = after(START, ...routes);
  expect(state.flows.size).toBe(500);
  expect(state.flows.has("r1999")).toBe(true);
});

test("those that run are taken from the list of requests", () => {
  const request = { id: "a", model: "m", outcome: "running", node: "there" };
  const state = withRunning(START, [request, { ...request, id: "b", outcome: "ok" }] as never);
  expect([...state.flows.keys()]).toEqual(["a"]);
});

test("events before the first view do no harm", () => {
  const { state, reread } = withEvents(EMPTY, [{ kind: "dead", id: "x", node: "x" }], 1);
  expect(state.view).toBeNull();
  expect(reread).toBe(true);
});
