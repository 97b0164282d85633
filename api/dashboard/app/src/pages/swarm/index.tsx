// The swarm at a glance: figures, the picture, the table, and one node in detail.

import "./swarm.css";
import { useEffect, useState } from "preact/hooks";
import { postJson } from "../../api/client";
import type { MeshEvent } from "../../api/types";
import { count, NONE, plural, rate, shortId } from "../../format";
import { href, useRoute } from "../../router";
import { listeners, swarm } from "../../state/live";
import { useStore } from "../../state/store";
import { Button, Card, Empty, Notice, Page } from "../../ui/parts";
import { say, sayError } from "../../ui/toast";
import { totals } from "./facts";
import { NodeTable } from "./nodes";
import { Panel } from "./panel";
import { Legend, Topology } from "./topology";

export function SwarmPage() {
  const view = useStore(swarm, (state) => state.view);
  const flows = useStore(swarm, (state) => state.flows);
  const refused = useStore(swarm, (state) => state.link.kind === "refused");
  const chosen = useRoute().rest[0];
  if (!view) {
    return (
      <Page title="Swarm">
        <Card>
          <Empty title={refused ? "No swarm to show" : "Asking the node …"} />
        </Card>
      </Page>
    );
  }
  const nodes = view.nodes;
  const node = nodes.find((one) => one.id === chosen);
  return (
    <Page title="Swarm" actions={<a class="button" href={href("add")}>Add a machine</a>}>
      {view.left && (
        <Notice tone="warn">This node has left its swarm and serves alone. `mesh join TOKEN` takes it into one again.</Notice>
      )}
      <Announcer />
      <Tiles running={flows.size} />
      <div class={chosen ? "swarm-body with-panel" : "swarm-body"}>
        <div class="stack">
          <Card title="Topology" flush>
            <Topology nodes={nodes} flows={flows} chosen={chosen} />
            <Legend />
          </Card>
          <Card title="Nodes" flush>
            <NodeTable nodes={nodes} chosen={chosen} />
          </Card>
          {view.variants.length > 0 && <Variants variants={view.variants} />}
          {view.banned.length > 0 && <Banned ids={view.banned} />}
        </div>
        {chosen && <Panel id={chosen} node={node} known />}
      </div>
    </Page>
  );
}

const NEWS: Record<string, string> = {
  joined: "has joined",
  left: "has left",
  dead: "is dead",
  suspect: "is suspect",
  alive: "is alive again",
  incompatible: "speaks another version of the mesh",
  banned: "is banned",
};

/** Reads out what others see happen in the picture. */
function Announcer() {
  const [text, setText] = useState("");
  useEffect(() => {
    const hear = (event: MeshEvent): void => {
      if (event.kind in NEWS && event.node) setText(`${event.node} ${NEWS[event.kind]}`);
    };
    listeners.add(hear);
    return () => void listeners.delete(hear);
  }, []);
  return (
    <div class="hidden-text" role="status">
      {text}
    </div>
  );
}

function Tiles({ running }: { running: number }) {
  const nodes = useStore(swarm, (state) => state.view?.nodes) ?? [];
  const sum = totals(nodes);
  const tiles: [string, string, string][] = [
    ["Nodes alive", count(sum.alive), `of ${count(sum.nodes)}`],
    ["Models", count(sum.models), `${count(sum.loadedModels)} loaded`],
    ["Slots used", sum.slots ? count(sum.slotsUsed) : NONE, sum.slots ? `of ${count(sum.slots)}` : ""],
    ["Waiting", count(sum.queued), ""],
    ["Decoding", sum.decode > 0 ? rate(sum.decode).replace(" tok/s", "") : NONE, sum.decode > 0 ? "tok/s" : ""],
    ["From this node", count(running), "running"],
  ];
  return (
    <dl class="tiles">
      {tiles.map(([name, value, rest]) => (
        <div key={name} class="card tile">
          <dt>{name}</dt>
          <dd>
            {value} <small>{rest}</small>
          </dd>
        </div>
      ))}
    </dl>
  );
}

function Variants({ variants }: { variants: readonly { model: string; digests: readonly { digest: string; nodes: readonly string[] }[] }[] }) {
  return (
    <Card title="Different files under one name">
      <ul class="stack">
        {variants.map(({ model, digests }) => (
          <li key={model}>
            <strong>{model}</strong>: {plural(digests.length, "different file")}. A request gets an answer from one of them;
            rename those that differ.
            <ul class="muted small">
              {digests.map(({ digest, nodes }) => (
                <li key={digest}>
                  <code>{digest.slice(0, 12)}</code> on {nodes.join(", ")}
                </li>
              ))}
            </ul>
          </li>
        ))}
      </ul>
    </Card>
  );
}

function Banned({ ids }: { ids: readonly string[] }) {
  const pardon = async (id: string): Promise<void> => {
    try {
      await postJson("/api/mesh/pardon", { node: id });
      say("The ban is lifted.", "good");
    } catch (error) {
      sayError(error);
    }
  };
  return (
    <Card title="Banned">
      <ul class="stack">
        {ids.map((id) => (
          <li key={id} class="row">
            <code title={id}>{shortId(id)}</code>
            <Button small onClick={() => void pardon(id)}>
              Lift the ban
            </Button>
          </li>
        ))}
      </ul>
    </Card>
  );
}
