// The nodes as a table: all of the picture, in words.

import type { Node } from "../../api/types";
import { ago, bytes, count, duration, NONE, percent, plural, rate } from "../../format";
import { href } from "../../router";
import { swarm } from "../../state/live";
import { useStore } from "../../state/store";
import { useSeconds } from "../../ui/clock";
import { Badge, Meter } from "../../ui/parts";
import { look, present, work } from "./facts";

export function StateBadge({ state }: { state: string }) {
  const { tone, word, mark, meaning } = look(state);
  return (
    <span title={meaning}>
      <Badge tone={tone}>
        {mark && <span aria-hidden="true">{mark}</span>}
        {word}
      </Badge>
    </span>
  );
}

export function NodeTable({ nodes, chosen }: { nodes: readonly Node[]; chosen: string | undefined }) {
  return (
    <table class="cards">
      <thead>
        <tr>
          <th scope="col">Node</th>
          <th scope="col">State</th>
          <th scope="col">Models</th>
          <th scope="col">Slots</th>
          <th scope="col" class="num">
            Waiting
          </th>
          <th scope="col" class="num">
            Decoding
          </th>
          <th scope="col" class="extra">
            Memory
          </th>
          <th scope="col" class="num extra">
            Round trip
          </th>
          <th scope="col" class="num">
            Heard
          </th>
        </tr>
      </thead>
      <tbody>
        {nodes.map((node) => (
          <Row key={node.id} node={node} chosen={node.id === chosen} />
        ))}
      </tbody>
    </table>
  );
}

function Row({ node, chosen }: { node: Node; chosen: boolean }) {
  const does = work(node);
  const here = present(node);
  return (
    <tr aria-current={chosen ? "true" : undefined}>
      <th scope="row">
        <a href={href("swarm", node.id)}>{node.name}</a>
        {node.self && <span class="muted small"> this node</span>}
      </th>
      <td data-name="State">
        <StateBadge state={node.state} />
      </td>
      <td data-name="Models">
        {modelsOf(node)}
      </td>
      <td data-name="Slots">{here && does.slots ? `${does.slotsUsed} of ${does.slots}` : NONE}</td>
      <td data-name="Waiting" class="num">
        {here ? count(does.queued) : NONE}
      </td>
      <td data-name="Decoding" class="num">
        {rate(does.decode)}
      </td>
      <td data-name="Memory" class="extra">
        <span>
          {here && does.memoryUsed ? `${bytes(does.memoryUsed)} of ` : ""}
          {bytes(node.memory_budget_bytes)}
          {here && node.memory_budget_bytes > 0 && does.memoryUsed > 0 && (
            <Meter
              share={does.memoryUsed / node.memory_budget_bytes}
              label={`Memory of ${node.name}: ${percent(does.memoryUsed / node.memory_budget_bytes)} used`}
            />
          )}
        </span>
      </td>
      <td data-name="Round trip" class="num extra">
        {node.self ? NONE : duration(node.round_trip_s || null)}
        {node.relayed && <span class="muted small"> relayed</span>}
      </td>
      <td data-name="Heard" class="num">
        {node.self ? NONE : <Heard id={node.id} />}
      </td>
    </tr>
  );
}

function modelsOf(node: Node): string {
  if (!node.models.length) return node.targets.length ? "lends memory" : NONE;
  return present(node) ? `${work(node).loaded} of ${node.models.length} loaded` : plural(node.models.length, "model");
}

/** How long ago, by this page's clock since it read it off this node's. */
export function Heard({ id }: { id: string }) {
  const at = useStore(swarm, (state) => state.heardAt.get(id));
  const now = useSeconds(5000);
  return <>{at === undefined ? NONE : ago(Math.max(0, (now - at) / 1000))}</>;
}
