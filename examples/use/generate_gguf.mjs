// Text from a GGUF artifact, with llama.cpp in Node.
//
// node generate_gguf.mjs ARTIFACT/model.gguf PROMPT

import { getLlama, LlamaCompletion } from "node-llama-cpp";

const [modelPath, prompt] = process.argv.slice(2);
const llama = await getLlama({ build: "never" }); // take the binary that npm installed
const model = await llama.loadModel({ modelPath });
const contextSize = 1024; // tokens of prompt and answer together
const context = await model.createContext({ contextSize, threads: 1 });
const completion = new LlamaCompletion({ contextSequence: context.getSequence() });
console.log(prompt + (await completion.generateCompletion(prompt, { maxTokens: 40, temperature: 0 })));
await llama.dispose();
