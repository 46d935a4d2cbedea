// Keys: one table of them, shown by `?`. Pages add theirs with key().

const KEYS = new Map(); // "g f" -> [words, act]
let prefix = "";

/** Let keys ("j", "g f") do something. */
export function key(keys, words, act) {
  KEYS.set(keys, [words, act]);
}

const isWriting = (element) => element.closest("input, textarea, select, [contenteditable]") !== null;

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (isWriting(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const whole = prefix + event.key;
  prefix = "";
  const found = KEYS.get(whole);
  if (found !== undefined) {
    event.preventDefault();
    found[1](event);
  } else if ([...KEYS.keys()].some((known) => known.startsWith(`${event.key} `))) {
    prefix = `${event.key} `;
    setTimeout(() => { prefix = ""; }, 1500);
  }
}

function show() {
  const dialog = document.getElementById("keys");
  const table = document.createElement("table");
  for (const [keys, [words]] of KEYS) {
    const row = table.insertRow();
    const shown = document.createElement("kbd");
    shown.textContent = keys;
    row.insertCell().append(shown);
    row.insertCell().textContent = words;
  }
  dialog.replaceChildren(table);
  dialog.showModal();
}

/** The rows that j and k go through: those of the page's [data-rows] table. */
function move(step) {
  const rows = [...document.querySelectorAll("[data-rows] > tr")].filter((row) => row.offsetParent !== null);
  if (rows.length === 0) return;
  const now = rows.findIndex((row) => row.classList.contains("chosen"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, now + step))];
  if (now >= 0) rows[now].classList.remove("chosen");
  next.classList.add("chosen");
  next.scrollIntoView({ block: "nearest" });
  next.querySelector("a")?.focus({ preventScroll: true });
}

/** The keys of all pages; where a page has its own for one, that counts. */
export function start() {
  const common = (keys, words, act) => { if (!KEYS.has(keys)) key(keys, words, act); };
  common("?", "this table", show);
  common("/", "search", () => (document.querySelector("[data-search]") ?? document.querySelector(".find input"))?.focus());
  common("j", "next row", () => move(1));
  common("k", "row before", () => move(-1));
  common("Enter", "open the row", (event) => (document.querySelector("[data-rows] > .chosen a") ?? event.target).click());
  const pages = [["f", "farm", "/"], ["j", "jobs", "/jobs"], ["e", "environments", "/environments"], ["w", "workers", "/workers"],
    ["h", "hosts", "/hosts"], ["s", "statistics", "/statistics"], ["n", "start something", "/start"]];
  for (const [letter, words, url] of pages) common(`g ${letter}`, words, () => location.assign(url));
  addEventListener("keydown", press);
}
