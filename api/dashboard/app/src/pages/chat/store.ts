// The conversations: in this browser only, a bounded number of them. What is read back is looked at like a stranger's.

import { createStore } from "../../state/store";

export const MAX_CHATS = 40;
export const MAX_MESSAGES = 400; // of one conversation
const MAX_CHARS = 2_500_000; // of all, as kept: browsers give a page some five million
const NAME = "mesh.chats.1";

export interface Settings {
  model: string;
  /** The only node that may answer; empty: the swarm chooses. */
  node: string;
  system: string;
  temperature: number | null;
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
}

export interface Message {
  role: "user" | "assistant";
  text: string;
  reasoning?: string;
  /** data: addresses. They are not kept: a few of them would fill what a browser grants. */
  images?: readonly string[];
  imagesGone?: number;
  node?: string;
  tokensPerS?: number;
  tokens?: number;
  firstS?: number;
  finish?: string;
  error?: string;
}

export interface Chat {
  id: string;
  messages: readonly Message[];
  settings: Settings;
}

export interface Chats {
  /** The one used last first. */
  list: readonly Chat[];
  /** Nothing could be kept: the person is told. */
  unkept: boolean;
}

export const NO_SETTINGS: Settings = {
  model: "",
  node: "",
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
};

export function newChat(settings: Settings): Chat {
  return { id: newId(), messages: [], settings };
}

let made = 0;
function newId(): string {
  // crypto.randomUUID is not there on a page of plain HTTP from another machine.
  const random = crypto.getRandomValues(new Uint32Array(2));
  return `${random[0]?.toString(36)}${random[1]?.toString(36)}${(made++).toString(36)}`;
}

/** A conversation in a few words: how it begins. */
export function titleOf(chat: Chat): string {
  const first = chat.messages.find((message) => message.role === "user");
  const text = first?.text.trim().replace(/\s+/g, " ") ?? "";
  if (text) return text.length > 60 ? `${text.slice(0, 57).trimEnd()}…` : text;
  return first?.images?.length || first?.imagesGone ? "An image" : "New conversation";
}

// -- what changes the list; pure --

export function put(list: readonly Chat[], chat: Chat): Chat[] {
  const kept = chat.messages.length > MAX_MESSAGES ? { ...chat, messages: chat.messages.slice(-MAX_MESSAGES) } : chat;
  return [kept, ...list.filter(({ id }) => id !== chat.id)].slice(0, MAX_CHATS);
}

export function without(list: readonly Chat[], id: string): Chat[] {
  return list.filter((chat) => chat.id !== id);
}

// -- what is kept --

/** As text, the oldest left out where all are too many; conversations without a word are not kept. */
export function packed(list: readonly Chat[], limit = MAX_CHARS): string {
  const parts: string[] = [];
  let size = 2;
  for (const chat of list) {
    if (!chat.messages.length) continue;
    const messages = chat.messages.map(({ images, ...message }) =>
      images?.length ? { ...message, imagesGone: images.length } : message,
    );
    const part = JSON.stringify({ ...chat, messages });
    if (size + part.length + 1 > limit) break;
    size += part.length + 1;
    parts.push(part);
  }
  return `[${parts.join(",")}]`;
}

/** The conversations in a text; what is none is left out. */
export function unpacked(text: string | null): Chat[] {
  let found: unknown;
  try {
    found = JSON.parse(text ?? "[]");
  } catch {
    return [];
  }
  if (!Array.isArray(found)) return [];
  return found.flatMap((one) => chatOf(one) ?? []).slice(0, MAX_CHATS);
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
const text = (value: unknown): string => (typeof value === "string" ? value : "");
const number = (value: unknown): number | null => (typeof value === "number" && Number.isFinite(value) ? value : null);

function chatOf(value: unknown): Chat | null {
  if (!isRecord(value) || typeof value["id"] !== "string" || !Array.isArray(value["messages"])) return null;
  const settings = isRecord(value["settings"]) ? value["settings"] : {};
  return {
    id: value["id"],
    messages: value["messages"].flatMap((one) => messageOf(one) ?? []).slice(-MAX_MESSAGES),
    settings: {
      model: text(settings["model"]),
      node: text(settings["node"]),
      system: text(settings["system"]),
      temperature: number(settings["temperature"]),
      topP: number(settings["topP"]),
      maxTokens: number(settings["maxTokens"]),
      seed: number(settings["seed"]),
    },
  };
}

function messageOf(value: unknown): Message | null {
  if (!isRecord(value) || typeof value["text"] !== "string") return null;
  if (value["role"] !== "user" && value["role"] !== "assistant") return null;
  const message: Message = { role: value["role"], text: value["text"] };
  for (const name of ["reasoning", "node", "finish", "error"] as const) {
    if (typeof value[name] === "string") message[name] = value[name];
  }
  for (const name of ["tokensPerS", "tokens", "firstS", "imagesGone"] as const) {
    const found = number(value[name]);
    if (found !== null) message[name] = found;
  }
  return message;
}

function load(): Chats {
  try {
    return { list: unpacked(localStorage.getItem(NAME)), unkept: false };
  } catch {
    return { list: [], unkept: true };
  }
}

export const chats = createStore<Chats>(load());

/** Change the list and keep it. */
export function change(make: (list: readonly Chat[]) => Chat[]): void {
  const list = make(chats.get().list);
  chats.set({ list, unkept: !keep(list) });
}

function keep(list: readonly Chat[]): boolean {
  for (let limit = MAX_CHARS; limit > 10_000; limit /= 2) {
    try {
      const all = packed(list, limit);
      if (all === "[]") localStorage.removeItem(NAME);
      else localStorage.setItem(NAME, all);
      return true;
    } catch {
      // Full: with fewer of them, perhaps.
    }
  }
  return false;
}
