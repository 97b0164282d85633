// Asks for the API key when the node wants one. The page below stays as it is.

import { useState } from "preact/hooks";
import { dismissPrompt, giveKey, key } from "../state/key";
import { useStore } from "../state/store";
import { Dialog } from "./dialog";
import { Button, Notice } from "./parts";

export function KeyPrompt() {
  const { asking, refused } = useStore(key);
  const [value, setValue] = useState("");
  const [remember, setRemember] = useState(false);
  if (!asking) return null;
  return (
    <Dialog title="This node asks for an API key" onClose={dismissPrompt}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const given = value.trim();
          if (!given) return;
          setValue("");
          giveKey(given, remember);
        }}
      >
        {refused && <Notice tone="bad">The key that this page had is not, or no longer, accepted.</Notice>}
        <p class="muted">
          Whoever runs this node has set one (<code>MESH_API_KEYS</code>, or <code>api_keys</code> in its settings). It
          is sent to this node and to nobody else.
        </p>
        <label class="field">
          <span>API key</span>
          <input
            class="input"
            type="password"
            name="api-key"
            autocomplete="off"
            spellcheck={false}
            value={value}
            autoFocus
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        </label>
        <label class="check">
          <input type="checkbox" checked={remember} onChange={(event) => setRemember(event.currentTarget.checked)} />
          <span>Keep it in this browser; otherwise it is forgotten with this tab</span>
        </label>
        <div class="actions end">
          <Button onClick={dismissPrompt}>Not now</Button>
          <Button look="primary" type="submit" disabled={!value.trim()}>
            Use key
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
