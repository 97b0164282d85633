import { afterEach, expect, test, vi } from "vitest";
import { ApiError, getJson, refusal, send } from "./client";

afterEach(() => vi.unstubAllGlobals());

test.each([
  ['{"error": {"message": "No.", "code": "busy", "param": null}}', "No.", "busy"],
  ['{"error": "Ollama says no."}', "Ollama says no.", ""],
  ["<html>502</html>", "The node answered with status 502.", ""],
  ["", "The node answered with status 502.", ""],
  ["null", "The node answered with status 502.", ""],
])("a refusal is told whatever its shape: %s", async (text, message, code) => {
  const error = await refusal(new Response(text, { status: 502 }));
  expect([error.message, error.code, error.status]).toEqual([message, code, 502]);
});

test("a node that cannot be reached, and one that writes no JSON", async () => {
  vi.stubGlobal("fetch", vi.fn().mockRejectedValueOnce(new TypeError("refused")).mockResolvedValueOnce(new Response("<html>")));
  await expect(getJson("/api/mesh")).rejects.toMatchObject({ status: 0 });
  await expect(getJson("/api/mesh")).rejects.toBeInstanceOf(ApiError);
});

test("requests go to this page's own node, without cookies", async () => {
  const fetched = vi.fn().mockResolvedValue(Response.json({}));
  vi.stubGlobal("fetch", fetched);
  await send("/api/mesh/kick", { method: "POST", body: { node: "x" } });
  const [path, sent] = fetched.mock.calls[0] as [string, RequestInit];
  expect(path).toBe("./api/mesh/kick");
  expect([sent.credentials, sent.body, sent.method]).toEqual(["omit", '{"node":"x"}', "POST"]);
});
