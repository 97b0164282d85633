// @vitest-environment jsdom
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { QUIET_MS, stayConnected, swarm } from "./live";
import { EMPTY } from "./swarm";
import { load, node, view } from "./testing";

// A node: what it answers, and its streams of events, which a test writes.
let seen = view(node("here", { self: true }), node("there"));
let streams: ReadableStreamDefaultController<Uint8Array>[] = [];
let read = 0;
let up = true;
let control: AbortController;

function answer(path: string): Promise<Response> {
  if (!up) return Promise.reject(new TypeError("refused"));
  if (path.endsWith("/events")) {
    const stream = new ReadableStream<Uint8Array>({ start: (made) => void streams.push(made) });
    return Promise.resolve(new Response(stream));
  }
  if (path.includes("/requests")) return Promise.resolve(Response.json({ requests: [] }));
  read++;
  return Promise.resolve(Response.json(seen));
}

const tell = (event: unknown): void =>
  streams.at(-1)!.enqueue(new TextEncoder().encode(`event: x\ndata: ${JSON.stringify(event)}\n\n`));
const names = (): string[] => swarm.get().view?.nodes.map((one) => one.name) ?? [];
const pass = (ms: number) => vi.advanceTimersByTimeAsync(ms);

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("fetch", vi.fn(answer));
  seen = view(node("here", { self: true }), node("there"));
  streams = [];
  read = 0;
  up = true;
  swarm.set(EMPTY);
  control = new AbortController();
  void stayConnected(control.signal);
});
afterEach(async () => {
  control.abort();
  await pass(0);
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

test("it reads the view once there is a stream, and is live", async () => {
  await pass(50);
  expect(swarm.get().link.kind).toBe("live");
  expect(names()).toEqual(["here", "there"]);
});

test("events change it at once; what they do not say is read, once for many", async () => {
  await pass(50);
  const before = read;
  tell({ kind: "load", id: "id-there", node: "there", loads: [load("m", { slots_used: 2 })] });
  await pass(50);
  expect(swarm.get().view?.nodes[1]?.models[0]?.load?.slots_used).toBe(2);
  expect(read).toBe(before);
  seen = view(node("here", { self: true }), node("there"), node("new"));
  for (let count = 0; count < 10; count++) tell({ kind: "joined", id: "id-new", node: "new" });
  await pass(300);
  expect(names()).toContain("new");
  expect(read).toBe(before + 1);
});

test("after a lost connection the whole view is read again", async () => {
  await pass(50);
  up = false;
  streams.at(-1)!.close();
  await pass(50);
  expect(swarm.get().link.kind).toBe("lost");
  expect(names(), "what was seen stays").toEqual(["here", "there"]);
  await pass(3_000);
  seen = view(node("here", { self: true }));
  up = true;
  await pass(16_000);
  expect(swarm.get().link.kind).toBe("live");
  expect(names()).toEqual(["here"]);
});

test("a stream that falls silent is lost, one with comments is not", async () => {
  await pass(50);
  await pass(QUIET_MS - 5_000);
  streams[0]!.enqueue(new TextEncoder().encode(": quiet\n\n"));
  await pass(QUIET_MS - 5_000);
  expect(streams).toHaveLength(1);
  await pass(10_000);
  expect(streams.length).toBeGreaterThan(1);
});

test("after missed events it asks which requests run", async () => {
  await pass(50);
  tell({ kind: "route", request: "r", model: "m", node: "there" });
  await pass(50);
  expect(swarm.get().flows.size).toBe(1);
  tell({ kind: "missed", count: 9 });
  await pass(1_000);
  expect(swarm.get().flows.size, "its end was among the missed ones").toBe(0);
});

test("a page that nobody sees rests, and is live again once it is seen", async () => {
  await pass(50);
  const visible = vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
  document.dispatchEvent(new Event("visibilitychange"));
  await pass(200_000);
  expect(streams).toHaveLength(1);
  seen = view(node("here", { self: true }), node("there"), node("new"));
  visible.mockRestore();
  document.dispatchEvent(new Event("visibilitychange"));
  await pass(50);
  expect(streams).toHaveLength(2);
  expect(names()).toContain("new");
  expect(swarm.get().link.kind).toBe("live");
});

test("nonsense in the stream is passed over", async () => {
  await pass(50);
  streams[0]!.enqueue(new TextEncoder().encode("data: {\n\ndata: null\n\ndata: 7\n\ndata: {}\n\n"));
  tell({ kind: "dead", id: "id-there", node: "there" });
  await pass(50);
  expect(swarm.get().view?.nodes[1]?.state).toBe("dead");
});

test("a node without a swarm is not asked again and again", async () => {
  control.abort();
  await pass(0);
  vi.stubGlobal("fetch", vi.fn(() => Promise.resolve(Response.json({ error: { message: "Started with --solo." } }, { status: 404 }))));
  control = new AbortController();
  void stayConnected(control.signal);
  await pass(60_000);
  expect(swarm.get().link).toMatchObject({ kind: "refused", status: 404, why: "Started with --solo." });
  expect(fetch).toHaveBeenCalledTimes(1);
});
