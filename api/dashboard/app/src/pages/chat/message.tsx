// One message of a conversation.

import { memo } from "./memo";
import { count, duration, rate } from "../../format";
import { CopyButton } from "../../ui/copy";
import { Markdown } from "./markdown";
import type { Message } from "./store";

export const MessageView = memo(function MessageView({ message, running = false }: { message: Message; running?: boolean }) {
  if (message.role === "user") {
    return (
      <article class="message user" aria-label="You">
        {message.images?.map((url, index) => <img key={index} src={url} alt={`Attached image ${index + 1}`} />)}
        {message.imagesGone ? <p class="muted small">{message.imagesGone} attached, not kept</p> : null}
        <div class="said">{message.text}</div>
      </article>
    );
  }
  const waiting = running && !message.text && !message.reasoning;
  return (
    <article class="message answer" aria-label="Answer">
      {message.reasoning && (
        <details class="thought" open={running && !message.text}>
          <summary class="small muted">Thought</summary>
          <div class="said">{message.reasoning}</div>
        </details>
      )}
      {message.text && <Markdown text={message.text} />}
      {waiting && (
        <p class="muted waiting" role="status">
          {message.node ? `${message.node} reads the prompt …` : "Waiting for a node …"}
        </p>
      )}
      {message.error && (
        <p class="message-error" role="alert">
          {message.error}
        </p>
      )}
      <footer class="muted small">
        {message.node && (
          <span title="The node that answered">
            <span class="hidden-text">Answered by </span>
            <strong>{message.node}</strong>
          </span>
        )}
        {message.tokensPerS != null && <span>{rate(message.tokensPerS)}</span>}
        {message.firstS != null && <span title="Time to the first token">first after {duration(message.firstS)}</span>}
        {!running && message.tokens != null && <span>{count(message.tokens)} tokens</span>}
        {message.finish === "length" && <span>cut at the limit</span>}
        {message.finish === "stopped" && <span>stopped</span>}
        {!running && message.text && <CopyButton text={message.text} />}
      </footer>
    </article>
  );
});
