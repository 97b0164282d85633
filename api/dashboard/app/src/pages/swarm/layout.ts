// Where the nodes are drawn. Deterministic: the same swarm looks the same in every browser and after every reload.
//
// This node is in the middle. The others are around it in the order of their ids, the farther away the longer their
// round trip; many of them stand in several rings. What would overlap is then pushed apart.

export interface Placed {
  x: number;
  y: number;
  r: number;
}

export interface ToPlace {
  id: string;
  self: boolean;
  roundTripS: number;
  capacity: number;
}

const LABEL = 34; // below a node, for its name
const SIDE = 56; // beside the outermost nodes, for half of a name
const NEAR_S = 0.0003;
const FAR_S = 0.3;
const TURNS = 80;

/** 0 for a neighbour on the same machine, 1 for another continent; in steps, so that jitter moves nothing. */
export function distance(roundTripS: number): number {
  const share = Math.log10(Math.max(roundTripS, NEAR_S) / NEAR_S) / Math.log10(FAR_S / NEAR_S);
  return Math.min(1, Math.round(share * 8) / 8);
}

/** All that the places depend on, so that they are reckoned anew only when they may change. */
export function layoutKey(nodes: readonly ToPlace[], width: number, height: number): string {
  const parts = nodes.map((node) => `${node.id}:${distance(node.roundTripS)}:${node.capacity}`).sort();
  return `${width}x${height} ${parts.join(" ")}`;
}

/** How high the picture is: a row for few nodes, more for many, and more on a narrow screen. */
export function heightOf(width: number, count: number): number {
  const share = count <= 3 ? 0.26 : count <= 8 ? 0.42 : count <= 20 ? 0.5 : 0.62;
  return Math.round(Math.min(820, Math.max(count <= 3 ? 250 : 330, width * share)));
}

export function place(nodes: readonly ToPlace[], width: number, height: number): Map<string, Placed> {
  const own = nodes.find((node) => node.self);
  const others = nodes.filter((node) => node !== own).sort((a, b) => (a.id < b.id ? -1 : 1));
  const largest = Math.max(1, ...nodes.map((node) => node.capacity));
  const scale = sizeOf(others.length, width, height);
  const radius = (node: ToPlace): number => (13 + 15 * Math.sqrt(node.capacity / largest)) * scale;

  const centre = { x: width / 2, y: (height - LABEL) / 2 + 4 };
  const reachX = Math.max(40, width / 2 - SIDE);
  const reachY = Math.max(40, height / 2 - LABEL - 12);
  const rings = others.length > 34 ? 3 : others.length > 14 ? 2 : 1;

  const placed = new Map<string, Placed>();
  if (own) placed.set(own.id, { ...centre, r: Math.max(radius(own), 20 * scale) });
  others.forEach((node, index) => {
    const angle = (2 * Math.PI * index) / others.length - Math.PI / 2 + (others.length === 2 ? Math.PI / 2 : 0);
    const ring = 1 - (0.62 * (index % rings)) / Math.max(1, rings);
    const far = ring * (0.72 + 0.28 * distance(node.roundTripS));
    placed.set(node.id, {
      x: centre.x + Math.cos(angle) * reachX * far,
      y: centre.y + Math.sin(angle) * reachY * far,
      r: radius(node),
    });
  });
  pushApart([...placed.values()], own ? placed.get(own.id) : undefined, width, height);
  return placed;
}

/** Smaller where there are many. */
function sizeOf(count: number, width: number, height: number): number {
  const room = Math.sqrt((width * height) / Math.max(4, count + 1));
  return Math.min(1.3, Math.max(0.5, room / 150));
}

function pushApart(all: Placed[], fixed: Placed | undefined, width: number, height: number): void {
  for (let turn = 0; turn < TURNS; turn++) {
    let moved = false;
    for (let i = 0; i < all.length; i++) {
      for (let j = i + 1; j < all.length; j++) {
        const a = all[i]!;
        const b = all[j]!;
        // Labels make a node higher than wide.
        const dx = b.x - a.x || (i - j) * 0.01;
        const dy = (b.y - a.y) * 0.8;
        const gap = Math.hypot(dx, dy);
        const wanted = a.r + b.r + 26;
        if (gap >= wanted) continue;
        const push = (wanted - gap) / (2 * (gap || 1));
        if (a !== fixed) (a.x -= dx * push), (a.y -= dy * push);
        if (b !== fixed) (b.x += dx * push), (b.y += dy * push);
        moved = true;
      }
    }
    for (const item of all) {
      item.x = clamp(item.x, item.r + 8, width - item.r - 8);
      item.y = clamp(item.y, item.r + 8, height - item.r - LABEL);
    }
    if (!moved) break;
  }
}

const clamp = (value: number, low: number, high: number): number => Math.min(Math.max(value, low), Math.max(low, high));

/** A line between two circles, from edge to edge. */
export function between(a: Placed, b: Placed): { x1: number; y1: number; x2: number; y2: number } {
  const gap = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const ux = (b.x - a.x) / gap;
  const uy = (b.y - a.y) / gap;
  return { x1: a.x + ux * a.r, y1: a.y + uy * a.r, x2: b.x - ux * b.r, y2: b.y - uy * b.r };
}

/** A bow from `a` to `b` that stays clear of the middle between them. */
export function bow(a: Placed, b: Placed): string {
  const { x1, y1, x2, y2 } = between(a, b);
  const mx = (x1 + x2) / 2 + (y2 - y1) * 0.18;
  const my = (y1 + y2) / 2 - (x2 - x1) * 0.18;
  return `M${round(x1)} ${round(y1)}Q${round(mx)} ${round(my)} ${round(x2)} ${round(y2)}`;
}

const round = (value: number): number => Math.round(value * 10) / 10;

/** The part of a circle's ring that stands for `share`, as a path from the top on, clockwise. */
export function arc(r: number, share: number): string {
  if (share <= 0) return "";
  if (share >= 0.999) return `M0 ${-r}A${r} ${r} 0 1 1 0 ${r}A${r} ${r} 0 1 1 0 ${-r}`;
  const angle = 2 * Math.PI * share;
  return `M0 ${round(-r)}A${round(r)} ${round(r)} 0 ${share > 0.5 ? 1 : 0} 1 ${round(Math.sin(angle) * r)} ${round(-Math.cos(angle) * r)}`;
}
