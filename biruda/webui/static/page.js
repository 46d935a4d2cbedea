// What every page does: times that stay true, copying, keys, the theme.

import { refreshTimes } from "./format.js";
import * as keys from "./keys.js";

keys.start();
refreshTimes();
setInterval(() => { if (!document.hidden) refreshTimes(); }, 1000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshTimes(); });

/** Show the buttons below root that need scripts. */
export function enable(root = document) {
  for (const button of root.querySelectorAll(".copy[hidden]")) button.hidden = false;
}
enable();

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button === null) return;
  await copy(button.dataset.copy);
  const before = button.textContent;
  button.textContent = "copied";
  setTimeout(() => { button.textContent = before; }, 1200);
});

/** Put text on the clipboard; over plain HTTP browsers only let a selection be copied. */
async function copy(text) {
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  document.dispatchEvent(new Event("theme")); // charts read their colours anew
});
