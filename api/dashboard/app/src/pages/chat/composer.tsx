// Where a person writes: Enter sends, Shift and Enter begin a line. Images only for a model that sees.

import { useEffect, useRef, useState } from "preact/hooks";
import { Button } from "../../ui/parts";
import { say } from "../../ui/toast";
import { stop } from "./answer";

const MAX_IMAGES = 4;
const MAX_IMAGE_BYTES = 3 << 20; // the node takes bodies of 15 MiB, and base64 adds a third
const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];

interface ComposerProps {
  /** An answer is being made, here or in another conversation. */
  busy: boolean;
  /** It is made here. */
  here: boolean;
  sees: boolean;
  disabled: boolean;
  send: (text: string, images: readonly string[]) => void;
}

export function Composer({ busy, here, sees, disabled, send }: ComposerProps) {
  const [text, setText] = useState("");
  const [images, setImages] = useState<readonly string[]>([]);
  const area = useRef<HTMLTextAreaElement>(null);
  const file = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const element = area.current;
    if (!element) return;
    element.style.height = "auto";
    element.style.height = `${Math.min(element.scrollHeight + 2, 240)}px`;
  }, [text]);
  const ready = !busy && !disabled && (text.trim() !== "" || images.length > 0);
  const go = (): void => {
    if (!ready) return;
    send(text, sees ? images : []);
    setText("");
    setImages([]);
  };
  const attach = async (files: Iterable<File>): Promise<void> => {
    for (const one of files) {
      if (!TYPES.includes(one.type)) say(`${one.name} is no image that a model takes: PNG, JPEG, WebP or GIF.`, "bad");
      else if (one.size > MAX_IMAGE_BYTES) say(`${one.name} is larger than 3 MiB.`, "bad");
      else {
        const url = await dataUrl(one);
        setImages((now) => [...now, url].slice(0, MAX_IMAGES));
      }
    }
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        go();
      }}
    >
      {images.length > 0 && sees && (
        <ul class="attached">
          {images.map((url, index) => (
            <li key={index}>
              <img src={url} alt={`Image ${index + 1}`} />
              <button
                type="button"
                aria-label={`Remove image ${index + 1}`}
                onClick={() => setImages((now) => now.filter((_, other) => other !== index))}
              >
                ×
              </button>
            </li>
          ))}
        </ul>
      )}
      <textarea
        ref={area}
        class="input"
        rows={1}
        aria-label="Message"
        placeholder={disabled ? "No model of the swarm can chat" : "Message"}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          go();
        }}
        onPaste={(event) => {
          const files = [...(event.clipboardData?.files ?? [])];
          if (!sees || !files.length) return;
          event.preventDefault();
          void attach(files);
        }}
      />
      <div class="composer-buttons">
        {sees && (
          <>
            <input
              ref={file}
              type="file"
              class="hidden-text"
              accept={TYPES.join(",")}
              multiple
              tabIndex={-1}
              aria-hidden="true"
              onChange={(event) => {
                void attach([...(event.currentTarget.files ?? [])]);
                event.currentTarget.value = "";
              }}
            />
            <Button look="quiet" onClick={() => file.current?.click()} disabled={images.length >= MAX_IMAGES}>
              Image
            </Button>
          </>
        )}
        {here ? (
          <Button onClick={stop}>Stop</Button>
        ) : (
          <button type="submit" class="button primary" disabled={!ready}>
            Send
          </button>
        )}
      </div>
    </form>
  );
}

function dataUrl(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error ?? new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}
