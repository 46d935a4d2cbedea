// The list of jobs: endless, live, by keyboard, and acts on many. Only the rows that are seen are in the page.

import { get, post } from "./api.js";
import { h, setText } from "./dom.js";
import { follow } from "./events.js";
import { duration, number, refreshTimes, relative, stateOf, STATES } from "./format.js";
import { key } from "./keys.js";
import { shown } from "./text.js";

const ROW = 29; // pixels; style as in jobs.css
const PAGE = 100;
const MAX_ROWS = 500_000; // what a browser can scroll through

const list = document.getElementById("list");
const form = document.getElementById("filters");
const countText = document.getElementById("count");
const bulk = document.getElementById("bulk");
const newer = document.getElementById("newer");

/** The filter as the address has it. */
const filter = () => {
  const query = new URLSearchParams(location.search);
  query.delete("before");
  return query;
};

// Filters: the address is the state.

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  location.assign(query.size ? `/jobs?${query}` : "/jobs");
});
form.addEventListener("change", (event) => { if (event.target.matches("select")) form.requestSubmit(); });

const chosen = new Set();
let allThatFit = false;

class List {
  constructor() {
    this.body = list.querySelector("tbody");
    this.top = h("tr", { class: "space", "aria-hidden": "true" }, h("td", { colspan: 8 }));
    this.bottom = this.top.cloneNode(true);
    this.total = Number(list.dataset.rowsTotal);
    this.first = Number(this.body.firstElementChild.dataset.key); // rows are counted from this job
    const before = new URLSearchParams(location.search).get("before");
    this.before = before === null ? this.first + 1 : Number(before);
    this.rows = []; // by position; a hole was not asked for yet
    this.asked = new Map(); // page -> AbortController
    this.now = -1;
    this.frame = 0;
    list.classList.add("live");
    document.getElementById("pager").hidden = true;
    list.addEventListener("scroll", () => this.draw(), { passive: true });
    addEventListener("resize", () => this.draw());
    list.addEventListener("click", (event) => this.click(event));
  }

  async load(page) {
    if (this.asked.has(page)) return;
    const abort = new AbortController();
    this.asked.set(page, abort);
    const query = filter();
    for (const [name, value] of [["brief", 1], ["before", this.before], ["skip", page * PAGE], ["limit", PAGE]]) query.set(name, value);
    try {
      const answer = await get(`/jobs?${query}`, { signal: abort.signal });
      answer.jobs.forEach((job, index) => { this.rows[page * PAGE + index] = job; });
      if (answer.jobs.length < PAGE) this.total = Math.min(this.total, page * PAGE + answer.jobs.length);
      this.draw();
    } catch (error) {
      this.asked.delete(page);
      if (error.name !== "AbortError") setTimeout(() => this.draw(), 1000);
    }
  }

  /** Rows that are seen, and a few beyond. */
  range() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 10);
    const count = Math.ceil(list.clientHeight / ROW) + 20;
    return [first, Math.min(Math.min(this.total, MAX_ROWS), first + count)];
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    const [first, end] = this.range();
    const pages = new Set([Math.floor(first / PAGE), Math.floor(Math.max(first, end - 1) / PAGE)]);
    for (const [page, abort] of this.asked) if (!pages.has(page) && this.rows[page * PAGE] === undefined) { abort.abort(); this.asked.delete(page); }
    for (const page of pages) if (this.rows[page * PAGE] === undefined) this.load(page);
    this.top.firstElementChild.style.height = `${first * ROW}px`;
    this.bottom.firstElementChild.style.height = `${Math.max(0, Math.min(this.total, MAX_ROWS) - end) * ROW}px`;
    const old = new Map([...this.body.children].map((row) => [row.dataset.key, row]));
    const rows = [];
    for (let at = first; at < end; at++) {
      const job = this.rows[at];
      const name = job === undefined ? `hole ${at}` : String(job.job);
      const row = old.get(name) ?? (job === undefined ? hole(name) : create());
      if (job !== undefined) update(row, job);
      row.dataset.key = name;
      row.setAttribute("aria-rowindex", at + 2);
      row.classList.toggle("chosen", at === this.now);
      rows.push(row);
    }
    const focused = document.activeElement?.closest?.("tr")?.dataset.key;
    this.body.replaceChildren(this.top, ...rows, this.bottom);
    if (focused !== undefined) rows.find((row) => row.dataset.key === focused)?.querySelector("a")?.focus({ preventScroll: true });
    refreshTimes(this.body);
  }

  move(step) {
    this.now = Math.max(0, Math.min(Math.min(this.total, MAX_ROWS) - 1, this.now + step));
    const top = this.now * ROW, head = 29;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW + head > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW + head - list.clientHeight;
    this.render();
    [...this.body.children].find((row) => row.classList.contains("chosen"))?.querySelector("a")?.focus({ preventScroll: true });
  }

  current() {
    return this.rows[this.now];
  }

  click(event) {
    const row = event.target.closest("tbody tr");
    if (row === null || row.dataset.key === undefined) return;
    this.now = this.rows.findIndex((job) => job !== undefined && String(job.job) === row.dataset.key);
    if (event.target.matches("input")) toggle(Number(row.dataset.key), event.target.checked);
    this.draw();
  }

  /** What is known of these jobs anew. */
  async refresh(numbers) {
    const here = new Map();
    this.rows.forEach((job, index) => { if (job !== undefined && numbers.has(job.job)) here.set(job.job, index); });
    for (let at = 0, all = [...here.keys()]; at < all.length; at += PAGE) {
      const answer = await get(`/jobs?brief=1&limit=${PAGE}&jobs=${all.slice(at, at + PAGE)}`);
      for (const job of answer.jobs) this.rows[here.get(job.job)] = job;
    }
    this.draw();
  }

  /** Jobs that came since: put on top where the top is seen, else told of. */
  async catchUp() {
    if (new URLSearchParams(location.search).has("before")) return;
    const query = filter();
    for (const [name, value] of [["brief", 1], ["after", this.before - 1], ["limit", 1000], ["count", 1]]) query.set(name, value);
    const answer = await get(`/jobs?${query}`);
    this.waiting = answer.jobs.length;
    setText(countText, number(answer.count));
    if (answer.jobs.length === 0) return;
    if (list.scrollTop < ROW) this.takeNew(answer.jobs, answer.count);
    else {
      newer.hidden = false;
      setText(newer, `${answer.jobs.length === 1000 ? "over 1000" : answer.jobs.length} new`);
    }
  }

  takeNew(jobs, count) {
    newer.hidden = true;
    if (jobs.length === 1000) return location.reload();
    this.before = jobs[0].job + 1;
    this.total = count;
    for (const abort of this.asked.values()) abort.abort();
    this.asked.clear();
    const kept = this.rows.slice(0, PAGE).filter((job) => job !== undefined);
    this.rows = [...jobs, ...kept].slice(0, PAGE); // deeper pages have moved: they are asked for anew
    if (this.rows.length === PAGE || this.rows.length === this.total) this.asked.set(0, new AbortController());
    if (this.now >= 0) this.now += jobs.length;
    this.draw();
  }
}

const hole = (name) => h("tr", { "data-key": name, class: "hole" }, h("td", { colspan: 8 }, "…"));

function create() {
  const pick = bulk === null ? null : h("input", { type: "checkbox", tabindex: "-1" });
  return h("tr", {}, h("td", { class: "pick" }, pick), h("td", {}, h("span", { class: "state" }, h("span", { class: "glyph", "aria-hidden": "true" }), " ", h("span"))),
    h("td", { class: "right" }, h("a", { class: "num" })), h("td", { class: "name" }, h("bdi")), h("td", { class: "where" }, h("bdi")), h("td", {}, h("bdi")),
    h("td", { class: "right" }, h("span", { class: "num" })), h("td", {}, h("time")));
}

function update(row, job) {
  const [pick, state, link, name, where, user, took, submitted] = row.children;
  const it = stateOf(job), [glyph, word] = STATES[it] ?? STATES.infra;
  if (pick.firstElementChild === null && bulk !== null) pick.append(h("input", { type: "checkbox", tabindex: "-1" }));
  if (pick.firstElementChild !== null) {
    pick.firstElementChild.checked = allThatFit || chosen.has(job.job);
    pick.firstElementChild.setAttribute("aria-label", `choose job ${job.job}`);
  }
  const box = state.firstElementChild;
  box.className = `state s-${it}`;
  setText(box.firstElementChild, glyph);
  if (box.children.length < 2) box.replaceChildren(box.firstElementChild, " ", h("span"));
  setText(box.children[1], job.cancelling && job.state !== "finished" ? "ending" : word);
  link.firstElementChild.href = `/jobs/${job.job}`;
  setText(link.firstElementChild, job.job);
  setText(name.firstElementChild, shown(job.name || job.worker || ""));
  setText(where, job.host ? `${job.arch} ${job.platform} · ${shown(job.environment)} on ${shown(job.host)}` : "–");
  setText(user, shown(job.user));
  const span = took.firstElementChild;
  if (job.started && !job.finished) {
    if (span.dataset.since !== job.started) span.dataset.since = job.started;
  } else {
    delete span.dataset.since;
    setText(span, job.started ? duration((Date.parse(job.finished) - Date.parse(job.started)) / 1000) : "–");
  }
  const time = submitted.firstElementChild;
  if (time.dateTime !== job.submitted) {
    time.dateTime = job.submitted;
    setText(time, relative(job.submitted));
  }
}

// Acts on many.

function toggle(job, on = !chosen.has(job)) {
  allThatFit = false;
  if (on) chosen.add(job);
  else chosen.delete(job);
  showBulk();
}

function showBulk() {
  if (bulk === null) return;
  bulk.hidden = chosen.size === 0 && !allThatFit;
  setText(document.getElementById("chosen"), allThatFit ? `all ${countText.textContent} that fit are chosen` : `${chosen.size} chosen`);
  bulk.querySelector('[data-act="all"]').hidden = allThatFit;
  const line = `biruda cancel ${[...chosen].sort((a, b) => a - b).join(" ")}`;
  bulk.querySelector("#same").hidden = allThatFit;
  setText(bulk.querySelector("#same code"), line.length > 60 ? `${line.slice(0, 58)}…` : line);
  bulk.querySelector("#same button").dataset.copy = line;
  jobs?.draw();
}

async function act(what) {
  const buttons = [...bulk.querySelectorAll("button")];
  const done = document.getElementById("done");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    const meant = allThatFit ? { filter: Object.fromEntries(filter()) } : { jobs: [...chosen] };
    const answer = await post(`/jobs/${what}`, meant);
    const refused = answer.refused.length;
    const why = refused ? `; ${refused} not: ${answer.refused[0].detail}${refused > 1 ? ", …" : ""}` : "";
    setText(done, `${what === "cancel" ? "asked to end" : "waiting again"}: ${answer.jobs.length}${why}`);
    chosen.clear();
    allThatFit = false;
    await jobs.refresh(new Set(answer.jobs));
  } catch (error) {
    setText(done, error.message);
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
    const words = done.textContent;
    showBulk();
    bulk.hidden = false;
    setTimeout(() => { if (done.textContent === words) { setText(done, ""); showBulk(); } }, 8000);
  }
}

bulk?.addEventListener("click", (event) => {
  const what = event.target.dataset.act;
  if (what === "cancel" || what === "retry") act(what);
  else if (what === "all") {
    allThatFit = true;
    showBulk();
  } else if (what === "none") {
    chosen.clear();
    allThatFit = false;
    showBulk();
  }
});

// Live.

const jobs = list === null ? null : new List();
let dirty = new Set(), timer = 0, isNew = false;

function settle() {
  timer = 0;
  const numbers = dirty;
  dirty = new Set();
  if (jobs === null) {
    if (isNew) location.reload(); // the first one that fits
    return;
  }
  if (numbers.size) jobs.refresh(numbers).catch(() => {});
  if (isNew) jobs.catchUp().catch(() => {});
  isNew = false;
}

follow((event) => {
  if (!event.kind.startsWith("job.") || event.kind === "job.step") return;
  dirty.add(event.job);
  if (event.kind === "job.queued") isNew = true;
  if (!timer) timer = setTimeout(settle, 200);
}, { onResume: () => { isNew = true; for (const job of jobs?.rows ?? []) if (job && job.state !== "finished") dirty.add(job.job); settle(); } });

if (jobs !== null) {
  newer.addEventListener("click", () => { list.scrollTop = 0; jobs.catchUp(); });
  key("j", "next row", () => jobs.move(1));
  key("k", "row before", () => jobs.move(-1));
  key("Enter", "open the row", (event) => (jobs.current() ? location.assign(`/jobs/${jobs.current().job}`) : event.target.click()));
  if (bulk !== null) key("x", "choose the row", () => { if (jobs.current()) toggle(jobs.current().job); });
  key("G", "to the oldest", () => { jobs.now = jobs.total - 2; jobs.move(1); });
  jobs.render();
}
document.documentElement.dataset.ready = "jobs";
