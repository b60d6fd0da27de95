// The API of the studio: every call is one request; what goes wrong is one sentence to show.
const TRIES = 8; // where the queue is full

async function answered(response) {
  if (response.ok) return response;
  let text = `the studio answered ${response.status}`;
  try { const body = await response.json(); text = body.error ?? body.detail?.[0]?.msg ?? text; } catch { /* no JSON: the status says it */ }
  throw new Error(text);
}
async function ask(path, options) {
  try {
    for (let tried = 1; ; tried++) {
      const response = await fetch(`/api/v1/${path}`, options);
      if (response.status !== 429 || tried === TRIES) return await answered(response);
      await new Promise(resolve => setTimeout(resolve, 1000 * Number(response.headers.get("Retry-After") ?? 1)));
    }
  } catch (error) { throw error instanceof TypeError ? new Error("the studio does not answer. Is it still running?") : error; }
}
const send = (path, body, signal) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
export const get = async path => (await ask(path)).json();
export const post = async (path, body, signal) => (await send(path, body, signal)).json();
export const download = async (path, body) => (await send(path, body)).blob();
export const upload = async file => (await ask(`pictures?name=${encodeURIComponent(file.name.slice(-200))}`, { method: "POST", body: file })).json();
export const address = id => `/api/v1/pictures/${encodeURIComponent(id)}`;
export const del = async path => (await ask(path, { method: "DELETE" })).json();
