// The playground: a form whose fields are those of POST /complete-sentence, and the texts that come back.

const $ = id => document.getElementById(id);
const form = $("form"), texts = $("texts"), tip = $("tip");
const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"];
const DEFAULTS = Object.fromEntries(new FormData(form));
const ALTERNATIVES = 5, MOST = 12; // bits of surprise, shaded most
let running = null; // an AbortController while texts are written
let card = null;

// ---- Settings: form <-> request <-> address

const chosen = () => [...form.querySelectorAll("[name=checkpoint]:checked")].map(box => box.value);

function settings() {
  const body = { text: form.text.value };
  for (const name of NUMBERS) if (form[name].value !== "") body[name] = Number(form[name].value);
  body.n = Number(form.n.value);
  if (form.whole_sentence.checked) body.whole_sentence = true;
  return body;
}

// One request for each checkpoint, or one that leaves the choice to the server.
const bodies = () => {
  const names = chosen();
  return names.length ? names.map(checkpoint => ({ ...settings(), checkpoint })) : [settings()];
};

function address() {
  const fields = new URLSearchParams(Object.entries(settings()));
  for (const name of chosen()) fields.append("checkpoint", name);
  return "#" + fields;
}

function readAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  for (const name of ["text", "n", ...NUMBERS]) form[name].value = fields.get(name) ?? DEFAULTS[name] ?? "";
  form.whole_sentence.checked = fields.get("whole_sentence") === "true";
  wanted = fields.getAll("checkpoint");
  if (form.seed.value === "") form.seed.value = newSeed();
  form.querySelectorAll(".row").forEach(showSlider);
  grow();
  return fields.has("text");
}
let wanted = []; // checkpoints that the address names, until the card has brought their boxes

const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function showSlider(row) {
  const [number, range] = row.querySelectorAll("input");
  if (!range) return;
  range.value = number.value;
  range.style.setProperty("--at", `${100 * (range.value - range.min) / (range.max - range.min)}%`);
}

function grow() {
  form.text.style.height = "auto";
  form.text.style.height = `${form.text.scrollHeight}px`;
}

// ---- One run

async function run() {
  running?.abort();
  dismiss();
  complain(null);
  const bad = NUMBERS.find(name => form[name].validity.badInput);
  if (bad) return complain(`${bad} is not a number.`, bad);
  const control = running = new AbortController();
  history.replaceState(null, "", address());
  busy(true);
  const asked = bodies();
  const written = asked.map(body => Array.from({ length: body.n }, (_, i) => new Text(body, i)));
  const begin = () => { // the texts before stay until the server has taken a request
    if (written[0][0].element.isConnected) return;
    texts.replaceChildren(...written.flat().map(text => text.element));
    $("bar").hidden = false;
  };
  try {
    await Promise.all(asked.map((body, i) => complete(body, written[i], control.signal, begin)));
    if (running === control) announce(written.flat());
  } catch (error) {
    if (running !== control) return; // another run has begun
    if (error.name === "AbortError") $("live").textContent = "Stopped";
    else complain(error instanceof Problem ? error.message : GONE, error.field);
    control.abort();
  } finally {
    if (running === control) {
      running = null;
      busy(false);
      written.flat().forEach(text => text.end(" · stopped"));
    }
  }
}

function busy(is) {
  $("run").hidden = is;
  $("stop").hidden = !is;
  texts.setAttribute("aria-busy", is);
  if (is) $("live").textContent = "Writing";
}

function announce(all) {
  $("live").textContent = all.map(text => text.chars.join("")).join("\n");
}

class Problem extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}
const GONE = "The server does not answer. Is it still running? Your text is kept.";

function ask(body, signal) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  return fetch("complete-sentence", { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function complete(body, own, signal, begin) {
  const response = await ask({ ...body, stream: true, logprobs: ALTERNATIVES }, signal);
  if (!response.ok) throw await problem(response);
  begin();
  for await (const event of events(response.body)) {
    if (event.error) throw new Problem(sentence(event.error.message), event.error.param);
    if (event.text !== undefined) own[event.index].add(event);
    else own.forEach(text => text.label(event.checkpoint));
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem("The connection broke off. What came so far is kept.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

async function problem(response) {
  const { message = response.statusText, param } = (await response.json().catch(() => ({}))).error ?? {};
  const wait = response.headers.get("Retry-After");
  if (response.status === 401) {
    $("key_row").hidden = false;
    return new Problem("This server asks for a key: write it beside API key and run again.", "key");
  }
  if (response.status === 429) return new Problem(`The server is busy: ${message}. Try again in ${wait} s.`);
  if (response.status === 503) return new Problem(`Not now: ${message}. Try again in a moment.`);
  return new Problem(sentence(message), param);
}

const sentence = message => message.charAt(0).toUpperCase() + message.slice(1) + ".";

function complain(message, field) {
  form.querySelectorAll("[aria-invalid]").forEach(input => {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  });
  $("error").hidden = !message;
  $("error").textContent = message ?? "";
  const input = field && $(field);
  if (!input) return;
  input.setAttribute("aria-invalid", true);
  input.setAttribute("aria-describedby", "error");
  if ($("settings").contains(input)) $("settings").open = true;
  input.focus();
}

// ---- What might come next, in grey, while the user types

const AHEAD = 16, PAUSE = 250, PATIENCE = 10; // tokens, milliseconds without a key, seconds
const key = `playground-${newSeed()}`; // this page's: each request ends the one before
const [typed, grey] = $("ghost").children;
let pause = 0, dismissed = 0; // a timer; how often what was shown or asked for went

function type() {
  dismiss();
  grow();
  if ($("ahead").checked && form.text.value) pause = setTimeout(suggest, PAUSE);
}

function dismiss() {
  clearTimeout(pause);
  dismissed++;
  $("ghost").hidden = true;
}

const atEnd = () => document.activeElement === form.text && form.text.selectionStart === form.text.value.length;

async function suggest() {
  const [body] = bodies(), before = dismissed;
  const max_tokens = Math.min(AHEAD, body.max_tokens ?? AHEAD);
  const response = await ask({ ...body, n: 1, max_tokens, supersede: key, timeout: PATIENCE }).catch(() => null);
  const answer = response?.ok ? await response.json().catch(() => null) : null;
  if (before !== dismissed || body.text !== form.text.value || !$("ahead").checked) return; // the user went on
  if (response?.status >= 400 && ![429, 503].includes(response.status)) complain((await problem(response)).message);
  const next = answer?.completed_sentence.slice(body.text.length);
  if (!next || answer.finish_reason === "superseded" || !atEnd()) return;
  typed.textContent = body.text;
  grey.textContent = next;
  $("ghost").hidden = false;
  $("ghost").scrollTop = form.text.scrollTop;
  $("live").textContent = `${next}. Tab takes it over, Escape dismisses it.`;
}

function onKey(event) {
  if ($("ghost").hidden || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key !== "Tab" && event.key !== "Escape") return;
  event.preventDefault();
  event.stopPropagation(); // Escape stops no run here
  const next = grey.textContent;
  dismiss();
  if (event.key === "Tab") document.execCommand("insertText", false, next); // can be undone, and is an input
}

// ---- A text: its tokens, shaded, each with what else might have stood there

class Text {
  constructor(body, index) {
    this.chars = []; // of what is drawn; offsets count characters, not UTF-16 units
    this.tokens = []; // {offset, logprob, top, span}
    this.began = performance.now();
    this.at = -1; // the token that is looked at
    this.element = node("article", { className: "writing" });
    this.where = node("span", {}, body.checkpoint ? titleOf(body.checkpoint) : "");
    this.note = node("span");
    const seed = body.seed === undefined ? "" : `seed ${body.seed + index}`;
    this.prose = node("p", { className: "prose", tabIndex: 0 }, node("span", { className: "prompt" }, body.text));
    this.prose.setAttribute("aria-label", `Text ${index + 1}. Arrow keys go from token to token.`);
    this.prose.setAttribute("role", "group");
    this.element.append(node("header", {}, node("span", {}, seed), this.where, this.note), this.prose);
    this.prose.onkeydown = event => this.onKey(event);
    this.prose.onblur = () => this.look(-1);
    this.prose.onpointerover = this.prose.onclick = event => this.look(this.tokens.findIndex(t => t.span === event.target));
    this.prose.onpointerleave = () => this.look(-1);
  }

  add({ text, logprobs, finish_reason }) {
    this.chars.push(...text);
    const { tokens, token_logprobs, top_logprobs, text_offset } = logprobs;
    tokens.forEach((_, i) => this.addToken(text_offset[i], token_logprobs[i], top_logprobs[i], tokens[i]));
    this.fill(this.tokens.length - 1, this.chars.length);
    const seconds = (performance.now() - this.began) / 1000;
    this.note.textContent = `${this.tokens.length} tokens`;
    this.note.append(node("span", { className: "speed" }, ` · ${(this.tokens.length / seconds).toFixed(0)}/s`));
    if (finish_reason) this.end();
  }

  addToken(offset, logprob, top, name) {
    this.fill(this.tokens.length - 1, offset);
    const span = node("span", { className: "token" });
    span.style.setProperty("--surprise", (0.42 * Math.min(1, -logprob / Math.LN2 / MOST)).toFixed(3));
    this.prose.append(span);
    this.tokens.push({ offset, logprob, top, name, span });
  }

  // A token's text reaches to where the next begins; one that is half a character has none.
  fill(i, end) {
    const token = this.tokens[i];
    if (token) token.span.textContent = this.chars.slice(token.offset, end).join("");
  }

  label(checkpoint) {
    this.where.textContent = titleOf(checkpoint);
  }

  end(remark = "") {
    if (this.element.classList.contains("writing")) this.note.append(remark);
    this.element.classList.remove("writing");
  }

  onKey(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 8, ArrowUp: -8, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || !this.tokens.length) return;
    event.preventDefault();
    this.look(Math.max(0, Math.min(this.tokens.length - 1, this.at + steps[event.key])));
    $("live").textContent = tip.innerText.replaceAll("\n", " ");
  }

  look(i) {
    this.tokens[this.at]?.span.classList.remove("here");
    this.at = i;
    tip.hidden = i < 0;
    if (i < 0) return;
    const { span, name, logprob, top } = this.tokens[i];
    span.classList.add("here");
    const rows = Object.entries({ [name]: logprob, ...top }).sort((a, b) => b[1] - a[1]);
    tip.replaceChildren(...rows.map(([token, value]) => {
      const share = 100 * Math.exp(value);
      const row = node("div", { className: token === name ? "drawn" : "" }, node("code", {}, seen(token)));
      row.append(node("span", {}, share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`));
      row.style.setProperty("--p", `${share}%`);
      return row;
    }));
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const below = box.bottom + 10 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left - 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? box.bottom + 8 : box.top - tip.offsetHeight - 8}px`;
  }
}

const seen = token => token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·");

function node(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// ---- The model's card and its curve

const stepOf = name => (/^step-\d+$/.test(name) ? `step ${Number(name.slice(5)).toLocaleString("en")}` : name);
const titleOf = name => (name === card?.checkpoint.name && stepOf(name) === name ? card.model : stepOf(name));
const lossOf = (nats, bits) => nats.toFixed(3) + (bits ? `, ${bits.toFixed(3)} bits per byte` : "");
const count = n => (n < 1e9 ? `${(n / 1e6).toFixed(1)}M` : `${(n / 1e9).toFixed(2)}B`);

async function refresh() {
  try {
    const response = await fetch("card", { cache: "no-store" });
    show(await response.json());
  } catch {
    state("No answer from the server", "gone");
  }
}

function state(text, kind) {
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = kind;
}

function show(told) {
  const served = told.checkpoint;
  const words = told.unready ?? `${told.model}, ${stepOf(served.name)}${told.watch ? ", following the best" : ""}`;
  state(words, told.unready ? "" : "ready");
  const news = JSON.stringify(told) !== JSON.stringify(card);
  card = told;
  if (!news) return;
  showCheckpoints(told.checkpoints);
  $("about").hidden = false;
  $("model").textContent = told.model;
  const facts = {
    Parameters: count(told.n_params) + (told.preset ? ` (${told.preset})` : ""),
    Shape: `${told.n_layer} layers, ${told.n_embd.toLocaleString("en")} wide`,
    Context: `${told.block_size.toLocaleString("en")} tokens`,
    Vocabulary: `${told.vocab_size.toLocaleString("en")} tokens`,
    "Learned from": told.data,
    Training: told.step && `step ${told.step} of ${told.max_steps}`,
    "Answers with": served && stepOf(served.name),
    "Validation loss": served?.val_loss && lossOf(served.val_loss, served.bits_per_byte),
    "Test loss": told.test_loss && lossOf(told.test_loss, told.test_bits_per_byte),
  };
  const rows = Object.entries(facts).filter(([, value]) => value);
  $("facts").replaceChildren(...rows.map(([name, value]) => node("div", {}, node("dt", {}, name), node("dd", {}, value))));
  $("curve").hidden = !told.step;
  if (!told.step) return;
  const [source, image] = $("curve").firstElementChild.children;
  source.srcset = `loss.svg?theme=dark&step=${told.step}`;
  image.src = `loss.svg?theme=light&step=${told.step}`;
  image.alt = `Loss curve up to step ${told.step}` + (facts["Validation loss"] ? `; validation loss ${facts["Validation loss"]}` : "");
}

function showCheckpoints(all) {
  const checked = [...chosen(), ...wanted];
  wanted = [];
  $("checkpoints").hidden = all.length < 2;
  const boxes = all.map(({ name, step, val_loss, bits_per_byte }) => {
    const box = node("input", { type: "checkbox", name: "checkpoint", value: name, checked: checked.includes(name) });
    const label = node("span", {}, step === null ? titleOf(name) : step.toLocaleString("en"));
    label.title = val_loss === null ? name : `${stepOf(name)}, validation loss ${lossOf(val_loss, bits_per_byte)}`;
    return node("label", {}, box, label);
  });
  $("checkpoints").replaceChildren($("checkpoints").firstElementChild, ...boxes);
  limit();
}

// The server holds so many checkpoints at once.
function limit() {
  const full = chosen().length >= 4;
  for (const box of $("checkpoints").querySelectorAll("input")) box.disabled = full && !box.checked;
}

// ---- Copies

const endpoint = () => new URL("complete-sentence", location.href.split("#")[0]).href;
const quoted = text => `'${text.replaceAll("'", `'\\''`)}'`;
const literal = value => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));

const COPIES = {
  link: () => location.href.split("#")[0] + address(),
  curl: () => {
    const key = $("key").value ? ` -H "Authorization: Bearer $KEY"` : "";
    return bodies().map(body => `curl ${endpoint()}${key} -d ${quoted(JSON.stringify(body))}`).join("\n");
  },
  python: () => {
    const dicts = bodies().map(body => `    {${Object.entries(body).map(([k, v]) => `"${k}": ${literal(v)}`).join(", ")}},`);
    const key = $("key").value ? `, "Authorization": "Bearer KEY"` : "";
    return `import json
import urllib.request

for body in [
${dicts.join("\n")}
]:
    headers = {"Content-Type": "application/json"${key}}
    request = urllib.request.Request("${endpoint()}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    print(*answer.get("completed_sentences", [answer["completed_sentence"]]), sep="\\n---\\n")
`;
  },
};

async function copy(button) {
  const text = COPIES[button.dataset.copy](), label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // only pages from localhost or over https may
    const area = node("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  $("live").textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1200);
}

// ---- What the user does

form.onsubmit = event => { event.preventDefault(); run(); };
$("stop").onclick = () => { running?.abort(); $("text").focus(); };
$("dice").onclick = () => { form.seed.value = newSeed(); run(); };
$("checkpoints").onchange = limit;
$("shade").onchange = () => document.body.classList.toggle("plain", !$("shade").checked);
document.querySelectorAll("[data-copy]").forEach(button => { button.onclick = () => copy(button); });
form.text.oninput = type;
form.text.onkeydown = onKey;
form.text.onblur = dismiss;
document.onselectionchange = () => { if (!atEnd()) dismiss(); };
$("ahead").onchange = () => {
  dismiss();
  if ($("ahead").checked) form.text.setAttribute("aria-autocomplete", "inline");
  else form.text.removeAttribute("aria-autocomplete");
};
form.querySelectorAll(".row").forEach(row => {
  const [number, range] = row.querySelectorAll("input");
  if (!range) return;
  range.tabIndex = -1; // the number beside it does the same
  range.setAttribute("aria-hidden", true);
  range.oninput = () => { number.value = range.value; showSlider(row); };
  number.oninput = () => showSlider(row);
});
addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  if (event.key === "Escape") { if (running) running.abort(); else tip.hidden = true; }
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
addEventListener("hashchange", () => { readAddress(); run(); });

if (matchMedia("(max-width: 860px)").matches) $("settings").open = false;
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("run").lastElementChild.textContent = "⌘ ↵";
const linked = readAddress();
await refresh();
if (linked) run();
setInterval(() => { if (!document.hidden) refresh(); }, 4000);
