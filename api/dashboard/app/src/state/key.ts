// The API key: asked for when the node wants one, kept for this tab or (if the person says so) for this browser.

import { createStore } from "./store";

const NAME = "mesh.api-key";

export interface KeyState {
  value: string;
  /** The node has refused what we have: the prompt is shown. */
  asking: boolean;
  /** The person has closed the prompt: ask no more until they want to. */
  dismissed: boolean;
  /** Something was refused with the key that was given last. */
  refused: boolean;
}

function kept(): string {
  try {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

export const key = createStore<KeyState>({ value: kept(), asking: false, dismissed: false, refused: false });

/** What the person has typed. */
export function giveKey(value: string, remember: boolean): void {
  try {
    sessionStorage.setItem(NAME, value);
    if (remember) localStorage.setItem(NAME, value);
    else localStorage.removeItem(NAME);
  } catch {
    // Kept for this page alone.
  }
  key.set({ value, asking: false, dismissed: false, refused: false });
}

/** Forget it, here and in the browser. */
export function forgetKey(): void {
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
  } catch {
    // There was nothing.
  }
  key.set({ value: "", asking: false, dismissed: false, refused: false });
}

export function dismissPrompt(): void {
  key.update((now) => ({ ...now, asking: false, dismissed: true }));
}

export function openPrompt(): void {
  key.update((now) => ({ ...now, asking: true, dismissed: false }));
}

/** The node refused `used`: resolves when there is another key, rejects when the person does not want to give one. */
export function anotherKey(used: string, signal?: AbortSignal): Promise<void> {
  if (key.get().value !== used) return Promise.resolve();
  if (key.get().dismissed) return Promise.reject(new Error("no key"));
  key.update((now) => ({ ...now, asking: true, refused: used !== "" }));
  return new Promise((resolve, reject) => {
    const look = (): void => {
      const now = key.get();
      if (signal?.aborted) leave(() => reject(signal.reason));
      else if (now.value !== used) leave(resolve);
      else if (!now.asking) leave(() => reject(new Error("no key")));
    };
    const leave = (settle: () => void): void => {
      unsubscribe();
      signal?.removeEventListener("abort", look);
      settle();
    };
    const unsubscribe = key.subscribe(look);
    signal?.addEventListener("abort", look);
    look();
  });
}
