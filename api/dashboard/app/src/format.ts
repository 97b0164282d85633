// Numbers and times for people. Whatever is unknown is a dash.

export const NONE = "–";

/** 1.5 GiB */
export function bytes(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value) || value <= 0) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let index = 0;
  while (value >= 1024 && index < units.length - 1) {
    value /= 1024;
    index++;
  }
  return `${digits(value)} ${units[index]}`;
}

/** 850 µs, 12 ms, 3.4 s, 2 min 5 s, 3 h 20 min, 2 d 4 h */
export function duration(seconds: number | null | undefined): string {
  if (seconds == null || !Number.isFinite(seconds) || seconds < 0) return NONE;
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${digits(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return pair(whole, 60, "min", "s");
  if (whole < 86400) return pair(Math.round(whole / 60), 60, "h", "min");
  return pair(Math.round(whole / 3600), 24, "d", "h");
}

function pair(value: number, size: number, large: string, small: string): string {
  const rest = value % size;
  return `${Math.floor(value / size)} ${large}${rest ? ` ${rest} ${small}` : ""}`;
}

/** How long ago, without a precision that nobody has. */
export function ago(seconds: number | null | undefined): string {
  if (seconds == null || !Number.isFinite(seconds)) return NONE;
  if (seconds < 10) return "just now";
  return `${duration(Math.round(seconds))} ago`;
}

/** 12.3 tok/s; nothing measured is a dash. */
export function rate(perSecond: number | null | undefined): string {
  if (perSecond == null || !Number.isFinite(perSecond) || perSecond <= 0) return NONE;
  return `${digits(perSecond)} tok/s`;
}

export function percent(share: number | null | undefined): string {
  if (share == null || !Number.isFinite(share)) return NONE;
  if (share > 0 && share < 0.01) return "< 1 %";
  return `${Math.round(share * 100)} %`;
}

/** 12 345 */
export function count(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return NONE;
  return Math.round(value)
    .toString()
    .replace(/\B(?=(\d{3})+$)/g, "\u202F");
}

/** "1 node", "3 nodes" */
export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** An id, short enough to be read, long enough to be told from others. */
export function shortId(id: string): string {
  return id.length > 14 ? `${id.slice(0, 6)}…${id.slice(-6)}` : id;
}

/** Three figures at most: 0.12, 3.4, 56, 7890. */
function digits(value: number): string {
  if (value < 1) return String(Math.round(value * 100) / 100);
  if (value < 10) return String(Math.round(value * 10) / 10);
  return String(Math.round(value));
}
