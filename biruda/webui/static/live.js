// Pages that are tables of the server's: made anew there when something happens, and put in place node by node.

import { follow } from "./events.js";
import { refreshTimes } from "./format.js";
import { enable } from "./page.js";

const live = document.getElementById("live");
const kinds = live.dataset.live.split(" ");
const PAUSE_MS = 1000, SHARE = 20;
let waiting = false, notBefore = 0;

/** Make one node like another: attributes, texts, children; what is the same stays, and so do focus and selection. */
export function morph(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) return old.replaceWith(made);
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== made.nodeValue) old.nodeValue = made.nodeValue;
    return undefined;
  }
  for (const { name } of [...old.attributes]) if (!made.hasAttribute(name) && name !== "class") old.removeAttribute(name);
  for (const { name, value } of made.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const keyed = new Map([...old.children].filter((child) => child.dataset?.key).map((child) => [child.dataset.key, child]));
  let next = old.firstChild;
  for (const child of [...made.childNodes]) {
    const known = child.dataset?.key === undefined ? undefined : keyed.get(child.dataset.key);
    if (known !== undefined && known !== next) old.insertBefore(known, next);
    const same = known ?? (next?.dataset?.key === undefined ? next : null);
    if (same === null) {
      old.insertBefore(child, next);
      continue;
    }
    next = same.nextSibling;
    morph(same, child);
  }
  while (next !== null) [next] = [next.nextSibling, next.remove()];
  return undefined;
}

async function refresh() {
  waiting = false;
  if (document.hidden) {
    document.addEventListener("visibilitychange", soon, { once: true });
    return;
  }
  const began = performance.now();
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (!answer.ok) return;
  // Parsed as a document of its own: nothing in it runs, and all of it was escaped where it was made.
  const made = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
  if (made === null) return;
  const said = document.getElementById("said"), its = made.querySelector("#said");
  if (said !== null && its !== null) its.replaceWith(said.cloneNode(true)); // what an act answered stays
  morph(live, made);
  enable(live);
  refreshTimes(live);
  notBefore = performance.now() + Math.max(PAUSE_MS, SHARE * (performance.now() - began));
}

function soon() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => refresh().catch(() => {}), Math.max(100, notBefore - performance.now()));
}

follow((event) => { if (kinds.some((kind) => event.kind.startsWith(kind))) soon(); }, { onResume: soon });
