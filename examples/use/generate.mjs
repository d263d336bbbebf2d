// Text from an ONNX artifact, with onnxruntime-web: WebAssembly, in Node and in browsers.
//
// node generate.mjs ARTIFACT PROMPT
// In a browser, index.html calls `generate` with the URL of the artifact.

import * as ort from "onnxruntime-web";
import { Tokenizer } from "@huggingface/tokenizers";

/** The bytes of a file of the artifact: over HTTP in a browser, from the disk in Node. */
async function read(folder, name) {
  if (globalThis.process?.versions.node) {
    const { readFile } = await import("node:fs/promises");
    return readFile(`${folder}/${name}`);
  }
  const answer = await fetch(`${folder}/${name}`);
  if (!answer.ok) throw new Error(`${name}: HTTP status ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

const readJson = async (folder, name) => JSON.parse(new TextDecoder().decode(await read(folder, name)));

/** The prompt and up to 40 greedy tokens behind it, as text. */
export async function generate(folder, prompt) {
  const { model: config } = await readJson(folder, "genai_config.json");
  const ends = [config.eos_token_id].flat();
  const tokenizer = new Tokenizer(
    await readJson(folder, "tokenizer.json"),
    await readJson(folder, "tokenizer_config.json"),
  );
  const data = await read(folder, "model.onnx.data"); // the weights
  const session = await ort.InferenceSession.create(await read(folder, "model.onnx"), {
    externalData: [{ path: "model.onnx.data", data }],
  });

  const { ids } = tokenizer.encode(prompt); // with the beginning-of-text token
  const cache = {}; // keys and values of the tokens so far
  for (const name of session.inputNames.filter((name) => name.startsWith("past_key_values"))) {
    const shape = [1, config.decoder.num_key_value_heads, 0, config.decoder.head_size]; // no token yet
    cache[name] = new ort.Tensor(new Float32Array(0), shape);
  }
  const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  let fresh = ids;
  for (let count = 0; count < 40; count++) {
    const mask = integers(ids.map(() => 1));
    const outputs = await session.run({ input_ids: integers(fresh), attention_mask: mask, ...cache });
    const logits = Array.from(outputs.logits.data); // of the last position
    const token = logits.reduce((best, value, index) => (value > logits[best] ? index : best), 0);
    if (ends.includes(token)) break;
    for (const name in cache) cache[name] = outputs[name.replace("past_key_values", "present")];
    ids.push(token);
    fresh = [token];
  }
  return tokenizer.decode(ids, { skip_special_tokens: true });
}

if (globalThis.process?.versions.node) console.log(await generate(process.argv[2], process.argv[3]));
