import { expect, test } from "vitest";
import { ago, bytes, count, duration, NONE, percent, plural, rate, shortId } from "./format";

test.each([
  [0, NONE],
  [null, NONE],
  [Number.NaN, NONE],
  [512, "512 B"],
  [1536, "1.5 KiB"],
  [8 * 2 ** 30, "8 GiB"],
  [23.6 * 2 ** 30, "24 GiB"],
])("bytes %s", (value, text) => expect(bytes(value)).toBe(text));

test.each([
  [undefined, NONE],
  [-1, NONE],
  [0, "0 s"],
  [0.0000001, "1 µs"],
  [0.00085, "850 µs"],
  [0.0123, "12 ms"],
  [0.9996, "1 s"],
  [3.44, "3.4 s"],
  [59.99, "1 min"],
  [125, "2 min 5 s"],
  [3600, "1 h"],
  [12000, "3 h 20 min"],
  [187200, "2 d 4 h"],
  [86399, "24 h"],
])("duration %s", (value, text) => expect(duration(value)).toBe(text));

test("the rest", () => {
  expect(ago(3)).toBe("just now");
  expect(ago(75.4)).toBe("1 min 15 s ago");
  expect(rate(0)).toBe(NONE);
  expect(rate(12.34)).toBe("12 tok/s");
  expect(percent(0.001)).toBe("< 1 %");
  expect(percent(0.5)).toBe("50 %");
  expect(count(1234567)).toBe("1\u202F234\u202F567");
  expect(plural(1, "node")).toBe("1 node");
  expect(plural(3, "node")).toBe("3 nodes");
  expect(shortId("12D3KooWabcdefghijk")).toBe("12D3Ko…fghijk");
});
