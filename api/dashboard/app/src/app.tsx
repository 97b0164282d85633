// The frame around the pages.

import { Component, type ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { told } from "./api/client";
import { PAGES } from "./pages";
import { href, useRoute } from "./router";
import { forgetKey, key } from "./state/key";
import { stayConnected, swarm } from "./state/live";
import { useStore } from "./state/store";
import { setTheme, theme, type Theme } from "./state/theme";
import { ConnectionNotice } from "./ui/connection";
import { AutoIcon, KeyIcon, MoonIcon, SunIcon, SwarmIcon } from "./ui/icons";
import { KeyPrompt } from "./ui/keyprompt";
import { Button, Empty, Page } from "./ui/parts";
import { Toasts } from "./ui/toast";

export function App() {
  const route = useRoute();
  const entry = PAGES.find((page) => page.id === (route.page || PAGES[0]?.id));
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(() => {
    const control = new AbortController();
    void stayConnected(control.signal);
    return () => control.abort();
  }, []);
  useEffect(() => {
    document.title = entry ? `${entry.title} · mesh` : "mesh";
    // A new page begins at its top, also for those who do not see it.
    if (!first.current) {
      window.scrollTo(0, 0);
      main.current?.focus({ preventScroll: true });
    }
    first.current = false;
  }, [entry]);
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the page
      </a>
      <div class="frame">
        <header class="side">
          <div class="side-in">
            <a class="brand" href={href("swarm")}>
              <SwarmIcon />
              mesh
            </a>
            <nav class="nav" aria-label="Pages">
              {PAGES.map(({ id, title, icon: Icon }) => (
                <a key={id} href={href(id)} aria-current={id === entry?.id ? "page" : undefined}>
                  <Icon />
                  <span>{title}</span>
                </a>
              ))}
            </nav>
            <Foot />
          </div>
        </header>
        <main class="main" id="main" ref={main} tabIndex={-1}>
          <div class="page">
            <ConnectionNotice />
            <Guard key={entry?.id ?? ""}>
              {entry ? (
                <entry.page />
              ) : (
                <Page title="There is no such page" about={<a href={href("swarm")}>To the swarm</a>}>
                  {null}
                </Page>
              )}
            </Guard>
          </div>
        </main>
      </div>
      <KeyPrompt />
      <Toasts />
    </>
  );
}

function Foot() {
  const name = useStore(swarm, (state) => state.view?.name);
  const version = useStore(swarm, (state) => state.view?.nodes.find((node) => node.self)?.version);
  const held = useStore(key, (state) => state.value !== "");
  const chosen = useStore(theme);
  const next: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };
  const names: Record<Theme, string> = { system: "as the system has it", light: "light", dark: "dark" };
  return (
    <div class="side-foot">
      {name && (
        <div class="only-wide">
          <div>You are at</div>
          <strong>{name}</strong>
          {version && <div>version {version}</div>}
        </div>
      )}
      <div class="row">
        <Button
          look="quiet"
          class="icon"
          aria-label={`Colours: ${names[chosen]}. Change to ${names[next[chosen]]}`}
          title={`Colours: ${names[chosen]}`}
          onClick={() => setTheme(next[chosen])}
        >
          {chosen === "system" ? <AutoIcon /> : chosen === "light" ? <SunIcon /> : <MoonIcon />}
        </Button>
        {held && (
          <Button look="quiet" class="icon" aria-label="Forget the API key" title="Forget the API key" onClick={forgetKey}>
            <KeyIcon />
          </Button>
        )}
      </div>
    </div>
  );
}

/** A page that fails takes nothing with it. */
class Guard extends Component<{ children: ComponentChildren }, { failed: unknown }> {
  override state = { failed: undefined as unknown };

  override componentDidCatch(error: unknown): void {
    this.setState({ failed: error ?? "unknown" });
  }

  override render() {
    if (this.state.failed === undefined) return this.props.children;
    return (
      <Empty title="This page has failed">
        <p>{told(this.state.failed)}</p>
        <Button onClick={() => this.setState({ failed: undefined })}>Show it again</Button>
      </Empty>
    );
  }
}
