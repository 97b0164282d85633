// Keeps the swarm's state in step with the node: the stream of events, the view before and beside it, and what to do
// when either fails.

import { ApiError, getJson, send, told } from "../api/client";
import { QuietError, readEvents } from "../api/sse";
import type { MeshEvent, Requests, Swarm } from "../api/types";
import { key } from "./key";
import { createStore } from "./store";
import { EMPTY, withEvents, withRunning, withView, type Link, type SwarmState } from "./swarm";

export const QUIET_MS = 45_000; // the node says something each 15 s
const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 15_000;
const SETTLE_MS = 120; // changes come in groups: one reading for all of them
const REST_MS = 30_000; // unseen, a page rests: browsers allow six connections to a node, whatever the number of tabs
const DRAW_MS = 200; // between redrawings for events
const REFRESH_MS = 5_000; // for what no event tells: round trips, and that a node with nothing to say was heard

export const swarm = createStore<SwarmState>(EMPTY);

/** Functions that get every event, for pages that show more than the state does. */
export const listeners = new Set<(event: MeshEvent) => void>();

const now = (): number => performance.now();

function link(value: Link): void {
  swarm.update((state) => ({ ...state, link: value }));
}

/** Stay connected until `signal`. */
export async function stayConnected(signal: AbortSignal): Promise<void> {
  let wait = FIRST_WAIT_MS;
  while (!signal.aborted) {
    const began = now();
    let why = "The node has ended the stream of events.";
    try {
      await connect(signal);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Resting) {
        await seen(signal);
        continue;
      }
      if (error instanceof ApiError && [401, 403, 404].includes(error.status)) {
        link({ kind: "refused", why: error.message, status: error.status });
        await keyChange(signal);
        link({ kind: "connecting" });
        continue;
      }
      why = error instanceof QuietError ? "The node has fallen silent." : told(error);
    }
    if (signal.aborted) return;
    if (now() - began > MAX_WAIT_MS) wait = FIRST_WAIT_MS; // that was a connection, not an attempt
    link({ kind: "lost", why, retryAt: now() + wait });
    await pause(wait, signal);
    wait = Math.min(MAX_WAIT_MS, wait * 2);
  }
}

async function connect(outer: AbortSignal): Promise<void> {
  // Whatever ends this connection ends all that belongs to it.
  const control = new AbortController();
  const signal = AbortSignal.any([outer, control.signal]);
  const queue = new EventQueue((reread, missed) => {
    lost ||= missed;
    if (reread) again();
  });
  let lost = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let reading = false;
  const read = async (): Promise<void> => {
    reading = true;
    try {
      const view = await getJson<Swarm>("/api/mesh", signal);
      swarm.update((state) => withView(state, view, now()));
      if (lost) await readRunning();
    } finally {
      reading = false;
    }
  };
  // Which requests run is known from their events alone; where some were lost, or before the first, it is asked.
  const readRunning = async (): Promise<void> => {
    lost = false;
    const { requests } = await getJson<Requests>("/api/mesh/requests?limit=100", signal);
    swarm.update((state) => withRunning(state, requests));
  };
  const again = (): void => {
    if (timer !== undefined || signal.aborted) return;
    timer = setTimeout(() => {
      timer = undefined;
      if (reading) again();
      else read().catch((error: unknown) => control.abort(error));
    }, SETTLE_MS);
  };
  const refresh = setInterval(() => {
    if (document.visibilityState === "visible") again();
  }, REFRESH_MS);
  let rest: ReturnType<typeof setTimeout> | undefined;
  const look = (): void => {
    clearTimeout(rest);
    if (document.visibilityState === "visible") again();
    else rest = setTimeout(() => control.abort(new Resting()), REST_MS);
  };
  document.addEventListener("visibilitychange", look);
  if (document.visibilityState !== "visible") look();
  try {
    // The stream first: what changes while the view is read is then not lost.
    const answer = await send("/api/mesh/events", { signal, headers: { Accept: "text/event-stream" } });
    if (!answer.body) throw new ApiError("The node's events cannot be read.", answer.status);
    await read();
    await readRunning();
    link({ kind: "live" });
    for await (const { data } of readEvents(answer.body, { quietMs: QUIET_MS })) queue.put(data);
  } catch (error) {
    throw control.signal.aborted && !outer.aborted ? control.signal.reason : error;
  } finally {
    document.removeEventListener("visibilitychange", look);
    clearInterval(refresh);
    clearTimeout(rest);
    clearTimeout(timer);
    queue.close();
    control.abort();
  }
}

/**
 * Events wait for the next frame, and for the last redrawing to be a moment ago: a hundred of them are one redrawing, and
 * a busy swarm is drawn five times a second.
 */
export class EventQueue {
  private events: MeshEvent[] = [];
  private appliedAt = -Infinity;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly applied: (reread: boolean, missed: boolean) => void) {}

  put(data: string): void {
    let event: MeshEvent;
    try {
      event = JSON.parse(data) as MeshEvent;
    } catch {
      return; // a node that writes no JSON has nothing to say
    }
    if (!event || typeof event.kind !== "string") return;
    this.events.push(event);
    if (this.events.length === 1) this.schedule();
  }

  close(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.events = [];
  }

  private schedule(): void {
    const wait = Math.max(0, this.appliedAt + DRAW_MS - now());
    // A page that nobody sees gets no frames.
    if (document.visibilityState !== "visible") this.timer = setTimeout(() => this.apply(), 1000);
    else if (wait > 0) this.timer = setTimeout(() => this.drawn(), wait);
    else this.drawn();
  }

  private drawn(): void {
    this.frame = requestAnimationFrame(() => this.apply());
  }

  private apply(): void {
    const events = this.events;
    this.events = [];
    this.appliedAt = now();
    let reread = false;
    swarm.update((before) => {
      const after = withEvents(before, events, now());
      reread = after.reread;
      return after.state;
    });
    for (const event of events) for (const listener of listeners) listener(event);
    this.applied(reread, events.some((event) => event.kind === "missed"));
  }
}

/** Nobody looks. */
class Resting extends Error {}

/** Until somebody looks. */
function seen(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => {
      if (document.visibilityState !== "visible" && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look, { once: true });
    look();
  });
}

/** Until the person gives a key (or tries again), or `signal`. */
function keyChange(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const before = key.get();
    const look = (): void => {
      const after = key.get();
      if (!signal.aborted && after.value === before.value && after.dismissed === before.dismissed) return;
      unsubscribe();
      resolve();
    };
    const unsubscribe = key.subscribe(look);
    signal.addEventListener("abort", look, { once: true });
  });
}

/** The person does not want to wait. */
let hurry: (() => void) | undefined;
export function retryNow(): void {
  hurry?.();
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      hurry = undefined;
      resolve();
    };
    const timer = setTimeout(done, ms);
    hurry = done;
    signal.addEventListener("abort", done, { once: true });
  });
}
