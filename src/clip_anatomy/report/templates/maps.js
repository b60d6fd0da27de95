// Without this script the page shows every map and the sums over all layers.
document.getElementById("maps")?.addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
for (const block of document.querySelectorAll(".layers")) {
  const slider = block.querySelector("input");
  const told = block.querySelector("output");
  const maps = [...block.querySelectorAll("img.map")];
  const move = () => {
    told.textContent = `layer ${slider.value} (of 0 to ${slider.max})`;
    for (const map of maps) map.classList.toggle("now", map.dataset.layer === slider.value);
  };
  slider.addEventListener("input", move);
  block.querySelector(".slider").hidden = false;
  move();
}
