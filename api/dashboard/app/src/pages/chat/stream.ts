// One answer of a model: what is asked, and its pieces as they come.

import { ApiError, send } from "../../api/client";
import { readEvents } from "../../api/sse";
import type { Message, Settings } from "./store";

export interface Piece {
  text?: string;
  reasoning?: string;
  finish?: string;
  promptTokens?: number;
  tokens?: number;
}

/** The request that a conversation comes to. What is left open in the settings is left to the model's own defaults. */
export function requestOf(messages: readonly Message[], settings: Settings): Record<string, unknown> {
  const sent: unknown[] = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const { role, text, images } of messages) {
    if (role === "assistant" && !text) continue; // it failed before it began
    if (!images?.length) sent.push({ role, content: text });
    else {
      const parts: unknown[] = images.map((url) => ({ type: "image_url", image_url: { url } }));
      if (text) parts.unshift({ type: "text", text });
      sent.push({ role, content: parts });
    }
  }
  const body: Record<string, unknown> = { messages: sent, stream: true, stream_options: { include_usage: true } };
  if (settings.model) body["model"] = settings.model;
  if (settings.temperature !== null) body["temperature"] = settings.temperature;
  if (settings.topP !== null) body["top_p"] = settings.topP;
  if (settings.maxTokens !== null) body["max_tokens"] = settings.maxTokens;
  if (settings.seed !== null) body["seed"] = settings.seed;
  return body;
}

/** Ask; `answering` is told the node's name as soon as one has taken the request. Throws ApiError and AbortError. */
export async function* ask(
  messages: readonly Message[],
  settings: Settings,
  signal: AbortSignal,
  answering: (node: string) => void,
): AsyncGenerator<Piece> {
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (settings.node) headers["X-Mesh-Node"] = settings.node;
  const answer = await send("/v1/chat/completions", { method: "POST", body: requestOf(messages, settings), signal, headers });
  answering(answer.headers.get("X-Mesh-Node") ?? "");
  if (!answer.body) throw new ApiError("The node's answer cannot be read.", answer.status);
  yield* pieces(readEvents(answer.body));
}

/** The pieces in a stream of chunks. Throws ApiError for the error that ends one, and for one that ends without its end. */
export async function* pieces(events: AsyncIterable<{ data: string }>): AsyncGenerator<Piece> {
  let finished = false;
  for await (const { data } of events) {
    if (data === "[DONE]") return;
    const found = pieceOf(data);
    if (!found) continue;
    finished ||= found.finish !== undefined;
    yield found;
  }
  if (!finished) throw new ApiError("The stream has ended before the answer has.", 0);
}

function pieceOf(data: string): Piece | null {
  let chunk: unknown;
  try {
    chunk = JSON.parse(data);
  } catch {
    return null;
  }
  if (!isRecord(chunk)) return null;
  const error = chunk["error"];
  if (error) throw new ApiError(isRecord(error) && typeof error["message"] === "string" ? error["message"] : String(error), 200);
  const piece: Piece = {};
  const choices = chunk["choices"];
  const choice: unknown = Array.isArray(choices) ? choices[0] : undefined;
  if (isRecord(choice)) {
    const delta = choice["delta"];
    if (isRecord(delta)) {
      if (typeof delta["content"] === "string" && delta["content"]) piece.text = delta["content"];
      const thought = delta["reasoning_content"] ?? delta["reasoning"];
      if (typeof thought === "string" && thought) piece.reasoning = thought;
    }
    if (typeof choice["finish_reason"] === "string") piece.finish = choice["finish_reason"];
  }
  const usage = chunk["usage"];
  if (isRecord(usage)) {
    if (typeof usage["prompt_tokens"] === "number") piece.promptTokens = usage["prompt_tokens"];
    if (typeof usage["completion_tokens"] === "number") piece.tokens = usage["completion_tokens"];
  }
  return Object.keys(piece).length ? piece : null;
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

/** Tokens a second of an answer: by its usage, or as long as there is none by its pieces, which are about a token each. */
export class Rate {
  private firstAt = 0;
  private lastAt = 0;
  private pieces = 0;

  note(now: number): void {
    if (!this.pieces) this.firstAt = now;
    this.lastAt = now;
    this.pieces += 1;
  }

  /** Null while there is too little to measure. */
  perSecond(tokens?: number): number | null {
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const counted = (tokens ?? this.pieces) - 1;
    return counted > 0 && seconds >= 0.02 ? counted / seconds : null;
  }
}
