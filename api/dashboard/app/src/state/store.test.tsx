import { render } from "preact";
import { act } from "preact/test-utils";
import { expect, test } from "vitest";
import { createStore, useStore } from "./store";

test("listeners hear of changes, not of the same value again", () => {
  const store = createStore(1);
  let heard = 0;
  const leave = store.subscribe(() => heard++);
  store.set(2);
  store.set(2);
  store.update((value) => value + 1);
  leave();
  store.set(9);
  expect(heard).toBe(2);
  expect(store.get()).toBe(9);
});

test("a component draws again only when its part has changed", () => {
  const store = createStore({ a: 1, b: 1 });
  let drawn = 0;
  function Part() {
    drawn++;
    return <b>{useStore(store, (value) => value.a)}</b>;
  }
  const root = document.createElement("div");
  act(() => render(<Part />, root));
  act(() => store.update((value) => ({ ...value, b: 2 })));
  expect(drawn).toBe(1);
  act(() => store.update((value) => ({ ...value, a: 2 })));
  expect([drawn, root.textContent]).toEqual([2, "2"]);
  act(() => render(null, root));
  act(() => store.update((value) => ({ ...value, a: 3 })));
  expect(drawn).toBe(2);
});

test("a change between drawing and watching is not lost", () => {
  const store = createStore(1);
  function Early() {
    const value = useStore(store);
    if (value === 1) store.set(2);
    return <b>{value}</b>;
  }
  const root = document.createElement("div");
  act(() => render(<Early />, root));
  expect(root.textContent).toBe("2");
});
