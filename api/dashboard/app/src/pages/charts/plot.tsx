// A chart by uPlot, in the page's colours; beside it, what it says in words and as a table.

import "uplot/dist/uPlot.min.css";
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { duration } from "../../format";
import { useStore } from "../../state/store";
import { theme } from "../../state/theme";
import { Card } from "../../ui/parts";
import { figures, type Line } from "./series";

const HEIGHT = 180;

export interface Shown {
  name: string;
  line: Line;
  /** Number of the colour, from 1. */
  colour: number;
  dashed?: boolean;
}

interface PlotProps {
  title: string;
  x: readonly number[];
  lines: readonly Shown[];
  /** A value as text, with its unit. */
  format: (value: number | null) => string;
  about?: string;
}

export function Plot({ title, x, lines, format, about }: PlotProps) {
  const [at, setAt] = useState<number | null>(null); // where the pointer is
  return (
    <Card
      title={title}
      class="chart"
      actions={<span class="muted small">{at === null ? "now" : `${ago(x[at] ?? 0)}${at < x.length - 1 ? " ago" : ""}`}</span>}
    >
      <ul class="chart-figures">
        {lines.map(({ name, line, colour, dashed }) => {
          const { now, most } = figures(line);
          return (
            <li key={name}>
              <span class={`line-mark series-${colour - 1} ${dashed ? "dashed" : ""}`} aria-hidden="true" />
              <span class="muted small">{name}</span>
              <strong>{format(at === null ? now : (line[at] ?? null))}</strong>
              <span class="muted small">at most {format(most)}</span>
            </li>
          );
        })}
      </ul>
      <Canvas x={x} lines={lines} format={format} point={setAt} />
      {about && <p class="muted small">{about}</p>}
      <details>
        <summary class="small">As a table</summary>
        <div class="chart-table" tabIndex={0} role="region" aria-label={`${title} as a table`}>
          <Table title={title} x={x} lines={lines} format={format} />
        </div>
      </details>
    </Card>
  );
}

const EACH = 12; // a row a minute: what is read, not looked at

function Table({ title, x, lines, format }: PlotProps) {
  const places = x.map((_, index) => x.length - 1 - index).filter((_, index) => index % EACH === 0);
  return (
    <table>
      <caption class="hidden-text">{title}</caption>
      <thead>
        <tr>
          <th scope="col">Ago</th>
          {lines.map(({ name }) => (
            <th key={name} scope="col" class="num">
              {name}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {places.map((place) => (
          <tr key={place}>
            <th scope="row">{ago(x[place] ?? 0)}</th>
            {lines.map(({ name, line }) => (
              <td key={name} class="num">
                {format(line[place] ?? null)}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

const ago = (seconds: number): string => (seconds >= 0 ? "now" : duration(-seconds));

interface CanvasProps extends Pick<PlotProps, "x" | "lines" | "format"> {
  /** The pointer is at that place of the lines, or nowhere. */
  point: (at: number | null) => void;
}

function Canvas({ x, lines, format, point }: CanvasProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const look = useRef({ x, lines, format, point });
  look.current = { x, lines, format, point };
  const colours = useStore(theme);
  const names = lines.map(({ name }) => name).join("\n");
  useEffect(() => {
    const element = box.current;
    if (!element) return undefined;
    const make = (): void => {
      plot.current?.destroy();
      const data = [look.current.x, ...look.current.lines.map(({ line }) => line)] as uPlot.AlignedData;
      plot.current = new uPlot(options(element, look), data, element);
    };
    make();
    const size = new ResizeObserver(() => {
      if (element.clientWidth) plot.current?.setSize({ width: element.clientWidth, height: HEIGHT });
    });
    size.observe(element);
    // A canvas does not hear of it when the system changes between light and dark.
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    return () => {
      dark.removeEventListener("change", make);
      size.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [colours, names]);
  useEffect(() => {
    plot.current?.setData([x, ...lines.map(({ line }) => line)] as uPlot.AlignedData);
  }, [x, lines]);
  return <div ref={box} class="plot" aria-hidden="true" />;
}

/** A colour of tokens.css as a canvas takes it: `light-dark()` is reckoned by the browser, for an element. */
function colourOf(element: HTMLElement, name: string): string {
  const probe = document.createElement("span"); // a new one each: a change of an old one's colour may take its time
  probe.style.color = `var(${name})`;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function options(element: HTMLElement, look: { current: CanvasProps }): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string): string => colourOf(element, name);
  const muted = colour("--muted");
  const grid = { stroke: colour("--line"), width: 1 };
  const font = `12px ${style.fontFamily}`;
  const series: uPlot.Series[] = look.current.lines.map(({ name, colour: number, dashed }) => ({
    label: name,
    stroke: colour(`--series-${number}`),
    width: 1.75,
    ...(dashed ? { dash: [5, 4] } : {}),
    points: { show: false },
  }));
  return {
    width: Math.max(100, element.clientWidth),
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
    legend: { show: false },
    hooks: { setCursor: [(plot) => look.current.point(plot.cursor.idx ?? null)] },
    scales: {
      x: { time: false, range: (_, low, high) => [Math.min(low, high - 1), high] },
      y: { range: (_, __, high) => [0, high > 0 ? high * 1.08 : 1] },
    },
    series: [{}, ...series],
    axes: [
      {
        stroke: muted,
        font,
        grid,
        ticks: grid,
        splits: (_, __, low) => [-900, -600, -300, 0].filter((value) => value >= low - 10),
        values: (_, values) => values.map((value) => (value === 0 ? "now" : `${-value / 60} min`)),
      },
      {
        stroke: muted,
        font,
        grid,
        ticks: { show: false },
        size: 56,
        values: (_, values) => values.map((value) => (value === 0 ? "0" : look.current.format(value).replace(/ tok\/s$/, ""))),
      },
    ],
  };
}
