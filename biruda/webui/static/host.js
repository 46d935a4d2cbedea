// Charts of one host: two minutes, a second a sample, one cursor over all of them, drawn only while the page is seen.

import { get, Problem } from "./api.js";
import { h, setText } from "./dom.js";
import { percent, size } from "./format.js";

const SECONDS = 120;
const place = document.getElementById("charts");
const host = place.dataset.host;

const rate = (value) => `${size(value)}/s`;
const CHARTS = [
  { title: "processor", series: ["busy"], of: (it) => [it.cpu], top: () => 1, text: percent },
  { title: "memory", series: ["used"], of: (it) => [it.memory_bytes], top: (it) => it.memory_total_bytes, text: size },
  { title: "load", series: ["1 min"], of: (it) => [it.load1], text: (value) => value.toFixed(2) },
  { title: "jobs", series: ["running"], of: (it) => [it.running], text: (value) => value.toFixed(0) },
  { title: "disk", series: ["read", "written"], of: (it) => [it.disk_read_s, it.disk_written_s], text: rate },
  { title: "network", series: ["received", "sent"], of: (it) => [it.net_received_s, it.net_sent_s], text: rate },
];
const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
const COLOURS = ["--running", "--infra"];

let samples = [], charts = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

/** The colours of the sheet are pairs for light and dark: a browser says which by a property of an element. */
function resolved(name) {
  const probe = h("span");
  probe.style.color = `var(${name})`;
  place.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function make() {
  for (const { plot } of charts) plot.destroy();
  place.replaceChildren();
  const text = resolved("--text"), line = resolved("--line"), font = `12px ${colour("--mono")}`;
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font };
  charts = CHARTS.map((chart) => {
    const box = h("figure", {}, h("figcaption", {}, chart.title, " ", h("span", { class: "num" })));
    place.append(box);
    const plot = new uPlot({
      width: Math.max(200, box.clientWidth),
      height: 120,
      cursor: { sync: { key: "host" }, drag: { x: false, y: false } },
      legend: { live: true },
      scales: { x: { time: true }, y: { range: (_, __, most) => [0, chart.top && samples.length ? chart.top(samples.at(-1)) : Math.max(most ?? 0, 1)] } },
      axes: [{ ...axis, space: 80, values: (_, values) => values.map(clock) }, { ...axis, size: 88, values: (_, values) => values.map(chart.text) }],
      series: [{ value: (_, at) => (at === null ? "–" : clock(at)) }, ...chart.series.map((label, index) => ({
        label, stroke: resolved(COLOURS[index]), width: 1, points: { show: false }, value: (_, value) => (value === null ? "–" : chart.text(value)),
      }))],
    }, data(chart), box);
    return { ...chart, plot, box };
  });
}

function data(chart) {
  const columns = chart.series.map(() => []);
  for (const sample of samples) chart.of(sample).forEach((value, index) => columns[index].push(value));
  return [samples.map((sample) => sample.at_s), ...columns];
}

function draw(chart) {
  chart.plot.setData(data(chart));
  setText(chart.box.querySelector("figcaption .num"), chart.of(samples.at(-1)).map(chart.text).join(" · "));
}

function take(given) {
  for (const sample of given) {
    const last = samples.at(-1);
    if (last !== undefined && sample.at_s <= last.at_s) continue;
    const passed = last === undefined ? 1 : Math.max(0.5, sample.at_s - last.at_s);
    for (const name of ["disk_read", "disk_written", "net_received", "net_sent"])
      sample[`${name}_s`] = last === undefined ? 0 : Math.max(0, (sample[`${name}_bytes`] - last[`${name}_bytes`]) / passed);
    samples.push(sample);
  }
  samples = samples.slice(-SECONDS);
}

async function poll() {
  if (!document.hidden) {
    try {
      take((await get(`/coordinators/${encodeURIComponent(host)}/samples?seconds=${samples.length ? 5 : SECONDS}`)).samples);
      if (charts.length === 0 && samples.length) make();
      requestAnimationFrame(() => { for (const chart of charts) draw(chart); });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (charts.length === 0) place.replaceChildren(h("p", { class: "empty" }, error.message));
    }
  }
  setTimeout(poll, 1000);
}

addEventListener("resize", () => { for (const chart of charts) chart.plot.setSize({ width: Math.max(200, chart.box.clientWidth), height: 120 }); });
for (const what of [document, matchMedia("(prefers-color-scheme: dark)")]) what.addEventListener(what === document ? "theme" : "change", () => { if (charts.length) make(); });
poll();
