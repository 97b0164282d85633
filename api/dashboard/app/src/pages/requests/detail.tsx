// One request: why it went where it went, and what happened on the way.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ApiError, getJson, told } from "../../api/client";
import type { Decision, Explanation, Trace } from "../../api/types";
import { ago, count, duration, NONE, plural, rate } from "../../format";
import { href } from "../../router";
import { Badge, Button, Card, Empty, Notice, Page } from "../../ui/parts";
import { Outcome, Route } from "./index";
import type { Row } from "./list";
import { bars, TERMS } from "./terms";
import { PHASES, tick, timeline, type Phase } from "./timeline";

export function RequestDetail({ id, row }: { id: string; row: Row | undefined }) {
  const [explanation, setExplanation] = useState<Explanation | null>(null);
  const [trace, setTrace] = useState<Trace | null>(null);
  const [problem, setProblem] = useState("");
  const [round, setRound] = useState(0);
  const outcome = row?.outcome; // once more when it ends
  useEffect(() => {
    const control = new AbortController();
    const path = `/api/mesh/requests/${encodeURIComponent(id)}`;
    const read = async (): Promise<void> => {
      try {
        setExplanation(await getJson<Explanation>(`${path}/explain`, control.signal));
        setProblem("");
        setTrace(await getJson<Trace>(`${path}/trace`, control.signal));
      } catch (error) {
        if (!control.signal.aborted) {
          setProblem(error instanceof ApiError && error.status === 404 ? "This node does not remember that request." : told(error));
        }
      }
    };
    void read();
    return () => control.abort();
  }, [id, round, outcome]);
  const shown = explanation;
  return (
    <Page
      title="Request"
      about={<code>{id}</code>}
      actions={
        <>
          {shown?.outcome === "running" && <Button onClick={() => setRound((now) => now + 1)}>Read again</Button>}
          <a class="button" href={href("requests")}>
            All requests
          </a>
        </>
      }
    >
      {problem && <Notice tone="bad">{problem}</Notice>}
      {!shown && !problem && <Empty title="Asking the node …" />}
      {shown && (
        <>
          <Summary told={shown} />
          <Decisions decisions={shown.decisions} />
          {trace ? <Lanes trace={trace} /> : !problem && <Card title="On the way">Asking the nodes …</Card>}
        </>
      )}
    </Page>
  );
}

function Summary({ told: row }: { told: Explanation }) {
  const facts: [string, ComponentChildren][] = [
    ["Model", row.model],
    ["Outcome", <Outcome row={row} />],
    ["Went to", <Route row={row} />],
    ["Arrived", ago(row.ago_s)],
    ["Taken by an engine", row.queue_s == null ? NONE : `after ${duration(row.queue_s)}`],
    ["First token", row.first_chunk_s == null ? NONE : `after ${duration(row.first_chunk_s)}`],
    [row.outcome === "running" ? "Running for" : "Took", duration(row.total_s)],
    ["Tokens", `${count(row.prompt_tokens || null)} in, ${count(row.tokens || null)} out`],
    ["Rate", rate(row.tokens_per_s)],
  ];
  return (
    <Card>
      <dl class="summary">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt class="muted small">{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </Card>
  );
}

function Decisions({ decisions }: { decisions: readonly Decision[] }) {
  const [chosen, choose] = useState(decisions.length - 1);
  const at = Math.min(Math.max(0, chosen), decisions.length - 1);
  const decision = decisions[at];
  if (!decision) {
    return (
      <Card title="Why there">
        <p class="muted">No node has been chosen for it.</p>
      </Card>
    );
  }
  return (
    <Card
      title="Why there"
      class="decision"
      actions={
        decisions.length > 1 && (
          <div class="tabs" role="group" aria-label="Choices, in order">
            {decisions.slice(0, 12).map((_, index) => (
              <button key={index} type="button" aria-pressed={index === at} onClick={() => choose(index)}>
                {index + 1}
              </button>
            ))}
          </div>
        )
      }
    >
      <p>
        {decision.reason}.{" "}
        <span class="muted">
          Policy {decision.policy}, {duration(decision.at_s)} after it arrived.
        </span>
      </p>
      <Candidates decision={decision} />
    </Card>
  );
}

function Candidates({ decision }: { decision: Decision }) {
  const drawn = bars(decision.candidates);
  const used = TERMS.filter(({ key }) => decision.candidates.some((row) => row[key] > 0));
  if (!decision.candidates.length) return <p class="muted">There was nobody to choose from.</p>;
  return (
    <>
      <ul class="keys" aria-label="Terms of the expected time">
        {TERMS.map(({ key, name, meaning }, index) => (
          <li key={key} title={meaning}>
            <span class={`swatch term-${index}`} aria-hidden="true" />
            {name}
          </li>
        ))}
      </ul>
      <div class="card-scroll" tabIndex={0} role="region" aria-label="Candidates">
        <table class="candidates">
          <caption class="hidden-text">Candidates and the terms of their expected completion time</caption>
          <thead>
            <tr>
              <th scope="col">Node</th>
              <th scope="col" class="wide">
                Expected time
              </th>
              <th scope="col" class="num">
                Total
              </th>
              {used.map(({ key, name }) => (
                <th key={key} scope="col" class="num">
                  {name}
                </th>
              ))}
              <th scope="col" class="num">
                Slots free
              </th>
            </tr>
          </thead>
          <tbody>
            {decision.candidates.map((row, index) => (
              <tr key={index} class={row.usable ? undefined : "out"}>
                <th scope="row">
                  {row.node}
                  {row.chosen || row.node === decision.chosen ? (
                    <>
                      {" "}
                      <Badge tone="good">chosen</Badge>
                    </>
                  ) : (
                    !row.usable && (
                      <>
                        {" "}
                        <Badge>out</Badge>
                      </>
                    )
                  )}
                </th>
                <td class="wide">
                  <Stack segments={drawn[index]?.segments ?? []} />
                  <div class="muted small">{row.usable ? row.words : row.reason}</div>
                </td>
                <td data-name="Total" class="num">
                  <strong>{duration(row.total_s)}</strong>
                </td>
                {used.map(({ key, name }) => (
                  <td key={key} data-name={name} class="num">
                    {row[key] > 0 ? duration(row[key]) : NONE}
                  </td>
                ))}
                <td data-name="Slots free" class="num">
                  {row.slots_free} of {row.slots}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}

function Stack({ segments }: { segments: readonly { name: string; index: number; seconds: number; share: number }[] }) {
  return (
    <div class="bar" aria-hidden="true">
      {segments.map(({ name, index, seconds, share }) => (
        <span
          key={index}
          class={`term-${index}`}
          title={`${name}: ${duration(seconds)}`}
          style={{ width: `${(share * 100).toFixed(3)}%` }}
        />
      ))}
    </div>
  );
}

function Lanes({ trace }: { trace: Trace }) {
  const { lanes, length } = timeline(trace.timeline, trace.outcome === "running" ? trace.ago_s : 0);
  const at = (seconds: number): string => `${(length > 0 ? Math.min(1, seconds / length) * 100 : 0).toFixed(3)}%`;
  const step = tick(length);
  const ticks = length > 0 ? Array.from({ length: Math.floor(length / step + 1e-9) + 1 }, (_, index) => index * step) : [];
  const phases = Object.entries(PHASES) as [Phase, string][];
  const seen = new Set(lanes.flatMap((lane) => lane.spans.map((span) => span.phase)));
  return (
    <Card title="On the way" class="way">
      <ul class="keys" aria-hidden="true">
        {phases
          .filter(([phase]) => seen.has(phase))
          .map(([phase, name]) => (
            <li key={phase}>
              <span class={`swatch phase-${phase}`} />
              {name}
            </li>
          ))}
      </ul>
      <div class="lanes" aria-hidden="true">
        {lanes.map((lane) => (
          <div key={lane.node} class="lane">
            <div class="lane-name">{lane.node}</div>
            <div class="lane-track">
              {ticks.map((seconds) => (
                <i key={seconds} class="grid" style={{ left: at(seconds) }} />
              ))}
              {lane.spans.map((span, index) => (
                <span
                  key={index}
                  class={`phase-${span.phase}`}
                  title={`${PHASES[span.phase]}: ${duration(span.to - span.from)}`}
                  style={{ left: at(span.from), width: at(span.to - span.from) }}
                />
              ))}
              {lane.marks.map(({ at: when, row }, index) => (
                <b key={index} title={`${row.what.replaceAll("_", " ")} at ${duration(when)}`} style={{ left: at(when) }} />
              ))}
            </div>
          </div>
        ))}
        <div class="lane">
          <div class="lane-name" />
          <div class="lane-axis">
            {ticks.map((seconds) => (
              <span key={seconds} style={{ left: at(seconds) }}>
                {seconds === 0 ? "0" : duration(seconds)}
              </span>
            ))}
          </div>
        </div>
      </div>
      <details>
        <summary>{plural(trace.timeline.length, "event")} in words</summary>
        <div class="card-scroll" tabIndex={0} role="region" aria-label="Events">
          <table>
            <thead>
              <tr>
                <th scope="col" class="num">
                  At
                </th>
                <th scope="col">On</th>
                <th scope="col">What</th>
                <th scope="col">About</th>
              </tr>
            </thead>
            <tbody>
              {trace.timeline.map((row, index) => (
                <tr key={index}>
                  <td class="num">{duration(row.at_s)}</td>
                  <td>{row.where}</td>
                  <td>{row.what.replaceAll("_", " ")}</td>
                  <td>{[row.node, row.detail].filter(Boolean).join(": ") || NONE}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </Card>
  );
}
