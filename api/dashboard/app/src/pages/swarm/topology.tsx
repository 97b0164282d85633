// The swarm as a picture. The table beside it says the same in words.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Node } from "../../api/types";
import { duration, plural, rate } from "../../format";
import { href } from "../../router";
import type { Flow } from "../../state/swarm";
import { capacity, look, shardLinks, work } from "./facts";
import { arc, between, bow, heightOf, layoutKey, place, type Placed, type ToPlace } from "./layout";

const MAX_DOTS = 5; // on one way: more say no more
const NAMED_EDGES = 12; // with more of them, round trips are in the table alone

interface TopologyProps {
  nodes: readonly Node[];
  flows: ReadonlyMap<string, Flow>;
  chosen: string | undefined;
}

export function Topology({ nodes, flows, chosen }: TopologyProps) {
  const box = useRef<HTMLDivElement>(null);
  const [{ width, scale }, setSize] = useState({ width: 0, scale: 1 });
  useEffect(() => {
    if (!box.current) return undefined;
    const watch = new ResizeObserver(([entry]) => {
      if (!entry) return;
      // The picture grows with the page's letters: with the person's own size, and on far away screens.
      const scale = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16 || 1;
      setSize({ width: Math.floor(entry.contentRect.width / scale), scale });
    });
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const height = heightOf(width, nodes.length);
  const toPlace: ToPlace[] = nodes.map((node) => ({
    id: node.id,
    self: node.self,
    roundTripS: node.round_trip_s,
    capacity: capacity(node),
  }));
  const key = layoutKey(toPlace, width, height);
  const places = useMemo(() => (width ? place(toPlace, width, height) : new Map<string, Placed>()), [key]);
  const own = nodes.find((node) => node.self);
  const centre = own && places.get(own.id);
  return (
    <div class="topology" ref={box}>
      {width > 0 && centre && (
        <>
          <svg
            width={width * scale}
            height={height * scale}
            viewBox={`0 0 ${width} ${height}`}
            role="group"
            aria-label="Nodes and their connections"
          >
            <g class="edges">
              {nodes.map((node) => {
                const to = places.get(node.id);
                return to && !node.self && <Edge key={node.id} node={node} from={centre} to={to} many={nodes.length > NAMED_EDGES} />;
              })}
              {shardLinks(nodes).map(({ head, worker, target }) => {
                const from = places.get(head);
                const to = places.get(worker);
                return (
                  from &&
                  to && (
                    <path key={`${head} ${worker} ${target}`} class="shard" d={bow(from, to)}>
                      <title>Layers of a model on the first are held by the second</title>
                    </path>
                  )
                );
              })}
            </g>
            {nodes.map((node) => {
              const at = places.get(node.id);
              return at && <Dot key={node.id} node={node} at={at} chosen={node.id === chosen} />;
            })}
          </svg>
          <Flows nodes={nodes} flows={flows} places={places} centre={centre} scale={scale} />
        </>
      )}
    </div>
  );
}

/** A little beyond the middle: below this node is its own name. */
const along = (from: number, to: number): number => from + (to - from) * 0.6;

function Edge({ node, from, to, many }: { node: Node; from: Placed; to: Placed; many: boolean }) {
  if (node.state === "left") return null;
  const line = between(from, to);
  const alive = node.state === "alive";
  const rtt = node.round_trip_s;
  const thick = rtt < 0.002 ? 2.4 : rtt < 0.02 ? 1.9 : rtt < 0.1 ? 1.4 : 1;
  const names = ["edge", alive ? "" : "gone", node.relayed ? "relayed" : ""].filter(Boolean).join(" ");
  return (
    <g>
      <line {...line} class={names} stroke-width={thick} />
      {!many && alive && rtt > 0 && (
        <text class="rtt" x={along(line.x1, line.x2)} y={along(line.y1, line.y2) - 5}>
          {duration(rtt)}
          {node.relayed ? " relayed" : ""}
        </text>
      )}
    </g>
  );
}

function Dot({ node, at, chosen }: { node: Node; at: Placed; chosen: boolean }) {
  const { tone, mark, word } = look(node.state);
  const does = work(node);
  const inside = mark || (does.slots ? `${does.slotsUsed}/${does.slots}` : node.targets.length ? "lends" : "");
  const below = node.state !== "alive" ? word : does.decode > 0 ? rate(does.decode) : does.queued ? `${does.queued} waiting` : "";
  // What is seen comes first, word for word: who speaks to the machine says what they see.
  const said = [
    [short(node.name), inside, below].filter(Boolean).join(" "),
    node.name.length > NAME_CHARS ? node.name : "",
    node.self ? "this node" : word,
    does.slots ? `${does.slotsUsed} of ${plural(does.slots, "slot")} used` : plural(node.models.length, "model"),
    node.self ? "" : `round trip ${duration(node.round_trip_s)}${node.relayed ? ", relayed" : ""}`,
  ];
  const names = ["dot", tone, node.self ? "own" : "", chosen ? "chosen" : "", does.slotsUsed ? "busy" : ""];
  return (
    <a href={href("swarm", node.id)} class={names.filter(Boolean).join(" ")} aria-label={said.filter(Boolean).join(", ")}>
      <g style={{ transform: `translate(${at.x}px, ${at.y}px)` }}>
        <circle class="halo" r={at.r + 7} />
        <circle class="disc" r={at.r} />
        <circle class="track" r={at.r} />
        {does.slots > 0 && <path class="used" d={arc(at.r, does.slotsUsed / does.slots)} />}
        <text class="name" y={at.r + 18}>
          {short(node.name)}
        </text>{" "}
        <text class="mark" dy="0.36em">
          {inside}
        </text>{" "}
        {below && (
          <text class="below" y={at.r + 32}>
            {below}
          </text>
        )}
      </g>
    </a>
  );
}

const NAME_CHARS = 18;
const short = (name: string): string => (name.length > NAME_CHARS ? `${name.slice(0, NAME_CHARS - 1)}…` : name);

/** Requests on their way. Elements of HTML, since browsers move those without the page's own thread. */
function Flows({
  nodes,
  flows,
  places,
  centre,
  scale,
}: {
  nodes: readonly Node[];
  flows: ReadonlyMap<string, Flow>;
  places: Map<string, Placed>;
  centre: Placed;
  scale: number;
}) {
  const idOf = new Map(nodes.map((node) => [node.name, node.id]));
  const count = new Map<string, number>();
  for (const flow of flows.values()) {
    const id = idOf.get(flow.node);
    if (id) count.set(id, (count.get(id) ?? 0) + 1);
  }
  const dots = [];
  for (const [id, running] of count) {
    const to = places.get(id);
    if (!to || to === centre) continue;
    const { x1, y1, x2, y2 } = between(centre, to);
    const shown = Math.min(MAX_DOTS, running);
    for (let index = 0; index < shown; index++) {
      const style = {
        "--x1": `${x1 * scale}px`,
        "--y1": `${y1 * scale}px`,
        "--x2": `${x2 * scale}px`,
        "--y2": `${y2 * scale}px`,
        animationDelay: `${(-1.6 * index) / shown}s`,
      };
      dots.push(<span key={`${id} ${index}`} class="flow" style={style} />);
    }
  }
  return <div aria-hidden="true">{dots}</div>;
}

export function Legend() {
  return (
    <ul class="legend">
      <li>
        <svg width="28" height="10" aria-hidden="true">
          <line x1="1" x2="27" y1="5" y2="5" class="edge" stroke-width="2" />
        </svg>
        direct; nearer and thicker: shorter round trip
      </li>
      <li>
        <svg width="28" height="10" aria-hidden="true">
          <line x1="1" x2="27" y1="5" y2="5" class="edge relayed" stroke-width="2" />
        </svg>
        relayed
      </li>
      <li>
        <svg width="28" height="10" aria-hidden="true">
          <path d="M1 8Q14 0 27 8" class="shard" />
        </svg>
        holds layers for
      </li>
      <li>
        <svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">
          <circle r="6" class="track" />
          <path class="used" d={arc(6, 0.4)} />
        </svg>
        slots in use; larger: more memory
      </li>
      <li>
        <span class="flow-key" aria-hidden="true" /> a request from this node
      </li>
    </ul>
  );
}
