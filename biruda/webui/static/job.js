// One job: its head, steps, log and artifacts, live.

import { get, post, Problem } from "./api.js";
import { h, setText } from "./dom.js";
import { follow } from "./events.js";
import { duration, number, size, stateOf, STATES } from "./format.js";
import { charts } from "./jobcharts.js";
import { key } from "./keys.js";
import { LogSearch } from "./logsearch.js";
import { LogSource } from "./logsource.js";
import { LogView } from "./logview.js";
import { nodes, shown } from "./text.js";

const box = document.getElementById("logbox");
const tools = document.getElementById("tools");
const find = document.getElementById("find");
const found = document.getElementById("found");
const words = document.getElementById("logwords");
const JOB = Number(box.dataset.job);
const asked = new URLSearchParams(location.search);
const OLD = asked.has("attempt"); // an earlier attempt: the page stays as it was made

let job = null; // as the API gives it
let source = null;
let search = null;
let charted = false;

const button = (name) => document.querySelector(`[data-log="${name}"]`);
const view = new LogView(document.getElementById("logview"), {
  onSelect: ([first, last]) => remember(first, last),
  onLeaveEnd: (on) => setFollow(on),
});

/** What the master says or does not say is told where it matters; a fault of this page is for who looks at the console. */
function complain(error) {
  if (!(error instanceof Problem) && error.name !== "AbortError") reportError(error);
}

// The log.

function openLog(attempt) {
  box.hidden = false;
  source?.close();
  source = new LogSource(JOB, attempt, { onChange: changed, onEnd: ended, startedAt: () => (job?.started ? Date.parse(job.started) : NaN) });
  view.start(source);
  tools.hidden = find.hidden = false;
  const pager = document.getElementById("logpager");
  if (pager !== null) pager.hidden = true;
  source.open().then(() => {
    if (source.growing) source.follow();
    steps();
  }).catch(complain);
}

function changed() {
  view.draw();
  tell();
}

/** The attempt has ended: times and steps are known exactly. */
async function ended() {
  await refresh();
  source.forget();
  await source.open();
  steps();
  setFollow(false, true);
  errors().catch(complain);
}

function tell() {
  if (source === null) return;
  button("follow").hidden = !source.growing;
  const parts = [];
  if (source.growing && source.bytes === 0) return setText(words, "nothing printed yet");
  if (!source.isKnown && source.bytes > 0) parts.push(`reading it: ${Math.floor((source.indexed / source.bytes) * 100)} %`);
  else if (source.isKnown) parts.push(`${number(source.total)} ${source.total === 1 ? "line" : "lines"}`);
  if (source.growing) parts.push("growing", size(source.bytes));
  else if (job?.log && job.attempt === source.attempt) parts.push(`${job.log.complete ? "complete" : "not complete"}, ${number(job.log.bytes)} bytes, sha256 ${job.log.sha256.slice(0, 12)}…`);
  setText(words, parts.join(" · "));
  words.title = job?.log ? job.log.sha256 : "";
}

/** Where each step begins, for folding and in the table. */
function steps() {
  if (job === null || OLD || source?.steps === undefined) return;
  view.steps = source.steps.filter((step) => step.line !== null).map((step, index) => ({ ...step, ...endOf(job.steps[index]), wall_s: job.steps[index]?.wall_s }));
  source.steps.forEach((step, index) => {
    const cell = document.querySelector(`#steps [data-step="${index}"]`)?.children[1];
    if (cell === undefined || cell === null || step.line === null || cell.querySelector("a") !== null) return;
    cell.replaceChildren(h("a", { href: `?line=${step.line}#L${step.line}` }, h("bdi", {}, shown(step.name))));
  });
  view.draw();
}

function endOf(step) {
  if (step === undefined) return { good: true };
  const good = step.exit_status === 0 && !step.signal;
  return { good, how: step.note || (step.signal ? `killed by signal ${step.signal}` : `exit ${step.exit_status}`) };
}

async function errors() {
  if (!OLD && !["failed", "timeout"].includes(job?.outcome)) return;
  let answer;
  for (;;) {
    answer = await get(`/jobs/${JOB}/log/errors?attempt=${source.attempt}`);
    if (answer.step === null || answer.line !== null || answer.lines !== null) break;
    await new Promise((resolve) => { setTimeout(resolve, 200); }); // its index is being built
  }
  view.errors = new Set(answer.errors);
  const list = button("errors");
  list.hidden = answer.errors.length === 0;
  setText(list, `errors ${answer.errors.length}${answer.complete && answer.errors.length < 200 ? "" : "+"}`);
  if (answer.line !== null && !location.hash && !asked.has("line") && Number(box.dataset.opens) !== answer.line && !touched) view.goTo(answer.line);
  view.draw();
}

function nextError() {
  const lines = [...view.errors].sort((a, b) => a - b);
  if (lines.length === 0) return;
  const at = view.chosen[0] || view.topLine;
  const line = lines.find((item) => item > at) ?? lines[0];
  show(line);
}

let touched = false; // somebody has looked at something: nothing moves by itself any more

function setFollow(on, quietly = false) {
  button("follow").setAttribute("aria-pressed", String(on));
  view.atEnd = on && Boolean(source?.growing);
  if (!on && !quietly) touched = true;
  if (on) view.goToEnd();
}

/** Choose a line, go there, and have it in the address. */
function show(first, last = first, how = "push") {
  setFollow(false);
  view.choose(first, last);
  view.goTo(first);
  if (how) remember(first, last, how);
}

function remember(first, last, how = "push") {
  touched = true;
  const query = new URLSearchParams(location.search);
  query.set("line", first);
  history[`${how}State`](null, "", `?${query}#L${first}${last > first ? `-L${last}` : ""}`);
}

/** [first, last] of the address. */
function chosenByAddress() {
  const match = /^#L(\d+)(?:-L?(\d+))?$/.exec(location.hash);
  if (match !== null) return [Number(match[1]), Number(match[2] ?? match[1])];
  const line = Number(new URLSearchParams(location.search).get("line"));
  return line > 0 ? [line, line] : null;
}

function openAt() {
  const chosen = chosenByAddress();
  if (chosen !== null) {
    view.choose(...chosen);
    view.goTo(chosen[0]);
  } else if (box.dataset.opens) view.goTo(Number(box.dataset.opens));
  else if (["running", "waiting"].includes(box.dataset.state)) {
    source.growing = true;
    setFollow(true);
  }
}

addEventListener("popstate", () => {
  const chosen = chosenByAddress();
  if (chosen !== null && source !== null) show(...chosen, null);
});

document.getElementById("steps").addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='?line=']");
  if (link === null || source === null || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  show(Number(new URL(link.href).searchParams.get("line")));
});

// Searching.

let typing = 0;

/** Search for what stands there. mayJump: show the first line found. */
function startSearch(mayJump = true) {
  clearTimeout(typing);
  const text = find.elements.q.value, isRegex = find.elements.regex.checked;
  if (search !== null && search.text === text && search.isRegex === isRegex) return;
  search?.close();
  const query = new URLSearchParams(location.search);
  for (const [name, value] of [["q", text], ["regex", isRegex && text ? "1" : ""]]) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  history.replaceState(null, "", `${query.size ? `?${query}` : location.pathname}${location.hash}`);
  view.hitNow = 0;
  if (text === "" || source === null) {
    search = null;
    setText(found, "");
    view.setFound(new Set(), null, null);
    return;
  }
  let jumped = !mayJump;
  search = new LogSearch(source, text, isRegex, () => {
    view.setFound(search.set, search.map, search.ranges());
    if (!jumped && search.hits.length > 0) {
      jumped = true;
      hit(1, view.topLine - 1);
    }
    setText(found, search.words(view.hitNow));
  });
  setText(found, "…");
}

function hit(step, from = view.hitNow || view.topLine) {
  const line = search?.next(from, step);
  if (line === undefined) return;
  setFollow(false);
  view.hitNow = line;
  view.goTo(line);
  setText(found, search.words(line));
}

find.addEventListener("submit", (event) => {
  event.preventDefault();
  if (search !== null && search.text === find.elements.q.value && search.isRegex === find.elements.regex.checked) hit(1);
  else startSearch();
});
find.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => startSearch(), 300);
});

// Buttons and keys.

const acts = {
  errors: nextError,
  times: () => {
    const on = document.querySelector(".logview").classList.toggle("timed");
    button("times").setAttribute("aria-pressed", String(on));
    view.draw();
  },
  wrap: () => {
    view.wrapped = !view.wrapped;
    view.root.classList.toggle("wrapped", view.wrapped);
    button("wrap").setAttribute("aria-pressed", String(view.wrapped));
    view.height = -1;
    view.draw();
  },
  follow: () => setFollow(!view.atEnd),
  next: () => hit(1),
  back: () => hit(-1),
};
box.addEventListener("click", (event) => acts[event.target.closest("[data-log]")?.dataset.log]?.());
const step = (by) => show(Math.min(Math.max(1, source.total), Math.max(1, (view.chosen[0] || view.topLine - 1) + by)), undefined, "replace");
key("f", "follow the log", acts.follow);
key("t", "times of lines", acts.times);
key("w", "wrap lines", acts.wrap);
key("n", "next line found", acts.next);
key("N", "line found before", acts.back);
key("e", "next error", nextError);
key("j", "next line", () => step(1));
key("k", "line before", () => step(-1));

// The job.

async function refresh() {
  job = await get(`/jobs/${JOB}`);
  if (OLD) return undefined;
  const shownAttempt = Number(box.dataset.attempt || 0);
  if (shownAttempt && job.attempt && job.attempt > shownAttempt) return location.reload(); // it runs again
  const why = await get(`/jobs/${JOB}/why`);
  head(why);
  stepTable();
  whyTable(why);
  steps();
  if (job.state === "running" && !charted) {
    charted = true;
    charts(document.getElementById("charts"), JOB, () => {
      charted = job.state === "running";
      return charted;
    });
  }
  if (job.state === "finished") {
    artifacts();
    compare();
  }
  if (source === null && job.started) {
    openLog(job.attempt);
    openAt();
  }
  box.dataset.attempt ||= job.attempt ?? "";
  tell();
  return undefined;
}

function head(why) {
  const state = stateOf(job), [glyph, word] = STATES[state] ?? STATES.infra;
  document.getElementById("head").className = `jobhead s-${state}`;
  const box = document.getElementById("state");
  box.className = `state s-${state}`;
  setText(box.children[0], glyph);
  setText(box.children[1], word);
  const sentence = document.getElementById("sentence");
  const took = job.started ? h("span", { class: "num" }, duration((Date.parse(job.finished ?? new Date().toISOString()) - Date.parse(job.started)) / 1000)) : null;
  if (took !== null && job.finished === null) took.dataset.since = job.started;
  const end = why.ending;
  if (end) {
    sentence.replaceChildren(...[end.name === null ? null : `in step ${end.step + 1} ${shown(end.name)}: ${shown(end.how)} `, took && "after ", took,
      end.fault && " · ", end.fault && h("strong", {}, end.fault), end.reason && ` · ${shown(end.reason)}`].filter(Boolean));
  } else if (job.cancelling) setText(sentence, "is being ended");
  else if (state === "running") sentence.replaceChildren("for ", took);
  else setText(sentence, shown(why.sentence));
  if (job.host) setText(document.getElementById("place"), `${shown(job.arch)} ${shown(job.platform)} · ${shown(job.environment)} (${job.kind}) on ${shown(job.host)}`);
  const act = (name) => document.querySelector(`[data-act="${name}"]`);
  if (act("cancel") !== null) {
    act("cancel").hidden = job.state === "finished" || job.cancelling;
    act("retry").hidden = job.state !== "finished";
    const line = `biruda ${job.state === "finished" ? "retry" : "cancel"} ${JOB}`;
    setText(document.querySelector("#line code"), line);
    document.querySelector("#line button").dataset.copy = line;
  }
}

function stepTable() {
  const blamed = ["failed", "timeout"].includes(job.outcome) ? job.steps.findIndex((step) => step.exit_status !== 0 || step.signal) : -1;
  job.steps.forEach((step, index) => {
    const row = document.querySelector(`#steps [data-step="${index}"]`);
    if (row === null) return;
    row.classList.toggle("blamed", index === blamed);
    const { good, how } = endOf(step);
    const cells = row.children;
    if (cells[2].textContent === "–") cells[2].replaceChildren(h("span", { class: `state s-${good ? "passed" : "failed"}` }, h("span", { class: "glyph", "aria-hidden": "true" }, good ? "●" : "✖"), ` ${shown(how)}`));
    [duration(step.wall_s), duration(step.cpu_s), size(step.peak_rss_bytes), size(step.read_bytes), size(step.written_bytes)].forEach((text, at) => setText(cells[3 + at], text));
  });
}

function whyTable(why) {
  const section = document.getElementById("why");
  section.hidden = why.state !== "waiting";
  if (section.hidden) return;
  section.replaceChildren(h("h2", {}, "Why it waits"),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["environment", "host", "is", "what stands in the way"].map((name) => h("th", {}, name)))),
      h("tbody", {}, why.environments.map((row) => h("tr", {}, h("td", {}, h("bdi", {}, shown(row.environment))), h("td", {}, h("bdi", {}, shown(row.host))),
        h("td", {}, `${shown(row.arch)} ${shown(row.platform)}`), h("td", { class: "words" }, `${row.fits ? "fits" : "does not fit"}${row.reason ? ": " : ""}${shown(row.reason)}`)))))));
}

// Artifacts.

const pathUrl = (kind, path) => `/api/v1/jobs/${JOB}/${kind}/${path.split("/").map(encodeURIComponent).join("/")}`;

function artifacts() {
  if (job.artifacts.length === 0 || document.getElementById("artifacts") !== null) return;
  const rows = job.artifacts.map((item) => h("tr", {}, h("td", { class: "words" }, h("a", { href: pathUrl("artifacts", item.path), download: true }, h("bdi", {}, shown(item.path)))),
    h("td", { class: "right num" }, size(item.bytes)), h("td", {}, h("span", { class: "mono", title: item.sha256 }, `${item.sha256.slice(0, 12)}…`), " ", h("button", { type: "button", class: "copy", "data-copy": item.sha256 }, "copy")),
    h("td", {}, h("button", { type: "button", "data-preview": item.path }, "look"))));
  document.getElementById("compare").after(h("section", { id: "artifacts" }, h("h2", {}, "Artifacts ", h("small", {}, String(rows.length))),
    h("div", { class: "scroll" }, h("table", { class: "wide" }, h("thead", {}, h("tr", {}, ["path", "size", "sha256", ""].map((name) => h("th", {}, name)))), h("tbody", {}, rows))), h("div", { id: "preview", hidden: true })));
}

for (const look of document.querySelectorAll("[data-preview][hidden]")) look.hidden = false;
document.addEventListener("click", (event) => {
  const path = event.target.closest("[data-preview]")?.dataset.preview;
  if (path !== undefined) preview(path);
});

async function preview(path) {
  const place = document.getElementById("preview");
  const url = pathUrl("previews", path);
  place.hidden = false;
  place.replaceChildren("…");
  let content;
  try {
    const answer = await fetch(url, { credentials: "same-origin" });
    const kind = (answer.headers.get("Content-Type") ?? "").split(";")[0];
    if (!answer.ok) content = h("p", { class: "quiet" }, (await answer.json()).detail);
    else if (kind.startsWith("image/")) content = h("img", { src: url, alt: shown(path) });
    else if (kind === "text/html") content = h("iframe", { src: url, sandbox: "", title: shown(path), referrerpolicy: "no-referrer" }); // it may do nothing at all
    else content = h("pre", {}, (await answer.text()).split("\n").map(shown).join("\n"));
  } catch {
    content = h("p", { class: "problem" }, "it cannot be read now");
  }
  place.replaceChildren(h("div", { class: "actions" }, h("strong", {}, h("bdi", {}, shown(path))), h("button", { type: "button", onclick: () => { place.hidden = true; } }, "close")), content);
  place.scrollIntoView({ block: "nearest" });
}

// What changed since the last run that passed.

async function compare() {
  if (!["failed", "timeout"].includes(job.outcome)) return;
  const section = document.getElementById("compare");
  const answer = await get(`/jobs/${JOB}/compare`);
  if (answer.with === null) return;
  const facts = [...(answer.source.changed ? [{ fact: "source pack", before: answer.source.before?.slice(0, 12), after: answer.source.after?.slice(0, 12) }] : []), ...answer.facts,
    ...answer.steps.filter((step) => step.before_s !== null && Math.abs(step.after_s - step.before_s) > Math.max(0.5, step.before_s / 4)).map((step) => ({ fact: `time of ${step.name}`, before: duration(step.before_s), after: duration(step.after_s) }))];
  const lines = answer.log.new.map((line) => h("div", {}, line.line === null ? "" : h("a", { href: `?line=${line.line}#L${line.line}`, class: "num" }, number(line.line)), " ", h("span", { class: "mono" }, nodes(line.text))));
  section.replaceChildren(...[h("h2", {}, "What changed ", h("small", {}, "since ", h("a", { href: `/jobs/${answer.with}` }, `${answer.with}, which passed`))),
    facts.length === 0 ? h("p", {}, "The same source, environment and times.") : h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["", "then", "now"].map((name) => h("th", {}, name)))),
      h("tbody", {}, facts.map((item) => h("tr", {}, h("td", {}, shown(item.fact)), h("td", { class: "words" }, shown(item.before ?? "–")), h("td", { class: "words" }, shown(item.after ?? "–"))))))),
    lines.length === 0 ? null : h("details", { open: lines.length <= 20 }, h("summary", {}, `${number(answer.log.count)} lines that it did not print then${answer.log.complete ? "" : ", of the first MiB"}`), h("div", { class: "new-lines scroll" }, lines))].filter(Boolean));
  section.hidden = false;
  section.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='?line=']");
    if (link === null || source === null) return;
    event.preventDefault();
    show(Number(new URL(link.href).searchParams.get("line")));
  });
}

// Acts.

const acted = document.getElementById("acted");
const elsewhere = document.getElementById("elsewhere");

document.getElementById("acts")?.addEventListener("click", async (event) => {
  const what = event.target.dataset.act;
  if (what === undefined) return;
  setText(acted, "");
  try {
    if (what === "again") await offer(event.target);
    else {
      await post(`/jobs/${JOB}/${what}`);
      setText(acted, what === "cancel" ? "asked to end" : "");
      if (what === "retry") location.assign(`/jobs/${JOB}`);
    }
  } catch (error) {
    setText(acted, error.message);
  }
});

/** The places where it could run. */
async function offer(opener) {
  elsewhere.hidden = !elsewhere.hidden;
  opener.setAttribute("aria-expanded", String(!elsewhere.hidden));
  const { environments } = await get("/environments");
  elsewhere.elements.where.replaceChildren(...environments.map((item) => h("option", { value: JSON.stringify({ env: item.name, host: item.host }), disabled: !item.usable, selected: item.name !== job?.environment && item.usable },
    `${shown(item.name)} on ${shown(item.host)} · ${shown(item.arch)} ${shown(item.platform)}${item.usable ? "" : ": cannot be used"}`)));
}

elsewhere?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const place = JSON.parse(elsewhere.elements.where.value);
    const answer = await post(`/jobs/${JOB}/again`, { requirements: { arch: "", platform: "", kind: "", ...place } });
    location.assign(`/jobs/${answer.jobs[0]}`);
  } catch (error) {
    setText(acted, error.message);
  }
});

// Live.

let timer = 0;
const soon = (ms) => { timer ||= setTimeout(() => { timer = 0; refresh().then(() => source?.open().then(steps)).catch(complain); }, ms); };

follow((event) => {
  if (event.job === JOB) soon(event.kind === "job.started" ? 0 : 100);
  else if (job?.state === "waiting" && event.kind !== "job.step") soon(1000); // why it waits may have changed
}, { onResume: () => soon(0) });

if (box.dataset.attempt && document.querySelector(".ln") !== null) openLog(Number(box.dataset.attempt));
else if (box.dataset.attempt && box.dataset.state === "running") openLog(Number(box.dataset.attempt));
if (source !== null) openAt();
async function begin() {
  for (;;) {
    try {
      await refresh();
      break;
    } catch (error) {
      complain(error);
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
    }
  }
  if (source !== null) errors().catch(complain);
  if (asked.get("q")) startSearch(chosenByAddress() === null);
  document.documentElement.dataset.ready = "job";
}
begin();
