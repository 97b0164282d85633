// The pages: add one here, and it is in the navigation and has an address.

import type { ComponentType } from "preact";
import { AddPage } from "./pages/add";
import { ChartsPage } from "./pages/charts";
import { ChatPage } from "./pages/chat";
import { ModelsPage } from "./pages/models";
import { RequestsPage } from "./pages/requests";
import { SwarmPage } from "./pages/swarm";
import { AddIcon, ChartsIcon, ChatIcon, ModelsIcon, RequestsIcon, SwarmIcon } from "./ui/icons";

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
  { id: "requests", title: "Requests", icon: RequestsIcon, page: RequestsPage },
  { id: "models", title: "Models", icon: ModelsIcon, page: ModelsPage },
  { id: "chat", title: "Chat", icon: ChatIcon, page: ChatPage },
  { id: "charts", title: "Charts", icon: ChartsIcon, page: ChartsPage },
  { id: "add", title: "Add", icon: AddIcon, page: AddPage },
];
