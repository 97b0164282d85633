// The pages: add one here, and it is in the navigation and has an address.

import type { ComponentType } from "preact";
import { AddPage } from "./pages/add";
import { SwarmPage } from "./pages/swarm";
import { AddIcon, SwarmIcon } from "./ui/icons";

export interface PageEntry {
  /** Its part of the address: "#/swarm". */
  id: string;
  /** In the navigation; short, it has to fit below an icon on a telephone. */
  title: string;
  icon: ComponentType;
  page: ComponentType;
}

export const PAGES: readonly PageEntry[] = [
  { id: "swarm", title: "Swarm", icon: SwarmIcon, page: SwarmPage },
  { id: "add", title: "Add", icon: AddIcon, page: AddPage },
];
