import { expect, test } from "vitest";
import { load, node, offered } from "../../state/testing";
import { capacity, look, shardLinks, totals, work } from "./facts";

const BUSY = node("busy", {
  models: [
    offered("a", { load: load("a", { slots_used: 2, decode_tokens_per_s: 30, queued: 1 }) }),
    offered("b", { load: load("b", { state: "absent", slots: 0, queued: 2, decode_tokens_per_s: 99, error_rate: 0.2 }) }),
    offered("c", { load: load("c", { state: "loading" }) }),
  ],
});

test("what a node does is the sum of what is loaded there", () => {
  expect(work(BUSY)).toMatchObject({ slotsUsed: 2, slots: 8, queued: 3, decode: 30, loaded: 2, errorRate: 0.2 });
  expect(work(BUSY).memoryUsed).toBe(2 * (1 << 30));
});

test("of one that is gone nothing is told as if it were now", () => {
  expect(work({ ...BUSY, state: "dead" })).toMatchObject({ slotsUsed: 0, slots: 0, queued: 0, decode: 0, loaded: 0 });
  const { load: _, ...bare } = offered("m");
  expect(work(node("new", { models: [bare] })).slots).toBe(0);
});

test("totals count nodes that are there", () => {
  const sum = totals([BUSY, node("idle"), node("gone", { state: "dead" }), node("away", { state: "left" })]);
  expect(sum).toMatchObject({ alive: 2, nodes: 3, models: 4, loadedModels: 2, slotsUsed: 2, slots: 12 });
});

test("who lends is linked with whom it lends to", () => {
  const target = { name: "rpc", version: "", devices: [], memory_bytes: 2 ** 34, bytes_per_s: 0, leased_by: "busy" };
  const lender = node("lender", { memory_budget_bytes: 1, targets: [target, { ...target, name: "free", leased_by: "" }] });
  expect(shardLinks([BUSY, lender])).toEqual([{ head: BUSY.id, worker: lender.id, target: "rpc" }]);
  expect(shardLinks([lender]), "its head is no member any more").toEqual([]);
  expect(capacity(lender)).toBe(2 ** 34);
});

test("every state has a word of its own and more than a colour", () => {
  const marks = ["alive", "suspect", "dead", "left", "incompatible"].map((state) => look(state).mark);
  expect(new Set(marks).size).toBe(5);
  expect(look("of a newer version").word).toBe("of a newer version");
});
