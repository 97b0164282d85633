// Light or dark: as the system has it, unless the person says otherwise.

import { createStore } from "./store";

export type Theme = "system" | "light" | "dark";
const NAME = "mesh.theme";

function kept(): Theme {
  try {
    const value = localStorage.getItem(NAME);
    return value === "light" || value === "dark" ? value : "system";
  } catch {
    return "system";
  }
}

export const theme = createStore<Theme>(kept());

function show(): void {
  const value = theme.get();
  if (value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

export function setTheme(value: Theme): void {
  theme.set(value);
  try {
    if (value === "system") localStorage.removeItem(NAME);
    else localStorage.setItem(NAME, value);
  } catch {
    // Kept for this page alone.
  }
  show();
}

show();
