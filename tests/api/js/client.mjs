// Asks a node what tests/api/test_javascript.py wants to know of OpenAI's JavaScript client, and prints it as JSON.
import OpenAI from "openai";

const [baseURL, embedder, talker] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

// Without encoding_format the client asks for base64 and decodes it.
const packed = await client.embeddings.create({ model: embedder, input: ["one", "two"] });
const plain = await client.embeddings.create({ model: embedder, input: ["one", "two"], encoding_format: "float" });

let streamed = "";
const stream = await client.chat.completions.create({
    model: talker,
    messages: [{ role: "user", content: "Hello" }],
    max_tokens: 8,
    temperature: 0,
    stream: true,
});
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const whole = await client.chat.completions.create({
    model: talker,
    messages: [{ role: "user", content: "Hello" }],
    max_tokens: 8,
    temperature: 0,
});

let refusal = null;
try {
    await client.chat.completions.create({ model: "nobody", messages: [{ role: "user", content: "Hello" }] });
} catch (error) {
    refusal = { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
}

const vectors = (answer) => answer.data.map((item) => Array.from(item.embedding));
console.log(
    JSON.stringify({
        packed: vectors(packed),
        plain: vectors(plain),
        streamed,
        whole: whole.choices[0].message.content,
        refusal,
    }),
);
