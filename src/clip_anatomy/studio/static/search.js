// Search: images of the store like the chosen text, the chosen picture or another image of it, in what some heads see; and why.
import { post } from "./api.js";
import { $, bar, el, plain } from "./draw.js";
import { choose, thumbnail } from "./gallery.js";
import { waited } from "./jobs.js";
import { changed, facts, latest, names, onChange, say, state } from "./state.js";

function query() {
  const like = $("like").value;
  if (like === "stored" && state.stored >= 0) return { image: state.stored };
  if (like === "picture" && state.picture) return { picture: state.picture };
  return { text: state.texts[state.focus] ?? "" };
}
export function build() {
  drawForm();
  if (state.stored >= 0) $("like").value = "stored";
}
function drawForm() {
  const like = $("like").value || "text";
  $("like").replaceChildren(el("option", { value: "text", textContent: `the text “${state.texts[state.focus] ?? ""}”`, disabled: !state.texts.length }),
    el("option", { value: "picture", textContent: "the picture on the left", disabled: !state.picture }),
    ...(state.stored >= 0 ? [el("option", { value: "stored", textContent: `image ${state.stored} of the store` })] : []));
  $("like").value = like === "stored" && state.stored < 0 ? "text" : like;
  const roles = [...new Set(Object.values(names).map(one => one.role))].sort();
  $("known-heads").replaceChildren(...["auto", "all", ...roles.map(role => `role=${role}`)].map(value => el("option", { value })));
  $("search-empty").hidden = Boolean(facts.store);
  $("search-full").hidden = !facts.store;
}
async function run() {
  drawForm();
  if (!facts.store) return;
  const asked = query();
  if (asked.text === "") { $("search-how").textContent = "Add a text on the left, or search by a picture."; return; }
  $("hits").classList.add("waiting");
  if (!$("hits").children.length) $("search-how").textContent = "Searching …";
  const found = await latest("search", signal => post("search", { ...asked, heads: $("heads-of-search").value || "auto", mode: $("mode").value, k: 24 }, signal));
  $("hits").classList.remove("waiting");
  if (found) draw(found);
}
function draw(found) {
  $("search-title").textContent = found.title;
  $("search-how").textContent = `${found.comparison}. ${found.counted}.`;
  const strong = [...found.heads].slice(0, 6);
  $("search-heads").textContent = strong.length ? `Heads: ${strong.map(one => `${one.name} ${plain(one.word ?? "")}`.trim()).join(", ")}${found.heads.length > 6 ? ` and ${found.heads.length - 6} more` : ""}` : "";
  $("search-notes").replaceChildren(...found.notes.map(note => el("li", { textContent: note })));
  const best = Math.max(...found.hits.map(hit => Math.abs(hit.score)), 1e-12);
  $("hits").replaceChildren(...found.hits.map(hit => el("figure", { className: "hit" },
    el("img", { src: `/api/v1/images/${hit.index}`, alt: hit.label || hit.id, title: hit.id, loading: "lazy" }),
    bar(Math.max(0, hit.score) / best, null, `score ${hit.score.toFixed(4)}`),
    el("figcaption", {},
      el("span", { textContent: [hit.label, hit.shared_texts?.[0]].filter(Boolean).join(" · ") || hit.id }),
      el("span", { className: "soft small", textContent: hit.reason })),
    el("div", { className: "row tight" },
      el("button", { type: "button", textContent: "Explain", onclick: () => take(hit) }),
      el("button", { type: "button", textContent: "More like it", onclick: () => { state.stored = hit.index; drawForm(); $("like").value = "stored"; run(); } })))));
  if (!found.hits.length) $("hits").replaceChildren(el("p", { className: "hint", textContent: "Nothing was found." }));
}
async function take(hit) {
  try {
    const held = await post(`images/${hit.index}`, {});
    thumbnail(held, hit.index);
    state.view = "explain";
    choose(held, hit.index);
    changed("view");
  } catch (error) { say(error); }
}

onChange(what => {
  if (state.view !== "search") return;
  if (what === "view" || what === "texts" || what === "focus" || (what === "picture" && $("like").value === "picture")) run();
  else drawForm();
});
$("search-form").onsubmit = event => { event.preventDefault(); run(); };
$("like").onchange = run;
$("mode").onchange = run;
$("index-again").onclick = async () => {
  const job = await waited("index", $("index-again"), "Look for new images");
  if (job) { $("search-notes").replaceChildren(el("li", { textContent: job.result.summary })); }
};
