// Asks, and keeps the conversation in step with what comes. It goes on while other pages are looked at.

import { told } from "../../api/client";
import { createStore } from "../../state/store";
import { change, chats, put, type Chat, type Message } from "./store";
import { ask, Rate } from "./stream";

const DRAW_MS = 60; // a fast model says hundreds of pieces a second; nobody reads so fast

/** The answer that is being made. */
export interface Running {
  chat: string;
  message: Message;
}

export const running = createStore<Running | null>(null);
let control: AbortController | null = null;

/** Stop it; what has come stays. */
export function stop(): void {
  control?.abort();
}

/** Let the model answer the last message of a conversation. */
export async function answer(chat: Chat): Promise<void> {
  if (control) return;
  const mine = (control = new AbortController());
  const began = performance.now();
  const rate = new Rate();
  const message: Message = { role: "assistant", text: "" };
  let timer: ReturnType<typeof setTimeout> | undefined;
  const show = (): void => {
    clearTimeout(timer);
    timer = undefined;
    running.set({ chat: chat.id, message: { ...message } });
  };
  show();
  try {
    for await (const piece of ask(chat.messages, chat.settings, mine.signal, (node) => node && (message.node = node))) {
      const now = performance.now();
      if (piece.text || piece.reasoning) {
        message.firstS ??= (now - began) / 1000;
        rate.note(now);
      }
      if (piece.text) message.text += piece.text;
      if (piece.reasoning) message.reasoning = (message.reasoning ?? "") + piece.reasoning;
      if (piece.finish) message.finish = piece.finish;
      if (piece.tokens !== undefined) message.tokens = piece.tokens;
      const perSecond = rate.perSecond(piece.tokens);
      if (perSecond !== null) message.tokensPerS = perSecond;
      timer ??= setTimeout(show, DRAW_MS);
    }
  } catch (error) {
    if (mine.signal.aborted) message.finish = "stopped";
    else message.error = told(error);
  } finally {
    clearTimeout(timer);
    control = null;
    running.set(null);
    // It may have been changed or deleted meanwhile: what is there now gets the answer.
    const now = chats.get().list.find(({ id }) => id === chat.id);
    if (now) change((list) => put(list, { ...now, messages: [...now.messages, message] }));
  }
}
