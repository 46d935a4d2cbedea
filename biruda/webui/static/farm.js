// The home page: sections of the farm as they change, and what the hosts do each second.

import { fromTemplate, h, part, setAttribute, setText, syncChildren } from "./dom.js";
import { follow } from "./events.js";
import { STATES, duration, number, percent, refreshTimes, size } from "./format.js";
import { enable } from "./page.js";
import { show, spark } from "./spark.js";
import { shown } from "./text.js";

const $ = (id) => document.getElementById(id);
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};

function state(name, word) {
  const [glyph, usual] = STATES[name] ?? STATES.infra;
  return h("span", { class: `state s-${name}` }, h("span", { class: "glyph", "aria-hidden": "true" }, glyph), ` ${word ?? usual}`);
}

const time = (instant) => h("time", { datetime: instant });

// Sections.

const SECTIONS = {
  head(head) {
    const line = $("headline"), healthy = head.hosts > 0 && head.troubles === 0;
    part(line, "health").replaceChildren(healthy ? state("passed", "healthy") : state("infra", "needs a look"));
    setText(part(line, "running"), number(head.running));
    setText(part(line, "waiting"), number(head.waiting));
    setText(part(line, "used"), `${number(head.used)}/${number(head.slots)}`);
    const day = Object.entries(head.day).map(([outcome, count]) => {
      const [glyph, word] = STATES[outcome] ?? STATES.infra;
      return h("a", { href: `/jobs?outcome=${outcome}`, class: `s-${outcome}` }, h("span", { class: "num" }, number(count)), " ",
        h("span", { class: "glyph", title: word }, glyph));
    });
    part(line, "day").replaceChildren(...(day.length ? day.flatMap((each) => [each, " "]) : [h("span", { class: "quiet" }, "nothing ended")]));
    $("more-hosts").hidden = head.hosts <= $("hosts").childElementCount;
    document.title = `${healthy ? "" : "▲ "}${head.running} running · biruda`;
  },

  troubles(troubles) {
    $("troubles").hidden = troubles.length === 0;
    syncChildren($("troubles"), troubles, (it) => it.text, () => fromTemplate("trouble-row"), (row, it) => {
      setText(part(row, "text"), it.text);
      setAttribute(part(row, "text"), "href", it.href || null);
      part(row, "since").replaceChildren(...(it.since ? [", since ", time(it.since)] : []));
      setText(part(row, "hint"), it.hint ? ` · ${it.hint}` : "");
      part(row, "command").hidden = !it.command;
      setText(part(row, "command").querySelector("code"), it.command);
      part(row, "command").querySelector("[data-copy]").dataset.copy = it.command;
    });
  },

  hosts(hosts) {
    syncChildren($("hosts"), hosts, (it) => it.host, () => fromTemplate("host-row"), (row, it) => {
      row.classList.toggle("away", !it.connected);
      setText(part(row, "name").firstElementChild, it.host);
      part(row, "name").href = `/hosts/${encodeURIComponent(it.host)}`;
      setText(part(row, "system"), `${it.arch} ${it.platform}`);
      part(row, "away").hidden = it.connected;
      if (!it.connected) part(row, "away").replaceChildren(" ▲ no contact ", time(it.last_contact));
      setText(part(row, "slots"), `${it.running}/${it.slots}`);
      charts(row, it.host);
    });
  },

  now(jobs) {
    syncChildren($("now"), jobs, (it) => `${it.job}.${it.attempt}`, () => fromTemplate("now-row"), (row, it) => {
      job(row, it);
      part(row, "took").dataset.since = it.started;
    });
    idle();
  },

  waits(waits) {
    syncChildren($("waits"), waits, (it) => it.wants, () => fromTemplate("wait-row"), (row, it) => {
      part(row, "href").href = `/jobs/${it.first}`;
      setText(part(row, "count"), number(it.jobs));
      for (const name of ["name", "wants", "sentence"]) setText(part(row, name), shown(it[name]));
    });
    idle();
  },

  newest(runs) {
    syncChildren($("newest"), runs, (it) => `${it.job}.${it.attempt}`, () => fromTemplate("ended-row"), (row, it) => {
      if (row.dataset.outcome === it.outcome) return; // what has ended changes no more
      row.dataset.outcome = it.outcome;
      job(row, it);
      part(row, "state").replaceChildren(state(it.outcome));
      setText(part(row, "took"), duration(it.run_s));
      part(row, "when").replaceChildren(time(it.finished));
    });
  },

  matrix(cells) {
    const platforms = [...new Set(cells.map((cell) => cell.platform))];
    const rows = new Map();
    for (const cell of cells) rows.set(cell.arch, (rows.get(cell.arch) ?? new Map()).set(cell.platform, cell));
    $("matrix").replaceChildren(
      h("thead", {}, h("tr", {}, h("th"), platforms.map((platform) => h("th", {}, platform)))),
      h("tbody", {}, [...rows].map(([arch, row]) => h("tr", {}, h("th", { scope: "row" }, arch), platforms.map((platform) => cell(row.get(platform)))))));
  },

  hour(minutes) {
    const most = Math.max(1, Math.max(...minutes.map((it) => it.passed)) + Math.max(...minutes.map((it) => it.failed)) + Math.max(...minutes.map((it) => it.other)));
    const deepest = Math.max(1, ...minutes.map((it) => it.waiting));
    const shapes = [];
    minutes.forEach((it, index) => {
      let top = 62;
      for (const [name, count] of [["passed", it.passed], ["failed", it.failed], ["infra", it.other]]) {
        const height = (count * 60) / most;
        top -= height;
        if (count) shapes.push(svg("rect", { class: `f-${name}`, x: index * 10 + 1, width: 8, y: top, height }));
      }
    });
    const points = minutes.map((it, index) => `${index * 10 + 5},${62 - (it.waiting * 60) / deepest}`).join(" ");
    $("hour").replaceChildren(...shapes, svg("polyline", { class: "depth", points }));
    const all = minutes.reduce((sum, it) => sum + it.passed + it.failed + it.other, 0);
    setText($("hour-words"), `${number(all)} ended, ${(all / 60).toFixed(1)} a minute · ${number(minutes.at(-1).waiting)} waiting now, ${number(deepest === 1 ? Math.max(...minutes.map((it) => it.waiting)) : deepest)} at most`);
  },

  timeline(timeline) {
    lanes = timeline.lanes;
    drawLanes();
  },
};

function job(row, it) {
  row.querySelector("a").href = `/jobs/${it.job}`;
  setText(part(row, "job"), it.job);
  setText(part(row, "name"), shown(it.name));
  setText(part(row, "place"), `${it.arch} ${it.platform} ${it.host}`);
}

function idle() {
  $("idle").hidden = $("now").childElementCount + $("waits").childElementCount > 0;
}

function cell(it) {
  if (it === undefined) return h("td", { class: "quiet" }, "–");
  const parts = [];
  if (it.running) parts.push(state("running", `${it.running} ${it.running === 1 ? "runs" : "run"}`), " ");
  if (it.waiting) parts.push(state("waiting", `${number(it.waiting)} ${it.waiting === 1 ? "waits" : "wait"}`), " ");
  if (!it.usable) parts.push(state("infra", "not usable"));
  else if (it.idle && !it.running) parts.push(state("passed", `${it.idle} idle`));
  else if (!it.running && !it.waiting) parts.push(h("span", { class: "quiet" }, "busy"));
  return h("td", {}, h("a", { href: `/jobs?arch=${encodeURIComponent(it.arch)}&platform=${encodeURIComponent(it.platform)}` }, parts));
}

// The timeline: each lane's bars stand at their instants, and the window moves over them.

let lanes = null;

function drawLanes() {
  const now = Date.now() / 1000, first = now - 3600;
  const place = $("timeline");
  for (const child of place.querySelectorAll(".empty")) child.remove();
  syncChildren(place, lanes, (lane) => `${lane.host}/${lane.lane}`,
    (lane) => h("div", { class: "lane" }, h("bdi", {}, `${lane.host}/${lane.lane}`), svg("svg", { viewBox: "0 0 3600 16", preserveAspectRatio: "none", role: "group" })),
    (row, lane) => {
      const chart = row.querySelector("svg");
      setAttribute(chart, "aria-label", `${lane.bars.length} bars`);
      syncChildren(chart, lane.bars, (bar) => `${bar.start}`, (bar) => {
        const link = svg("a", { href: `/jobs/${bar.job}` }), shape = svg("rect", { y: 1, height: 14 });
        shape.append(svg("title", {}));
        link.append(shape);
        return link;
      }, (link, bar) => {
        const shape = link.firstChild, x = Math.max(0, bar.start - first), end = (bar.end ?? now) - first;
        setAttribute(link, "href", `/jobs/${bar.job}`);
        setAttribute(shape, "class", `f-${bar.outcome}`);
        setAttribute(shape, "x", Math.round(x));
        setAttribute(shape, "width", Math.max(6, Math.round(end - x)));
        setText(shape.firstChild, `${bar.runs > 1 ? `${bar.runs} runs, the last one ` : ""}${bar.job} ${shown(bar.name)} ${bar.outcome}${bar.end ? `, ${duration(bar.end - bar.start)}` : ""}`);
      });
    });
  if (lanes.length === 0) place.append(h("p", { class: "empty" }, "nothing ran in the last hour"));
}
setInterval(() => { if (lanes !== null && !document.hidden) drawLanes(); }, 5000);

// What the hosts do.

const samples = new Map(); // host -> [{at, cpu, …}]
let mostDisk = 1024, mostNetwork = 1024; // KiB a second: one scale for all hosts

function charts(row, host) {
  for (const canvas of row.querySelectorAll("canvas")) {
    if (canvas.spark) continue;
    const [lines, scale] = {
      cpu: [[(it) => it.cpu], () => 1],
      memory: [[(it) => it.memory / it.memoryTotal], () => 1],
      disk: [[(it) => it.read, (it) => it.written], () => mostDisk],
      network: [[(it) => it.received, (it) => it.sent], () => mostNetwork],
    }[canvas.dataset.chart];
    show(spark(canvas, lines, scale), samples.get(host) ?? []);
  }
}

function takeSamples(hosts) {
  for (const [host, rows] of Object.entries(hosts)) {
    const kept = samples.get(host) ?? [];
    for (const [at, cpu, memory, memoryTotal, load, read, written, received, sent] of rows) {
      if (kept.length && at <= kept.at(-1).at) continue;
      kept.push({ at, cpu: cpu / 1000, memory, memoryTotal, load: load / 100, read, written, received, sent });
    }
    kept.splice(0, Math.max(0, kept.length - 120));
    samples.set(host, kept);
  }
  const all = [...samples.values()].flat();
  mostDisk = Math.max(1024, ...all.map((it) => Math.max(it.read, it.written)));
  mostNetwork = Math.max(1024, ...all.map((it) => Math.max(it.received, it.sent)));
  for (const row of $("hosts").children) {
    const kept = samples.get(row.dataset.key), last = kept?.at(-1);
    if (last === undefined) continue;
    setText(part(row, "cpu"), percent(last.cpu));
    setText(part(row, "memory"), `${(last.memory / 1024).toFixed(1)}/${(last.memoryTotal / 1024).toFixed(1)} GiB`);
    setText(part(row, "disk"), `${size((last.read + last.written) * 1024)}/s`);
    setText(part(row, "network"), `${size((last.received + last.sent) * 1024)}/s`);
    setText(part(row, "load"), last.load.toFixed(2));
    for (const canvas of row.querySelectorAll("canvas")) show(canvas.spark, kept);
  }
}

for (const row of $("hosts").children) charts(row, row.dataset.key);

follow((message) => {
  if (message.kind === "samples") return takeSamples(message.hosts);
  for (const [name, value] of Object.entries(message.sections)) SECTIONS[name]?.(value);
  enable();
  refreshTimes();
}, { query: { watch: "farm" } });
