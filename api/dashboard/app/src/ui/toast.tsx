// Short messages that go by themselves; a screen reader reads them out.

import { createStore, useStore } from "../state/store";
import { told } from "../api/client";

interface Toast {
  id: number;
  text: string;
  tone: "good" | "bad" | "plain";
}

const SHOWN_MS = 6000;
const toasts = createStore<readonly Toast[]>([]);
let last = 0;

export function say(text: string, tone: Toast["tone"] = "plain"): void {
  const id = ++last;
  toasts.update((now) => [...now.slice(-3), { id, text, tone }]);
  setTimeout(() => toasts.update((now) => now.filter((toast) => toast.id !== id)), SHOWN_MS);
}

/** Tell of something that was thrown. What the person has cancelled is no news. */
export function sayError(error: unknown): void {
  if (error instanceof DOMException && error.name === "AbortError") return;
  say(told(error), "bad");
}

export function Toasts() {
  const shown = useStore(toasts);
  return (
    <div class="toasts" role="status" aria-live="polite">
      {shown.map((toast) => (
        <div key={toast.id} class={`toast ${toast.tone}`}>
          {toast.text}
        </div>
      ))}
    </div>
  );
}
