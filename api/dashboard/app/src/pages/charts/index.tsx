// The last quarter of an hour, of one node or of the swarm.

import "../../styles/figures.css";
import "./charts.css";
import { useEffect, useMemo, useState } from "preact/hooks";
import { ApiError, getJson, told } from "../../api/client";
import type { Charts, NodeChart } from "../../api/types";
import { count, duration, NONE, rate } from "../../format";
import { go, href, useRoute } from "../../router";
import { Button, Card, Empty, Notice, Page } from "../../ui/parts";
import { Plot } from "./plot";
import { chosen, figures, perMinute, series } from "./series";

const REFRESH_MS = 5000;

export function ChartsPage() {
  const id = useRoute().rest[0] ?? "";
  const [charts, problem, again] = useCharts();
  const nodes = charts ? chosen(charts, id) : [];
  const lines = useMemo(() => charts && series(chosen(charts, id), charts.step_s, charts.span_s), [charts, id]);
  const finished = useMemo(() => (lines && charts ? perMinute(lines.finished, charts.step_s) : []), [lines, charts]);
  const failed = useMemo(() => (lines && charts ? perMinute(lines.failed, charts.step_s) : []), [lines, charts]);
  const gone = charts !== null && id !== "" && nodes.length !== 1;
  return (
    <Page
      title="Charts"
      about="The last 15 minutes. Tokens and slots are those of a node's own engines; requests are those that entered there."
      actions={
        charts && (
          <label class="chooser">
            <span class="small">Show</span>
            <select class="input" value={gone ? "" : id} onChange={(event) => go("charts", ...[event.currentTarget.value].filter(Boolean))}>
              <option value="">The whole swarm</option>
              {charts.nodes.map((node) => (
                <option key={node.id} value={node.id}>
                  {node.name}
                </option>
              ))}
            </select>
          </label>
        )
      }
    >
      {problem && (
        <Notice tone="bad" actions={<Button onClick={again}>Try again</Button>}>
          {problem}
        </Notice>
      )}
      {gone && <Notice tone="warn">That node is gone; the whole swarm is shown.</Notice>}
      {!charts && !problem && <Empty title="Asking the nodes …" />}
      {charts && lines && (
        <>
          {nodes.every((node) => !node.samples) && (
            <Notice>There is nothing to draw yet: a node takes a sample each {charts.step_s} s.</Notice>
          )}
          <div class="charts">
            <Plot
              title="Tokens"
              x={lines.x}
              format={rate}
              lines={[
                { name: "answers", line: lines.decode_tokens_per_s, colour: 1 },
                { name: "prompts", line: lines.prefill_tokens_per_s, colour: 2, dashed: true },
              ]}
            />
            <Plot
              title="Time to first token"
              x={lines.x}
              format={duration}
              about="Of the requests of the minute before."
              lines={[
                { name: "half of them within", line: lines.p50, colour: 1 },
                { name: "95 of 100 within", line: lines.p95, colour: 2, dashed: true },
              ]}
            />
            <Plot
              title="Requests"
              x={lines.x}
              format={whole}
              lines={[
                { name: "running", line: lines.running, colour: 1 },
                { name: "answered a minute", line: finished, colour: 3, dashed: true },
                { name: "failed a minute", line: failed, colour: 2 },
              ]}
            />
            <Plot
              title="Slots and queue"
              x={lines.x}
              format={whole}
              lines={[
                { name: "slots used", line: lines.slots_used, colour: 3 },
                { name: "waiting", line: lines.queued, colour: 2, dashed: true },
              ]}
            />
          </div>
          {charts.nodes.length > 1 && <ByNode charts={charts} />}
        </>
      )}
    </Page>
  );
}

const whole = (value: number | null): string => (value === null ? NONE : count(value));

/** The charts, read while the page is seen; what is wrong with them; a function that asks again. */
function useCharts(): [Charts | null, string, () => void] {
  const [charts, setCharts] = useState<Charts | null>(null);
  const [problem, setProblem] = useState("");
  const [round, setRound] = useState(0);
  useEffect(() => {
    const control = new AbortController();
    let reading = false;
    const read = async (): Promise<void> => {
      if (reading || document.visibilityState !== "visible") return;
      reading = true;
      try {
        setCharts(await getJson<Charts>("/api/mesh/charts", control.signal));
        setProblem("");
      } catch (error) {
        if (control.signal.aborted) return;
        const solo = error instanceof ApiError && error.status === 404;
        setProblem(solo ? "This node takes part in no swarm, so it keeps no charts; `/metrics` has its figures." : told(error));
      } finally {
        reading = false;
      }
    };
    const seen = (): void => void read();
    void read();
    const timer = setInterval(seen, REFRESH_MS);
    document.addEventListener("visibilitychange", seen);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", seen);
      control.abort();
    };
  }, [round]);
  return [charts, problem, () => setRound((now) => now + 1)];
}

function ByNode({ charts }: { charts: Charts }) {
  return (
    <Card title="By node" flush>
      <table class="cards">
        <thead>
          <tr>
            <th scope="col">Node</th>
            <th scope="col" class="num">
              Answers
            </th>
            <th scope="col" class="num extra">
              At most
            </th>
            <th scope="col" class="num">
              Prompts
            </th>
            <th scope="col" class="num">
              Slots used
            </th>
            <th scope="col" class="num">
              Waiting
            </th>
            <th scope="col" class="num">
              First token
            </th>
            <th scope="col" class="num">
              Failed
            </th>
            <th scope="col" class="num extra">
              Running for
            </th>
          </tr>
        </thead>
        <tbody>
          {charts.nodes.map((node) => (
            <NodeRow key={node.id} node={node} charts={charts} />
          ))}
        </tbody>
      </table>
    </Card>
  );
}

function NodeRow({ node, charts }: { node: NodeChart; charts: Charts }) {
  const lines = useMemo(() => series([node], charts.step_s, charts.span_s), [node, charts]);
  const decode = figures(lines.decode_tokens_per_s);
  const failed = lines.failed.reduce<number>((sum, value) => sum + (value ?? 0), 0);
  return (
    <tr>
      <th scope="row">
        <a href={href("charts", node.id)}>{node.name}</a>
        {node.self && <span class="muted small"> this node</span>}
        {node.state !== "alive" && <span class="muted small"> {node.state}</span>}
      </th>
      <td data-name="Answers" class="num">
        {rate(decode.now)}
      </td>
      <td data-name="At most" class="num extra">
        {rate(decode.most)}
      </td>
      <td data-name="Prompts" class="num">
        {rate(figures(lines.prefill_tokens_per_s).now)}
      </td>
      <td data-name="Slots used" class="num">
        {whole(figures(lines.slots_used).now)}
      </td>
      <td data-name="Waiting" class="num">
        {whole(figures(lines.queued).now)}
      </td>
      <td data-name="First token" class="num">
        {duration(lines.p50.at(-1) ?? null)}
      </td>
      <td data-name="Failed" class="num">
        {count(node.samples ? failed : null)}
      </td>
      <td data-name="Running for" class="num extra">
        {duration(node.samples?.up_s)}
      </td>
    </tr>
  );
}
