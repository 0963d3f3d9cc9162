// Drives MQTT.js on behalf of the tests: one JSON object a line in, one a line out.
//
//   in   {"id": 1, "op": "connect", "client": "a", "url": "mqtt://...", "options": {...}}
//   out  {"id": 1, "result": ...}  or  {"id": 1, "error": "..."}
//   out  {"client": "a", "event": "message" | "disconnect" | "close", "packet": {...}}
//
// Bytes are {"base64": "..."} in both directions. The end of the input ends everything.
"use strict";

const fs = require("node:fs");
const readline = require("node:readline");
const mqtt = require("mqtt");

const clients = new Map();

function plain(value) {
  if (Buffer.isBuffer(value)) return { base64: value.toString("base64") };
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

function revive(_key, value) {
  const coded = value !== null && typeof value === "object" && "base64" in value;
  return coded ? Buffer.from(value.base64, "base64") : value;
}

function write(object) {
  process.stdout.write(JSON.stringify(object) + "\n");
}

function connect({ client: name, url, options, files = {} }) {
  const settings = { reconnectPeriod: 0, resubscribe: false, ...options };
  for (const [key, file] of Object.entries(files)) settings[key] = fs.readFileSync(file);
  return new Promise((resolve, reject) => {
    const client = mqtt.connect(url, settings);
    clients.set(name, client);
    client.once("connect", (packet) => resolve(packet));
    client.on("error", reject);
    // The packet has the topic as it came, which is empty where an alias stands for it.
    client.on("message", (topic, _payload, packet) =>
      write({ client: name, event: "message", packet: plain({ ...packet, topic }) }),
    );
    client.on("disconnect", (packet) =>
      write({ client: name, event: "disconnect", packet: plain(packet) }),
    );
    client.on("close", () => {
      reject(new Error("closed before CONNACK"));
      write({ client: name, event: "close" });
    });
  });
}

const operations = {
  connect,
  subscribe: ({ client, topics, options }) => clients.get(client).subscribeAsync(topics, options),
  unsubscribe: ({ client, topics }) => clients.get(client).unsubscribeAsync(topics),
  publish: ({ client, topic, payload, options }) =>
    clients.get(client).publishAsync(topic, payload, options),
  end: ({ client, options = {} }) => clients.get(client).endAsync(false, options),
  drop: ({ client }) => void clients.get(client).stream.destroy(),
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", async (line) => {
  const request = JSON.parse(line, revive);
  try {
    const result = await operations[request.op](request);
    write({ id: request.id, result: plain(result) ?? null });
  } catch (error) {
    write({ id: request.id, error: error.message });
  }
});
lines.on("close", () => clients.forEach((client) => client.end(true)));
