// @vitest-environment jsdom
import { expect, test } from "vitest";
import { href, parseHash } from "./router";

test.each([
  ["", "", []],
  ["#/", "", []],
  ["#/swarm", "swarm", []],
  ["#/requests/a%2Fb", "requests", ["a/b"]],
  ["#/requests/%zz", "requests", ["%zz"]],
])("%s", (hash, page, rest) => {
  const route = parseHash(hash);
  expect([route.page, route.rest]).toEqual([page, rest]);
});

test("what href makes is read back, whatever is in it", () => {
  const id = "</a><script>/?#&ü%";
  const made = href("requests", id);
  expect(made).not.toContain("<");
  expect(parseHash(made).rest).toEqual([id]);
  expect(parseHash(`${made}?model=x%20y`).query.get("model")).toBe("x y");
});
