// Colours and elements. Orange raises the cosine, blue lowers it, and what is zero is not there.
export const el = (tag, props = {}, ...children) => { const e = Object.assign(document.createElement(tag), props); e.append(...children); return e; };
export const signed = (value, digits = 4) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
export const percent = value => (100 * value).toFixed(1) + " %";
const rgb = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const shade = (value, limit) => {
  const strength = Math.min(1, Math.abs(value) / (limit || 1e-12));
  return `rgb(${rgb(value >= 0 ? "--yes" : "--no")} / ${(0.9 * strength).toFixed(3)})`;
};
export function paint(canvas, values, limit) {
  const rows = values.length, cols = values[0].length;
  canvas.width = cols; canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(cols, rows);
  const [yes, no] = ["--yes", "--no"].map(name => rgb(name).split(/\s+/).map(Number));
  values.flat().forEach((value, at) => {
    const colour = value >= 0 ? yes : no, strength = Math.min(1, Math.abs(value) / (limit || 1e-12));
    image.data.set([...colour, Math.round(220 * strength)], 4 * at);
  });
  context.putImageData(image, 0, 0);
}
