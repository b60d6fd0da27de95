// The atlas: what every head is about, its texts with uncertainty, its images; which head is about stripes?
import { get } from "./api.js";
import { $, bar, el, percent, plain, signed } from "./draw.js";
import { waited } from "./jobs.js";
import { changed, facts, latest, names, onChange, remember, state, turn } from "./state.js";

let found = null;

export function draw(all) { found = all; $("word").value = state.words; drawRoles(); list(); }
function drawRoles() {
  const chip = (name, count) => {
    const button = el("button", { type: "button", textContent: `${name ? plain(name) : "all"} ${count}`, onclick: () => { state.role = name; drawRoles(); list(); remember(); } });
    button.setAttribute("aria-pressed", state.role === name);
    return button;
  };
  const total = Object.keys(names).length;
  $("roles").replaceChildren(...(total ? [chip("", total), ...Object.entries(found.roles).map(([name, count]) => chip(name, count))] : []));
  $("atlas-empty").hidden = Boolean(total);
  $("atlas-full").hidden = !total;
  $("name-heads").hidden = !facts.store;
  for (const one of $("atlas-empty").querySelectorAll("code, #atlas-index")) one.hidden = Boolean(facts.store);
  $("head").hidden = !total;
}
async function list() {
  if (!Object.keys(names).length) return;
  const answer = state.words ? await latest("atlas", () => get(`atlas?words=${encodeURIComponent(state.words)}`)) : { heads: names };
  if (!answer) return;
  const heads = Object.entries(answer.heads).filter(([, one]) => !state.role || one.role === state.role);
  $("cards").replaceChildren(...heads.map(([part, one]) => {
    const card = el("button", { type: "button", className: "card", onclick: () => show(part) },
      el("strong", { textContent: part }), el("span", { className: "soft", textContent: plain(one.role) }),
      bar(one.explained, one.chance, `its texts explain ${percent(one.explained)}${one.chance === null ? "" : `, shuffled texts ${percent(one.chance)} (the mark)`}`),
      el("span", { className: "small", textContent: one.texts.join(" · ") }));
    card.setAttribute("aria-pressed", state.head === part);
    return card;
  }));
  $("cards-count").textContent = heads.length ? `${heads.length} heads. The bar is the share of what a head writes that its texts explain; the mark is what shuffled texts would.`
    : state.words ? `No text of any head holds “${state.words}”.` : "No head has this role.";
  if (heads.length) show(answer.heads[state.head] ? state.head : heads[0][0]);
}
async function show(part) {
  state.head = part;
  remember();
  for (const card of $("cards").children) card.setAttribute("aria-pressed", card.firstChild.textContent === part);
  const head = await latest("head", () => get(`atlas/${part}`));
  if (!head || state.head !== part) return;
  const off = state.off.includes(part);
  $("head").replaceChildren(
    el("h2", { textContent: `Head ${part}: ${plain(head.role)}` }),
    el("p", { className: "hint", textContent: `${percent(head.confidence)} of its evidence; its texts explain ${percent(head.explained)} of what it writes`
      + (head.chance === null ? "." : `, shuffled texts ${percent(head.chance)}.`) }),
    ...head.doubts.map(doubt => el("p", { className: "doubt", textContent: doubt })),
    el("div", { className: "row" },
      el("button", { type: "button", textContent: off ? "Switch it on" : "Switch it off", onclick: () => { turn([part]); show(part); } }),
      el("button", { type: "button", textContent: "Search by this head", onclick: () => { $("heads-of-search").value = part; state.view = "search"; changed("view"); } })),
    el("div", { className: "row-titles" }, ...["text", "explains alone", "adds", "found again"].map(title => el("span", { className: "soft", textContent: title }))),
    ...head.texts.slice(0, 10).map(text => el("div", { className: "row-text" },
      el("span", { textContent: text.text }), bar(text.explained_alone, null, percent(text.explained_alone)),
      el("span", { className: "num", textContent: percent(text.gain) }),
      el("span", { className: "num", title: "share of bootstrap resamples in which it is picked again", textContent: text.stability === null ? "–" : percent(text.stability) }))),
    ...head.texts.slice(0, 3).flatMap(text => ends(text)));
}
function ends(text) { // images at either end of a text's direction
  const strip = (title, images) => images.length ? [el("h3", { textContent: `${title} “${text.text}”` }), el("div", { className: "strip" }, ...images.map(one =>
    el("img", { src: `/api/v1/images/${one.row}`, alt: one.id, title: `${one.id}${one.label ? ` (${one.label})` : ""}: ${signed(one.value)}`, loading: "lazy" })))] : [];
  return [...strip("Most", text.top_images), ...strip("Least", text.bottom_images)];
}

onChange(what => { if (what === "view" && state.view === "atlas" && found) list(); });
$("words").onsubmit = event => { event.preventDefault(); state.words = $("word").value.trim(); list(); };
$("word").oninput = () => { if (!$("word").value.trim() && state.words) { state.words = ""; list(); } };
$("name-heads").onclick = async () => {
  await waited("atlas", $("name-heads"), "Name the heads");
};
