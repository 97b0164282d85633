import { defineConfig } from "vitest/config";

// For `npm run dev`: a node to ask. The built page asks the node that it came from.
const NODE = "http://127.0.0.1:8080";

export default defineConfig({
  base: "./",
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // no data: addresses, whatever the Content-Security-Policy would let pass
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: Object.fromEntries(
      ["/api", "/v1", "/models", "/system", "/version"].map((path) => [path, { target: NODE, changeOrigin: true }]),
    ),
  },
  test: {
    // A page to draw on costs a second a file: only tests of components (and those that ask for it) get one.
    projects: [
      { extends: true, test: { name: "logic", environment: "node", include: ["src/**/*.test.ts"] } },
      { extends: true, test: { name: "pages", environment: "jsdom", include: ["src/**/*.test.tsx"] } },
    ],
  },
});
