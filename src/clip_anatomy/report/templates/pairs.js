// A part under the pointer, or with the focus, colours the other side by its row or column of the table.
const table = document.getElementById("pairs"), said = document.getElementById("said");
const [rows, cols] = table.dataset.grid.split(" ").map(Number), limit = Number(table.dataset.limit) * 1e6;
const values = table.dataset.v.split(" ").map(Number);
const sides = { a: [], b: [] };
for (const it of document.querySelectorAll("[data-part]")) sides[it.dataset.part[0]].push(it);
for (const it of [...sides.a, ...sides.b]) it.dataset.whole = it.style.background;
const style = getComputedStyle(document.documentElement);
const ink = { yes: style.getPropertyValue("--orange"), no: style.getPropertyValue("--blue") };
const colour = (v) => `rgb(${v < 0 ? ink.no : ink.yes} / ${(0.86 * Math.min(1, Math.abs(v) / limit)).toFixed(2)})`;
const written = (v) => (v < 0 ? "−" : "+") + (Math.abs(v) / 1e6).toFixed(4);
const name = (it) => it.title.replace(/ [+−][\d.]+$/, "");
const whole = said.textContent;
function show(it) {
  const [side, at] = it.dataset.part.split(" "), other = side === "a" ? sides.b : sides.a;
  let best = 0;
  const value = (k) => (side === "a" ? values[at * cols + k] : values[k * cols + Number(at)]);
  other.forEach((one, k) => {
    one.style.background = colour(value(k));
    if (Math.abs(value(k)) > Math.abs(value(best))) best = k;
  });
  clear();
  it.classList.add("picked");
  if (other.length) said.textContent = `${name(it)}: most with ${name(other[best])}, ${written(value(best))}`;
}
function clear() { for (const one of document.querySelectorAll(".picked")) one.classList.remove("picked"); }
function rest() {
  clear();
  for (const one of [...sides.a, ...sides.b]) one.style.background = one.dataset.whole;
  said.textContent = whole;
}
for (const it of [...sides.a, ...sides.b]) {
  it.addEventListener("pointerenter", () => { rest(); show(it); });
  it.addEventListener("focus", () => { rest(); show(it); });
  it.addEventListener("pointerleave", rest);
  it.addEventListener("blur", rest);
}
