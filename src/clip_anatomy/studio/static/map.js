// The map: where in the picture a text is answered, which patches a word meets, and what is read from one patch.
import { post } from "./api.js";
import { $, el, hover, paint, shade, signed } from "./draw.js";
import { drawHeads, drawHint } from "./heads.js";
import { complete, headsOff, latest, look, question, remaining, state, toward } from "./state.js";

let asked = null, word = null; // the patch, and the word, that are pointed at
const about = () => `“${state.texts[state.focus]}”` + (state.against >= 0 ? ` against “${state.texts[state.against]}”` : "");

export async function map(heads = null) {
  if (!complete()) { look.maps = look.pairs = null; drawWords(); return; }
  const alone = heads ?? (state.method === "decomposition" ? remaining() : null);
  const method = heads ? "decomposition" : state.method;
  $("map").classList.add("waiting");
  if (!look.maps) $("shown").textContent = "Reading the picture …";
  const found = await latest("map", signal => post("heatmap", { ...question(), method, heads: alone }, signal));
  if (!found) return;
  $("map").classList.remove("waiting");
  look.maps = { ...found, head: heads };
  drawMap();
  readPairs();
}
export function drawMap() {
  const { maps } = look;
  if (!maps || !complete()) return;
  if (word !== null && look.pairs?.values[word]) { drawWord(); return; }
  const own = maps.values[state.focus] ?? maps.values[0], other = state.against >= 0 ? maps.values[state.against] : null;
  const values = own.map((row, r) => row.map((value, c) => value - (other ? other[r][c] : 0)));
  const limit = other ? Math.max(...values.flat().map(Math.abs)) : maps.limit, off = headsOff().length;
  draw(values, limit, maps.method === "decomposition" ? "of the cosine" : "");
  const which = maps.head ? `head ${maps.head} alone, ` : maps.method === "decomposition" && off ? `without ${off} head${off > 1 ? "s" : ""}, ` : "";
  $("shown").textContent = asked && look.pairs?.values.length ? met() : `${which}for ${about()}`;
}
function met() { // which words the patch meets that is pointed at
  const [row, col] = at(), words = look.pairs.words.map((one, n) => [one, look.pairs.values[n][row][col]]).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  return `patch ${row}, ${col} meets ${words.slice(0, 3).map(([one, value]) => `“${one}” ${signed(value)}`).join(", ")}`;
}
function draw(values, limit, unit) {
  paint($("map"), values, limit);
  $("scale-low").textContent = `lowers −${limit.toFixed(4)}`;
  $("scale-high").textContent = `raises +${limit.toFixed(4)}`;
  $("scale-unit").textContent = unit;
}

export async function readPairs() { // which patch meets which word, for the chosen text
  const text = state.texts[state.focus], { picture } = state;
  if (!complete()) { look.pairs = null; drawWords(); return; }
  if (!look.pairs || look.pairs.text !== text || look.pairs.picture !== picture) {
    look.pairs = null;
    drawWords();
    const found = await latest("pairs", signal => post("pairs", { picture, text }, signal).catch(error => {
      if (error.name === "AbortError") throw error;
      return { text, words: [], values: [], notes: [error.message] }; // a tokenizer that does not tell its words
    }));
    if (!found) return;
    look.pairs = { ...found, picture };
  }
  drawWords();
}
const sums = () => look.pairs.values.map(rows => rows.flat().reduce((a, b) => a + b, 0));
function drawWords() { // coloured by what each word shares with all patches, or with the one that is pointed at
  const { pairs } = look;
  $("sentence-row").hidden = !complete() || pairs?.words.length === 0;
  if ($("sentence-row").hidden) return;
  const [row, col] = at(), shares = pairs && (asked ? pairs.values.map(rows => rows[row][col]) : sums());
  const limit = pairs && Math.max(...shares.map(Math.abs));
  const words = pairs?.words ?? state.texts[state.focus].split(/\s+/);
  if ($("sentence").dataset.of !== words.join(" ")) {
    $("sentence").dataset.of = words.join(" ");
    $("sentence").replaceChildren(...words.map((one, n) => {
      const button = el("button", { type: "button", className: "word", textContent: one, onclick: () => drawWord() });
      hover(button, () => { word = n; drawWord(); }, () => { word = null; drawMap(); });
      return button;
    }));
  }
  [...$("sentence").children].forEach((button, n) => {
    button.style.background = pairs ? shade(0.45 * shares[n], limit) : "";
    button.setAttribute("aria-label", pairs ? `${words[n]}: ${signed(shares[n])} of the cosine ${asked ? "from this patch" : "from all patches"}` : words[n]);
  });
}
function drawWord() {
  const { pairs } = look;
  if (word === null || !pairs?.values[word]) return;
  draw(pairs.values[word], pairs.limit, "of the cosine");
  $("shown").textContent = `“${pairs.words[word]}”: the patches it meets, ${signed(sums()[word])} of the cosine in all`;
}

const at = () => asked ? asked.split(",").map(Number) : [0, 0];
export function pointAt(row, col) { // a patch: which heads read it, and which words it meets
  const { style } = $("cursor"), rows = $("map").height, cols = $("map").width;
  if (row === null || !look.maps) {
    if (asked === null) return;
    asked = look.patch = null;
    $("cursor").hidden = true;
    drawHeads();
    drawHint();
    drawWords();
    drawMap();
    return;
  }
  Object.assign(style, { left: `${100 * col / cols}%`, top: `${100 * row / rows}%`, width: `${100 / cols}%`, height: `${100 / rows}%` });
  $("cursor").hidden = false;
  if (asked === `${row},${col}`) return;
  const mine = asked = `${row},${col}`;
  if (look.pairs?.values.length) {
    drawWords();
    $("shown").textContent = met();
  }
  setTimeout(async () => {
    if (asked !== mine) return;
    const found = await latest("patch", signal => post("patch", { ...question(), row, col }, signal));
    if (!found || asked !== mine) return;
    look.patch = found;
    drawHeads();
    const best = found.heads.flatMap((layer, l) => layer.map((value, h) => [`${l}.${h}`, toward(value)])).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    drawHint(`patch ${row}, ${col} is read most by ${best.slice(0, 3).map(([part, value]) => `${part} ${signed(value)}`).join(", ")}`);
  }, 60);
}
function walk(event) { // arrow keys walk over the patches
  const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (event.key === "Escape") { pointAt(null); return; }
  if (!by || !look.maps) return;
  event.preventDefault();
  const [row, col] = at(), within = (place, most) => Math.max(0, Math.min(most - 1, place));
  pointAt(within(row + by[0], $("map").height), within(col + by[1], $("map").width));
}
function speak(event) { // left and right walk over the words
  const by = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  if (by) event.target[by]?.focus();
}
$("sentence").addEventListener("keydown", speak);
$("frame").addEventListener("keydown", walk);
$("frame").addEventListener("blur", () => pointAt(null));
$("frame").addEventListener("mousemove", event => {
  const box = $("map").getBoundingClientRect();
  const place = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value * most)));
  pointAt(place((event.clientY - box.top) / box.height, $("map").height), place((event.clientX - box.left) / box.width, $("map").width));
});
$("frame").addEventListener("mouseleave", () => pointAt(null));
