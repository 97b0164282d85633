// A request's events, laid out in a lane for each node. Pure.

import type { TimelineRow } from "../../api/types";

export type Phase = "routing" | "waiting" | "prompt" | "answer" | "away" | "broken";

/** What goes on in a lane from an event on, until the next one there. */
const AFTER = new Map<string, Phase | null>(
  Object.entries({
    arrived: "routing",
    route: "routing",
    hold: "waiting",
    send: "away",
    lease: "waiting",
    open: "prompt",
    accepted: "prompt",
    first_chunk: "answer",
    resumed: "answer",
    bounced: "broken",
    lost: "broken",
    ended: null,
    served: null,
  }),
);

export const PHASES: Record<Phase, string> = {
  routing: "choosing a node",
  waiting: "waiting for a slot",
  away: "sent, not taken yet",
  prompt: "reading the prompt",
  answer: "answering",
  broken: "lost or sent back",
};

export interface Span {
  phase: Phase;
  from: number;
  to: number;
}

export interface Mark {
  at: number;
  row: TimelineRow;
}

export interface Lane {
  node: string;
  spans: Span[];
  marks: Mark[];
}

export interface Timeline {
  lanes: Lane[];
  /** Seconds from the arrival to the last event, or to now for one that runs. */
  length: number;
}

/** The lanes in the order in which the nodes come into it. `untilS`: how long ago it arrived, of a request that runs. */
export function timeline(rows: readonly TimelineRow[], untilS = 0): Timeline {
  const sane = rows.filter((row) => Number.isFinite(row.at_s) && row.at_s >= 0);
  const length = Math.max(untilS, ...sane.map((row) => row.at_s), 0);
  const lanes = new Map<string, Lane>();
  for (const row of [...sane].sort((a, b) => a.at_s - b.at_s)) {
    const lane = lanes.get(row.where) ?? { node: row.where, spans: [], marks: [] };
    lanes.set(row.where, lane);
    lane.marks.push({ at: row.at_s, row });
  }
  for (const lane of lanes.values()) {
    lane.marks.forEach(({ at, row }, index) => {
      const phase = AFTER.get(row.what);
      const before = lane.spans.at(-1);
      const next = lane.marks[index + 1]?.at ?? length;
      if (phase === null) return;
      const shown = phase ?? before?.phase ?? "routing"; // a word of a newer node changes nothing
      if (before && before.phase === shown && before.to === at) before.to = next;
      else if (next > at) lane.spans.push({ phase: shown, from: at, to: next });
    });
  }
  return { lanes: [...lanes.values()], length };
}

/** A round distance between marks on an axis of that length, for about `wanted` of them. */
export function tick(length: number, wanted = 5): number {
  if (!(length > 0)) return 1;
  const rough = length / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5, 10].find((step) => step * power >= rough) ?? 10);
}
