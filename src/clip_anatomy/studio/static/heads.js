// The heads, layer by layer: coloured by what each adds, off and on, their names and their pictures.
import { get } from "./api.js";
import { $, el, hide, hover, percent, plain, shade, show, signed } from "./draw.js";
import { map } from "./map.js";
import { facts, look, names, state, toward, turn } from "./state.js";

let pointed = null;
const details = new Map(), PAUSE = 120; // ms for which a head must be pointed at

export function drawHeads() { // of the whole picture, or of the patch that is pointed at
  const heads = look.patch?.heads ?? look.answer?.heads, mlps = look.patch ? null : look.answer?.mlps;
  const limit = heads ? Math.max(...heads.flat().map(v => Math.abs(toward(v))), ...(mlps ?? []).map(v => Math.abs(toward(v)))) : 0;
  for (const button of $("heads").querySelectorAll(".head")) {
    const { part, layer, head } = button.dataset;
    const off = state.off.includes(part), known = names[part];
    const values = head === "" ? mlps?.[layer] : heads?.[layer][head], value = values ? toward(values) : null;
    button.setAttribute("aria-pressed", off);
    button.style.background = value === null ? "" : shade(value, limit);
    button.classList.toggle("suspect", look.suspects.has(part));
    button.dataset.tip = [(head === "" ? `MLP of layer ${layer}` : `head ${part}`) + (value === null ? "" : `: ${signed(value)}${look.patch ? " from this patch" : ""}`),
      known && plain(known.role), known?.texts.join(", "), look.suspects.has(part) && "suspect", off && "off"].filter(Boolean).join(" · ");
    button.setAttribute("aria-label", button.dataset.tip);
  }
  $("heads-low").textContent = heads ? `lowers −${limit.toFixed(4)}` : "";
  $("heads-high").textContent = heads ? `raises +${limit.toFixed(4)}` : "";
}
export function drawHint(text) {
  $("head-hint").textContent = text ?? (look.answer ? "Each square is a head: what it adds to the cosine. Point at one, or at a patch of the picture; click to switch it off." : "");
}

async function showDetail(part) { // what the atlas says of the head that is pointed at, with its pictures
  if (!names[part]) { $("detail").replaceChildren(); return; }
  if (!details.has(part)) {
    try { details.set(part, await get(`atlas/${part}`)); } catch { return; }
  }
  if (pointed !== part) return;
  const found = details.get(part), first = found.texts[0];
  const chance = found.chance === null ? "" : `, shuffled texts ${percent(found.chance)}`;
  $("detail").replaceChildren(
    el("p", { className: "hint", textContent: `${part}: ${plain(found.role)}; its texts explain ${percent(found.explained)} of what it writes${chance}` }),
    ...(first ? [el("p", { className: "small soft", textContent: `writes most for “${first.text}” in` }),
      el("div", { className: "strip" }, ...first.top_images.slice(0, 6).map(one =>
        el("img", { src: `/api/v1/images/${one.row}`, alt: `${one.id}, which it answers most for “${first.text}”`, title: `${one.id}: ${signed(one.value)}`, loading: "lazy" })))] : []));
}
export const forget = () => details.clear();

function cell(part, layer, head) {
  const button = el("button", { type: "button", className: "head", onclick: () => turn([part]) });
  Object.assign(button.dataset, { part, layer, head });
  hover(button, () => {
    pointed = part;
    show(button, button.dataset.tip);
    drawHint(button.dataset.tip);
    if (head !== "") setTimeout(() => { if (pointed === part) { map(part); showDetail(part); } }, PAUSE);
  }, () => {
    pointed = null;
    hide();
    setTimeout(() => { if (pointed === null) { drawHint(); if (look.maps?.head) map(); } }, PAUSE + 30);
  });
  return button;
}
function move(event) { // arrow keys walk over the heads
  const across = facts.heads + (facts.mlps ? 1 : 0);
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (!by || !event.target.classList.contains("head")) return;
  const cells = [...$("heads").querySelectorAll(".head")], next = cells[cells.indexOf(event.target) + by];
  if (!next) return;
  event.preventDefault();
  enter(next);
  next.focus();
}
function enter(cell) { // one of the heads is on the way of the Tab key: the last one that was looked at
  for (const other of $("heads").querySelectorAll(".head")) other.tabIndex = other === cell ? 0 : -1;
}
export function drawRoles() { // whole roles off at once
  const roles = [...new Set(Object.values(names).map(one => one.role))].sort();
  $("role").replaceChildren(el("option", { value: "", textContent: "a role …" }), ...roles.map(role => el("option", { value: role, textContent: plain(role) })));
  $("role").parentElement.hidden = !roles.length;
  $("detail").classList.toggle("roomy", roles.length > 0); // so that nothing moves when a head is pointed at
  drawHeads();
}
export function build() {
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
  $("heads").classList.toggle("many", facts.heads > 12 || facts.layers > 12);
  enter($("heads").querySelector(".head"));
  drawHint();
}
$("heads").addEventListener("keydown", move);
$("role").onchange = () => {
  const parts = Object.keys(names).filter(part => names[part].role === $("role").value);
  $("role").value = "";
  if (parts.length) turn(parts, true);
};
