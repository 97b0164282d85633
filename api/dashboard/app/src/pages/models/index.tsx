// The models of the whole swarm: who has what, on disk or in memory, and what may be done about it.

import "../../styles/figures.css";
import "./models.css";
import { useCallback, useEffect, useState } from "preact/hooks";
import { ApiError, getJson, postJson, told } from "../../api/client";
import type { ModelActed, ModelRow, Models } from "../../api/types";
import { bytes, count, duration, NONE, plural, rate } from "../../format";
import { href } from "../../router";
import { listeners } from "../../state/live";
import { Badge, Button, Card, Empty, Meter, Notice, Page, type Tone } from "../../ui/parts";
import { say, sayError } from "../../ui/toast";
import { actions, found, grouped, type Action, type ModelGroup, type Place } from "./group";
import { PlanPicture } from "./plan";

const REFRESH_MS = 5000;
const SETTLE_MS = 800; // events come in groups

const DONE: Record<Action, string> = { load: "is loaded", unload: "is unloaded", pin: "is pinned", unpin: "is no longer pinned" };
const VERBS: Record<Action, string> = { load: "Load", unload: "Unload", pin: "Pin", unpin: "Unpin" };

export function ModelsPage() {
  const [models, setModels] = useState<Models | null>(null);
  const [problem, setProblem] = useState("");
  const [text, setText] = useState("");
  const [busy, setBusy] = useState<ReadonlySet<string>>(new Set());
  const read = useCallback(async (signal?: AbortSignal): Promise<void> => {
    try {
      setModels(await getJson<Models>("/api/mesh/models", signal));
      setProblem("");
    } catch (error) {
      if (signal?.aborted) return;
      const solo = error instanceof ApiError && error.status === 404;
      setProblem(solo ? "This node takes part in no swarm; `mesh models list` in a terminal shows its models." : told(error));
    }
  }, []);
  useEffect(() => {
    const control = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const later = (): void => {
      timer ??= setTimeout(() => {
        timer = undefined;
        void read(control.signal);
      }, SETTLE_MS);
    };
    const onEvent = (event: { kind: string }): void => {
      if (event.kind !== "route" && event.kind !== "ended") later();
    };
    void read(control.signal);
    listeners.add(onEvent);
    const refresh = setInterval(() => document.visibilityState === "visible" && later(), REFRESH_MS);
    return () => {
      listeners.delete(onEvent);
      clearInterval(refresh);
      clearTimeout(timer);
      control.abort();
    };
  }, [read]);

  const act = async (place: Place, action: Action): Promise<void> => {
    const { node, row } = place;
    const mark = `${node.id} ${row.name}`;
    setBusy((now) => new Set(now).add(mark));
    try {
      const body = { node: node.id, model: row.name, action };
      const waiting = postJson<ModelActed>("/api/mesh/models", body);
      if (action === "load") setTimeout(() => void read(), 400); // so that its progress is seen
      await waiting;
      say(`${row.name} ${DONE[action]} on ${node.name}.`, "good");
    } catch (error) {
      sayError(error);
    } finally {
      setBusy((now) => new Set([...now].filter((other) => other !== mark)));
      await read();
    }
  };

  const groups = models ? grouped(models.nodes) : [];
  const shown = found(groups, text);
  const silent = models?.nodes.filter((node) => node.state === "alive" && !node.answered) ?? [];
  return (
    <Page title="Models" about="What each node has on disk and in memory. A request for a model that is not loaded loads it.">
      {problem && (
        <Notice tone="bad" actions={<Button onClick={() => void read()}>Try again</Button>}>
          {problem}
        </Notice>
      )}
      {silent.length > 0 && (
        <Notice tone="warn">
          {silent.map((node) => node.name).join(", ")} did not answer; what is shown of {silent.length > 1 ? "them" : "it"} is
          what {silent.length > 1 ? "their records say" : "its record says"}.
        </Notice>
      )}
      {!models && !problem && <Empty title="Asking the nodes …" />}
      {models && groups.length > 0 && (
        <div class="filters">
          <input
            class="input"
            type="search"
            placeholder="Model, node, quantisation …"
            aria-label="Filter by model, node or quantisation"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
          <span class="muted small" role="status">
            {shown.length === groups.length ? plural(groups.length, "model") : `${count(shown.length)} of ${plural(groups.length, "model")}`}
          </span>
        </div>
      )}
      {models && !groups.length && (
        <Empty title="No node has a model">
          <p>
            <code>mesh models add PATH</code> adds one.
          </p>
        </Empty>
      )}
      {models && groups.length > 0 && !shown.length && <Empty title="No model is like that" />}
      {shown.map((group) => (
        <Group key={group.name} group={group} busy={busy} act={act} />
      ))}
    </Page>
  );
}

interface GroupProps {
  group: ModelGroup;
  busy: ReadonlySet<string>;
  act: (place: Place, action: Action) => Promise<void>;
}

const FEW = 12; // places of a model that are shown unasked

function Group({ group, busy, act }: GroupProps) {
  const [all, setAll] = useState(false);
  const [planned, setPlanned] = useState(false);
  const here = group.places.some(({ node }) => node.self);
  const places = all ? group.places : group.places.slice(0, FEW);
  const facts = [
    group.backend,
    group.quantisation,
    group.sizeBytes ? `${bytes(group.sizeBytes)} on disk` : "",
    group.memoryBytes ? `needs ${bytes(group.memoryBytes)}` : "",
    group.contextTokens ? `context ${count(group.contextTokens)}` : "",
    ...group.capabilities,
  ].filter(Boolean);
  return (
    <Card
      flush
      class="model-card"
      title={group.name}
      actions={
        <div class="actions">
          {group.large && <Badge tone="warn">larger than a node</Badge>}
          {here && (
            <Button small look="quiet" aria-expanded={planned} onClick={() => setPlanned(!planned)}>
              {planned ? "Hide the plan" : "Plan"}
            </Button>
          )}
          {group.capabilities.includes("chat") && (
            <a class="button small quiet" href={`${href("chat")}?model=${encodeURIComponent(group.name)}`}>
              Chat
            </a>
          )}
        </div>
      }
    >
      <p class="model-facts muted small">{facts.join(" · ") || NONE}</p>
      {group.digests > 1 && (
        <div class="model-more">
          <Notice tone="warn">{group.digests} different files bear this name; an answer comes from one of them.</Notice>
        </div>
      )}
      {planned && (
        <div class="model-more">
          <PlanPicture model={group.name} />
        </div>
      )}
      <table class="cards">
        <caption class="hidden-text">Where {group.name} is</caption>
        <thead>
          <tr>
            <th scope="col">Node</th>
            <th scope="col">State</th>
            <th scope="col">Slots</th>
            <th scope="col" class="num">
              Waiting
            </th>
            <th scope="col" class="num extra">
              Memory
            </th>
            <th scope="col" class="num">
              Rate
            </th>
            <th scope="col">
              <span class="hidden-text">Actions</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {places.map((place) => (
            <PlaceRow key={place.node.id} place={place} busy={busy.has(`${place.node.id} ${place.row.name}`)} act={act} />
          ))}
        </tbody>
      </table>
      {group.places.length > FEW && (
        <div class="model-more">
          <Button small look="quiet" onClick={() => setAll(!all)}>
            {all ? "Show fewer" : `Show all ${group.places.length} nodes`}
          </Button>
        </div>
      )}
    </Card>
  );
}

function PlaceRow({ place, busy, act }: { place: Place; busy: boolean; act: GroupProps["act"] }) {
  const { node, row } = place;
  const live = row.state === "ready";
  return (
    <>
      <tr>
        <th scope="row">
          <a href={href("swarm", node.id)}>{node.name}</a>
          {node.self && <span class="muted small"> this node</span>}
        </th>
        <td data-name="State">
          <State place={place} />
        </td>
        <td data-name="Slots">{live ? `${row.slots_used} of ${row.slots}` : row.slots ? count(row.slots) : NONE}</td>
        <td data-name="Waiting" class="num">
          {row.state === "unknown" ? NONE : count(row.queued)}
        </td>
        <td data-name="Memory" class="num extra">
          {bytes(row.engine_memory_bytes || row.memory_bytes)}
        </td>
        <td data-name="Rate" class="num">
          {rate(row.decode_tokens_per_s)}
        </td>
        <td data-name="" class="num">
          <span class="row end">
            {actions(place).map((action) => (
              <Button
                key={action}
                small
                look={action === "load" ? "plain" : "quiet"}
                disabled={busy || row.state === "loading"}
                aria-label={`${VERBS[action]} ${row.name} on ${node.name}`}
                title={action === "pin" ? "Load it at every start, and never unload it to make room" : undefined}
                onClick={() => void act(place, action)}
              >
                {VERBS[action]}
              </Button>
            ))}
          </span>
        </td>
      </tr>
      {row.error && (
        <tr class="why">
          <td colSpan={7} class="small">
            {row.error}
          </td>
        </tr>
      )}
    </>
  );
}

const STATES: Record<ModelRow["state"], [string, Tone]> = {
  absent: ["on disk", "idle"],
  loading: ["loading", "accent"],
  ready: ["loaded", "good"],
  unloading: ["unloading", "idle"],
  failed: ["failed", "bad"],
  unusable: ["cannot be opened", "bad"],
  unknown: ["node is silent", "warn"],
};

function State({ place: { node, row } }: { place: Place }) {
  const [word, tone] = Object.hasOwn(STATES, row.state) ? STATES[row.state] : ([row.state, "idle"] as const);
  return (
    <span class="badges">
      <Badge tone={tone}>{row.state === "unknown" && node.state !== "alive" ? `node is ${node.state}` : word}</Badge>
      {row.pinned && <Badge tone="accent">pinned</Badge>}
      {row.sharded && <Badge>over several nodes</Badge>}
      {row.state === "loading" && (
        <span class="progress">
          <Meter share={row.load_progress} label={`Loading ${row.name} on ${node.name}`} />
        </span>
      )}
      {row.state === "ready" && row.expires_in_s != null && (
        <span class="muted small" title="Unless it is used">
          unloads in {duration(Math.max(1, Math.round(row.expires_in_s)))}
        </span>
      )}
    </span>
  );
}
