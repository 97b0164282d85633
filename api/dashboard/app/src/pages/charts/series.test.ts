import { describe, expect, it } from "vitest";
import type { ChartSamples, NodeChart } from "../../api/types";
import { chosen, figures, perMinute, quantile, series } from "./series";

function node(name: string, decode: number[], age = 0, first: number[][] = []): NodeChart {
  const zeros = decode.map(() => 0);
  const samples: ChartSamples = {
    age_s: age,
    up_s: 100,
    prefill_tokens_per_s: zeros,
    decode_tokens_per_s: decode,
    slots_used: zeros,
    running: zeros,
    queued: zeros,
    finished: zeros,
    failed: zeros,
    first_token_s: decode.map((_, index) => first[index] ?? []),
  };
  return { id: `ID-${name}`, name, self: false, state: "alive", samples };
}

describe("series", () => {
  it("end now, and are broken where nothing is known", () => {
    const { x, decode_tokens_per_s: line } = series([node("a", [1, 2])], 5, 20);
    expect(x).toEqual([-15, -10, -5, 0]);
    expect(line).toEqual([null, null, 1, 2]);
  });

  it("lie as far back as their node's last sample is old", () => {
    expect(series([node("a", [1, 2], 4.9)], 5, 20).decode_tokens_per_s).toEqual([null, null, 1, 2]);
    expect(series([node("a", [1, 2], 7)], 5, 20).decode_tokens_per_s).toEqual([null, 1, 2, null]);
    expect(series([node("a", [1, 2], 900)], 5, 20).decode_tokens_per_s).toEqual([null, null, null, null]);
  });

  it("of several nodes are added up, whatever the phase of each", () => {
    const both = series([node("a", [1, 2, 3], 0.1), node("b", [10, 20, 30], 4.9)], 5, 20);
    expect(both.decode_tokens_per_s).toEqual([null, 11, 22, 33]);
    const none: NodeChart = { id: "c", name: "c", self: false, state: "dead", samples: null };
    expect(series([none], 5, 10).running).toEqual([null, null]);
  });

  it("have the times to first token of all nodes in one distribution", () => {
    const found = series([node("a", [0, 0], 0, [[1], []]), node("b", [0, 0], 0, [[], [3, 5]])], 5, 10);
    expect(found.p50).toEqual([1, 3]);
    expect(found.p95[1]).toBeCloseTo(4.8);
  });

  it("take what a node says that has gone mad", () => {
    const mad = node("a", [NaN, Infinity, 1], -50);
    mad.samples!.queued = [];
    const found = series([mad], 0, 1e12);
    expect(found.x.length).toBeLessThanOrEqual(2000);
    expect(found.decode_tokens_per_s.at(-1)).toBe(1);
    expect(found.decode_tokens_per_s.at(-2)).toBe(null);
    expect(found.queued.every((value) => value === null)).toBe(true);
  });
});

describe("figures", () => {
  it("of a line", () => {
    expect(figures([null, 4, 0, 2])).toEqual({ now: 2, mean: 2, most: 4 });
    expect(figures([1, 3, null])).toEqual({ now: 3, mean: 2, most: 3 });
    expect(figures([1, null, null]).now).toBe(null);
    expect(figures([])).toEqual({ now: null, mean: null, most: null });
  });

  it("have quantiles between the values", () => {
    expect(quantile([], 0.5)).toBe(null);
    expect(quantile([7], 0.95)).toBe(7);
    expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5);
  });

  it("of a minute are sums of the steps in it", () => {
    expect(perMinute([null, 1, 2, 4], 30)).toEqual([null, 1, 3, 6]);
    expect(perMinute([1, 2], 120)).toEqual([1, 2]);
  });

  it("are of one node, or of all when it is gone", () => {
    const charts = { step_s: 5, span_s: 10, nodes: [node("a", [1]), node("b", [2])] };
    expect(chosen(charts, "ID-b").map(({ name }) => name)).toEqual(["b"]);
    expect(chosen(charts, "ID-z")).toHaveLength(2);
    expect(chosen(charts, "")).toHaveLength(2);
  });
});
