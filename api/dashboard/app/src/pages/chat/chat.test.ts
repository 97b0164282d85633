import { describe, expect, it } from "vitest";
import type { Node, Swarm } from "../../api/types";
import { chatModels, typed } from "./choice";
import { MAX_CHATS, MAX_MESSAGES, newChat, NO_SETTINGS, packed, put, titleOf, unpacked, without, type Chat, type Message } from "./store";
import { pieces, Rate, requestOf, type Piece } from "./stream";

async function* told(...events: unknown[]): AsyncGenerator<{ data: string }> {
  for (const event of events) yield { data: typeof event === "string" ? event : JSON.stringify(event) };
}

async function read(...events: unknown[]): Promise<Piece[]> {
  const found: Piece[] = [];
  for await (const piece of pieces(told(...events))) found.push(piece);
  return found;
}

const delta = (content: unknown, finish: string | null = null) => ({
  choices: [{ index: 0, delta: { content }, finish_reason: finish }],
});

describe("a stream of an answer", () => {
  it("gives text, thoughts, the end and what it cost", async () => {
    const usage = { choices: [], usage: { prompt_tokens: 3, completion_tokens: 9 } };
    const thought = { choices: [{ delta: { reasoning: "hm", reasoning_content: "hm" } }] };
    expect(await read({ choices: [{ delta: { role: "assistant", content: "" } }] }, thought, delta("<b>"), delta("", "stop"), usage, "[DONE]")).toEqual([
      { reasoning: "hm" },
      { text: "<b>" },
      { finish: "stop" },
      { promptTokens: 3, tokens: 9 },
    ]);
  });

  it("ends with the node's own words when it fails", async () => {
    await expect(read(delta("x"), { error: { message: "The engine died.", code: "engine_crashed" } }, "[DONE]")).rejects.toThrow("The engine died.");
    await expect(read({ error: "plain" })).rejects.toThrow("plain");
  });

  it("that is cut is an error, and one that has said its end is none", async () => {
    await expect(read(delta("x"))).rejects.toThrow("ended before");
    expect(await read(delta("x"), delta("", "length"))).toEqual([{ text: "x" }, { finish: "length" }]);
  });

  it("takes what is none of it", async () => {
    const odd = ["", "{", "null", "7", "[]", '"x"', { choices: 7 }, { choices: [null] }, { choices: [{ delta: [] }] }];
    const more = [delta(7), delta({}), { usage: { completion_tokens: "<b>" } }, { choices: [{ finish_reason: 7 }] }];
    expect(await read(...odd, ...more, delta("x"), "[DONE]")).toEqual([{ text: "x" }]);
  });
});

describe("what is asked", () => {
  const messages: Message[] = [
    { role: "user", text: "look", images: ["data:image/png;base64,AA"] },
    { role: "assistant", text: "", error: "no" },
    { role: "user", text: "again" },
  ];

  it("has the settings that are set, and no answer that never was", () => {
    const body = requestOf(messages, { ...NO_SETTINGS, model: "m", system: "Be brief.", temperature: 0, seed: 0 });
    expect(body).toEqual({
      model: "m",
      messages: [
        { role: "system", content: "Be brief." },
        {
          role: "user",
          content: [
            { type: "text", text: "look" },
            { type: "image_url", image_url: { url: "data:image/png;base64,AA" } },
          ],
        },
        { role: "user", content: "again" },
      ],
      stream: true,
      stream_options: { include_usage: true },
      temperature: 0,
      seed: 0,
    });
  });

  it("leaves open what is open", () => {
    expect(Object.keys(requestOf([], NO_SETTINGS))).toEqual(["messages", "stream", "stream_options"]);
  });
});

describe("the rate", () => {
  it("is of the tokens after the first", () => {
    const rate = new Rate();
    expect(rate.perSecond()).toBe(null);
    rate.note(1000);
    expect(rate.perSecond()).toBe(null);
    for (const at of [1500, 2000]) rate.note(at);
    expect(rate.perSecond()).toBe(2);
    expect(rate.perSecond(11)).toBe(10);
  });

  it("of an answer that comes at once is none", () => {
    const rate = new Rate();
    for (const at of [1000, 1001, 1002]) rate.note(at);
    expect(rate.perSecond(1000)).toBe(null);
  });
});

function chat(id: string, ...texts: string[]): Chat {
  return { id, messages: texts.map((text) => ({ role: "user", text })), settings: NO_SETTINGS };
}

describe("conversations", () => {
  it("come back as they were kept, without their images", () => {
    const one: Chat = {
      ...chat("a"),
      messages: [
        { role: "user", text: "<img src=x onerror=alert(1)>", images: ["data:image/png;base64,AA"] },
        { role: "assistant", text: "no", node: "b", tokensPerS: 3.5, tokens: 2, finish: "stop", reasoning: "hm", firstS: 0.1 },
      ],
    };
    const [back] = unpacked(packed([one, chat("empty")]));
    expect(back?.messages[0]).toEqual({ role: "user", text: "<img src=x onerror=alert(1)>", imagesGone: 1 });
    expect(back?.messages[1]).toEqual(one.messages[1]);
    expect(unpacked(packed([one, chat("empty")]))).toHaveLength(1);
  });

  it("are left out, the oldest first, where there is no room", () => {
    const list = [chat("new", "x".repeat(50)), chat("old", "y".repeat(500)), chat("older", "z")];
    expect(unpacked(packed(list, 400)).map(({ id }) => id)).toEqual(["new"]);
  });

  it("that are none are left out", () => {
    for (const text of [null, "", "{", "null", "7", '{"a":1}', "[null]", '[{"id":7}]', '[{"id":"a"}]']) expect(unpacked(text)).toEqual([]);
    const [odd] = unpacked('[{"id":"a","messages":[7,{"role":"system","text":"x"},{"role":"user"},{"role":"user","text":"x","tokens":"y","error":7}],"settings":{"model":7,"temperature":"hot","seed":3}}]');
    expect(odd).toEqual({ id: "a", messages: [{ role: "user", text: "x" }], settings: { ...NO_SETTINGS, seed: 3 } });
  });

  it("are bounded, the one used last first", () => {
    let list: Chat[] = [];
    for (let index = 0; index < MAX_CHATS + 5; index++) list = put(list, chat(String(index), "x"));
    expect(list).toHaveLength(MAX_CHATS);
    list = put(list, { ...chat("7", ...Array.from({ length: MAX_MESSAGES + 1 }, (_, index) => String(index))) });
    expect(list[0]?.messages).toHaveLength(MAX_MESSAGES);
    expect(list[0]?.messages[0]?.text).toBe("1");
    expect(without(list, "7").some(({ id }) => id === "7")).toBe(false);
  });

  it("have a title of how they begin, and an id of their own", () => {
    expect(titleOf(chat("a", "  Hello\n  there  "))).toBe("Hello there");
    expect(titleOf(chat("a", "x".repeat(99)))).toHaveLength(58);
    expect(titleOf(chat("a"))).toBe("New conversation");
    expect(newChat(NO_SETTINGS).id).not.toBe(newChat(NO_SETTINGS).id);
  });
});

describe("the choice", () => {
  const node = (name: string, state: string, ...models: [string, string[], boolean][]): Node =>
    ({
      name,
      state,
      models: models.map(([model, capabilities, ready]) => ({ model, capabilities, load: ready ? { state: "ready" } : undefined })),
    }) as unknown as Node;

  it("is of models that chat on nodes that live", () => {
    const nodes = [
      node("a", "alive", ["z", ["chat"], false], ["embeds", ["embedding"], true]),
      node("b", "alive", ["z", ["chat", "vision"], true], ["c", ["chat"], false]),
      node("c", "dead", ["gone", ["chat"], true]),
    ];
    expect(chatModels({ nodes } as unknown as Swarm)).toEqual([
      { name: "z", nodes: ["a", "b"], loaded: true, sees: true },
      { name: "c", nodes: ["b"], loaded: false, sees: false },
    ]);
  });

  it("of a number stays within its bounds", () => {
    expect([typed("0,7", 0, 2), typed("9", 0, 2), typed("-1", 0, 2), typed("", 0, 2), typed("x", 0, 2), typed("1e999", 0, 2)]).toEqual([
      0.7, 2, 0, null, null, null,
    ]);
    expect(typed("7.6", 1, 100, true)).toBe(8);
  });
});
