// Long work: started on the server, shown with its progress, cancelled; it goes on when the page is closed.
import { del, get, post } from "./api.js";
import { $, el } from "./draw.js";
import { say } from "./state.js";

const NAMES = { atlas: "Naming the heads", index: "Looking for new images", repair: "Looking for what misleads", ablate: "Running pictures again" };
const listeners = [];
let polling = false, known = new Map();
export const onDone = listener => listeners.push(listener);
const active = job => job.state === "waiting" || job.state === "running";
const howFar = job => job.state === "waiting" ? "waiting" : [job.step, job.total > 1 ? `${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : ""].filter(Boolean).join(": ");

export async function poll() {
  if (polling) return;
  polling = true;
  try {
    for (;;) {
      const { jobs } = await get("jobs");
      for (const job of jobs) {
        if (known.has(job.id) && active(known.get(job.id)) && !active(job)) for (const listener of listeners) listener(job);
        known.set(job.id, job);
      }
      draw(jobs.filter(active));
      if (!jobs.some(active)) break;
      await new Promise(resolve => setTimeout(resolve, 400));
    }
  } catch (error) { say(error); }
  polling = false;
  if ([...known.values()].some(active)) setTimeout(poll, 2000); // the server did not answer: it may start again
}
function draw(jobs) {
  $("jobs").hidden = !jobs.length;
  $("jobs").replaceChildren(...jobs.map(job => {
    const meter = el("progress", job.total > 1 ? { max: job.total, value: job.done } : {});
    meter.setAttribute("aria-label", NAMES[job.verb] ?? job.verb);
    return el("li", {}, el("span", { textContent: NAMES[job.verb] ?? job.verb }), meter, el("span", { className: "soft", textContent: howFar(job) }),
      el("button", { type: "button", textContent: "Cancel", onclick: () => del(`jobs/${job.id}`).then(poll, say) }));
  }));
}
export async function last(verb) { // what the latest of its kind said, also before this page was opened
  try { return (await get("jobs")).jobs.find(job => job.verb === verb && job.state === "done")?.result; } catch { return null; }
}
export async function waited(verb, button, label, given = {}, started = () => {}) { // start a job and wait for its end; null if it did not get there
  button.disabled = true;
  button.textContent = (NAMES[verb] ?? verb) + " …";
  try {
    const { id } = await post("jobs", { verb, ...given });
    started(id);
    const done = new Promise(resolve => {
      const listener = job => { if (job.id === id) { listeners.splice(listeners.indexOf(listener), 1); resolve(job); } };
      onDone(listener);
      known.set(id, { id, state: "waiting" });
    });
    poll();
    const job = await done;
    if (job.state === "failed") throw new Error(job.error);
    return job.state === "done" ? job : null;
  } catch (error) { say(error); return null; }
  finally { button.disabled = false; button.textContent = label; }
}
