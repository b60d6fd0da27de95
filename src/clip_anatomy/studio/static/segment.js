// Segment: which pixels belong to which text, with shares, points for SAM, and a file to take away.
import { address, post } from "./api.js";
import { $, bar, el, kind, paintLabels, percent } from "./draw.js";
import { complete, facts, latest, onChange, question, state } from "./state.js";

let masks = null;
const RULES = ["lenient", "otsu", "mean"];

async function run() {
  $("segment-frame").hidden = !state.picture;
  if (!complete()) { masks = null; draw(); return; }
  $("segment-picture").src = address(state.picture);
  $("segment-picture").alt = $("picture").alt;
  $("labels").classList.add("waiting");
  if (!masks) $("segment-hint").textContent = "Cutting out …";
  const rule = $("rule").value, threshold = rule === "share" ? Number($("cut").value) / 100 : rule;
  const found = await latest("segment", signal => post("segment", {
    ...question(), method: $("segment-method").value || "decomposition", threshold, refine: $("refine").checked }, signal));
  $("labels").classList.remove("waiting");
  if (found) { masks = found; draw(); }
}
function draw() {
  $("segment-hint").textContent = masks ? masks.how : "Choose a picture, and write what is to be cut out: one text, or a list of classes.";
  $("take-mask").disabled = !masks;
  if (!masks) { $("legend").replaceChildren(); return; }
  paintLabels($("labels"), masks, Math.round(2.55 * $("mask-opacity").value));
  drawPoints();
  $("legend").replaceChildren(...masks.texts.map((text, at) => {
    const swatch = el("i", { className: "swatch" });
    swatch.style.background = `rgb(${kind(at).join(" ")})`;
    return el("li", {}, swatch, el("span", { textContent: text }), bar(masks.shares[at], null, percent(masks.shares[at])),
      el("span", { className: "num", textContent: percent(masks.shares[at]) }));
  }));
}
function drawPoints() {
  $("points").replaceChildren(...($("show-points").checked ? masks.prompts.flatMap((prompt, at) =>
    prompt.point_coords.filter((_, i) => prompt.point_labels[i] === 1 && masks.shares[at] > 0).slice(0, 10).map(([x, y]) => {
      const dot = el("i", { className: "dot", title: `point for “${prompt.text}”` });
      Object.assign(dot.style, { left: `${100 * x / masks.cols}%`, top: `${100 * y / masks.rows}%`, background: `rgb(${kind(at).join(" ")})` });
      return dot;
    })) : []));
}
export function build() {
  $("segment-method").replaceChildren(...facts.methods.filter(one => one.per_text).map(one => el("option", { value: one.name, textContent: one.name, title: one.description })));
  $("rule").replaceChildren(...RULES.map(rule => el("option", { value: rule, textContent: rule })), el("option", { value: "share", textContent: "a share of the range" }));
}
$("take-mask").onclick = () => { // the labels as a picture: grey level = number of the text, 0 for none
  const canvas = document.createElement("canvas");
  canvas.width = masks.cols;
  canvas.height = masks.rows;
  const context = canvas.getContext("2d"), image = context.createImageData(masks.cols, masks.rows);
  let at = 0;
  for (const [label, length] of masks.runs) for (const end = at + length; at < end; at++) image.data.set([label, label, label, 255], 4 * at);
  context.putImageData(image, 0, 0);
  canvas.toBlob(file => {
    const link = el("a", { href: URL.createObjectURL(file), download: "labels.png" });
    link.click();
    URL.revokeObjectURL(link.href);
  });
};

onChange(what => {
  if (state.view !== "segment") return;
  if (["view", "picture", "texts"].includes(what)) run();
});
for (const id of ["segment-method", "rule", "refine", "cut"]) $(id).onchange = () => { $("cut").hidden = $("rule").value !== "share"; run(); };
$("mask-opacity").oninput = () => masks && draw();
$("show-points").onchange = () => masks && draw();
