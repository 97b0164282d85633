// How another machine becomes part of the swarm. The token is a password: it is fetched when somebody asks to see it.

import "./add.css";
import { useEffect, useState } from "preact/hooks";
import { ApiError, send } from "../api/client";
import { Command } from "../ui/copy";
import { Button, Card, Page } from "../ui/parts";
import { sayError } from "../ui/toast";

interface Token {
  text: string;
  /** Address of the picture, within this page. */
  picture: string;
}

type System = "linux" | "macos" | "here";
const SYSTEMS: readonly { id: System; title: string }[] = [
  { id: "linux", title: "Linux" },
  { id: "macos", title: "macOS" },
  { id: "here", title: "This machine" },
];
const HIDDEN = "mesh1…";

export function AddPage() {
  const [token, setToken] = useState<Token | null>(null);
  const [busy, setBusy] = useState(false);
  const [system, setSystem] = useState<System>(navigator.userAgent.includes("Mac OS") ? "macos" : "linux");
  useEffect(() => () => (token ? URL.revokeObjectURL(token.picture) : undefined), [token]);
  const show = async (): Promise<void> => {
    setBusy(true);
    try {
      setToken(await fetchToken());
    } catch (error) {
      sayError(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Page
      title="Add a machine"
      about="Machines that hold one join token are a swarm. Any of them answers for all; there is nothing else to set up."
    >
      <Card
        title="Join token"
        actions={
          token ? (
            <Button small onClick={() => setToken(null)}>
              Hide token
            </Button>
          ) : (
            <Button look="primary" onClick={() => void show()} disabled={busy}>
              Show token
            </Button>
          )
        }
      >
        {token ? (
          <div class="token">
            <img src={token.picture} alt="The join token as a QR code" width="208" height="208" />
            <div class="stack">
              <Command text={token.text} />
              <p class="muted small">
                Whoever has it can join, so treat it as a password. It stays valid when nodes come and go.
              </p>
            </div>
          </div>
        ) : (
          <p class="muted">Whoever has the token can join, so it is shown only when you ask for it.</p>
        )}
      </Card>

      <Card
        title="On the other machine"
        actions={
          <div class="tabs" role="group" aria-label="System of the other machine">
            {SYSTEMS.map(({ id, title }) => (
              <button key={id} type="button" aria-pressed={id === system} onClick={() => setSystem(id)}>
                {title}
              </button>
            ))}
          </div>
        }
      >
        <Steps system={system} token={token?.text} onShow={() => void show()} />
      </Card>

      <Card title="To lend memory only">
        <div class="stack">
          <p class="muted">
            A machine can hold layers of a model that no single one has room for, without models of its own:
          </p>
          <Join token={token?.text} rest=" --rpc-worker" />
        </div>
      </Card>
    </Page>
  );
}

function Steps({ system, token, onShow }: { system: System; token: string | undefined; onShow: () => void }) {
  return (
    <ol class="steps">
      {system === "here" ? (
        <li>
          <div>
            <p>In the same checkout, a second node with a data folder and a port of its own:</p>
            <Join token={token} rest=" --data ./second --port 8081" />
          </div>
        </li>
      ) : (
        <>
          <li>
            <div>
              <p>It needs Python 3.11 to 3.13, make and a C++ compiler:</p>
              <Command
                text={
                  system === "linux"
                    ? "sudo apt-get install make build-essential python3-venv python3-dev libgmp-dev"
                    : "xcode-select --install"
                }
              />
              {system === "linux" && <p class="muted small">That is for Debian and Ubuntu; others name them alike.</p>}
            </div>
          </li>
          <li>
            <div>
              <p>In a checkout of this program. The first time it builds llama.cpp, which takes minutes.</p>
              <Command text="make setup" />
            </div>
          </li>
          <li>
            <div>
              <p>Join:</p>
              <Join token={token} />
            </div>
          </li>
        </>
      )}
      <li>
        <div>
          <p>
            It appears under <a href="#/swarm">Swarm</a> within seconds. If it does not, <code>.venv/bin/mesh doctor</code> on
            that machine looks, explains and proposes.
          </p>
          {!token && (
            <div>
              <Button small onClick={onShow}>
                Put the token into the commands
              </Button>
            </div>
          )}
        </div>
      </li>
    </ol>
  );
}

/** The command, with the token in it once that has been asked for. */
function Join({ token, rest = "" }: { token: string | undefined; rest?: string }) {
  const line = (text: string): string => `.venv/bin/mesh join ${text}${rest}`;
  if (token) return <Command text={line(token)} />;
  return (
    <div class="command">
      <pre tabIndex={0}>
        <code>{line(HIDDEN)}</code>
      </pre>
    </div>
  );
}

async function fetchToken(): Promise<Token> {
  const text = (await (await send("/api/p2p/token", { headers: { Accept: "text/plain" } })).text()).trim();
  if (!text) throw new ApiError("This node takes part in no swarm, so it has no token.", 404);
  const picture = await (await send("/api/mesh/token/qr", { headers: { Accept: "image/svg+xml" } })).blob();
  return { text, picture: URL.createObjectURL(picture) };
}
