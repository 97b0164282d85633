// A text to take along, and the button that does it.

import { useEffect, useState } from "preact/hooks";
import { CopyIcon } from "./icons";
import { Button } from "./parts";
import { say } from "./toast";

/** Whether it is in the clipboard now. Over plain HTTP from another machine browsers have no clipboard to write to. */
export async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text: string): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.setAttribute("readonly", "");
  area.className = "hidden-text";
  // Inside an open dialogue nothing outside of it can be selected.
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  } finally {
    area.remove();
  }
}

export function CopyButton({ text, label = "Copy" }: { text: string; label?: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = async (): Promise<void> => {
    if (await copyText(text)) setCopied(true);
    else say("This browser does not let the page copy; select the text and copy it yourself.", "bad");
  };
  return (
    <Button small onClick={() => void copy()}>
      <CopyIcon />
      {copied ? "Copied" : label}
    </Button>
  );
}

/** A command line with its button. `shown` is what is seen in place of a secret. */
export function Command({ text, shown }: { text: string; shown?: string }) {
  return (
    <div class="command">
      <pre tabIndex={0}>
        <code>{shown ?? text}</code>
      </pre>
      <CopyButton text={text} />
    </div>
  );
}
