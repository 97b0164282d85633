// The page's own clock, for what changes with time alone. No other clock is ever compared with it.

import { useEffect, useState } from "preact/hooks";

/** `performance.now()`, anew each `everyMs` while the page is seen. */
export function useSeconds(everyMs = 1000): number {
  const [now, setNow] = useState(() => performance.now());
  useEffect(() => {
    const timer = setInterval(() => {
      if (document.visibilityState === "visible") setNow(performance.now());
    }, everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}
