// The small pieces that every page is made of. Their looks are in styles/parts.css.

import type { ComponentChildren, JSX } from "preact";

export type Tone = "good" | "warn" | "bad" | "accent" | "idle";

type ButtonProps = JSX.IntrinsicElements["button"] & {
  look?: "plain" | "primary" | "danger" | "quiet";
  small?: boolean;
};

export function Button({ look = "plain", small = false, class: more, ...rest }: ButtonProps) {
  const names = ["button", look === "plain" ? "" : look, small ? "small" : "", typeof more === "string" ? more : ""];
  return <button type="button" class={names.filter(Boolean).join(" ")} {...rest} />;
}

/** A word with a colour: the word has to say it all. */
export function Badge({ tone = "idle", children }: { tone?: Tone; children: ComponentChildren }) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

interface CardProps {
  title?: ComponentChildren;
  /** Buttons beside the title. */
  actions?: ComponentChildren;
  /** A table that goes to the edges. */
  flush?: boolean;
  children: ComponentChildren;
  class?: string;
}

export function Card({ title, actions, flush = false, children, class: more = "" }: CardProps) {
  return (
    <section class={`card ${more}`}>
      {(title || actions) && (
        <header>
          {title && <h2>{title}</h2>}
          {actions}
        </header>
      )}
      <div class={flush ? "card-body flush" : "card-body"}>{children}</div>
    </section>
  );
}

interface PageProps {
  title: string;
  /** A sentence or two below it. */
  about?: ComponentChildren;
  actions?: ComponentChildren;
  children: ComponentChildren;
}

export function Page({ title, about, actions, children }: PageProps) {
  return (
    <div class="page">
      <div class="page-head">
        <div>
          <h1>{title}</h1>
          {about && <p>{about}</p>}
        </div>
        {actions && <div class="actions">{actions}</div>}
      </div>
      {children}
    </div>
  );
}

/** A share of something, 0 to 1. `label` is for those who do not see it. */
export function Meter({ share, label, tone }: { share: number; label: string; tone?: "warn" | "bad" }) {
  const part = Math.min(1, Math.max(0, Number.isFinite(share) ? share : 0));
  return (
    <span
      class={`meter ${tone ?? ""}`}
      role="meter"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(part * 100)}
    >
      <span style={{ width: `${part * 100}%` }} />
    </span>
  );
}

export function Facts({ children }: { children: ComponentChildren }) {
  return <dl class="facts">{children}</dl>;
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </>
  );
}

export function Notice({
  tone,
  children,
  actions,
}: {
  tone?: "warn" | "bad";
  children: ComponentChildren;
  actions?: ComponentChildren;
}) {
  return (
    <div class={`notice ${tone ?? ""}`} role={tone ? "alert" : "status"}>
      <div class="spread">{children}</div>
      {actions}
    </div>
  );
}

/** Where there is nothing to show yet: say why, and what would change that. */
export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}
