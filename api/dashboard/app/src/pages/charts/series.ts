// From the nodes' samples to lines of a chart. Pure: times are "seconds ago", never a time of day.

import type { Charts, NodeChart } from "../../api/types";

/** Steps of which the times to first token are put together: a minute's worth. One step has too few for a median. */
export const WINDOW = 12;

export const SUMMED = ["prefill_tokens_per_s", "decode_tokens_per_s", "slots_used", "running", "queued", "finished", "failed"] as const;
export type Summed = (typeof SUMMED)[number];

export type Line = (number | null)[];

export interface Series extends Record<Summed, Line> {
  /** Seconds from now, negative, rising to 0. */
  x: number[];
  p50: Line;
  p95: Line;
}

/**
 * One node's samples, or several nodes' together, on a grid of steps that ends now. Where no node has a sample the line
 * is broken; where one of several has none, it counts nothing.
 */
export function series(nodes: readonly NodeChart[], stepS: number, spanS: number): Series {
  const step = stepS > 0 ? stepS : 5;
  const steps = Math.max(1, Math.min(2000, Math.round(spanS / step)));
  const empty = (): Line => new Array<number | null>(steps).fill(null);
  const found: Series = {
    x: Array.from({ length: steps }, (_, index) => (index + 1 - steps) * step),
    prefill_tokens_per_s: empty(),
    decode_tokens_per_s: empty(),
    slots_used: empty(),
    running: empty(),
    queued: empty(),
    finished: empty(),
    failed: empty(),
    p50: empty(),
    p95: empty(),
  };
  const first: number[][] = Array.from({ length: steps }, () => []);
  for (const { samples } of nodes) {
    if (!samples) continue;
    const count = samples.running.length;
    // Rounded once for all of them: rounded each for itself, two could fall into one step and none into the next.
    const last = steps - 1 - Math.floor(Math.max(0, samples.age_s) / step);
    for (let index = 0; index < count; index++) {
      const at = last - (count - 1 - index);
      if (at < 0 || at >= steps) continue;
      for (const name of SUMMED) {
        const value = samples[name][index];
        if (Number.isFinite(value)) found[name][at] = (found[name][at] ?? 0) + (value as number);
      }
      for (const seconds of samples.first_token_s[index] ?? []) first[at]?.push(seconds);
    }
  }
  for (let at = 0; at < steps; at++) {
    const values = first.slice(Math.max(0, at - WINDOW + 1), at + 1).flat();
    found.p50[at] = quantile(values, 0.5);
    found.p95[at] = quantile(values, 0.95);
  }
  return found;
}

/** The value below which that share of all lies; null of none. */
export function quantile(values: readonly number[], share: number): number | null {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * share;
  const low = sorted[Math.floor(place)] ?? 0;
  const high = sorted[Math.ceil(place)] ?? low;
  return low + (high - low) * (place - Math.floor(place));
}

/** Sums of the finished or failed over a minute: what a person reads as a rate. */
export function perMinute(line: Line, stepS: number): Line {
  const steps = Math.max(1, Math.round(60 / stepS));
  return line.map((value, at) => {
    if (value === null) return null;
    const part = line.slice(Math.max(0, at - steps + 1), at + 1).filter((one): one is number => one !== null);
    return part.reduce((sum, one) => sum + one, 0);
  });
}

export interface Figures {
  now: number | null;
  mean: number | null;
  most: number | null;
}

/** A line in three figures. */
export function figures(line: Line): Figures {
  const values = line.filter((value): value is number => value !== null);
  if (!values.length) return { now: null, mean: null, most: null };
  let most = -Infinity;
  let sum = 0;
  for (const value of values) {
    most = Math.max(most, value);
    sum += value;
  }
  // The last step may not have come in yet from every node; the one before it has.
  const now = line.at(-1) ?? line.at(-2) ?? null;
  return { now, mean: sum / values.length, most };
}

/** Who is shown: all, or the one of that id; all again when it is gone. */
export function chosen(charts: Charts, id: string): readonly NodeChart[] {
  const one = charts.nodes.filter((node) => node.id === id);
  return one.length ? one : charts.nodes;
}
