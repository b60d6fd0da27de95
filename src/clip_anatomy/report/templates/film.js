// The browser's own controls lie over the picture, where the legend is: these stand below it. Without this script the browser's are shown.
for (const film of document.querySelectorAll(".film")) {
  const video = film.querySelector("video");
  const button = film.querySelector("button");
  const place = film.querySelector("input");
  const told = film.querySelector("output");
  const tell = () => {
    button.textContent = video.paused ? "Play" : "Pause";
    place.value = video.currentTime / (video.duration || 1);
    told.textContent = `${video.currentTime.toFixed(1)} of ${(video.duration || 0).toFixed(1)} s`;
  };
  button.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  place.addEventListener("input", () => { video.pause(); video.currentTime = place.value * (video.duration || 0); });
  for (const change of ["play", "pause", "timeupdate", "loadedmetadata"]) video.addEventListener(change, tell);
  video.controls = false;
  film.querySelector(".player").hidden = false;
  tell();
}
