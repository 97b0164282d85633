import { render } from "preact";
import { act } from "preact/test-utils";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ApiError, getJson } from "../api/client";
import { forgetKey, key } from "../state/key";
import { KeyPrompt } from "./keyprompt";

const root = document.createElement("div");
let accepted = "sesame";

function answerOf(headers: Record<string, string>): Response {
  if (headers["Authorization"] === `Bearer ${accepted}`) return Response.json({ fine: true });
  return Response.json({ error: { message: "An authentication key is required", code: 401 } }, { status: 401 });
}

beforeEach(() => {
  accepted = "sesame";
  forgetKey();
  document.body.append(root);
  vi.stubGlobal("fetch", vi.fn((_: string, sent: { headers: Record<string, string> }) => Promise.resolve(answerOf(sent.headers))));
  act(() => render(<KeyPrompt />, root));
});
afterEach(() => {
  act(() => render(null, root));
  vi.unstubAllGlobals();
});

const asked = (): Promise<void> => vi.waitFor(() => expect(root.querySelector("dialog")).not.toBeNull());

function give(value: string, remember = false): void {
  const input = root.querySelector<HTMLInputElement>("input[type=password]")!;
  act(() => {
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  });
  const box = root.querySelector<HTMLInputElement>("input[type=checkbox]")!;
  if (remember) act(() => box.click());
  act(() => root.querySelector("form")!.requestSubmit());
}

test("nothing is asked until the node asks; then what was asked for goes on", async () => {
  expect(root.querySelector("dialog")).toBeNull();
  const answer = getJson("/api/mesh");
  await asked();
  give(" sesame ");
  expect(await answer).toEqual({ fine: true });
  expect(root.querySelector("dialog")).toBeNull();
  expect(sessionStorage.getItem("mesh.api-key")).toBe("sesame");
  expect(localStorage.getItem("mesh.api-key")).toBeNull();
});

test("a wrong key is told, and asked for again", async () => {
  const answer = getJson("/api/mesh");
  await asked();
  give("wrong");
  await vi.waitFor(() => expect(root.textContent).toContain("no longer, accepted"));
  give("sesame", true);
  expect(await answer).toEqual({ fine: true });
  expect(localStorage.getItem("mesh.api-key")).toBe("sesame");
});

test("a key that is revoked brings the prompt back, and one key serves all that wait", async () => {
  const first = getJson("/api/mesh");
  await asked();
  give("sesame");
  await first;
  accepted = "another";
  const both = Promise.all([getJson("/api/mesh"), getJson("/api/mesh/requests")]);
  await asked();
  give("another");
  expect(await both).toHaveLength(2);
});

test("who gives none gets the refusal, and is not asked again by itself", async () => {
  const answer = getJson("/api/mesh");
  await asked();
  act(() => [...root.querySelectorAll("button")].find((button) => button.textContent === "Not now")!.click());
  await expect(answer).rejects.toMatchObject({ status: 401, message: "An authentication key is required" });
  await expect(getJson("/api/mesh")).rejects.toBeInstanceOf(ApiError);
  expect(key.get().asking).toBe(false);
});

test("a request that nobody waits for any more leaves", async () => {
  const control = new AbortController();
  const answer = getJson("/api/mesh", control.signal);
  await asked();
  control.abort();
  await expect(answer).rejects.toBeInstanceOf(ApiError);
});
