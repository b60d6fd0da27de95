// The studio's one page: state, what is asked of the API when it changes, and what is drawn of the answers.
import { address, download, get, post, upload } from "./api.js";
import { el, paint, percent, shade, signed } from "./draw.js";

const $ = id => document.getElementById(id);
const state = { picture: null, texts: [], focus: 0, against: -1, off: [], by: "zero", method: "decomposition" };
const past = [], future = [];
let facts, names = {}, suspects = new Set(), suggestion = "", answer = null, maps = null, pointed = null;
const calls = {};

const select = () => state.off.filter(p => !p.startsWith("mlp")).join(",") + (state.off.some(p => p.startsWith("mlp")) ? (state.off.some(p => !p.startsWith("mlp")) ? "+" : "") + "mlp=" + state.off.filter(p => p.startsWith("mlp")).map(p => p.slice(4)).join(",") : "");
const question = () => ({ picture: state.picture, texts: state.texts });
const toward = values => values[state.focus] - (state.against >= 0 ? values[state.against] : 0);
const about = () => state.texts[state.focus] + (state.against >= 0 ? `” against “${state.texts[state.against]}` : "");

function say(error) { $("problem").hidden = !error; $("problem").textContent = error ? error.message ?? String(error) : ""; }
async function latest(name, work) { // of several calls of one kind only the last one counts
  calls[name]?.abort();
  const call = calls[name] = new AbortController();
  try { const found = await work(call.signal); if (calls[name] === call) { say(""); return found; } }
  catch (error) { if (error.name !== "AbortError" && calls[name] === call) say(error); }
  return undefined;
}
function remember() { history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state))); }
function recall() {
  try { const kept = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of Object.keys(state)) if (typeof kept[key] === typeof state[key] || key === "picture") state[key] = kept[key]; return true; }
  catch { return false; }
}

async function explain() {
  remember();
  if (!state.picture || !state.texts.length) { answer = null; drawAll(); return; }
  document.body.classList.add("busy");
  const found = await latest("explain", signal => post("explain", { ...question(), select: select(), by: state.by }, signal));
  document.body.classList.remove("busy");
  if (found) { answer = found; drawAll(); }
}
async function map(heads = null) {
  if (!state.picture || !state.texts.length) return;
  const alone = heads ?? (state.method === "decomposition" ? remaining() : null);
  const method = heads ? "decomposition" : state.method;
  const found = await latest("map", signal => post("heatmap", { ...question(), method, heads: alone }, signal));
  if (found) { maps = { ...found, head: heads }; drawMap(); }
}
function remaining() { // the decomposition's map of what is left on
  const off = new Set(state.off);
  if (![...off].some(p => !p.startsWith("mlp"))) return null;
  const on = [];
  for (let l = 0; l < facts.layers; l++) for (let h = 0; h < facts.heads; h++) if (!off.has(`${l}.${h}`)) on.push(`${l}.${h}`);
  return on.length ? on.join(",") : null;
}
async function measure() {
  if (!facts.store?.task) return;
  $("accuracy").classList.add("waiting");
  const found = await latest("ablate", signal => post("ablate", { select: select(), by: state.by }, signal));
  $("accuracy").classList.remove("waiting");
  if (found) drawAccuracy(found);
}

function turn(parts, off) { // heads off or on, as one step that can be undone
  past.push([...state.off]); future.length = 0;
  const now = new Set(state.off);
  for (const part of parts) if (off ?? !now.has(part)) now.add(part); else now.delete(part);
  state.off = [...now];
  changed();
}
function changed() { explain(); map(); measure(); drawButtons(); }
function drawButtons() {
  $("undo").disabled = !past.length; $("redo").disabled = !future.length;
  $("clear").disabled = $("save").disabled = !state.off.length;
}

function drawAll() { drawGallery(); drawTexts(); drawAnswer(); drawHeads(); drawButtons(); }
function drawGallery() {
  for (const button of $("gallery").children) button.setAttribute("aria-pressed", button.dataset.id === state.picture);
  $("picture").hidden = !state.picture; $("empty").hidden = Boolean(state.picture);
  if (state.picture && $("picture").dataset.id !== state.picture) {
    $("picture").src = address(state.picture); $("picture").dataset.id = state.picture;
    const shown = [...$("gallery").children].find(b => b.dataset.id === state.picture);
    $("picture").alt = shown ? shown.title : "the picture";
  }
}
function drawTexts() {
  $("texts").replaceChildren(...state.texts.map((text, at) => {
    const choose = el("button", { type: "button", textContent: text, onclick: () => { state.focus = at; if (state.against === at) state.against = -1; remember(); drawAll(); drawMap(); } });
    choose.setAttribute("aria-pressed", at === state.focus);
    const remove = el("button", { type: "button", textContent: "×", title: "take this text away", onclick: () => {
      state.texts.splice(at, 1); state.focus = Math.max(0, Math.min(state.focus - (at < state.focus), state.texts.length - 1)); state.against = -1; explain(); map(); } });
    remove.setAttribute("aria-label", `take “${text}” away`);
    return el("li", {}, choose, remove);
  }));
  $("against").replaceChildren(el("option", { value: -1, textContent: "nothing" }), ...state.texts.map((text, at) => el("option", { value: at, textContent: text, disabled: at === state.focus })));
  $("against").value = state.against;
}
function drawAnswer() {
  if (!answer) { $("answer").replaceChildren(el("p", { className: "hint", textContent: "Add a text, and choose a picture." })); return; }
  const edited = state.off.length > 0, grid = el("div", { className: "answer" });
  grid.append(...["text", "probability", "", "cosine"].map(title => el("span", { className: "soft", textContent: title })));
  answer.texts.forEach((text, at) => {
    const before = answer.probability.whole[at], now = answer.probability.edited[at], bar = el("span", { className: "bar" });
    const fill = el("i"); fill.style.width = 100 * now + "%"; bar.append(fill);
    if (edited) { const mark = el("b", { title: `before: ${percent(before)}` }); mark.style.left = `calc(${100 * before}% - 1px)`; bar.append(mark); }
    grid.append(el("span", { textContent: text }), bar, el("span", { className: "num", textContent: (edited ? percent(before) + " → " : "") + percent(now) }), el("span", { className: "num soft", title: "cosine", textContent: answer.cosine.edited[at].toFixed(3) }));
  });
  $("answer").replaceChildren(grid);
}
function drawHeads() {
  const limit = answer ? Math.max(...answer.heads.flat().map(v => Math.abs(toward(v))), ...answer.mlps.map(v => Math.abs(toward(v)))) : 0;
  for (const button of $("heads").querySelectorAll(".head")) {
    const { part, layer, head } = button.dataset;
    const off = state.off.includes(part), value = answer ? toward(head === "" ? answer.mlps[layer] : answer.heads[layer][head]) : 0;
    const name = head === "" ? `MLP of layer ${layer}` : `head ${part}`, known = names[part];
    button.setAttribute("aria-pressed", off);
    button.style.background = answer ? shade(value, limit) : "";
    button.classList.toggle("suspect", suspects.has(part));
    button.dataset.tip = `${name}: ${signed(value)}` + (known ? ` · ${known.role} · ${known.texts.join(", ")}` : "") + (off ? " · off" : "");
    button.setAttribute("aria-label", button.dataset.tip);
  }
}
function drawMap() {
  if (!maps || !state.texts.length) return;
  const own = maps.values[state.focus], other = state.against >= 0 ? maps.values[state.against] : null;
  const values = own.map((row, r) => row.map((value, c) => value - (other ? other[r][c] : 0)));
  const limit = other ? Math.max(...values.flat().map(Math.abs)) : maps.limit;
  paint($("map"), values, limit);
  $("scale-low").textContent = `lowers −${limit.toFixed(4)}`; $("scale-high").textContent = `raises +${limit.toFixed(4)}`;
  const off = state.off.filter(p => !p.startsWith("mlp")).length;
  $("shown").textContent = (maps.head ? `head ${maps.head} alone, ` : maps.method === "decomposition" && off ? `without ${off} head${off > 1 ? "s" : ""}, ` : "") + `for “${about()}”`;
}
function drawAccuracy(found) {
  const rows = [el("span", { textContent: "average" }), change(found.whole.average, found.edited.average)];
  if (found.edited.worst) rows.push(el("span", { textContent: `worst group: ${found.edited.worst.name} (${found.edited.worst.images} images)` }), change(found.whole.worst.accuracy, found.edited.worst.accuracy, true));
  found.groups.forEach((group, at) => rows.push(el("span", { className: "soft", textContent: `${group.name} (${group.images})` }), change(found.whole.groups[at], found.edited.groups[at])));
  $("accuracy").replaceChildren(el("div", { className: "figure" }, ...rows), el("p", { className: "hint", textContent: `${found.images.toLocaleString("en")} images; by chance ${percent(found.chance)}` }));
}
function change(before, now, big = false) {
  const way = now > before + 5e-4 ? "up" : now < before - 5e-4 ? "down" : "", value = el("span", { className: `num ${big ? "big" : ""}` });
  value.append(...(way ? [percent(before) + " → ", el("span", { className: way, textContent: percent(now) })] : [percent(now)]));
  return value;
}
function drawSuspects(found) {
  suggestion = found.suggestion; suspects = new Set(found.suspects.map(one => one.part));
  $("suggest").hidden = !suggestion || suggestion === "none"; $("suggest").textContent = `Switch off ${suggestion}`;
  $("suspects").replaceChildren(...found.suspects.map(one => el("li", {}, el("button", { textContent: one.part, onclick: () => turn([one.part]) }),
    el("span", { textContent: [one.role, one.texts.slice(0, 2).join(", ")].filter(Boolean).join(": ") || "MLP" }), el("span", { className: "num soft", title: "accuracy of the worst group with this part alone off", textContent: "worst " + percent(one.worst_alone) }))));
  drawHeads();
}

function build() {
  $("model").textContent = `${facts.model}: ${facts.layers} layers × ${facts.heads} heads` + (facts.store ? ` · ${facts.store.images.toLocaleString("en")} pictures in ${facts.store.path}` : "");
  $("method").replaceChildren(...facts.methods.map(one => el("option", { value: one.name, textContent: one.name, title: one.description })));
  $("by").replaceChildren(...facts.baselines.map(name => el("option", { value: name, textContent: name })));
  if (!facts.baselines.includes(state.by) || state.by === "zero") state.by = facts.baselines[0];
  $("by").value = state.by; $("method").value = state.method;
  $("store").hidden = !facts.store?.task; $("no-store").hidden = Boolean(facts.store?.task);
  if (facts.store?.task) $("asked").textContent = `Which ${facts.store.task.label}? ${facts.store.task.classes.join(", ")}`;
  for (let layer = facts.layers - 1; layer >= 0; layer--) {
    const row = el("div", { className: "layer" }, el("span", { textContent: `layer ${layer}` }));
    for (let head = 0; head < facts.heads; head++) row.append(cell(`${layer}.${head}`, layer, head));
    if (facts.mlps) { const mlp = cell(`mlp=${layer}`, layer, ""); mlp.classList.add("mlp"); row.append(mlp); }
    $("heads").append(row);
  }
  $("heads").append(el("div", { className: "layer" }, el("span", { textContent: "head" }), ...Array.from({ length: facts.heads }, (_, h) => el("span", { textContent: h })), ...(facts.mlps ? [el("span", { textContent: "MLP" })] : [])));
  facts.examples.forEach(thumbnail);
}
function cell(part, layer, head) {
  const button = el("button", { type: "button", className: "head", onclick: () => turn([part]) });
  Object.assign(button.dataset, { part, layer, head });
  const enter = event => { pointed = part; tip(event, button.dataset.tip); $("head-hint").textContent = button.dataset.tip; if (head !== "") setTimeout(() => pointed === part && map(part), 120); };
  const leave = () => { pointed = null; $("tip").hidden = true; setTimeout(() => pointed === null && maps?.head && map(), 150); };
  button.addEventListener("mouseenter", enter); button.addEventListener("mouseleave", leave);
  button.addEventListener("focus", enter); button.addEventListener("blur", leave);
  return button;
}
function tip(event, text) {
  const box = event.target.getBoundingClientRect();
  $("tip").textContent = text; $("tip").hidden = false;
  $("tip").style.left = Math.max(8, Math.min(box.left, innerWidth - 310)) + "px"; $("tip").style.top = box.bottom + 8 + "px";
}
function thumbnail({ id, name }) {
  if ([...$("gallery").children].some(b => b.dataset.id === id)) return;
  const button = el("button", { type: "button", title: name, onclick: () => choose(id) }, el("img", { src: address(id), alt: name }));
  button.dataset.id = id; $("gallery").append(button);
}
function choose(id) { state.picture = id; maps = null; explain(); map(); }
async function send(files) {
  for (const file of files) { try { const held = await upload(file); thumbnail(held); choose(held.id); } catch (error) { say(new Error(`${file.name}: ${error.message}`)); } }
}
function move(event) { // arrow keys walk over the heads
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: facts.heads + (facts.mlps ? 1 : 0), ArrowUp: -facts.heads - (facts.mlps ? 1 : 0) }[event.key];
  if (!step || !event.target.classList.contains("head")) return;
  const cells = [...$("heads").querySelectorAll(".head")], next = cells[cells.indexOf(event.target) + step];
  if (next) { event.preventDefault(); next.focus(); }
}

$("new-text").onsubmit = event => { event.preventDefault(); const text = $("text").value.trim();
  if (text && !state.texts.includes(text)) { state.texts.push(text); state.focus = state.texts.length - 1; $("text").value = ""; explain(); map(); } };
$("against").onchange = () => { state.against = Number($("against").value); remember(); drawHeads(); drawMap(); };
$("method").onchange = () => { state.method = $("method").value; remember(); map(); };
$("by").onchange = () => { state.by = $("by").value; changed(); };
$("opacity").oninput = () => { $("map").style.opacity = $("opacity").value / 100; };
$("undo").onclick = () => { future.push(state.off); state.off = past.pop(); changed(); };
$("redo").onclick = () => { past.push(state.off); state.off = future.pop(); changed(); };
$("clear").onclick = () => turn(state.off, false);
$("suspect").onclick = async () => { $("suspect").disabled = true; $("suspect").textContent = "Looking at every head …";
  const found = await latest("suspects", signal => post("suspects", {}, signal));
  $("suspect").disabled = false; $("suspect").textContent = "Find suspects"; if (found) drawSuspects(found); };
$("suggest").onclick = () => turn(suggestion.split("+").flatMap(one => one.startsWith("mlp=") ? one.slice(4).split(",").map(l => `mlp=${l}`) : one.split(",")), true);
$("save").onclick = async () => { try { const file = await download("edit", { select: select(), by: state.by });
  const link = el("a", { href: URL.createObjectURL(file), download: "edit.zip" }); link.click(); URL.revokeObjectURL(link.href); } catch (error) { say(error); } };
$("files").onchange = () => send($("files").files);
$("heads").addEventListener("keydown", move);
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault(); $("drop").classList.toggle("over", name === "dragover"); if (name === "drop") send(event.dataTransfer.files); });
document.addEventListener("keydown", event => { if (!(event.ctrlKey || event.metaKey) || event.target.tagName === "INPUT") return;
  if (event.key === "z" && !event.shiftKey && past.length) { event.preventDefault(); $("undo").click(); }
  if ((event.key === "y" || (event.key === "z" && event.shiftKey)) && future.length) { event.preventDefault(); $("redo").click(); } });

try {
  facts = await get("model");
  if (!recall() || !state.texts.length) state.texts = facts.store?.task ? facts.store.task.classes.slice(0, 8).map(one => (/^[aeiou]/i.test(one) ? "an " : "a ") + one) : ["a bird", "a circle", "the sky", "water"];
  build();
  state.picture ??= facts.examples[0]?.id ?? null;
  $("opacity").oninput();
  await explain();
  map(); measure();
  names = (await get("heads")).heads; drawHeads();
} catch (error) { say(error); }
document.body.dataset.ready = "yes";
