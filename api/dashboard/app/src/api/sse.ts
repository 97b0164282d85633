// Server-sent events from a fetched body: EventSource cannot send a key.

export interface ServerEvent {
  /** "message" unless the server names it. */
  event: string;
  data: string;
}

const MAX_CHARS = 4 << 20; // of one event; a server that never ends one is not to fill the memory

/** Cuts a text that arrives in pieces into events. */
export class SseParser {
  private rest = "";
  private event = "";
  private data: string[] = [];
  private size = 0;
  private begun = false;

  push(text: string): ServerEvent[] {
    if (!this.begun && text) {
      this.begun = true;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    const found: ServerEvent[] = [];
    this.rest += text;
    let start = 0;
    for (;;) {
      const end = this.lineEnd(start);
      if (end < 0) break;
      this.line(this.rest.slice(start, end), found);
      start = end + (this.rest[end] === "\r" && this.rest[end + 1] === "\n" ? 2 : 1);
    }
    this.rest = this.rest.slice(start);
    if (this.rest.length + this.size > MAX_CHARS) throw new Error("An event of the node is too long.");
    return found;
  }

  /** The index at which the line from `start` on ends; -1 if that has not arrived yet. */
  private lineEnd(start: number): number {
    for (let index = start; index < this.rest.length; index++) {
      const char = this.rest[index];
      if (char === "\n") return index;
      // A carriage return may be the first half of a pair of which the other has not arrived.
      if (char === "\r") return index + 1 < this.rest.length ? index : -1;
    }
    return -1;
  }

  private line(line: string, found: ServerEvent[]): void {
    if (line === "") {
      if (this.data.length) found.push({ event: this.event || "message", data: this.data.join("\n") });
      this.event = "";
      this.data = [];
      this.size = 0;
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "event") this.event = value;
    if (field === "data") {
      this.data.push(value);
      this.size += value.length;
    }
  }
}

/** The stream has been silent for too long. */
export class QuietError extends Error {}

/**
 * The events of a body until it ends. `quietMs` without a byte (comments count) throws QuietError; `heard` is called
 * at every sign of life. Leaving the loop cancels the body.
 */
export async function* readEvents(
  body: ReadableStream<Uint8Array>,
  options: { quietMs?: number; heard?: () => void } = {},
): AsyncGenerator<ServerEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { done, value } = await within(reader.read(), options.quietMs);
      if (done) return;
      options.heard?.();
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

async function within<T>(promise: Promise<T>, ms: number | undefined): Promise<T> {
  if (ms === undefined) return promise;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const quiet = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new QuietError("The stream is silent.")), ms);
  });
  try {
    return await Promise.race([promise, quiet]);
  } finally {
    clearTimeout(timer);
  }
}
