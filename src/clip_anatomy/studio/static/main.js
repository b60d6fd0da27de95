// The studio's page: texts, which all views share; the view that is chosen; the start.
import { get, post } from "./api.js";
import * as atlas from "./atlas.js";
import { $, el } from "./draw.js";
import * as collection from "./collection.js";
import * as explain from "./explain.js";
import { drawGallery, send, thumbnail } from "./gallery.js";
import * as heads from "./heads.js";
import { onDone, poll } from "./jobs.js";
import * as search from "./search.js";
import * as segment from "./segment.js";
import { changed, facts, names, onChange, recall, refill, say, state } from "./state.js";

const VIEWS = ["explain", "atlas", "search", "segment"];

function drawTexts() {
  $("texts").replaceChildren(...state.texts.map((text, at) => {
    const choose = el("button", { type: "button", textContent: text, onclick: () => {
      state.focus = at;
      if (state.against === at) state.against = -1;
      changed("focus");
    } });
    choose.setAttribute("aria-pressed", at === state.focus);
    const remove = el("button", { type: "button", textContent: "×", title: "take this text away", onclick: () => {
      state.texts.splice(at, 1);
      state.focus = Math.max(0, Math.min(state.focus - (at < state.focus), state.texts.length - 1));
      state.against = -1;
      changed("texts");
    } });
    remove.setAttribute("aria-label", `take “${text}” away`);
    return el("li", {}, choose, remove);
  }));
  $("against").replaceChildren(el("option", { value: -1, textContent: "nothing" }),
    ...state.texts.map((text, at) => el("option", { value: at, textContent: text, disabled: at === state.focus })));
  $("against").value = state.against;
}
function drawView() {
  if (!VIEWS.includes(state.view)) state.view = "explain";
  document.querySelector("main").dataset.view = state.view;
  for (const button of $("views").children) button.toggleAttribute("aria-current", button.dataset.view === state.view);
}
function firstTexts() {
  if (!facts.store?.task) return ["a bird", "a circle", "the sky", "water"];
  return facts.store.task.classes.slice(0, 8).map(one => (/^[aeiou]/i.test(one) ? "an " : "a ") + one);
}
async function firstPicture() { // of the link; one of the store is taken from there again, where the server has forgotten it
  if (state.image >= 0 && facts.store) try { state.picture = (await post(`images/${state.image}`, {})).id; } catch { state.picture = null; }
  state.picture ??= facts.examples[0]?.id ?? null;
  if (state.picture) thumbnail({ id: state.picture, name: state.name || "picture" });
}
async function readModel() {
  Object.assign(facts, await get("model"));
  const store = facts.store ? ` · ${facts.store.images.toLocaleString("en")} pictures in ${facts.store.path}` : "";
  $("model").textContent = `${facts.model}: ${facts.layers} layers × ${facts.heads} heads${store}`;
}
async function readNames() {
  const found = await get("atlas");
  for (const part of Object.keys(names)) delete names[part];
  Object.assign(names, found.heads);
  heads.forget();
  heads.drawRoles();
  atlas.draw(found);
}

onChange(what => { drawView(); drawGallery(); if (what !== "off") drawTexts(); });
for (const view of VIEWS) {
  const button = el("button", { type: "button", textContent: view[0].toUpperCase() + view.slice(1), onclick: () => { state.view = view; changed("view"); } });
  button.dataset.view = view;
  $("views").append(button);
}
$("new-text").onsubmit = event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || state.texts.includes(text)) return;
  if (state.texts.length >= 20) { say(new Error("20 texts at most. Take one away first")); return; }
  state.texts.push(text);
  state.focus = state.texts.length - 1;
  $("text").value = "";
  changed("texts");
};
$("against").onchange = () => { state.against = Number($("against").value); changed("focus"); };
$("files").onchange = () => send($("files").files);
for (const name of ["dragover", "dragleave", "drop"]) document.addEventListener(name, event => {
  event.preventDefault();
  $("drop").classList.toggle("over", name === "dragover");
  if (name === "drop") send(event.dataTransfer.files);
});
onDone(async job => {
  try {
    if (job.verb === "index" || job.verb === "atlas") { await readModel(); await readNames(); }
  } catch (error) { say(error); }
});

try {
  await readModel();
  if (!recall()) state.texts = firstTexts();
  explain.build();
  heads.build();
  segment.build();
  search.build();
  await collection.build();
  refill();
  facts.examples.forEach(thumbnail);
  await firstPicture();
  $("opacity").oninput();
  drawView();
  drawGallery();
  drawTexts();
  await explain.refresh();
  await readNames();
  if (state.view !== "explain") changed("view");
  poll();
} catch (error) { say(error); }
document.body.dataset.ready = "yes";
