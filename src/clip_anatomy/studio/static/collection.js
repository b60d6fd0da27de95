// What an edit does to the whole store: accuracies of every group, what misleads, and pictures that are run again.
import { del, post } from "./api.js";
import { $, el, percent, plain } from "./draw.js";
import { drawHeads } from "./heads.js";
import { last, waited } from "./jobs.js";
import { edited, facts, latest, look, partsOf, state, turn } from "./state.js";

const LIVE = 10; // seconds within which pictures are run again by themselves
let suggestion = "", running = null, took = Infinity;

export async function measure() {
  if (!facts.store?.task) return;
  if (running) { del(`jobs/${running}`).catch(() => {}); running = null; }
  const felt = state.effect === "rerun" && state.off.length > 0;
  $("again").hidden = !felt;
  $("accuracy").classList.add("waiting");
  const found = await latest("ablate", signal => post("ablate", { ...edited(), effect: "direct" }, signal));
  $("accuracy").classList.remove("waiting");
  if (!found) return;
  draw(found);
  drawSuggestion();
  if (felt && took < LIVE) await again(facts.store.sample);
}
async function again(images) { // parts felt by later blocks: no store holds that
  const asked = JSON.stringify(edited());
  let own = null;
  const job = await waited("ablate", $("rerun"), $("rerun").dataset.label, { ...edited(), images }, id => { running = own = id; });
  if (running === own) running = null;
  if (!job || JSON.stringify(edited()) !== asked) return;
  took = job.seconds;
  draw(job.result);
}
function draw(found) {
  const rows = facts.store.task.groups.length ? found.groups : [], worst = found.edited.worst, { whole, edited: now } = found;
  $("accuracy").replaceChildren(
    figure("average", "", change(whole.average, now.average)),
    ...(worst ? [figure("worst group", `${worst.name}, ${worst.images} images`, change(whole.worst.accuracy, worst.accuracy, true))] : []));
  $("groups").replaceChildren(...rows.flatMap((group, at) => [el("span", { className: "soft", textContent: `${group.name} (${group.images})` }), change(whole.groups[at], now.groups[at])]));
  $("group-box").hidden = !rows.length;
  const images = found.images.toLocaleString("en"), chance = `by chance ${percent(found.chance)}`;
  $("measured").textContent = found.effect === "rerun" ? `${images} of ${found.of.toLocaleString("en")} images, run again in ${found.seconds.toFixed(1)} s: felt by later blocks; ${chance}`
    : `${images} images${state.off.length ? ", direct effects" : ""}; ${chance}`;
  const task = facts.store.task, low = !state.off.length && worst && worst.accuracy < whole.average - 0.2;
  $("lead").hidden = !low || look.suspects.size > 0;
  $("suspect").classList.toggle("strong", !$("lead").hidden);
  $("lead").textContent = low ? `Of “${worst.name}” only ${percent(worst.accuracy)} are answered right. Something beside the ${task.label} may mislead the model: find out what.` : "";
}
function figure(name, more, value) {
  return el("div", { className: "figure" }, el("span", { className: "soft", textContent: name }), value, el("span", { className: "soft small", textContent: more }));
}
function change(before, now, big = false) {
  const way = now > before + 5e-4 ? "up" : now < before - 5e-4 ? "down" : "", value = el("span", { className: `num ${big ? "big" : ""}` });
  value.append(...(way ? [percent(before) + " → ", el("span", { className: way, textContent: percent(now) })] : [percent(now)]));
  return value;
}
const drawSuggestion = () => { $("suggest").disabled = partsOf(suggestion).every(part => state.off.includes(part)); };
function drawSuspects(found) {
  suggestion = found.suggestion;
  look.suspects = new Set(found.suspects.map(one => one.part));
  const some = suggestion && suggestion !== "none", many = some ? partsOf(suggestion).length : 0;
  $("suggest").hidden = !some;
  $("suggest").textContent = `Switch off ${many} suggested part${many > 1 ? "s" : ""}`;
  $("suggest").title = suggestion;
  drawSuggestion();
  $("lead").hidden = true;
  $("suspect").classList.remove("strong");
  $("suspect-box").hidden = false;
  $("suspect-note").textContent = found.suspects.length ? "Outlined above. Heads that wrong answers hang on, the strongest first; beside each the worst group with it alone off." : "Nothing that misleads was found.";
  $("suspects").replaceChildren(...found.suspects.map(one => el("li", {},
    el("button", { type: "button", textContent: one.part, title: "off and on", onclick: () => turn([one.part]) }),
    el("span", { textContent: [plain(one.role), one.texts.slice(0, 2).join(", ")].filter(Boolean).join(": ") || "MLP" }),
    el("span", { className: "num soft", title: "accuracy of the worst group with this part alone off", textContent: percent(one.worst_alone) }))));
  drawHeads();
}
export async function build() {
  const task = facts.store?.task;
  $("store").hidden = !task;
  $("no-store").hidden = Boolean(task);
  $("no-store").replaceChildren(el("strong", { textContent: facts.store ? "This store has no labels" : "No collection is open" }),
    el("span", { textContent: facts.store ? "With labels, accuracies of the whole collection move here when heads go off:" : "With a store, heads get names, and accuracies of a whole collection move when they go off:" }),
    el("code", { textContent: facts.store ? "clip-anatomy index PICTURES STORE --labels TABLE.csv" : "clip-anatomy index PICTURES STORE" }), el("code", { textContent: "clip-anatomy serve STORE" }));
  if (!task) return;
  $("asked").textContent = `Which ${task.label}? ${task.classes.join(", ")}`;
  $("suspect").hidden = !task.groups.length;
  const images = Math.min(facts.store.sample, facts.store.images);
  $("rerun").textContent = $("rerun").dataset.label = `Run ${images.toLocaleString("en")} again`;
  $("rerun-all").textContent = `Run all ${facts.store.images.toLocaleString("en")}`;
  $("rerun-all").hidden = images === facts.store.images;
  const found = await last("repair");
  if (found) drawSuspects(found);
}
$("suspect").onclick = async () => {
  const job = await waited("repair", $("suspect"), "Find suspects");
  if (job?.result) drawSuspects(job.result);
};
$("suggest").onclick = () => turn(partsOf(suggestion), true);
$("rerun").onclick = () => again(facts.store.sample);
$("rerun-all").onclick = () => again(null);
