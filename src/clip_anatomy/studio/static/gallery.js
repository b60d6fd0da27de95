// The pictures that were sent or taken from the store, small; the chosen one is what all views show.
import { address, upload } from "./api.js";
import { $, el } from "./draw.js";
import { changed, say, state } from "./state.js";

export function thumbnail({ id, name }, image = -1) {
  if ([...$("gallery").children].some(button => button.dataset.id === id)) return;
  const button = el("button", { type: "button", title: name, onclick: () => choose({ id, name }, image) }, el("img", { src: address(id), alt: name }));
  button.dataset.id = id;
  $("gallery").append(button);
}
export function choose({ id, name }, image = -1) { // `image`: its place in the store, if it is from there
  Object.assign(state, { picture: id, name, image });
  changed("picture");
}
export async function send(files) {
  for (const file of files) {
    try {
      const held = await upload(file);
      thumbnail(held);
      choose(held);
    } catch (error) { say(error.message.includes(file.name) ? error : new Error(`${file.name}: ${error.message}`)); }
  }
}
export function drawGallery() {
  for (const button of $("gallery").children) button.setAttribute("aria-pressed", button.dataset.id === state.picture);
  $("picture").hidden = !state.picture;
  $("empty").hidden = Boolean(state.picture);
  if (!state.picture || $("picture").dataset.id === state.picture) return;
  $("picture").src = address(state.picture);
  $("picture").dataset.id = state.picture;
  $("picture").alt = [...$("gallery").children].find(button => button.dataset.id === state.picture)?.title ?? "the picture";
}
