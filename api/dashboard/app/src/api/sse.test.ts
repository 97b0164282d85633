import { expect, test, vi } from "vitest";
import { QuietError, readEvents, SseParser, type ServerEvent } from "./sse";

const STREAM = ': hello\n\nevent: load\ndata: {"a": 1}\n\ndata: first\ndata:second\r\n\r\nid: 7\rdata\r\rdata: ünï\n\n';
const EVENTS: ServerEvent[] = [
  { event: "load", data: '{"a": 1}' },
  { event: "message", data: "first\nsecond" },
  { event: "message", data: "" },
  { event: "message", data: "ünï" },
];

test("events come out alike however the text is cut", () => {
  for (let size = 1; size <= STREAM.length; size++) {
    const parser = new SseParser();
    const found: ServerEvent[] = [];
    for (let start = 0; start < STREAM.length; start += size) found.push(...parser.push(STREAM.slice(start, start + size)));
    expect(found, `in pieces of ${size}`).toEqual(EVENTS);
  }
});

test("an event that has not ended is not one", () => {
  const parser = new SseParser();
  expect(parser.push("\uFEFFdata: a\n")).toEqual([]);
  expect(parser.push("\n")).toEqual([{ event: "message", data: "a" }]);
});

test("an event without end is refused", () => {
  const parser = new SseParser();
  const line = `data: ${"x".repeat(1 << 20)}\n`;
  expect(() => {
    for (let count = 0; count < 6; count++) parser.push(line);
  }).toThrow("too long");
});

function body(...pieces: (Uint8Array | "wait")[]): { stream: ReadableStream<Uint8Array>; cancelled: () => boolean } {
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    pull(controller) {
      const piece = pieces.shift();
      if (piece === undefined) controller.close();
      else if (piece !== "wait") controller.enqueue(piece);
      else return new Promise(() => undefined);
      return undefined;
    },
    cancel() {
      cancelled = true;
    },
  });
  return { stream, cancelled: () => cancelled };
}

test("characters may be cut, too, and leaving ends the reading", async () => {
  const bytes = new TextEncoder().encode("data: ü\n\ndata: 2\n\n");
  const { stream, cancelled } = body(bytes.slice(0, 7), bytes.slice(7), "wait");
  const heard = vi.fn();
  for await (const event of readEvents(stream, { heard })) {
    expect(event.data).toBe("ü");
    break;
  }
  expect(heard).toHaveBeenCalledTimes(2);
  await vi.waitFor(() => expect(cancelled()).toBe(true));
});

test("a stream that falls silent is given up", async () => {
  vi.useFakeTimers();
  try {
    const { stream } = body(new TextEncoder().encode(": hello\n\n"), "wait");
    const reading = readEvents(stream, { quietMs: 45_000 }).next();
    const caught = expect(reading).rejects.toBeInstanceOf(QuietError);
    await vi.advanceTimersByTimeAsync(45_001);
    await caught;
  } finally {
    vi.useRealTimers();
  }
});
