// Where the page is, in the part of the address that the server never sees: "#/requests/some%2Fid?model=x".

import { createStore, useStore } from "./state/store";

export interface Route {
  /** The page's id. */
  page: string;
  /** What follows it, decoded. */
  rest: readonly string[];
  query: URLSearchParams;
}

export function parseHash(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [page = "", ...rest] = path.split("/").map(decoded);
  return { page, rest, query: new URLSearchParams(query) };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // an address that somebody typed
  }
}

/** The address of a page: href("requests", id). */
export function href(page: string, ...rest: string[]): string {
  return `#/${[page, ...rest].map(encodeURIComponent).join("/")}`;
}

export function go(page: string, ...rest: string[]): void {
  location.hash = href(page, ...rest);
}

const route = createStore<Route>(parseHash(typeof location === "undefined" ? "" : location.hash));
addEventListener("hashchange", () => route.set(parseHash(location.hash)));

export function useRoute(): Route {
  return useStore(route);
}
