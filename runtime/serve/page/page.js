"use strict";
const find = (id) => document.getElementById(id);
const question = find("question"), schema = find("schema"), go = find("go"), log = find("conversation");
let files = []; // for the next question: name, kind (image or PDF) and data URI
let messages = []; // the conversation, as the API takes it
let turns = 0;
let running = null; // what stops the answer that comes
let model, key;

class Refused extends Error {
  constructor(message, status = 0, param = "") { super(message); Object.assign(this, { status, param: param ?? "" }); }
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* The server */

async function call(path, body, signal) {
  const headers = { ...(body && { "content-type": "application/json" }), ...(key && { authorization: `Bearer ${key}` }) };
  const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  const response = await fetch(path, options).catch((error) => {
    throw signal?.aborted ? error : new Refused("The server does not answer. Check that it is running, then ask again.");
  });
  if (response.ok) return response;
  const error = (await response.json().catch(() => ({}))).error;
  throw new Refused(error?.message ?? `The server answered with status ${response.status}.`, response.status, error?.param);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) throw new Refused("The connection ended before the answer did.");
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function connect() {
  try {
    [{ id: model }] = (await (await call("v1/models")).json()).data;
    find("model").textContent = model;
    document.title = `Ask ${model}`;
    find("unlock").hidden = true;
    return true;
  } catch (error) {
    find("model").textContent = error.status === 401 ? "Locked" : "Not connected";
    complain(error);
    return false;
  }
}

/* One question and its answer */

async function ask() {
  forgive();
  const text = question.value.trim(), asked = files;
  if (!text) return complain(new Refused("Write a question first."));
  const format = wantedFormat();
  if (format === null) return;
  const sent = { role: "user", content: [...asked.map(part), { type: "text", text }] };
  const answer = openTurn(text, asked);
  question.value = "";
  setFiles([]);
  running = new AbortController();
  setRunning(true, "Reading the question");
  let problem = null;
  try {
    const body = { model, messages: [...messages, sent], stream: true, stream_options: { include_usage: true },
      chat_template_kwargs: { enable_thinking: find("thinking").checked }, response_format: format };
    await receive(body, answer, running.signal);
  } catch (error) {
    problem = running.signal.aborted ? new Refused("Stopped.") : error;
    if (!(problem instanceof Refused)) problem = new Refused("The connection broke before the answer ended.");
  }
  const stopped = running.signal.aborted;
  running = null;
  if (!answer.turn.isConnected) return setRunning(false, "New conversation"); // it was cleared meanwhile
  follow(() => closeTurn(answer, problem, stopped));
  if (answer.text.data && (stopped || !problem)) messages.push(sent, { role: "assistant", content: answer.text.data });
  else putBack(text, asked, answer);
  setRunning(false, stopped ? "Stopped" : problem ? "Not answered" : "Answer complete");
  if (problem && !stopped) complain(problem, answer.turn.isConnected);
}

async function receive(body, answer, signal) {
  answer.start = performance.now();
  for await (const event of events(await call("v1/chat/completions", body, signal))) {
    if (event.error) throw new Refused(event.error.message, 0, event.error.param);
    if (event.usage) answer.usage = event.usage;
    for (const { delta, finish_reason } of event.choices) {
      if (delta.reasoning || delta.content) answer.first ??= performance.now();
      if (delta.reasoning) grow(answer, answer.reasoning, delta.reasoning, "Thinking");
      if (delta.content) grow(answer, answer.text, delta.content, "Answering");
      answer.finish = finish_reason ?? answer.finish;
    }
  }
}

const toEnd = () => { document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight; };

/* Change the page, and stay at its end where the reader is there. */
function follow(change) {
  const page = document.scrollingElement, follows = page.scrollHeight - page.scrollTop - innerHeight < 40;
  change();
  if (follows) toEnd();
}

function grow(answer, node, text, status) {
  if (node === answer.reasoning) answer.thinking.hidden = false;
  else if (!answer.text.data) answer.thinking.firstChild.textContent = "Thinking";
  follow(() => node.appendData(text));
  answer.last = performance.now();
  say(status); // screen readers hear this, not each token
}

function openTurn(text, asked) {
  find("empty").hidden = true;
  find("new").hidden = false;
  turns += 1;
  const reasoning = new Text(), answer = new Text();
  const thinking = element("details", { hidden: true },
    element("summary", {}, "Thinking…"), element("div", { className: "text" }, reasoning));
  const turn = element("article", { className: "turn" },
    element("h2", {}, `Question ${turns}`), ...(asked.length ? [element("ul", { className: "shown" }, ...asked.map(shown))] : []),
    element("p", { className: "text" }, text),
    element("h2", {}, `Answer ${turns}`), thinking, element("div", { className: "text answer" }, answer));
  turn.setAttribute("aria-label", `Question ${turns}`);
  log.append(turn);
  toEnd();
  return { turn, thinking, reasoning, text: answer };
}

function closeTurn(answer, problem, stopped) {
  answer.thinking.firstChild.textContent = "Thinking";
  const cut = !problem && answer.finish === "length" && "The answer was cut: the context is full.";
  const words = problem?.message ?? cut;
  if (words) answer.turn.append(element("p", { className: problem && !stopped ? "note wrong" : "note" }, words));
  const { usage, start, first, last } = answer, seconds = (from, to) => `${((to - from) / 1000).toFixed(2)} s`;
  const figures = [["First token", first && seconds(start, first)]];
  if (usage) {
    const { prompt_tokens, completion_tokens: made } = usage;
    const cached = usage.prompt_tokens_details?.cached_tokens, thought = usage.completion_tokens_details?.reasoning_tokens;
    figures.push(["Speed", made > 1 && last > first && `${((made - 1) * 1000 / (last - first)).toFixed(1)} tokens/s`],
      ["Prompt", `${prompt_tokens} tokens${cached ? `, ${cached} cached` : ""}`],
      ["Answer", `${made} tokens${thought ? `, ${thought} thinking` : ""}`]);
  }
  const rows = figures.filter(([, value]) => value).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  if (rows.length) answer.turn.append(element("dl", {}, ...rows));
}

/* What was not answered can be asked again. */
function putBack(text, asked, answer) {
  question.value = [text, question.value].filter(Boolean).join("\n");
  setFiles([...asked, ...files]);
  if (answer.reasoning.data || answer.text.data) {
    answer.turn.append(element("p", { className: "note" }, "This turn is not part of the conversation. The question is in its box again."));
  } else {
    answer.turn.remove();
    turns -= 1;
    if (!turns) clear();
  }
}

function clear() {
  running?.abort();
  log.querySelectorAll(".turn").forEach((turn) => turn.remove());
  [messages, turns] = [[], 0];
  find("empty").hidden = false;
  find("new").hidden = true;
}

/* The form */

function wantedFormat() {
  if (!schema.value.trim()) return undefined;
  try {
    return { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema.value) } };
  } catch (error) {
    complain(new Refused(`This is not JSON: ${error.message}`, 0, "response_format"));
    return null;
  }
}

/* Show a problem at the field that it is about. told: it stands in the conversation already. */
function complain({ message, status, param }, told = false) {
  if (status === 401) {
    find("unlock").hidden = false;
    find("key-wrong").textContent = key ? "The server does not take this key." : "";
    find("key").focus();
  } else if (param.startsWith("response_format")) {
    find("format").open = true;
    find("schema-wrong").textContent = message.replace(`${param}: `, "");
    schema.setAttribute("aria-invalid", "true");
    schema.focus();
  } else if (param.includes("enable_thinking")) {
    find("thinking-wrong").textContent = message.replace(`${param}: `, "");
  } else if (!told) {
    find("wrong").textContent = message;
  }
}

function forgive() {
  for (const id of ["wrong", "schema-wrong", "thinking-wrong", "key-wrong"]) find(id).textContent = "";
  schema.removeAttribute("aria-invalid");
}

function say(text) {
  if (find("status").textContent !== text) find("status").textContent = text;
}

function setRunning(runs, status) {
  go.textContent = runs ? "Stop" : "Ask";
  go.classList.toggle("stop", runs);
  say(status);
}

const part = ({ kind, name, uri }) => kind === "image"
  ? { type: "image_url", image_url: { url: uri } } : { type: "file", file: { file_data: uri, filename: name } };

const shown = ({ kind, name, uri }) => kind === "image"
  ? element("li", {}, element("img", { src: uri, alt: name, onload: toEnd })) : element("li", { className: "note" }, `PDF: ${name}`);

function setFiles(wanted) {
  files = wanted;
  find("files").replaceChildren(...files.map((file) => {
    const remove = element("button", { type: "button", onclick: () => drop(file) }, "Remove");
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    const picture = file.kind === "image" ? element("img", { src: file.uri, alt: "" }) : "PDF";
    return element("li", {}, picture, element("span", {}, file.name), remove);
  }));
}

function drop(file) {
  setFiles(files.filter((one) => one !== file));
  say(`${file.name} removed`);
  (find("files").querySelector("button") ?? find("choose")).focus();
}

async function add(list) {
  forgive();
  const kindOf = ({ type, name }) => type.startsWith("image/") ? "image"
    : type === "application/pdf" || /\.pdf$/i.test(name) ? "PDF" : null;
  const wrong = [...list].filter((file) => !kindOf(file)).map((file) => file.name);
  const right = [...list].filter(kindOf);
  if (wrong.length) complain(new Refused(`Neither image nor PDF: ${wrong.join(", ")}`));
  const read = await Promise.all(right.map((file) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name || "image", kind: kindOf(file),
      uri: kindOf(file) === "PDF" ? reader.result.replace(/^data:[^;,]*/, "data:application/pdf") : reader.result });
    reader.onerror = () => { complain(new Refused(`${file.name} could not be read.`)); resolve(null); };
    reader.readAsDataURL(file);
  })));
  const added = read.filter(Boolean);
  setFiles([...files, ...added]);
  if (added.length) say(`${added.map((file) => file.name).join(", ")} added`);
}

find("ask").onsubmit = (event) => { event.preventDefault(); if (running) running.abort(); else ask(); };
find("unlock").onsubmit = async (event) => {
  event.preventDefault();
  key = find("key").value.trim();
  if (await connect()) { forgive(); question.focus(); }
};
find("choose").onclick = () => find("chosen").click();
find("chosen").onchange = ({ target }) => { add([...target.files]); target.value = ""; };
find("new").onclick = () => { clear(); forgive(); say("New conversation"); question.focus(); };
schema.oninput = () => { find("format-name").textContent = schema.value.trim() ? "JSON schema (in use)" : "JSON schema"; };
document.onkeydown = (event) => {
  if (event.key === "Escape" && running) return running.abort();
  const composes = event.isComposing || event.keyCode === 229; // Korean: this Enter ends a syllable (229: Safari)
  if (event.key !== "Enter" || composes || running) return;
  const plain = event.target === question && !event.shiftKey, held = event.ctrlKey || event.metaKey;
  if ((plain && !event.altKey) || (held && find("ask").contains(event.target))) { event.preventDefault(); ask(); }
};
document.onpaste = (event) => {
  if (event.clipboardData.files.length) { event.preventDefault(); add([...event.clipboardData.files]); }
};
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
document.ondragleave = (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); };
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  add([...event.dataTransfer.files]);
};
connect();
question.focus();
