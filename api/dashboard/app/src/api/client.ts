// Requests to the node that this page came from.

import { anotherKey, key } from "../state/key";

/** What the node answered in place of what was asked for, or that it did not answer at all (`status` 0). */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code = "",
    readonly param = "",
  ) {
    super(message);
    this.name = "ApiError";
  }
}

export interface Sent {
  method?: "GET" | "POST" | "PUT" | "DELETE" | "PATCH";
  /** Sent as JSON. */
  body?: unknown;
  signal?: AbortSignal;
  headers?: Record<string, string>;
}

/** The address of `path` ("/api/mesh") beside this page, also below a proxy's path. */
export function address(path: string): string {
  return `.${path}`;
}

/**
 * The answer, whose body has not been read. When the node wants a key, the person is asked, and it is sent again.
 * Throws ApiError for every status but 2xx, and AbortError when `signal` says so.
 */
export async function send(path: string, sent: Sent = {}): Promise<Response> {
  for (;;) {
    const used = key.get().value;
    const headers: Record<string, string> = { Accept: "application/json", ...sent.headers };
    if (used) headers["Authorization"] = `Bearer ${used}`;
    if (sent.body !== undefined) headers["Content-Type"] = "application/json";
    let answer: Response;
    try {
      answer = await fetch(address(path), {
        method: sent.method ?? "GET",
        headers,
        body: sent.body === undefined ? null : JSON.stringify(sent.body),
        signal: sent.signal ?? null,
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
      });
    } catch (error) {
      if (sent.signal?.aborted) throw error;
      throw new ApiError("The node does not answer.", 0);
    }
    if (answer.ok) return answer;
    const refused = await refusal(answer);
    if (answer.status !== 401) throw refused;
    try {
      await anotherKey(used, sent.signal);
    } catch {
      throw refused;
    }
  }
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return read<T>(await send(path, signal ? { signal } : {}));
}

export async function postJson<T>(path: string, body: unknown = {}, signal?: AbortSignal): Promise<T> {
  return read<T>(await send(path, { method: "POST", body, ...(signal ? { signal } : {}) }));
}

async function read<T>(answer: Response): Promise<T> {
  try {
    return (await answer.json()) as T;
  } catch {
    throw new ApiError("The node's answer cannot be read.", answer.status);
  }
}

/** The node's error, whatever shape it or a proxy before it gave that. */
export async function refusal(answer: Response): Promise<ApiError> {
  let text = "";
  try {
    text = await answer.text();
    const told: unknown = (JSON.parse(text) as { error?: unknown }).error;
    if (typeof told === "string") return new ApiError(told, answer.status);
    if (told && typeof told === "object") {
      const { message, code, param } = told as { message?: unknown; code?: unknown; param?: unknown };
      if (typeof message === "string") {
        return new ApiError(message, answer.status, code == null ? "" : String(code), param == null ? "" : String(param));
      }
    }
  } catch {
    // Not JSON: a proxy's page, or nothing at all.
  }
  return new ApiError(`The node answered with status ${answer.status}.`, answer.status);
}

/** What to tell a person of something that was thrown. */
export function told(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
