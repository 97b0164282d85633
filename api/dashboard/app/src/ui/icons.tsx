// Drawings of 20 by 20, in the colour of the text beside them; they say nothing to a screen reader.

import type { ComponentChildren } from "preact";

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg
      class="icon-drawing"
      width="20"
      height="20"
      viewBox="0 0 20 20"
      fill="none"
      stroke="currentColor"
      stroke-width="1.6"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
      focusable="false"
    >
      {children}
    </svg>
  );
}

export const SwarmIcon = () => (
  <Icon>
    <path d="M10 5.5 4.8 14M10 5.5l5.2 8.5M5.5 15h9" />
    <circle cx="10" cy="4.5" r="2" />
    <circle cx="4" cy="15" r="2" />
    <circle cx="16" cy="15" r="2" />
  </Icon>
);
export const RequestsIcon = () => (
  <Icon>
    <path d="M3 5h9M3 10h13M3 15h6" />
    <path d="m13.5 13 2.5 2-2.5 2" />
  </Icon>
);
export const ModelsIcon = () => (
  <Icon>
    <path d="m10 2.8 6.5 3.6v7.2L10 17.2l-6.5-3.6V6.4z" />
    <path d="M3.5 6.4 10 10l6.5-3.6M10 10v7.2" />
  </Icon>
);
export const ChatIcon = () => (
  <Icon>
    <path d="M4 4h12a1.5 1.5 0 0 1 1.5 1.5v7A1.5 1.5 0 0 1 16 14H9l-4 3v-3H4a1.5 1.5 0 0 1-1.5-1.5v-7A1.5 1.5 0 0 1 4 4z" />
  </Icon>
);
export const ChartsIcon = () => (
  <Icon>
    <path d="M3 3v14h14" />
    <path d="m6 12 3-4 3 2.5L16.5 5" />
  </Icon>
);
export const AddIcon = () => (
  <Icon>
    <rect x="2.5" y="4" width="15" height="10" rx="1.5" />
    <path d="M7 17h6M10 6.8v4.4M7.8 9h4.4" />
  </Icon>
);
export const CopyIcon = () => (
  <Icon>
    <rect x="7" y="7" width="10" height="10" rx="1.5" />
    <path d="M13 7V4.5A1.5 1.5 0 0 0 11.500 3h-7A1.5 1.5 0 0 0 3 4.500v7A1.5 1.5 0 0 0 4.500 13H7" />
  </Icon>
);
export const CloseIcon = () => (
  <Icon>
    <path d="m5 5 10 10M15 5 5 15" />
  </Icon>
);
export const SunIcon = () => (
  <Icon>
    <circle cx="10" cy="10" r="3.2" />
    <path d="M10 2v2M10 16v2M2 10h2M16 10h2M4.300 4.300l1.400 1.400M14.300 14.300l1.400 1.400M15.700 4.300l-1.400 1.400M5.700 14.300l-1.400 1.400" />
  </Icon>
);
export const MoonIcon = () => (
  <Icon>
    <path d="M16.500 12A7 7 0 0 1 8 3.500a7 7 0 1 0 8.500 8.500z" />
  </Icon>
);
export const AutoIcon = () => (
  <Icon>
    <circle cx="10" cy="10" r="7" />
    <path d="M10 3v14" />
    <path d="M10 3a7 7 0 0 1 0 14z" fill="currentColor" />
  </Icon>
);
export const KeyIcon = () => (
  <Icon>
    <circle cx="6.500" cy="13.500" r="3" />
    <path d="m8.700 11.300 7-7M13 7l2.500 2.500" />
  </Icon>
);
