// The list of requests: what is kept of the node's answers, and what of it is shown. Pure.

import type { RequestSummary } from "../../api/types";

export const KEPT = 1000;
export const PAGE = 50;

export interface Row extends RequestSummary {
  /** When it arrived, in the page's own milliseconds. */
  arrivedAt: number;
}

/** What is known, with newly read lines put in; newest first, at most `KEPT`. */
export function merged(known: readonly Row[], read: readonly RequestSummary[], now: number): Row[] {
  const byId = new Map(known.map((row) => [row.id, row]));
  for (const line of read) {
    const before = byId.get(line.id);
    const arrivedAt = now - line.ago_s * 1000;
    // The same request is at the same place, however long an answer of the node was under way; the same id again is another.
    const same = before !== undefined && Math.abs(before.arrivedAt - arrivedAt) < 2000;
    byId.set(line.id, { ...line, arrivedAt: same ? before.arrivedAt : arrivedAt });
  }
  return [...byId.values()].sort((a, b) => b.arrivedAt - a.arrivedAt).slice(0, KEPT);
}

export type OutcomeFilter = "all" | "running" | "ok" | "failed" | "cancelled" | "rescued";

export interface Filter {
  text: string;
  outcome: OutcomeFilter;
}

export function failed(row: RequestSummary): boolean {
  return !["running", "ok", "cancelled"].includes(row.outcome);
}

/** The rows that a person wants to see: each word of the text has to be in the model, a node, the id or the outcome. */
export function filtered(rows: readonly Row[], filter: Filter): Row[] {
  const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => {
    if (filter.outcome === "failed" && !failed(row)) return false;
    if (filter.outcome === "rescued" && !row.resumed && !row.bounced && row.route.length < 2) return false;
    if (["running", "ok", "cancelled"].includes(filter.outcome) && row.outcome !== filter.outcome) return false;
    if (!words.length) return true;
    const text = [row.model, row.id, row.outcome, row.node, ...row.route].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** The rows of a page, and how many pages there are; a page that is none is the nearest one that is. */
export function paged<T>(rows: readonly T[], page: number): { rows: readonly T[]; page: number; pages: number } {
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const shown = Math.min(Math.max(0, page), pages - 1);
  return { rows: rows.slice(shown * PAGE, (shown + 1) * PAGE), page: shown, pages };
}
