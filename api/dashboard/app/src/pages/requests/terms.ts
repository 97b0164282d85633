// The terms of an expected completion time, as parts of a bar. Pure.

import type { Candidate } from "../../api/types";

export const TERMS = [
  { key: "queue_s", name: "queue", meaning: "work ahead of it" },
  { key: "load_s", name: "load", meaning: "the model is not in memory" },
  { key: "prefill_s", name: "prompt", meaning: "the part of the prompt that is not cached" },
  { key: "decode_s", name: "answer", meaning: "the expected answer, at that node's rate" },
  { key: "round_trip_s", name: "round trip", meaning: "the way there and back" },
  { key: "penalty_s", name: "errors", meaning: "what its recent failures cost on average" },
] as const;

export type Term = (typeof TERMS)[number]["key"];

export interface Segment {
  term: Term;
  name: string;
  /** Place among the terms: its colour. */
  index: number;
  seconds: number;
  /** Of the whole width. */
  share: number;
}

export interface Bar {
  segments: Segment[];
  total: number;
}

const sane = (seconds: unknown): number =>
  typeof seconds === "number" && Number.isFinite(seconds) && seconds > 0 ? seconds : 0;

/** A bar for each candidate, all to one scale: the longest one that could be chosen fills the width. */
export function bars(candidates: readonly Pick<Candidate, Term | "usable">[]): Bar[] {
  const sums = candidates.map((row) => TERMS.reduce((sum, { key }) => sum + sane(row[key]), 0));
  const usable = sums.filter((_, index) => candidates[index]?.usable);
  const scale = Math.max(...(usable.length ? usable : sums), 0);
  return candidates.map((row, at) => {
    const total = sums[at] ?? 0;
    // What could not be chosen may be longer than the scale: it is cut to the width, its parts stay in proportion.
    const full = Math.max(scale, total);
    const segments = TERMS.map(({ key, name }, index) => ({
      term: key,
      name,
      index,
      seconds: sane(row[key]),
      share: full > 0 ? sane(row[key]) / full : 0,
    })).filter((segment) => segment.seconds > 0);
    return { segments, total };
  });
}
