import { describe, expect, it } from "vitest";
import type { Candidate, RequestSummary, TimelineRow } from "../../api/types";
import { filtered, KEPT, merged, PAGE, paged, type Row } from "./list";
import { bars, TERMS } from "./terms";
import { tick, timeline } from "./timeline";

function line(id: string, changes: Partial<RequestSummary> = {}): RequestSummary {
  const plain: RequestSummary = {
    id,
    model: "m",
    outcome: "ok",
    node: "a",
    route: ["a"],
    why: null,
    ago_s: 1,
    queue_s: null,
    first_chunk_s: null,
    prompt_tokens: 0,
    tokens: 0,
    tokens_per_s: null,
    total_s: 1,
    resumed: 0,
    bounced: 0,
  };
  return { ...plain, ...changes };
}

const ids = (rows: readonly { id: string }[]): string[] => rows.map((row) => row.id);

describe("the list", () => {
  it("puts in what is new and changes what is known, newest first", () => {
    const first = merged([], [line("b", { ago_s: 1, outcome: "running" }), line("a", { ago_s: 5 })], 10_000);
    const second = merged(first, [line("c", { ago_s: 0 }), line("b", { ago_s: 3.1 })], 12_000);
    expect(ids(second)).toEqual(["c", "b", "a"]);
    expect(second[1]?.outcome).toBe("ok");
    expect(second[1]?.arrivedAt).toBe(9_000); // it does not jump by how long an answer took
  });

  it("takes the same id that comes again for another request", () => {
    const first = merged([], [line("a", { ago_s: 100 })], 100_000);
    expect(merged(first, [line("a", { ago_s: 1 })], 101_000)[0]?.arrivedAt).toBe(100_000);
  });

  it("keeps a thousand", () => {
    const many = Array.from({ length: KEPT }, (_, index) => line(`old${index}`, { ago_s: 100 + index }));
    const rows = merged(merged([], many, 0), [line("new", { ago_s: 0 })], 0);
    expect(rows.length).toBe(KEPT);
    expect(rows[0]?.id).toBe("new");
  });

  it("is filtered by words and outcome", () => {
    const rows = merged(
      [],
      [
        line("1", { model: "Llama <b>", node: "blue", route: ["red", "blue"] }),
        line("2", { outcome: "running", node: "", route: [] }),
        line("3", { outcome: "engine_crashed" }),
        line("4", { outcome: "cancelled", resumed: 1 }),
      ],
      0,
    );
    const find = (text: string, outcome: Parameters<typeof filtered>[1]["outcome"] = "all"): string[] =>
      ids(filtered(rows, { text, outcome })).sort();
    expect(find("")).toEqual(["1", "2", "3", "4"]);
    expect(find("  <B>  RED ")).toEqual(["1"]);
    expect(find("red green")).toEqual([]);
    expect(find("crashed")).toEqual(["3"]);
    expect(find("", "failed")).toEqual(["3"]);
    expect(find("", "running")).toEqual(["2"]);
    expect(find("", "rescued")).toEqual(["1", "4"]);
    expect(find("", "ok")).toEqual(["1"]);
  });

  it("comes in pages", () => {
    const rows = Array.from({ length: 2 * PAGE + 1 }, (_, index) => index);
    expect(paged(rows, 0)).toEqual({ rows: rows.slice(0, PAGE), page: 0, pages: 3 });
    expect(paged(rows, 9).rows).toEqual([2 * PAGE]);
    expect(paged(rows, -1).page).toBe(0);
    expect(paged([] as Row[], 3)).toEqual({ rows: [], page: 0, pages: 1 });
  });
});

type Terms = Pick<Candidate, (typeof TERMS)[number]["key"] | "usable">;

function candidate(terms: Partial<Terms>): Terms {
  return { usable: true, queue_s: 0, load_s: 0, prefill_s: 0, decode_s: 0, round_trip_s: 0, penalty_s: 0, ...terms };
}

describe("bars", () => {
  it("are all to one scale", () => {
    const [short, long] = bars([candidate({ queue_s: 1, decode_s: 1 }), candidate({ decode_s: 4 })]);
    expect(short?.segments.map(({ term, share }) => [term, share])).toEqual([
      ["queue_s", 0.25],
      ["decode_s", 0.25],
    ]);
    expect(long?.segments[0]?.share).toBe(1);
    expect(short?.total).toBe(2);
  });

  it("let what could not be chosen be cut, not make all others tiny", () => {
    const [usable, out] = bars([candidate({ decode_s: 1 }), candidate({ usable: false, load_s: 99, decode_s: 1 })]);
    expect(usable?.segments[0]?.share).toBe(1);
    expect(out?.segments.map((segment) => segment.share)).toEqual([0.99, 0.01]);
  });

  it("stay within the width whatever a node says", () => {
    const odd = [NaN, -1, Infinity, 1e300, 0].map((value) => candidate({ queue_s: value, decode_s: 1 }));
    for (const { segments } of [...bars(odd), ...bars([candidate({})]), ...bars([])]) {
      const sum = segments.reduce((so, { share }) => so + share, 0);
      expect(sum).toBeLessThanOrEqual(1.0001);
      expect(segments.every(({ share }) => share >= 0)).toBe(true);
    }
  });
});

function event(at: number, where: string, what: string): TimelineRow {
  return { at_s: at, where, what, detail: "", node: "" };
}

describe("the timeline", () => {
  it("has a lane for each node, and what goes on in it", () => {
    const { lanes, length } = timeline([
      event(0, "a", "arrived"),
      event(0, "a", "route"),
      event(1, "a", "send"),
      event(1, "b", "arrived"),
      event(1, "b", "lease"),
      event(3, "b", "open"),
      event(4, "b", "first_chunk"),
      event(4, "a", "first_chunk"),
      event(9, "b", "served"),
      event(10, "a", "ended"),
    ]);
    expect(length).toBe(10);
    expect(lanes.map((lane) => lane.node)).toEqual(["a", "b"]);
    expect(lanes[0]?.spans).toEqual([
      { phase: "routing", from: 0, to: 1 },
      { phase: "away", from: 1, to: 4 },
      { phase: "answer", from: 4, to: 10 },
    ]);
    expect(lanes[1]?.spans).toEqual([
      { phase: "waiting", from: 1, to: 3 },
      { phase: "prompt", from: 3, to: 4 },
      { phase: "answer", from: 4, to: 9 },
    ]);
  });

  it("of a request that runs goes on until now", () => {
    expect(timeline([event(0, "a", "arrived"), event(1, "a", "hold")], 7).lanes[0]?.spans.at(-1)).toEqual({
      phase: "waiting",
      from: 1,
      to: 7,
    });
  });

  it("takes words it does not know, and times that are none", () => {
    const { lanes, length } = timeline([
      event(0, "a", "first_chunk"),
      event(1, "a", "<script>"),
      event(NaN, "a", "ended"),
      event(-5, "z", "ended"),
      event(2, "a", "constructor"),
      event(3, "a", "ended"),
    ]);
    expect(lanes.length).toBe(1);
    expect(lanes[0]?.spans).toEqual([{ phase: "answer", from: 0, to: 3 }]);
    expect(length).toBe(3);
    expect(timeline([])).toEqual({ lanes: [], length: 0 });
  });

  it("has round marks", () => {
    expect([tick(10), tick(0.7), tick(1234), tick(0), tick(NaN)]).toEqual([2, 0.2, 500, 1, 1]);
  });
});
