// What a model says, as elements. marked cuts the text into tokens; what becomes of each is decided here, and nothing
// becomes markup by itself: HTML in a text stays text, images are links, and links lead to the web or to mail only.

import { Lexer, type Token, type Tokens } from "marked";
import type { ComponentChildren, VNode } from "preact";
import { useMemo } from "preact/hooks";
import { CopyButton } from "../../ui/copy";

/** Longer texts are shown as they are: the lexer's time may grow with the square of a text's length. */
export const MAX_CHARS = 60_000;
const MAX_DEPTH = 24;
const MAX_TOKENS = 20_000;

export function Markdown({ text }: { text: string }) {
  const shown = useMemo(() => rendered(text), [text]);
  return <div class="markdown">{shown}</div>;
}

/** The elements of a text; the text itself where it cannot be understood. */
export function rendered(text: string): ComponentChildren {
  if (text.length > MAX_CHARS) return plain(text);
  try {
    const tokens = new Lexer({ gfm: true, breaks: true }).lex(text);
    return blocks(tokens, 0, { left: MAX_TOKENS, depths: depthsOf(tokens) });
  } catch {
    return plain(text); // too deep, too many, or a fault of the lexer
  }
}

function plain(text: string): VNode {
  return <pre class="plain">{text}</pre>;
}

interface Budget {
  left: number;
  /** Of headings, those that occur, in order. */
  depths: readonly number[];
}

function depthsOf(tokens: readonly Token[]): number[] {
  const found = tokens.flatMap((token) => (token.type === "heading" ? [Number((token as Tokens.Heading).depth)] : []));
  return [...new Set(found)].sort((a, b) => a - b);
}

function spend(budget: Budget, depth: number): void {
  if (--budget.left < 0 || depth > MAX_DEPTH) throw new RangeError("a text of too many parts");
}

function blocks(tokens: readonly Token[], depth: number, budget: Budget): ComponentChildren[] {
  return tokens.map((token, index) => block(token, index, depth, budget));
}

function block(given: Token, key: number, depth: number, budget: Budget): ComponentChildren {
  spend(budget, depth);
  const token = given as Tokens.Generic;
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading": {
      // Below the page's own heading, and none left out, whatever the model counts from.
      const place = Math.max(0, budget.depths.indexOf(Number(token["depth"])));
      const Level = `h${Math.min(6, place + 2)}` as "h2";
      return <Level key={key}>{inline(token, depth, budget)}</Level>;
    }
    case "paragraph":
      return <p key={key}>{inline(token, depth, budget)}</p>;
    case "text":
      return <span key={key}>{inline(token, depth, budget)}</span>;
    case "code":
      return <Code key={key} text={String(token["text"])} language={language(token["lang"])} />;
    case "blockquote":
      return <blockquote key={key}>{blocks(token.tokens ?? [], depth + 1, budget)}</blockquote>;
    case "hr":
      return <hr key={key} />;
    case "list":
      return list(token as unknown as Tokens.List, key, depth, budget);
    case "table":
      return table(token as unknown as Tokens.Table, key, depth, budget);
    default: // "html", and what a later version of the lexer may find
      return <p key={key}>{token.raw}</p>;
  }
}

function list(token: Tokens.List, key: number, depth: number, budget: Budget): VNode {
  const items = token.items.map((item, index) => {
    spend(budget, depth);
    return (
      <li key={index}>
        {item.task && <input type="checkbox" checked={item.checked === true} disabled aria-label="done" />}
        {blocks(
          item.tokens.filter((part) => part.type !== "checkbox"),
          depth + 1,
          budget,
        )}
      </li>
    );
  });
  if (!token.ordered) return <ul key={key}>{items}</ul>;
  const start = Number(token.start);
  return (
    <ol key={key} start={Number.isSafeInteger(start) && Math.abs(start) < 1e6 ? start : 1}>
      {items}
    </ol>
  );
}

function table(token: Tokens.Table, key: number, depth: number, budget: Budget): VNode {
  const cell = (part: Tokens.TableCell): ComponentChildren => inline(part as unknown as Tokens.Generic, depth, budget);
  return (
    <div key={key} class="table-scroll" tabIndex={0} role="region" aria-label="Table">
      <table>
        <thead>
          <tr>
            {token.header.map((part, index) => (
              <th key={index} scope="col" class={part.align === "right" ? "num" : undefined}>
                {cell(part)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row, index) => (
            <tr key={index}>
              {row.map((part, at) => (
                <td key={at} class={part.align === "right" ? "num" : undefined}>
                  {cell(part)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** What is inside of a line. */
function inline(token: Tokens.Generic, depth: number, budget: Budget): ComponentChildren {
  if (!token.tokens?.length) return unescaped(String(token["text"] ?? token.raw ?? ""));
  return token.tokens.map((part, index) => piece(part, index, depth + 1, budget));
}

function piece(given: Token, key: number, depth: number, budget: Budget): ComponentChildren {
  spend(budget, depth);
  const token = given as Tokens.Generic;
  switch (token.type) {
    case "text":
    case "escape":
      return token.tokens?.length ? <span key={key}>{inline(token, depth, budget)}</span> : unescaped(String(token["text"]));
    case "strong":
      return <strong key={key}>{inline(token, depth, budget)}</strong>;
    case "em":
      return <em key={key}>{inline(token, depth, budget)}</em>;
    case "del":
      return <del key={key}>{inline(token, depth, budget)}</del>;
    case "codespan":
      return <code key={key}>{String(token["text"])}</code>;
    case "br":
      return <br key={key} />;
    case "link":
      return (
        <Link key={key} to={String(token["href"] ?? "")}>
          {inline(token, depth, budget)}
        </Link>
      );
    case "image": // shown only when the person follows it: fetching it would tell its host of this conversation
      return (
        <Link key={key} to={String(token["href"] ?? "")}>
          {`image: ${String(token["text"] || token["href"] || "")}`}
        </Link>
      );
    case "checkbox":
      return null;
    default:
      return token.raw;
  }
}

const ENTITIES: ReadonlyMap<string, string> = new Map([
  ["&amp;", "&"],
  ["&lt;", "<"],
  ["&gt;", ">"],
  ["&quot;", '"'],
  ["&#39;", "'"],
]);

/** The lexer leaves the five entities alone; as a text node they would be shown as they are. */
function unescaped(text: string): string {
  return text.replace(/&(?:amp|lt|gt|quot|#39);/g, (found) => ENTITIES.get(found) ?? found);
}

function Link({ to, children }: { to: string; children: ComponentChildren }) {
  const safe = address(to);
  if (!safe) return <>{children}</>;
  return (
    <a href={safe} target="_blank" rel="noopener noreferrer nofollow" title={safe}>
      {children}
    </a>
  );
}

/** The address, if it leads to where a model may send a person; empty otherwise. */
export function address(to: string): string {
  let url: URL;
  try {
    url = new URL(unescaped(to)); // without a base: what is relative would lead into this node's own API
  } catch {
    return "";
  }
  return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : "";
}

function language(given: unknown): string {
  const word = typeof given === "string" ? (given.trim().split(/\s/)[0] ?? "") : "";
  return word.slice(0, 30);
}

function Code({ text, language }: { text: string; language: string }) {
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "text"}</span>
        <CopyButton text={text} />
      </figcaption>
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
    </figure>
  );
}
