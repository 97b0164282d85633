// Says so when what the page shows is no longer live.

import { retryNow, swarm } from "../state/live";
import { openPrompt } from "../state/key";
import { useStore } from "../state/store";
import { useSeconds } from "./clock";
import { Button, Notice } from "./parts";

export function ConnectionNotice() {
  const link = useStore(swarm, (state) => state.link);
  const seen = useStore(swarm, (state) => state.view !== null);
  const now = useSeconds();
  if (link.kind === "lost") {
    const wait = Math.ceil((link.retryAt - now) / 1000);
    return (
      <Notice tone="warn" actions={<Button small onClick={retryNow}>Try now</Button>}>
        <strong>Not connected.</strong> {link.why} {seen && "What you see is how it was last. "}
        {wait > 0 ? `Next attempt in ${wait} s.` : "Trying again …"}
      </Notice>
    );
  }
  if (link.kind === "refused") {
    if (link.status === 404) return <Notice>{link.why}</Notice>; // by choice: nothing is wrong
    const wantsKey = link.status === 401;
    return (
      <Notice tone="warn" actions={wantsKey && <Button small onClick={openPrompt}>Enter key</Button>}>
        <strong>{wantsKey ? "This node asks for an API key." : "This node does not answer this page."}</strong>{" "}
        {wantsKey ? "Nothing here is live without one." : link.why}
      </Notice>
    );
  }
  return null;
}
