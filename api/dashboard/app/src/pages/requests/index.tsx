// The last requests that entered at this node, and one of them in detail.

import "../../styles/figures.css";
import "./requests.css";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, getJson, told } from "../../api/client";
import type { Requests } from "../../api/types";
import { ago, count, duration, NONE, plural, rate } from "../../format";
import { href, useRoute } from "../../router";
import { listeners, swarm } from "../../state/live";
import { useStore } from "../../state/store";
import { useSeconds } from "../../ui/clock";
import { Badge, Button, Card, Empty, Notice, Page, type Tone } from "../../ui/parts";
import { RequestDetail } from "./detail";
import { filtered, KEPT, merged, PAGE, paged, type Filter, type OutcomeFilter, type Row } from "./list";

const PAUSE_MS = 1500; // between two readings, however many requests come and go
const RECENT = 100; // lines that a reading after an event asks for
const RUNNING_MS = 5000; // while something runs, its figures change without any event

const OUTCOMES: [OutcomeFilter, string][] = [
  ["all", "All outcomes"],
  ["running", "Running"],
  ["ok", "Answered"],
  ["failed", "Failed"],
  ["cancelled", "Cancelled"],
  ["rescued", "Moved, resumed or bounced"],
];

export function RequestsPage() {
  const id = useRoute().rest[0];
  const [rows, problem, again] = useRequests();
  if (id !== undefined) return <RequestDetail key={id} id={id} row={rows?.find((row) => row.id === id)} />;
  return (
    <Page title="Requests" about="Requests that entered at this node, wherever they ran: the last thousand, newest first.">
      {problem && (
        <Notice tone="bad" actions={<Button onClick={again}>Try again</Button>}>
          {problem}
        </Notice>
      )}
      {rows ? <List rows={rows} /> : !problem && <Empty title="Asking the node …" />}
    </Page>
  );
}

/** The rows, kept in step with the node; what is wrong with them; a function that asks again. */
function useRequests(): [readonly Row[] | null, string, () => void] {
  const [rows, setRows] = useState<readonly Row[] | null>(null);
  const [problem, setProblem] = useState("");
  const [round, setRound] = useState(0);
  const live = useStore(swarm, (state) => state.link.kind === "live");
  useEffect(() => {
    const control = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    let reading = false;
    let running = false;
    let stale = false;
    const read = async (limit: number): Promise<void> => {
      reading = true;
      stale = false;
      try {
        const { requests } = await getJson<Requests>(`/api/mesh/requests?limit=${limit}`, control.signal);
        running = requests.some((row) => row.outcome === "running");
        setRows((known) => merged(limit === KEPT ? [] : (known ?? []), requests, performance.now()));
        setProblem("");
      } catch (error) {
        if (control.signal.aborted) return;
        setProblem(
          error instanceof ApiError && error.status === 404
            ? "This node takes part in no swarm, so it keeps no list of requests."
            : told(error),
        );
      } finally {
        reading = false;
        if (stale) later();
      }
    };
    const later = (): void => {
      stale = true;
      if (timer !== undefined || reading || control.signal.aborted) return;
      timer = setTimeout(() => {
        timer = undefined;
        void read(RECENT);
      }, PAUSE_MS);
    };
    const onEvent = (event: { kind: string }): void => {
      if (event.kind === "route" || event.kind === "ended") later();
    };
    void read(KEPT);
    listeners.add(onEvent);
    const refresh = setInterval(() => running && document.visibilityState === "visible" && later(), RUNNING_MS);
    return () => {
      listeners.delete(onEvent);
      clearInterval(refresh);
      clearTimeout(timer);
      control.abort();
    };
  }, [round, live]); // a connection that is new may have missed some
  return [rows, problem, () => setRound((now) => now + 1)];
}

function List({ rows }: { rows: readonly Row[] }) {
  const [filter, setFilter] = useState<Filter>({ text: "", outcome: "all" });
  const [page, setPage] = useState(0);
  const head = useRef<HTMLDivElement>(null);
  const found = filtered(rows, filter);
  const shown = paged(found, page);
  const change = (part: Partial<Filter>): void => {
    setFilter({ ...filter, ...part });
    setPage(0);
  };
  const turn = (to: number): void => {
    setPage(to);
    head.current?.scrollIntoView({ block: "start" });
  };
  const first = shown.page * PAGE;
  return (
    <>
      <div class="filters" ref={head}>
        <input
          class="input"
          type="search"
          placeholder="Model, node, id …"
          aria-label="Filter by model, node or id"
          value={filter.text}
          onInput={(event) => change({ text: event.currentTarget.value })}
        />
        <select
          class="input"
          aria-label="Filter by outcome"
          value={filter.outcome}
          onChange={(event) => change({ outcome: event.currentTarget.value as OutcomeFilter })}
        >
          {OUTCOMES.map(([value, name]) => (
            <option key={value} value={value}>
              {name}
            </option>
          ))}
        </select>
        <span class="muted small" role="status">
          {found.length === rows.length ? plural(rows.length, "request") : `${count(found.length)} of ${plural(rows.length, "request")}`}
        </span>
      </div>
      <Card flush>
        {shown.rows.length ? (
          <Table rows={shown.rows} />
        ) : rows.length ? (
          <Empty title="No request is like that" />
        ) : (
          <Empty title="No request yet">
            <p>
              Ask something in the <a href={href("chat")}>chat</a>, or by <code>POST /v1/chat/completions</code>.
            </p>
          </Empty>
        )}
      </Card>
      {shown.pages > 1 && (
        <nav class="pager" aria-label="Pages of the list">
          <Button small disabled={shown.page === 0} onClick={() => turn(shown.page - 1)}>
            Newer
          </Button>
          <span class="muted small">
            {count(first + 1)} to {count(first + shown.rows.length)} of {count(found.length)}
          </span>
          <Button small disabled={shown.page === shown.pages - 1} onClick={() => turn(shown.page + 1)}>
            Older
          </Button>
        </nav>
      )}
    </>
  );
}

function Table({ rows }: { rows: readonly Row[] }) {
  const now = useSeconds(1000);
  return (
    <table class="cards requests">
      <thead>
        <tr>
          <th scope="col">Model</th>
          <th scope="col">Went to</th>
          <th scope="col">Outcome</th>
          <th scope="col" class="num">
            Expected
          </th>
          <th scope="col" class="num">
            Waited
          </th>
          <th scope="col" class="num">
            First token
          </th>
          <th scope="col" class="num extra">
            Tokens
          </th>
          <th scope="col" class="num">
            Rate
          </th>
          <th scope="col" class="num">
            Arrived
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.id}>
            <th scope="row">
              <a href={href("requests", row.id)} title={`Why and how: ${row.id}`}>
                {row.model}
              </a>
            </th>
            <td data-name="Went to">
              <Route row={row} />
            </td>
            <td data-name="Outcome">
              <Outcome row={row} />
            </td>
            <td data-name="Expected" class="num" title={row.why?.reason}>
              {row.why ? duration(row.why.total_s) : NONE}
            </td>
            <td data-name="Waited" class="num">
              {duration(row.queue_s)}
            </td>
            <td data-name="First token" class="num">
              {duration(row.first_chunk_s)}
            </td>
            <td data-name="Tokens" class="num extra">
              {count(row.tokens || null)}
            </td>
            <td data-name="Rate" class="num">
              {rate(row.tokens_per_s)}
            </td>
            <td data-name="Arrived" class="num">
              {since(Math.max(0, (now - row.arrivedAt) / 1000))}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Seconds are told here, too: the list is read while requests come and go. */
const since = (seconds: number): string => (seconds < 60 ? `${Math.floor(seconds)} s ago` : ago(seconds));

export function Route({ row }: { row: Pick<Row, "route" | "node" | "outcome"> }) {
  if (!row.route.length) return <>{row.node || (row.outcome === "running" ? "waiting" : NONE)}</>;
  return <span class="badges">{row.route.join(" → ")}</span>;
}

const WORDS = new Map<string, [string, Tone]>([
  ["running", ["running", "accent"]],
  ["ok", ["answered", "good"]],
  ["cancelled", ["cancelled", "idle"]],
]);

export function Outcome({ row }: { row: Pick<Row, "outcome" | "resumed" | "bounced"> }) {
  const [word, tone] = WORDS.get(row.outcome) ?? [row.outcome.replaceAll("_", " "), "bad" as Tone];
  return (
    <span class="badges">
      <Badge tone={tone}>{word}</Badge>
      {row.resumed > 0 && <Badge tone="warn">resumed{row.resumed > 1 ? ` ${row.resumed} times` : ""}</Badge>}
      {row.bounced > 0 && <Badge tone="warn">bounced</Badge>}
    </span>
  );
}
