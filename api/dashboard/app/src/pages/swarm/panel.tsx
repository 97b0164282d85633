// All about one node. It stays open when the node goes: then it says so.

import { useEffect, useRef, useState } from "preact/hooks";
import { getJson, postJson } from "../../api/client";
import type { Node, OfferedModel } from "../../api/types";
import { bytes, count, duration, NONE, percent, plural, rate, shortId } from "../../format";
import { go } from "../../router";
import { Confirm } from "../../ui/dialog";
import { CopyButton } from "../../ui/copy";
import { CloseIcon } from "../../ui/icons";
import { Badge, Button, Fact, Facts, Meter, Notice, type Tone } from "../../ui/parts";
import { say, sayError } from "../../ui/toast";
import { present, work } from "./facts";
import { Heard, StateBadge } from "./nodes";

interface PanelProps {
  id: string;
  node: Node | undefined;
  /** Whether the view has been read at all: until then nobody is missing. */
  known: boolean;
}

export function Panel({ id, node, known }: PanelProps) {
  const box = useRef<HTMLElement>(null);
  const last = useRef<Node | undefined>(undefined);
  if (node) last.current = node;
  else if (last.current?.id !== id) last.current = undefined;
  const shown = node ?? last.current;
  useEffect(() => box.current?.focus({ preventScroll: true }), [id]);
  const close = (): void => go("swarm");
  return (
    <aside
      class="card panel"
      aria-label={shown ? `Node ${shown.name}` : "Node"}
      tabIndex={-1}
      ref={box}
      onKeyDown={(event) => event.key === "Escape" && close()}
    >
      <header>
        <h2>{shown?.name ?? shortId(id)}</h2>
        <Button look="quiet" class="icon" aria-label="Close" onClick={close}>
          <CloseIcon />
        </Button>
      </header>
      <div class="panel-body">
        {!node && known && (
          <Notice tone="warn">
            {shown ? "This node is no member of the swarm any more. What follows is how it was last." : "There is no such node in this swarm."}
          </Notice>
        )}
        {shown && <Details node={shown} gone={!node} />}
      </div>
    </aside>
  );
}

function Details({ node, gone }: { node: Node; gone: boolean }) {
  const does = work(node);
  const hardware = node.hardware;
  const ran = useRan(node, gone);
  return (
    <>
      <div class="row">
        {gone ? <Badge>gone</Badge> : <StateBadge state={node.state} />}
        {node.self && <Badge tone="accent">this node</Badge>}
        {node.relayed && <Badge>relayed</Badge>}
        {node.roles.includes("relay") && <Badge>relay for others</Badge>}
      </div>

      <section>
        <h3>Now</h3>
        <Facts>
          <Fact name="Slots used">{present(node) && does.slots ? `${does.slotsUsed} of ${does.slots}` : NONE}</Fact>
          <Fact name="Waiting">{present(node) ? count(does.queued) : NONE}</Fact>
          <Fact name="Prefill">{rate(does.prefill)}</Fact>
          <Fact name="Decode">{rate(does.decode)}</Fact>
          <Fact name="First token">{duration(ran?.first_s)}</Fact>
          <Fact name="Errors">{present(node) ? `${percent(does.errorRate)} of the last calls` : NONE}</Fact>
          {!node.self && <Fact name="Sent from here">{plural(node.in_flight, "call")} running</Fact>}
          {!node.self && <Fact name="Round trip">{duration(node.round_trip_s || null)}</Fact>}
          {!node.self && (
            <Fact name="Last heard">
              <Heard id={node.id} />
            </Fact>
          )}
          <Fact name="Up for">{duration(ran?.up_s)}</Fact>
        </Facts>
      </section>

      <section>
        <h3>Models</h3>
        {node.models.length ? (
          <ul>
            {node.models.map((model) => (
              <Model key={model.model} model={model} fresh={present(node)} />
            ))}
          </ul>
        ) : (
          <p class="muted">It has none of its own.</p>
        )}
      </section>

      {node.targets.length > 0 && (
        <section>
          <h3>Lends memory</h3>
          <ul>
            {node.targets.map((target) => (
              <li key={target.name}>
                {target.name}: {bytes(target.memory_bytes)}
                {target.leased_by ? `, in use by ${target.leased_by}` : ", free"}
              </li>
            ))}
          </ul>
        </section>
      )}

      <section>
        <h3>Machine</h3>
        <Facts>
          <Fact name="System">{hardware.system || NONE}</Fact>
          <Fact name="Processor">{hardware.processor || NONE}</Fact>
          <Fact name="Cores">{hardware.cores ? count(hardware.cores) : NONE}</Fact>
          <Fact name="Memory">{bytes(hardware.memory_bytes)}</Fact>
          <Fact name="Accelerators">{(hardware.accelerators ?? []).join(", ") || "none"}</Fact>
          {hardware.accelerator_memory_bytes > 0 && <Fact name="VRAM">{bytes(hardware.accelerator_memory_bytes)}</Fact>}
          <Fact name="For models">
            {present(node) && does.memoryUsed ? `${bytes(does.memoryUsed)} of ` : ""}
            {bytes(node.memory_budget_bytes)}
            {node.memory_budget_bytes > 0 && present(node) && (
              <Meter share={does.memoryUsed / node.memory_budget_bytes} label="Memory for models in use" />
            )}
          </Fact>
        </Facts>
      </section>

      <section>
        <h3>Identity</h3>
        <Facts>
          <Fact name="Id">
            <span class="id" title={node.id}>
              {shortId(node.id)}
            </span>{" "}
            <CopyButton text={node.id} label="Copy id" />
          </Fact>
          <Fact name="Version">
            {node.version}, protocol {node.protocol}
          </Fact>
          <Fact name={node.addresses.length === 1 ? "Address" : "Addresses"}>
            {node.addresses.length ? (
              <ul>
                {node.addresses.map((address) => (
                  <li key={address} class="id">
                    {address}
                  </li>
                ))}
              </ul>
            ) : (
              "nobody can dial it"
            )}
          </Fact>
          {/^https?:\/\//.test(node.api_url) && (
            <Fact name="Its API">
              <a class="id" href={node.api_url} target="_blank" rel="noopener noreferrer">
                {node.api_url}
              </a>
            </Fact>
          )}
        </Facts>
      </section>

      {!node.self && !gone && <Kick node={node} />}
    </>
  );
}

const MODEL_STATES: Record<string, { word: string; tone: Tone }> = {
  ready: { word: "loaded", tone: "good" },
  loading: { word: "loading", tone: "accent" },
  failed: { word: "failed to load", tone: "bad" },
  absent: { word: "on disk", tone: "idle" },
};

function Model({ model, fresh }: { model: OfferedModel; fresh: boolean }) {
  const load = fresh ? model.load : undefined;
  const state = MODEL_STATES[load?.state ?? "absent"] ?? { word: load?.state ?? "", tone: "idle" as const };
  return (
    <li class="model">
      <div class="row">
        <strong>{model.model}</strong>
        <Badge tone={state.tone}>{state.word}</Badge>
        {model.sharded && <Badge tone="accent">split over nodes</Badge>}
      </div>
      <div class="figures">
        {load && load.slots > 0 && (
          <span>
            {load.slots_used} of {load.slots} slots
          </span>
        )}
        {load && load.queued > 0 && <span>{load.queued} waiting</span>}
        {load && load.decode_tokens_per_s > 0 && <span>decode {rate(load.decode_tokens_per_s)}</span>}
        {load && load.prefill_tokens_per_s > 0 && <span>prefill {rate(load.prefill_tokens_per_s)}</span>}
        {load && load.error_rate > 0 && <span>{percent(load.error_rate)} errors</span>}
        <span>{bytes(model.memory_bytes)}</span>
        {model.context_tokens > 0 && <span>{count(model.context_tokens)} tokens of context</span>}
      </div>
    </li>
  );
}

interface Ran {
  up_s: number | null;
  first_s: number | null;
}

/** What only the node itself knows: how long it runs, and how soon its answers began lately. */
function useRan(node: Node, gone: boolean): Ran | null {
  const [ran, setRan] = useState<Ran | null>(null);
  const asked = !gone && present(node);
  useEffect(() => {
    setRan(null);
    if (!asked) return undefined;
    const control = new AbortController();
    const look = async (): Promise<void> => {
      try {
        const path = `/api/mesh/charts?node=${encodeURIComponent(node.id)}`;
        const { nodes } = await getJson<{ nodes: { samples: { up_s: number; first_token_s: number[][] } | null }[] }>(
          path,
          control.signal,
        );
        const samples = nodes[0]?.samples;
        if (samples) setRan({ up_s: samples.up_s, first_s: median(samples.first_token_s.flat()) });
      } catch {
        // The dashes say it.
      }
    };
    void look();
    const timer = setInterval(() => void look(), 10_000);
    return () => (control.abort(), clearInterval(timer));
  }, [node.id, asked]);
  return ran;
}

export function median(values: readonly number[]): number | null {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function Kick({ node }: { node: Node }) {
  const [asking, setAsking] = useState(false);
  const [busy, setBusy] = useState(false);
  const kick = async (): Promise<void> => {
    setBusy(true);
    try {
      await postJson("/api/mesh/kick", { node: node.id });
      say(`${node.name} has been banned.`, "good");
      setAsking(false);
    } catch (error) {
      sayError(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section>
      <Button look="danger" onClick={() => setAsking(true)}>
        Ban this node …
      </Button>
      {asking && (
        <Confirm
          title={`Ban ${node.name}?`}
          action="Ban it"
          busy={busy}
          onConfirm={() => void kick()}
          onClose={() => setAsking(false)}
        >
          <p>
            Every member of the swarm ends its connections with <strong>{node.name}</strong> and lets it in no more,
            until the ban is lifted. Answers that it works on go on elsewhere.
          </p>
        </Confirm>
      )}
    </section>
  );
}
