// What the page holds: the view, a picture, texts, heads that are off, what is set in forms. The address keeps it, so that a link restores it.
import { $ } from "./draw.js";

export const state = {
  view: "explain", picture: null, name: "", image: -1, texts: [], focus: 0, against: -1, off: [], by: "", effect: "direct", method: "decomposition",
  role: "", words: "", head: "", stored: -1, form: {},
};
export const facts = {}; // of the model and the store, from the API
export const names = {}; // part → what the atlas says of it
export const look = { answer: null, maps: null, pairs: null, patch: null, suspects: new Set() }; // what is being looked at
const past = [], future = [], calls = {}, listeners = [];

export const onChange = listener => listeners.push(listener);
export function changed(what) { // "picture", "texts", "focus", "off", "view" or "method": each view redraws what hangs on it
  remember();
  for (const listener of listeners) listener(what);
}
export function turn(parts, off) { // heads off or on, as one step that can be undone
  past.push([...state.off]);
  future.length = 0;
  const now = new Set(state.off);
  for (const part of parts) if (off ?? !now.has(part)) now.add(part); else now.delete(part);
  state.off = [...now];
  changed("off");
}
export function step(back) { // undo or redo
  const [from, to] = back ? [past, future] : [future, past];
  if (!from.length) return;
  to.push(state.off);
  state.off = from.pop();
  changed("off");
}
export const steps = () => ({ back: past.length, forth: future.length });

const isMlp = part => part.startsWith("mlp");
export function select() { // what is off, as Selection.parse reads it
  const heads = state.off.filter(part => !isMlp(part)), mlps = state.off.filter(isMlp).map(part => part.slice(4));
  return [heads.join(","), mlps.length ? `mlp=${mlps.join(",")}` : ""].filter(Boolean).join("+");
}
export function partsOf(spec) { // the same way back
  return spec.split("+").flatMap(one => isMlp(one) ? one.slice(4).split(",").map(layer => `mlp=${layer}`) : one.split(","))
    .filter(part => part && part !== "none");
}
export const headsOff = () => state.off.filter(part => !isMlp(part));
export function remaining() { // heads that are on; null for all of them
  const off = new Set(headsOff()), on = [];
  if (!off.size) return null;
  for (let l = 0; l < facts.layers; l++) for (let h = 0; h < facts.heads; h++) if (!off.has(`${l}.${h}`)) on.push(`${l}.${h}`);
  return on.length ? on.join(",") : null;
}
export const question = () => ({ picture: state.picture, texts: state.texts });
export const edited = () => ({ select: select(), by: state.by, effect: state.effect });
export const complete = () => Boolean(state.picture && state.texts.length);
export const toward = values => values[state.focus] - (state.against >= 0 ? values[state.against] : 0);

export function say(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? error.message ?? String(error) : "";
}
export async function latest(name, work) { // of several calls of one kind only the last one counts
  calls[name]?.abort();
  const call = calls[name] = new AbortController();
  try {
    const answer = await work(call.signal);
    if (calls[name] === call) { say(""); return answer; }
  } catch (error) { if (error.name !== "AbortError" && calls[name] === call) say(error); }
  return undefined;
}

const kept = () => [...document.querySelectorAll("[data-keep]")], kind = control => control.type === "checkbox" ? "checked" : "value";
export function remember() {
  state.form = Object.fromEntries(kept().map(control => [control.id, control[kind(control)]]));
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(state)));
}
export function refill() { // forms as the link had them, once they know their choices
  const held = state.form;
  for (const control of kept()) if (typeof held[control.id] === typeof control[kind(control)]) control[kind(control)] = held[control.id];
}
export function recall() {
  try {
    const old = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of Object.keys(state)) {
      const fits = key === "picture" ? typeof old[key] === "string" : old[key] !== null && typeof old[key] === typeof state[key];
      if (fits && Array.isArray(old[key]) === Array.isArray(state[key])) state[key] = old[key];
    }
    state.texts = state.texts.filter(text => typeof text === "string").slice(0, 20);
    state.off = state.off.filter(part => typeof part === "string");
    state.focus = Math.max(0, Math.min(Math.trunc(state.focus), state.texts.length - 1));
    if (!(state.against in state.texts)) state.against = -1;
    return true;
  } catch { return false; }
}
document.addEventListener("change", event => { if (event.target.matches("[data-keep]")) remember(); });
window.addEventListener("hashchange", () => location.reload()); // another link, put into the same window
