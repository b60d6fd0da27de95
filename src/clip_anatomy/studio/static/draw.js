// Colours and elements. Orange raises the cosine, blue lowers it, and what is zero is not there.
export const $ = id => document.getElementById(id);
export function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
export function hover(element, enter, leave) { // with the mouse or the keyboard
  for (const name of ["mouseenter", "focus"]) element.addEventListener(name, enter);
  for (const name of ["mouseleave", "blur"]) element.addEventListener(name, leave);
}
export function show(element, text) { // a few words beside what is pointed at
  const box = element.getBoundingClientRect(), tip = $("tip");
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (box.bottom + 8 + tip.offsetHeight > innerHeight ? box.top - 8 - tip.offsetHeight : box.bottom + 8) + "px";
}
export const hide = () => { $("tip").hidden = true; };
export const signed = (value, digits = 4) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
export const percent = value => (100 * value).toFixed(1) + " %";
export const plain = name => name.replaceAll("_", " ");
const rgb = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export function shade(value, limit) {
  const strength = Math.min(1, Math.abs(value) / (limit || 1e-12));
  return `rgb(${rgb(value >= 0 ? "--yes" : "--no")} / ${(0.9 * strength).toFixed(3)})`;
}
export function paint(canvas, values, limit) { // one pixel a patch; the browser enlarges it without smoothing
  const rows = values.length, cols = values[0].length;
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(cols, rows);
  const [yes, no] = ["--yes", "--no"].map(name => rgb(name).split(/\s+/).map(Number));
  values.flat().forEach((value, at) => {
    const colour = value >= 0 ? yes : no, strength = Math.min(1, Math.abs(value) / (limit || 1e-12));
    image.data.set([...colour, Math.round(220 * strength)], 4 * at);
  });
  context.putImageData(image, 0, 0);
}
// Okabe and Ito's colours, which colour-blind people tell apart, then the same ones darker.
const KINDS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
export const kind = at => at < 0 ? null : KINDS[at % KINDS.length].map(level => Math.round(level / (1 + 0.6 * Math.floor(at / KINDS.length))));
export function paintLabels(canvas, { rows, cols, runs }, alpha = 170) {
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(cols, rows);
  let at = 0;
  for (const [label, length] of runs) {
    const colour = kind(label - 1);
    for (const end = at + length; at < end; at++) if (colour) image.data.set([...colour, alpha], 4 * at);
  }
  context.putImageData(image, 0, 0);
}
export const bar = (share, mark = null, title = "") => { // a share from 0 to 1, and perhaps a mark: what chance would give
  const box = el("span", { className: "bar", title }), fill = el("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  box.append(fill);
  if (mark !== null) { const line = el("b"); line.style.left = `calc(${100 * mark}% - 1px)`; box.append(line); }
  return box;
};
