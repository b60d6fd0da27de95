// Filter by role, search in texts, sort; the state lives in the address, so that "back" and bookmarks work.
const heads = new Map(JSON.parse(document.getElementById("data").textContent).map((head) => [head.name, head]));
const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.head, card]));
const cells = new Map([...document.querySelectorAll(".cell")].map((cell) => [cell.dataset.head, cell]));
const chips = [...document.querySelectorAll(".chip")];
const find = document.getElementById("find"), sort = document.getElementById("sort");
const list = document.getElementById("list"), count = document.getElementById("count"), none = document.getElementById("none");
const places = [...heads.keys()];

function show() {
  const roles = new Set(chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.role));
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [name, head] of heads) {
    const hits = words.length ? head.texts.filter(([text]) => words.every((word) => text.toLowerCase().includes(word))) : [];
    const fits = (!roles.size || roles.has(head.role)) && (!words.length || hits.length > 0);
    const card = cards.get(name), line = card.querySelector(".hit");
    card.hidden = !fits;
    cells.get(name).classList.toggle("out", !fits);
    shown += fits;
    line.hidden = !hits.length;
    line.textContent = hits.slice(0, 3).map(([text, gain]) => `${text} (${(100 * gain).toFixed(gain < 0.01 ? 1 : 0)} %)`).join(" · ");
    head.hits = hits.reduce((sum, [, gain]) => sum + gain, 0);
  }
  // Asked for words, the heads that they explain most come first.
  const by = words.length && sort.value === "place" ? "hits" : sort.value;
  const order = by === "place" ? places : [...places].sort((a, b) => heads.get(b)[by] - heads.get(a)[by]);
  list.append(...order.map((name) => cards.get(name)));
  none.hidden = shown > 0;
  count.textContent = shown === heads.size ? `${shown} heads` : `${shown} of ${heads.size} heads`;
  const state = new URLSearchParams();
  if (roles.size) state.set("role", [...roles].join("|"));
  if (find.value) state.set("find", find.value);
  if (sort.value !== "place") state.set("sort", sort.value);
  history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  const roles = new Set((state.get("role") ?? "").split("|"));
  for (const chip of chips) chip.setAttribute("aria-pressed", roles.has(chip.dataset.role));
  find.value = state.get("find") ?? "";
  sort.value = state.get("sort") ?? "place";
  const head = decodeURIComponent(location.hash.slice(1));
  if (location.hash && location.hash !== "#how") show();
  if (cards.has(head)) cards.get(head).scrollIntoView({ block: "center" });
}

for (const chip of chips) {
  chip.addEventListener("click", () => {
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
    show();
  });
}
find.addEventListener("input", show);
sort.addEventListener("change", show);
document.getElementById("all").addEventListener("click", () => {
  for (const chip of chips) chip.setAttribute("aria-pressed", false);
  find.value = "";
  show();
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== find) { event.preventDefault(); find.focus(); }
  if (event.key === "Escape" && document.activeElement === find) { find.value = ""; show(); }
});

const tip = document.getElementById("tip");
for (const cell of cells.values()) {
  const tell = () => {
    const box = cell.getBoundingClientRect();
    tip.textContent = cell.dataset.tip;
    tip.style.display = "block";
    tip.style.left = `${Math.max(6, Math.min(box.left, innerWidth - tip.offsetWidth - 10))}px`;
    tip.style.top = `${box.top > 44 ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
    cards.get(cell.dataset.head).classList.add("near");
  };
  const hush = () => { tip.style.display = "none"; cards.get(cell.dataset.head).classList.remove("near"); };
  cell.addEventListener("pointerenter", tell);
  cell.addEventListener("focus", tell);
  cell.addEventListener("pointerleave", hush);
  cell.addEventListener("blur", hush);
}
restore();
