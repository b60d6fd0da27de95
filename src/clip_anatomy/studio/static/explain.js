// Explain and repair: the answer to every text, heads off and on, undone, saved and loaded.
import { download, post } from "./api.js";
import { $, bar, el, hide, hover, percent, show, signed } from "./draw.js";
import { measure } from "./collection.js";
import { drawHeads, drawHint } from "./heads.js";
import { drawMap, map, pointAt, readPairs } from "./map.js";
import { changed, complete, edited, facts, latest, look, onChange, question, say, state, step, steps, turn } from "./state.js";

async function explain() {
  if (!complete()) { look.answer = null; drawAll(); return; }
  document.body.classList.add("busy");
  const found = await latest("explain", signal => post("explain", { ...question(), ...edited() }, signal));
  document.body.classList.remove("busy");
  if (found) { look.answer = found; drawAll(); }
}
function drawAll() { drawAnswer(); drawHeads(); drawHint(); drawButtons(); }
function drawButtons() {
  const { back, forth } = steps();
  $("undo").disabled = !back;
  $("redo").disabled = !forth;
  $("clear").disabled = $("save").disabled = !state.off.length;
}
function drawAnswer() {
  const { answer } = look;
  if (!answer) { $("answer").replaceChildren(el("p", { className: "hint", textContent: state.texts.length ? "Choose a picture." : "Add a text." })); return; }
  const off = state.off.length > 0, grid = el("div", { className: "answer" });
  grid.append(...["text", "probability", "", "cosine"].map(title => el("span", { className: "soft", textContent: title })));
  answer.texts.forEach((text, at) => {
    const before = answer.probability.whole[at], now = answer.probability.edited[at];
    const shown = (off ? percent(before) + " → " : "") + percent(now);
    const choose = el("button", { type: "button", className: "link", textContent: text, onclick: () => { state.focus = at; if (state.against === at) state.against = -1; changed("focus"); } });
    choose.toggleAttribute("aria-current", at === state.focus);
    const level = bar(now, off ? before : null);
    for (const one of [choose, level]) hover(one, () => show(one, madeOf(at)), hide);
    grid.append(choose, level, el("span", { className: "num", textContent: shown }),
      el("span", { className: "num soft", title: "cosine", textContent: answer.cosine.edited[at].toFixed(3) }));
  });
  const chance = `Probabilities among these texts; by chance ${percent(1 / answer.texts.length)}.${off ? " The mark is the whole model's." : ""}`;
  $("answer").replaceChildren(grid, el("p", { className: "hint", textContent: chance }));
}
function madeOf(at) { // what a bar holds: the cosine as a sum of its parts
  const { heads, mlps, input_embedding: input, bias, cosine } = look.answer, sum = values => signed(values.reduce((total, value) => total + value[at], 0));
  const best = heads.flatMap((layer, l) => layer.map((value, h) => [`${l}.${h}`, value[at]])).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  return `cosine ${signed(cosine.whole[at])} = heads ${sum(heads.flat())}, MLPs ${sum(mlps)}, input embedding ${signed(input[at])}, biases ${signed(bias[at])}. `
    + `Strongest heads: ${best.slice(0, 3).map(([part, value]) => `${part} ${signed(value)}`).join(", ")}`;
}

export function build() {
  $("method").replaceChildren(...facts.methods.map(one => el("option", { value: one.name, textContent: one.name, title: one.description })));
  $("by").replaceChildren(...facts.baselines.map(name => el("option", { value: name, textContent: name === "zero" ? "zero" : "its mean" })));
  if (!facts.baselines.includes(state.by)) [state.by] = facts.baselines;
  if (!facts.methods.some(one => one.name === state.method)) state.method = "decomposition";
  $("by").value = state.by;
  $("effect").value = state.effect = state.effect === "rerun" ? "rerun" : "direct";
  $("method").value = state.method;
}
export async function refresh() {
  await explain();
  map();
  measure();
}

onChange(what => {
  if (state.view !== "explain" && what !== "view") return;
  if (what === "focus") { drawAll(); drawMap(); readPairs(); return; }
  if (what === "picture" || what === "texts" || what === "view") {
    if (what === "picture") look.maps = null;
    pointAt(null);
  }
  if (state.view !== "explain") return;
  explain();
  map();
  if (what === "off" || what === "effect" || what === "view") measure();
  drawButtons();
});
$("method").onchange = () => { state.method = $("method").value; changed("method"); };
$("by").onchange = () => { state.by = $("by").value; changed("off"); };
$("effect").onchange = () => { state.effect = $("effect").value; changed("effect"); };
$("opacity").oninput = () => { $("map").style.opacity = $("opacity").value / 100; };
$("undo").onclick = () => step(true);
$("redo").onclick = () => step(false);
$("clear").onclick = () => turn(state.off, false);
$("save").onclick = async () => {
  try {
    const file = await download("edit", edited());
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
    if (!String(edit?.schema).startsWith("clip-anatomy/edit/") || !Array.isArray(edit.parts)) throw new Error(`${file.name} is no edit. Choose the edit.json of an edit`);
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
document.addEventListener("keydown", event => {
  if (!(event.ctrlKey || event.metaKey) || event.target.matches("input:not([type=range], [type=checkbox])")) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) { event.preventDefault(); step(true); }
  if (key === "y" || (key === "z" && event.shiftKey)) { event.preventDefault(); step(false); }
});
