// A value that components watch. No library: this is all that the pages need of one.

import { useLayoutEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(next: T): void;
  update(change: (now: T) => T): void;
  /** Calls `listener` after each change; returns what ends that. */
  subscribe(listener: () => void): () => void;
}

export function createStore<T>(initial: T): Store<T> {
  let value = initial;
  const listeners = new Set<() => void>();
  const store: Store<T> = {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const listener of [...listeners]) listener();
    },
    update: (change) => store.set(change(value)),
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
  return store;
}

/** What `select` makes of the store's value; renders again only when that changes. Let it return parts, not new objects. */
export function useStore<T>(store: Store<T>): T;
export function useStore<T, S>(store: Store<T>, select: (value: T) => S): S;
export function useStore<T, S>(store: Store<T>, select?: (value: T) => S): S | T {
  const pick = select ?? ((value: T): S | T => value);
  const now = pick(store.get());
  const [, redraw] = useState<unknown>(undefined);
  useLayoutEffect(() => {
    let shown: S | T = now;
    const look = (): void => {
      const next = pick(store.get());
      if (Object.is(next, shown)) return;
      shown = next;
      redraw({});
    };
    look();
    return store.subscribe(look);
  });
  return now;
}
