import { describe, expect, it } from "vitest";
import type { ModelRow, NodeModels } from "../../api/types";
import { actions, found, grouped } from "./group";

function row(name: string, changes: Partial<ModelRow> = {}): ModelRow {
  const plain: ModelRow = {
    name,
    digest: "d",
    backend: "fake",
    aliases: [],
    capabilities: ["chat"],
    state: "absent",
    error: "",
    pinned: false,
    pinnable: true,
    sharded: false,
    size_bytes: 0,
    memory_bytes: 0,
    quantisation: "",
    context_tokens: 0,
    slots: 1,
    slots_used: 0,
    queued: 0,
    load_progress: 0,
    load_s: 0,
    engine_memory_bytes: 0,
    prefill_tokens_per_s: 0,
    decode_tokens_per_s: 0,
    expires_in_s: null,
  };
  return { ...plain, ...changes };
}

function node(name: string, models: ModelRow[], changes: Partial<NodeModels> = {}): NodeModels {
  return { id: `ID-${name}`, name, self: false, state: "alive", answered: true, models, ...changes };
}

describe("models", () => {
  it("are put together over the nodes, this node first, then who has it loaded", () => {
    const groups = grouped([
      node("here", [row("m", { memory_bytes: 5 })], { self: true }),
      node("b", [row("m"), row("__proto__")]),
      node("c", [row("m", { state: "ready", quantisation: "Q4_0" })]),
      node("d", [row("m", { state: "unknown", digest: "" })], { state: "dead", answered: false }),
    ]);
    expect(groups.map((group) => group.name)).toEqual(["__proto__", "m"]);
    const m = groups[1];
    expect(m?.places.map((place) => place.node.name)).toEqual(["here", "c", "b", "d"]);
    expect([m?.loaded, m?.quantisation, m?.memoryBytes, m?.digests, m?.large]).toEqual([1, "Q4_0", 5, 1, false]);
  });

  it("that differ are told apart", () => {
    const [m] = grouped([
      node("a", [row("m", { quantisation: "Q4_0", backend: "mlx" })]),
      node("b", [row("m", { quantisation: "Q8_0", digest: "other" })]),
      node("c", [row("m", { state: "unusable", error: "Model m needs 9 GiB; this node's memory budget is 1 GiB." })]),
    ]);
    expect([m?.quantisation, m?.backend, m?.digests, m?.large]).toEqual(["", "", 2, true]);
  });

  it("offer what can be done", () => {
    const at = (changes: Partial<ModelRow>, more: Partial<NodeModels> = {}) => actions({ node: node("a", [], more), row: row("m", changes) });
    expect(at({})).toEqual(["load", "pin"]);
    expect(at({ state: "ready", pinned: true })).toEqual(["unload", "unpin"]);
    expect(at({ state: "loading", pinnable: false })).toEqual([]);
    expect(at({ state: "failed", pinnable: false })).toEqual(["load"]);
    expect(at({}, { state: "dead" })).toEqual([]);
    expect(at({ state: "unknown" }, { answered: false })).toEqual([]);
  });

  it("are found by any of their words", () => {
    const groups = grouped([node("blue", [row("<b>Llama</b>", { aliases: ["gpt"] }), row("x", { capabilities: ["embedding"] })])]);
    const names = (text: string): string[] => found(groups, text).map((group) => group.name);
    expect(names("<B> gpt BLUE")).toEqual(["<b>Llama</b>"]);
    expect(names("embedding")).toEqual(["x"]);
    expect(names("")).toHaveLength(2);
    expect(names("no")).toEqual([]);
  });
});
