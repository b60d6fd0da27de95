// Explain and repair: the map of a text, what every head adds, heads off and on, and what that does to answers and to the store.
import { download, get, post } from "./api.js";
import { $, bar, el, paint, percent, plain, shade, signed } from "./draw.js";
import { waited } from "./jobs.js";
import {
  changed, complete, facts, headsOff, latest, names, onChange, partsOf, question, remaining, say, select, state, step, steps, turn,
} from "./state.js";

let answer = null, maps = null, pointed = null, patch = null, suspects = new Set(), suggestion = "";
const details = new Map();
const toward = values => values[state.focus] - (state.against >= 0 ? values[state.against] : 0);
const about = () => state.texts[state.focus] + (state.against >= 0 ? `” against “${state.texts[state.against]}` : "");

async function explain() {
  if (!complete()) { answer = null; drawAll(); return; }
  document.body.classList.add("busy");
  const found = await latest("explain", signal => post("explain", { ...question(), select: select(), by: state.by, effect: state.effect }, signal));
  document.body.classList.remove("busy");
  if (found) { answer = found; drawAll(); }
}
async function map(heads = null) {
  if (!complete()) return;
  const alone = heads ?? (state.method === "decomposition" ? remaining() : null);
  const method = heads ? "decomposition" : state.method;
  const found = await latest("map", signal => post("heatmap", { ...question(), method, heads: alone }, signal));
  if (found) { maps = { ...found, head: heads }; drawMap(); }
}
async function measure() {
  if (!facts.store?.task) return;
  $("accuracy").classList.add("waiting");
  const found = await latest("ablate", signal => post("ablate", { select: select(), by: state.by }, signal));
  $("accuracy").classList.remove("waiting");
  if (found) drawAccuracy(found);
}

function drawAll() { drawAnswer(); drawHeads(); drawButtons(); }
function drawButtons() {
  const { back, forth } = steps();
  $("undo").disabled = !back;
  $("redo").disabled = !forth;
  $("clear").disabled = $("save").disabled = !state.off.length;
}
function drawAnswer() {
  if (!answer) { $("answer").replaceChildren(el("p", { className: "hint", textContent: "Add a text, and choose a picture." })); return; }
  const edited = state.off.length > 0, grid = el("div", { className: "answer" });
  grid.append(...["text", "probability", "", "cosine"].map(title => el("span", { className: "soft", textContent: title })));
  answer.texts.forEach((text, at) => {
    const before = answer.probability.whole[at], now = answer.probability.edited[at];
    const shown = (edited ? percent(before) + " → " : "") + percent(now);
    grid.append(el("span", { textContent: text }), bar(now, edited ? before : null, edited ? `before: ${percent(before)}` : ""),
      el("span", { className: "num", textContent: shown }),
      el("span", { className: "num soft", title: "cosine", textContent: answer.cosine.edited[at].toFixed(3) }));
  });
  $("answer").replaceChildren(grid);
}
function drawHeads() { // of the whole picture, or of the patch that is pointed at
  const heads = patch?.heads ?? answer?.heads, mlps = patch ? null : answer?.mlps;
  const limit = heads ? Math.max(...heads.flat().map(v => Math.abs(toward(v))), ...(mlps ?? []).map(v => Math.abs(toward(v)))) : 0;
  for (const button of $("heads").querySelectorAll(".head")) {
    const { part, layer, head } = button.dataset;
    const off = state.off.includes(part), known = names[part];
    const values = head === "" ? mlps?.[layer] : heads?.[layer][head], value = values ? toward(values) : 0;
    button.setAttribute("aria-pressed", off);
    button.style.background = values ? shade(value, limit) : "";
    button.classList.toggle("suspect", suspects.has(part));
    button.dataset.tip = (head === "" ? `MLP of layer ${layer}` : `head ${part}`) + `: ${signed(value)}`
      + (patch ? " from this patch" : "") + (known ? ` · ${plain(known.role)} · ${known.texts.join(", ")}` : "") + (off ? " · off" : "");
    button.setAttribute("aria-label", button.dataset.tip);
  }
  $("heads-scale").textContent = heads ? `strongest colour: ±${limit.toFixed(4)} of the cosine` : "";
}
function drawMap() {
  if (!maps || !complete()) return;
  const own = maps.values[state.focus] ?? maps.values[0], other = state.against >= 0 ? maps.values[state.against] : null;
  const values = own.map((row, r) => row.map((value, c) => value - (other ? other[r][c] : 0)));
  const limit = other ? Math.max(...values.flat().map(Math.abs)) : maps.limit, off = headsOff().length;
  paint($("map"), values, limit);
  $("scale-low").textContent = `lowers −${limit.toFixed(4)}`;
  $("scale-high").textContent = `raises +${limit.toFixed(4)}`;
  const which = maps.head ? `head ${maps.head} alone, ` : maps.method === "decomposition" && off ? `without ${off} head${off > 1 ? "s" : ""}, ` : "";
  $("shown").textContent = `${which}for “${about()}”`;
}
function drawAccuracy(found) {
  const rows = [el("span", { textContent: "average" }), change(found.whole.average, found.edited.average)], worst = found.edited.worst;
  if (worst) rows.push(el("span", { textContent: `worst group: ${worst.name} (${worst.images} images)` }),
    change(found.whole.worst.accuracy, worst.accuracy, true));
  found.groups.forEach((group, at) => rows.push(el("span", { className: "soft", textContent: `${group.name} (${group.images})` }),
    change(found.whole.groups[at], found.edited.groups[at])));
  const note = `${found.images.toLocaleString("en")} images; by chance ${percent(found.chance)}`;
  $("accuracy").replaceChildren(el("div", { className: "figure" }, ...rows), el("p", { className: "hint", textContent: note }));
}
function change(before, now, big = false) {
  const way = now > before + 5e-4 ? "up" : now < before - 5e-4 ? "down" : "", value = el("span", { className: `num ${big ? "big" : ""}` });
  value.append(...(way ? [percent(before) + " → ", el("span", { className: way, textContent: percent(now) })] : [percent(now)]));
  return value;
}
function drawSuspects(found) {
  suggestion = found.suggestion;
  suspects = new Set(found.suspects.map(one => one.part));
  $("suggest").hidden = !suggestion || suggestion === "none";
  $("suggest").textContent = `Switch off ${suggestion}`;
  $("suspects").replaceChildren(...found.suspects.map(one => el("li", {},
    el("button", { textContent: one.part, onclick: () => turn([one.part]) }),
    el("span", { textContent: [plain(one.role), one.texts.slice(0, 2).join(", ")].filter(Boolean).join(": ") || "MLP" }),
    el("span", { className: "num soft", title: "accuracy of the worst group with this part alone off", textContent: "worst " + percent(one.worst_alone) }))));
  drawHeads();
}

async function showDetail(part) { // what the atlas says of the head that is pointed at, with its pictures
  if (!names[part]) { $("detail").replaceChildren(); return; }
  if (!details.has(part)) {
    try { details.set(part, await get(`atlas/${part}`)); } catch { return; }
  }
  if (pointed !== part) return;
  $("detail").replaceChildren(...headDetail(details.get(part), 6));
}
function headDetail(found, pictures) {
  const first = found.texts[0];
  return [
    el("p", { className: "hint", textContent: `${found.part} · ${plain(found.role)} (${percent(found.confidence)} of its evidence) · its texts explain ${percent(found.explained)}`
      + (found.chance === null ? "" : `, shuffled texts ${percent(found.chance)}`) }),
    ...(first ? [el("div", { className: "strip" }, ...first.top_images.slice(0, pictures).map(one =>
      el("img", { src: `/api/v1/images/${one.row}`, alt: `${one.id}, which it answers most for “${first.text}”`, title: `${one.id}: ${signed(one.value)}`, loading: "lazy" })))] : []),
  ];
}
export const forget = () => details.clear();

let asked = null;
function pointAt(row, col) { // a patch: which heads read it
  const { style } = $("cursor"), rows = $("map").height, cols = $("map").width;
  if (row === null || !maps) {
    asked = patch = null;
    $("cursor").hidden = true;
    drawHeads();
    drawHint();
    return;
  }
  Object.assign(style, { left: `${100 * col / cols}%`, top: `${100 * row / rows}%`, width: `${100 / cols}%`, height: `${100 / rows}%` });
  $("cursor").hidden = false;
  if (asked === `${row},${col}`) return;
  const mine = asked = `${row},${col}`;
  setTimeout(async () => {
    if (asked !== mine) return;
    const found = await latest("patch", signal => post("patch", { ...question(), row, col }, signal));
    if (!found || asked !== mine) return;
    patch = found;
    drawHeads();
    const best = found.heads.flatMap((layer, l) => layer.map((value, h) => [`${l}.${h}`, toward(value)])).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    $("head-hint").textContent = `patch ${row}, ${col} is read most by ${best.slice(0, 3).map(([part, value]) => `${part} ${signed(value)}`).join(", ")}`;
  }, 60);
}
function drawHint() { $("head-hint").textContent = "Each square is a head, and what it adds to the cosine. Point at one, or at a patch of the picture."; }

function cell(part, layer, head) {
  const button = el("button", { type: "button", className: "head", onclick: () => turn([part]) });
  Object.assign(button.dataset, { part, layer, head });
  const enter = event => {
    pointed = part;
    tip(event, button.dataset.tip);
    $("head-hint").textContent = button.dataset.tip;
    if (head !== "") setTimeout(() => { if (pointed === part) { map(part); showDetail(part); } }, 120);
  };
  const leave = () => {
    pointed = null;
    $("tip").hidden = true;
    setTimeout(() => { if (pointed === null && maps?.head) map(); }, 150);
  };
  button.addEventListener("mouseenter", enter);
  button.addEventListener("mouseleave", leave);
  button.addEventListener("focus", enter);
  button.addEventListener("blur", leave);
  return button;
}
function tip(event, text) {
  const box = event.target.getBoundingClientRect();
  $("tip").textContent = text;
  $("tip").hidden = false;
  $("tip").style.left = Math.max(8, Math.min(box.left, innerWidth - 310)) + "px";
  $("tip").style.top = box.bottom + 8 + "px";
}
function move(event) { // arrow keys walk over the heads
  const across = facts.heads + (facts.mlps ? 1 : 0);
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (!by || !event.target.classList.contains("head")) return;
  const cells = [...$("heads").querySelectorAll(".head")], next = cells[cells.indexOf(event.target) + by];
  if (next) { event.preventDefault(); next.focus(); }
}
function walk(event) { // and over the patches
  const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (event.key === "Escape") return pointAt(null);
  if (!by || !maps) return undefined;
  event.preventDefault();
  const [row, col] = asked ? asked.split(",").map(Number) : [0, 0], within = (at, most) => Math.max(0, Math.min(most - 1, at));
  return pointAt(within(row + by[0], $("map").height), within(col + by[1], $("map").width));
}
export function drawRoles() { // whole roles off at once
  const roles = [...new Set(Object.values(names).map(one => one.role))].sort();
  $("role").replaceChildren(el("option", { value: "", textContent: "a role …" }), ...roles.map(role => el("option", { value: role, textContent: plain(role) })));
  $("role").parentElement.hidden = !roles.length;
  $("detail").classList.toggle("roomy", roles.length > 0); // so that nothing moves when a head is pointed at
  drawHeads();
}

export function build() {
  $("method").replaceChildren(...facts.methods.map(one => el("option", { value: one.name, textContent: one.name, title: one.description })));
  $("by").replaceChildren(...facts.baselines.map(name => el("option", { value: name, textContent: name })));
  if (!facts.baselines.includes(state.by) || state.by === "zero") state.by = facts.baselines[0];
  $("by").value = state.by;
  $("effect").value = state.effect = state.effect === "rerun" ? "rerun" : "direct";
  $("method").value = state.method;
  $("store").hidden = !facts.store?.task;
  $("no-store").hidden = Boolean(facts.store?.task);
  if (facts.store?.task) $("asked").textContent = `Which ${facts.store.task.label}? ${facts.store.task.classes.join(", ")}`;
  const rows = [];
  for (let layer = facts.layers - 1; layer >= 0; layer--) {
    const row = el("div", { className: "layer" }, el("span", { textContent: `layer ${layer}` }));
    for (let head = 0; head < facts.heads; head++) row.append(cell(`${layer}.${head}`, layer, head));
    if (facts.mlps) { const mlp = cell(`mlp=${layer}`, layer, ""); mlp.classList.add("mlp"); row.append(mlp); }
    rows.push(row);
  }
  rows.push(el("div", { className: "layer" }, el("span", { textContent: "head" }), ...Array.from({ length: facts.heads }, (_, h) => el("span", { textContent: h })),
    ...(facts.mlps ? [el("span", { textContent: "MLP" })] : [])));
  $("heads").replaceChildren(...rows);
  drawHint();
}
export async function refresh() {
  await explain();
  map();
  measure();
}

onChange(what => {
  if (state.view !== "explain" && what !== "view") return;
  if (what === "focus") { drawAll(); drawMap(); return; }
  if (what === "picture" || what === "texts" || what === "view") { maps = what === "picture" ? null : maps; patch = asked = null; $("cursor").hidden = true; }
  if (state.view !== "explain") return;
  explain();
  map();
  if (what === "off" || what === "view") measure();
  drawButtons();
});
$("method").onchange = () => { state.method = $("method").value; changed("method"); };
$("by").onchange = () => { state.by = $("by").value; changed("off"); };
$("effect").onchange = () => { state.effect = $("effect").value; changed("effect"); };
$("opacity").oninput = () => { $("map").style.opacity = $("opacity").value / 100; };
$("undo").onclick = () => step(true);
$("redo").onclick = () => step(false);
$("clear").onclick = () => turn(state.off, false);
$("role").onchange = () => {
  const parts = Object.keys(names).filter(part => names[part].role === $("role").value);
  $("role").value = "";
  if (parts.length) turn(parts, true);
};
$("suspect").onclick = async () => {
  const job = await waited("repair", $("suspect"), "Find suspects");
  if (job?.result) drawSuspects(job.result);
};
$("suggest").onclick = () => turn(partsOf(suggestion), true);
$("save").onclick = async () => {
  try {
    const file = await download("edit", { select: select(), by: state.by, effect: state.effect });
    const link = el("a", { href: URL.createObjectURL(file), download: "edit.zip" });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) { say(error); }
};
$("load").onchange = async () => { // an edit.json: its parts go off, replaced by what this store has for them
  try {
    const [file] = $("load").files;
    let edit;
    try { edit = JSON.parse(await file.text()); } catch { throw new Error(`${file.name} is no edit. Choose the edit.json of an edit`); }
    if (!String(edit.schema).startsWith("clip-anatomy/edit/") || !Array.isArray(edit.parts)) throw new Error(`${file.name} is no edit. Choose the edit.json of an edit`);
    if (edit.model?.name !== facts.model) throw new Error(`${file.name} is an edit of ${edit.model?.name}; this is ${facts.model}`);
    const parts = edit.parts.map(one => one.part.replace(/^head /, "").replace(/^mlp /, "mlp="));
    const by = edit.parts[0]?.by ?? state.by;
    if (!facts.baselines.includes(by)) throw new Error(`${file.name} replaces parts by ${by}; here there is ${facts.baselines.join(" and ")}`);
    state.by = $("by").value = by;
    state.effect = $("effect").value = edit.parts.some(one => one.effect === "rerun") ? "rerun" : "direct";
    turn(state.off.filter(part => !parts.includes(part)).concat(parts.filter(part => !state.off.includes(part))));
    say("");
  } catch (error) { say(error); }
  $("load").value = "";
};
$("heads").addEventListener("keydown", move);
$("frame").addEventListener("keydown", walk);
$("frame").addEventListener("blur", () => pointAt(null));
$("frame").addEventListener("mousemove", event => {
  const box = $("map").getBoundingClientRect();
  const at = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value * most)));
  pointAt(at((event.clientY - box.top) / box.height, $("map").height), at((event.clientX - box.left) / box.width, $("map").width));
});
$("frame").addEventListener("mouseleave", () => pointAt(null));
document.addEventListener("keydown", event => {
  if (!(event.ctrlKey || event.metaKey) || event.target.tagName === "INPUT") return;
  if (event.key === "z" && !event.shiftKey) { event.preventDefault(); step(true); }
  if (event.key === "y" || (event.key === "z" && event.shiftKey)) { event.preventDefault(); step(false); }
});
