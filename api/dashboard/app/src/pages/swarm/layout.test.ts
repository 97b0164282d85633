import { expect, test } from "vitest";
import { arc, between, distance, heightOf, layoutKey, place, type ToPlace } from "./layout";

function swarmOf(count: number): ToPlace[] {
  return Array.from({ length: count }, (_, index) => ({
    id: `id-${String((index * 7919) % 1000).padStart(3, "0")}`,
    self: index === 0,
    roundTripS: 0.001 * (1 + (index % 7) * 20),
    capacity: 2 ** (30 + (index % 5)),
  }));
}

test.each([
  [1, 900],
  [2, 900],
  [3, 900],
  [3, 330],
  [12, 330],
  [20, 900],
  [50, 1100],
])("%i nodes on %i pixels are inside and apart", (count, width) => {
  const height = heightOf(width, count);
  const places = [...place(swarmOf(count), width, height).values()];
  expect(places).toHaveLength(count);
  for (const { x, y, r } of places) {
    expect(x - r).toBeGreaterThanOrEqual(0);
    expect(x + r).toBeLessThanOrEqual(width);
    expect(y - r).toBeGreaterThanOrEqual(0);
    expect(y + r).toBeLessThanOrEqual(height);
  }
  for (const [index, a] of places.entries()) {
    for (const b of places.slice(index + 1)) expect(Math.hypot(a.x - b.x, a.y - b.y)).toBeGreaterThan(a.r + b.r);
  }
});

test("this node is in the middle, whatever the order", () => {
  const nodes = swarmOf(9);
  const placed = place(nodes, 900, 400);
  expect(placed.get(nodes[0]!.id)!.x).toBe(450);
  expect(place([...nodes].reverse(), 900, 400)).toEqual(placed);
});

test("jitter of a round trip moves nothing, another machine does", () => {
  const nodes = swarmOf(4);
  const jittery = nodes.map((node) => ({ ...node, roundTripS: node.roundTripS * 1.02 }));
  expect(layoutKey(jittery, 900, 400)).toBe(layoutKey([...nodes].reverse(), 900, 400));
  expect(layoutKey(nodes.slice(1), 900, 400)).not.toBe(layoutKey(nodes, 900, 400));
  expect(distance(0)).toBe(0);
  expect(distance(10)).toBe(1);
});

test("no own node, no nodes, no capacities: still a picture", () => {
  expect(place([], 900, 400).size).toBe(0);
  const placed = place(
    swarmOf(3).map((node) => ({ ...node, self: false, capacity: 0 })),
    900,
    400,
  );
  for (const { x, y, r } of placed.values()) expect([x, y, r].every(Number.isFinite)).toBe(true);
});

test("lines end at the edges of circles, arcs are parts of them", () => {
  expect(between({ x: 0, y: 0, r: 10 }, { x: 100, y: 0, r: 20 })).toEqual({ x1: 10, y1: 0, x2: 80, y2: 0 });
  expect(arc(10, 0)).toBe("");
  expect(arc(10, 0.25)).toBe("M0 -10A10 10 0 0 1 10 0");
  expect(arc(10, 1).match(/A/g)).toHaveLength(2);
});
