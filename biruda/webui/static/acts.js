// Buttons that ask the API for something: <button data-act="POST" data-path="/workers/x/start" data-body="{…}">.

import { api, Problem } from "./api.js";
import { h } from "./dom.js";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-act]");
  if (button === null || (button.dataset.sure && !confirm(button.dataset.sure))) return;
  await act(button, button.dataset.path, JSON.parse(button.dataset.body || "null"));
});

async function act(button, path, body) {
  button.disabled = true;
  try {
    const answer = await api(button.dataset.act, path, body ?? undefined);
    say([`${button.textContent.trim()}: done `, ...(answer.jobs ?? []).flatMap((job) => [h("a", { href: `/jobs/${job}`, class: "num" }, String(job)), " "])]);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say([error.message, ...choices(button, path, body, error.document.candidates ?? [])], "problem");
  } finally {
    button.disabled = false;
  }
}

/** A refused start names what was meant perhaps: each is a button. */
function choices(button, path, body, candidates) {
  return candidates.map(({ arch, platform, host }) =>
    h("button", { type: "button", onclick: () => act(button, path, { ...body, arch, platform, host }) }, `${arch} ${platform} on ${host}`));
}

function say(what, kind = "") {
  const place = document.getElementById("said");
  place.replaceChildren(...what);
  place.className = `said ${kind}`;
  place.hidden = false;
}
