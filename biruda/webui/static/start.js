// The form to start something: what `biruda run` does, by the API, beside the line that does the same.

import { api, post, Problem } from "./api.js";
import { h } from "./dom.js";
import { size } from "./format.js";

const form = document.getElementById("start");
const line = document.getElementById("line");

const steps = () => form.elements.lines.value.split("\n").map((text) => text.trim()).filter(Boolean);
const words = (text) => text.split(/\s+/).filter(Boolean);
const places = () => [...form.querySelectorAll("[name=on]:checked")].map((box) => box.value);
const quoted = (text) => (/^[\w@%+=:,./*-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function show() {
  const { source, name, artifacts, limit, url, ref, tarball } = form.elements;
  for (const place of form.querySelectorAll("[data-for]")) place.hidden = place.dataset.for !== source.value;
  form.elements.url.required = source.value === "git";
  tarball.required = source.value === "tarball";
  const parts = [];
  if (source.value === "git") parts.push(`git clone --depth 1 ${ref.value ? `--branch ${quoted(ref.value)} ` : ""}${quoted(url.value || "URL")} tree &&`);
  if (source.value === "tarball") parts.push(`mkdir tree && tar -C tree -xf ${quoted(tarball.files[0]?.name ?? "FILE")} &&`);
  parts.push("biruda run", source.value === "none" ? "--no-source" : "--source tree");
  for (const place of places()) if (place) parts.push(`--on ${quoted(place)}`);
  if (name.value) parts.push(`--name ${quoted(name.value)}`);
  for (const pattern of words(artifacts.value)) parts.push(`--artifact ${quoted(pattern)}`);
  if (limit.value) parts.push(`--limit ${quoted(limit.value)}`);
  for (const step of steps()) parts.push(`--step ${quoted(step)}`);
  line.textContent = parts.join(" ");
  const copy = line.parentElement.querySelector("[data-copy]");
  copy.dataset.copy = line.textContent;
}

const SECONDS = { s: 1, m: 60, h: 3600, d: 86400 };

function seconds(text) {
  const match = /^([0-9.]+)([smhd]?)$/.exec(text);
  return match === null ? null : Number(match[1]) * (SECONDS[match[2]] ?? 1);
}

async function start() {
  const button = document.getElementById("go");
  button.disabled = true;
  try {
    const digest = await source();
    say("submitting");
    const recipe = {
      steps: steps().map((text) => ({ name: text.slice(0, 40), argv: ["/bin/sh", "-e"], script: `${text}\n` })),
      artifacts: words(form.elements.artifacts.value),
      limits: form.elements.limit.value ? { total_s: seconds(form.elements.limit.value) } : {},
    };
    const on = places().length ? places() : [""];
    const jobs = on.map((place) => ({
      recipe,
      name: form.elements.name.value || recipe.steps[0].name,
      source: digest,
      requirements: Object.fromEntries(place.split(",").filter(Boolean).map((pair) => pair.split(/=(.*)/s).slice(0, 2))),
    }));
    const { jobs: numbers } = await post("/jobs", { jobs });
    if (numbers.length === 1) location.assign(`/jobs/${numbers[0]}`);
    else say("started ", ...numbers.flatMap((job) => [h("a", { href: `/jobs/${job}`, class: "num" }, String(job)), " "]));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    say(h("span", { class: "problem" }, `✖ ${error.message}`));
  } finally {
    button.disabled = false;
  }
}

async function source() {
  const { source: chosen, url, ref, tarball } = form.elements;
  if (chosen.value === "git") {
    say("the master clones it");
    return (await post("/imports/git", { url: url.value.trim(), ref: ref.value.trim() })).digest;
  }
  if (chosen.value === "tarball") {
    say(`sending ${size(tarball.files[0].size)}`);
    return (await api("POST", "/imports/tarball", tarball.files[0])).digest;
  }
  return null;
}

function say(...what) {
  document.getElementById("said").replaceChildren(...what);
}

if (form !== null) {
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  show();
}
