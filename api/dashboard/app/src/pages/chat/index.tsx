// Talk to a model of the swarm. Conversations stay in this browser.

import "./chat.css";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { getJson } from "../../api/client";
import { go, useRoute } from "../../router";
import { swarm } from "../../state/live";
import { useStore } from "../../state/store";
import { Button, Notice } from "../../ui/parts";
import { answer, running, stop } from "./answer";
import { chatModels, type ChatModel } from "./choice";
import { Composer } from "./composer";
import { MessageView } from "./message";
import { SettingsForm } from "./settings";
import { change, chats, newChat, NO_SETTINGS, put, titleOf, without, type Chat, type Message, type Settings } from "./store";

export function ChatPage() {
  const list = useStore(chats, (state) => state.list);
  const unkept = useStore(chats, (state) => state.unkept);
  const route = useRoute();
  const models = useModels();
  const id = route.rest[0];
  const [draft, setDraft] = useState<Chat>(() => newChat(list[0]?.settings ?? NO_SETTINGS));
  const chosen = list.find((chat) => chat.id === id);
  const wanted = route.query.get("model");
  useEffect(() => {
    if (wanted) setDraft((now) => newChat({ ...now.settings, model: wanted, node: "" }));
  }, [wanted]);
  const chat = chosen ?? draft;
  const known = models.find((model) => model.name === chat.settings.model);
  const model = known ?? (chat.settings.model ? undefined : models[0]);
  const settings: Settings = { ...chat.settings, model: chat.settings.model || (models[0]?.name ?? "") };
  const busy = useStore(running);

  const save = (changed: Chat): void => {
    if (chosen) change((all) => all.map((one) => (one.id === changed.id ? changed : one)));
    else setDraft(changed);
  };
  const say = (messages: readonly Message[]): void => {
    const next: Chat = { ...chat, messages, settings };
    change((all) => put(all, next));
    setDraft(newChat(settings));
    go("chat", next.id);
    void answer(next);
  };
  const start = (): void => {
    setDraft(newChat(settings));
    go("chat");
  };
  const remove = (gone: string): void => {
    if (busy?.chat === gone) stop();
    change((all) => without(all, gone));
    if (gone === chat.id) start();
  };
  return (
    <div class="chat">
      <h1 class="hidden-text">Chat</h1>
      <aside class="chat-side" aria-label="Conversations">
        <Button look="primary" onClick={start}>
          New conversation
        </Button>
        <Conversations list={list} chosen={chat.id} busy={busy?.chat} remove={remove} />
      </aside>
      <section class="chat-main" aria-label="Conversation">
        {unkept && <Notice tone="warn">This browser keeps nothing for the page: conversations are gone when it is closed.</Notice>}
        <Messages
          key={chat.id}
          chat={chat}
          partial={busy?.chat === chat.id ? busy.message : null}
          again={busy ? undefined : (messages) => say(messages)}
        />
        <Composer
          key={`${chat.id} composer`}
          busy={busy !== null}
          here={busy?.chat === chat.id}
          sees={model?.sees ?? false}
          disabled={!models.length && !settings.model}
          send={(text, images) => say([...chat.messages, { role: "user", text, ...(images.length ? { images } : {}) }])}
        />
      </section>
      <aside class="chat-settings" aria-label="Settings">
        <SettingsForm
          key={chat.id}
          settings={settings}
          models={models}
          model={model}
          change={(part) => save({ ...chat, settings: { ...settings, ...part } })}
        />
      </aside>
    </div>
  );
}

/** The models that chat; of a node without a swarm those that it lists. */
function useModels(): ChatModel[] {
  const view = useStore(swarm, (state) => state.view);
  const alone = useStore(swarm, (state) => state.link.kind === "refused" && state.link.status === 404);
  const [listed, setListed] = useState<ChatModel[]>([]);
  useEffect(() => {
    if (!alone) return undefined;
    const control = new AbortController();
    getJson<{ data: { id: string }[] }>("/v1/models", control.signal)
      .then(({ data }) => setListed(data.map(({ id }) => ({ name: id, nodes: [], loaded: false, sees: true }))))
      .catch(() => undefined); // the frame says that the node does not answer
    return () => control.abort();
  }, [alone]);
  return useMemo(() => (view ? chatModels(view) : listed), [view, listed]);
}

interface ConversationsProps {
  list: readonly Chat[];
  chosen: string;
  busy: string | undefined;
  remove: (id: string) => void;
}

function Conversations({ list, chosen, busy, remove }: ConversationsProps) {
  if (!list.length) return <p class="muted small">Conversations stay in this browser; no node keeps them.</p>;
  return (
    <ul class="chats">
      {list.map((chat) => {
        const title = titleOf(chat);
        return (
          <li key={chat.id}>
            <a href={`#/chat/${encodeURIComponent(chat.id)}`} aria-current={chat.id === chosen ? "page" : undefined}>
              {busy === chat.id && <span class="busy-dot" role="img" aria-label="is being answered" />}
              {title}
            </a>
            <button type="button" class="chat-delete" aria-label={`Delete the conversation ${title}`} onClick={() => remove(chat.id)}>
              ×
            </button>
          </li>
        );
      })}
    </ul>
  );
}

interface MessagesProps {
  chat: Chat;
  /** The answer that is being made. */
  partial: Message | null;
  again: ((messages: readonly Message[]) => void) | undefined;
}

function Messages({ chat, partial, again }: MessagesProps) {
  const box = useRef<HTMLDivElement>(null);
  const follow = useRef(true);
  const shown = chat.messages;
  useLayoutEffect(() => {
    // Who reads further up is left there.
    if (follow.current) box.current?.scrollTo({ top: box.current.scrollHeight });
  });
  const onScroll = (): void => {
    const { scrollHeight = 0, scrollTop = 0, clientHeight = 0 } = box.current ?? {};
    follow.current = scrollHeight - scrollTop - clientHeight < 60;
  };
  const last = shown.at(-1);
  const lastUser = shown.findLastIndex((message) => message.role === "user");
  return (
    <div
      class="messages"
      ref={box}
      onScroll={onScroll}
      role="log"
      aria-label="Messages"
      aria-busy={partial !== null}
      tabIndex={0}
    >
      {!shown.length && !partial && (
        <div class="welcome">
          <p>Ask something. The swarm chooses the node that will finish first, and says which it was.</p>
        </div>
      )}
      {shown.map((message, index) => (
        <MessageView key={index} message={message} />
      ))}
      {partial && <MessageView message={partial} running />}
      {!partial && again && last?.role === "assistant" && lastUser >= 0 && (
        <div class="message-again">
          <Button small look="quiet" onClick={() => again(shown.slice(0, lastUser + 1))}>
            {last.error ? "Try again" : "Answer again"}
          </Button>
        </div>
      )}
    </div>
  );
}
