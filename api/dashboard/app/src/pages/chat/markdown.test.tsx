import { render } from "preact";
import { afterEach, describe, expect, it } from "vitest";
import { address, Markdown, MAX_CHARS } from "./markdown";

const root = document.createElement("div");
document.body.append(root);

function drawn(text: string): HTMLElement {
  render(<Markdown text={text} />, root);
  return root;
}

afterEach(() => render(null, root));

/** Everything that could do something by itself. */
const ACTIVE = "script, iframe, object, embed, img, svg:not([aria-hidden]), style, link, form, base, meta, video, audio, [onerror], [onclick], [onload], [style]";

describe("markdown", () => {
  it("becomes elements", () => {
    const page = drawn("# Head\n\nSome *soft* and **loud** `code & <b>` ~~gone~~\n\n1. one\n2. two\n\n- [x] done\n\n> said\n\n---\n");
    expect(page.querySelector("h2")?.textContent).toBe("Head");
    expect(page.querySelector("em")?.textContent).toBe("soft");
    expect(page.querySelector("strong")?.textContent).toBe("loud");
    expect(page.querySelector("p code")?.textContent).toBe("code & <b>");
    expect(page.querySelector("del")?.textContent).toBe("gone");
    expect(page.querySelectorAll("ol li")).toHaveLength(2);
    expect(page.querySelector<HTMLInputElement>("ul input")?.checked).toBe(true);
    expect(page.querySelector("blockquote")?.textContent).toContain("said");
    expect(page.querySelector("hr")).not.toBeNull();
  });

  it("leaves out no level of headings", () => {
    const page = drawn("### a\n\n##### b\n\n### c\n\n> ## d");
    expect([...page.querySelectorAll("h2, h3, h4, h5, h6")].map((one) => one.localName + one.textContent)).toEqual(["h2a", "h3b", "h2c", "h2d"]);
  });

  it("has code with its language, and tables", () => {
    const page = drawn("```python evil\nprint('<b>&amp;</b>')\n```\n\n| a | b |\n|---|--:|\n| <i> | 2 |\n");
    expect(page.querySelector("pre code")?.textContent).toBe("print('<b>&amp;</b>')");
    expect(page.querySelector("figcaption span")?.textContent).toBe("python");
    expect(page.querySelector("td")?.textContent).toBe("<i>");
    expect(page.querySelector("td.num")?.textContent).toBe("2");
    expect(page.querySelector("i")).toBeNull();
  });

  it("shows what was meant by the five entities", () => {
    expect(drawn("1 &lt; 2 &amp; 3 &gt; 2 \\*").textContent).toBe("1 < 2 & 3 > 2 *");
  });

  it.each([
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "text <img src=x onerror=alert(1)> text",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe>",
    '<a href="javascript:alert(1)">x</a>',
    "<style>*{display:none}</style>",
    "- <script>alert(1)</script>\n- > <script>alert(1)</script>",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "# <script>alert(1)</script>",
    "![x](https://tracker.example/pixel.png)",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "```\n</code></pre><script>alert(1)</script>\n```",
    "`<script>alert(1)</script>`",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!-- --><script>alert(1)</script>",
    "[x]: javascript:alert(1)\n\n[x]",
  ])("does nothing by itself: %s", (text) => {
    const page = drawn(text);
    expect(page.querySelector(ACTIVE)).toBeNull();
    for (const link of page.querySelectorAll("a")) expect(link.protocol).toMatch(/^(https?|mailto):$/);
  });

  it("shows markup as the text that it is", () => {
    expect(drawn("<script>alert(1)</script>").textContent).toBe("<script>alert(1)</script>");
    expect(drawn("a <b>c</b>").textContent).toBe("a <b>c</b>");
  });

  it("links to the web and to mail, and tells the other side nothing", () => {
    const link = drawn("[site](https://example.org/?a=1&amp;b=2)").querySelector("a");
    expect(link?.href).toBe("https://example.org/?a=1&b=2");
    expect(link?.rel).toBe("noopener noreferrer nofollow");
    expect(link?.target).toBe("_blank");
    expect(drawn("<me@example.org>").querySelector("a")?.href).toBe("mailto:me@example.org");
    expect(drawn("![alt](https://example.org/x.png)").querySelector("a")?.textContent).toBe("image: alt");
  });

  it.each([
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    " javascript:alert(1)",
    "java\nscript:alert(1)",
    "javascript&#58;alert(1)",
    "&#106;avascript:alert(1)",
    "vbscript:x",
    "data:text/html,<script>alert(1)</script>",
    "blob:https://example.org/x",
    "file:///etc/passwd",
    "/api/mesh/leave",
    "//evil.example",
    "#/models",
    "",
    "http://",
  ])("leads nowhere by %j", (to) => {
    expect(address(to)).toBe("");
  });

  it.each([
    ["quotes", ">".repeat(50_000)],
    ["lists", Array.from({ length: 200 }, (_, depth) => `${"  ".repeat(depth)}- x`).join("\n")],
    ["stars", "*a **b ".repeat(2000)],
    ["brackets", "[".repeat(20_000)],
    ["rows", `|a|\n|-|\n${"|x|\n".repeat(8000)}`],
    ["length", "x".repeat(MAX_CHARS + 1)],
  ])("survives too many %s", (_, text) => {
    expect(drawn(text).textContent).not.toBe("");
  });

  it("takes a text that is cut anywhere", () => {
    const text = "# A *b* [c](https://d.e) ```f\ng``` | h |\n|--|\n| i |\n\n<b>j</b> &amp;";
    for (let end = 0; end <= text.length; end++) expect(() => drawn(text.slice(0, end))).not.toThrow();
  });
});
