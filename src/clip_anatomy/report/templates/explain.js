// A picture of the list opens its cards.
for (const link of document.querySelectorAll(".overview a")) {
  link.addEventListener("click", () => { document.querySelector(link.hash).open = true; });
}
// Values under the pointer. Maps and grids carry their numbers, in millionths, row by row.
const tip = document.getElementById("tip");
const names = {
  patch: (row, col) => `patch row ${row}, col ${col}`,
  head: (row, col) => `layer ${row}, head ${col}`,
  layer: (row) => `layer ${row >> 1}, ${row % 2 ? "MLP" : "attention"}`,
};
const written = (millionths) =>
  (millionths < 0 ? "−" : "+") + (Math.abs(millionths) / 1e6).toFixed(Math.abs(millionths) < 1000 ? 6 : 4);
for (const it of document.querySelectorAll("[data-v]")) {
  const [rows, cols] = it.dataset.grid.split(" ").map(Number);
  let values;
  it.addEventListener("pointermove", (event) => {
    values ??= it.dataset.v.split(" ").map(Number);
    const box = it.getBoundingClientRect();
    const cell = (at, from, size, count) => Math.min(count - 1, Math.max(0, Math.floor(((at - from) / size) * count)));
    const row = cell(event.clientY, box.top, box.height, rows);
    const col = cell(event.clientX, box.left, box.width, cols);
    tip.textContent = `${names[it.dataset.of](row, col)}: ${written(values[row * cols + col])}`;
    tip.style.display = "block";
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + (event.clientY > innerHeight - 60 ? -34 : 18)}px`;
  });
  it.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
