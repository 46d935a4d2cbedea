// Values in words; biruda/webui/words.py writes the same.

export const STATES = {
  passed: ["●", "passed"], failed: ["✖", "failed"], infra: ["▲", "infrastructure"], environment: ["◆", "environment"],
  timeout: ["◷", "timed out"], cancelled: ["⊘", "cancelled"], preempted: ["⇄", "preempted"], running: ["◌", "running"],
  waiting: ["○", "waiting"],
};

/** The name of a job's state. */
export function stateOf(job) {
  if (job.state === "finished") return job.outcome || "infra";
  return job.state === "running" ? "running" : "waiting";
}

const two = (value) => String(value).padStart(2, "0");

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  seconds = Math.max(0, seconds);
  if (seconds < 10) return seconds >= 0.1 || seconds === 0 ? `${seconds.toFixed(1)} s` : `${(seconds * 1000).toFixed(0)} ms`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d ${Math.floor((whole % 86400) / 3600)}h`;
}

export function size(count) {
  if (count === null || count === undefined) return "–";
  let value = count, unit = "B";
  for (const bigger of ["KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1024) break;
    [value, unit] = [value / 1024, bigger];
  }
  return unit === "B" || value >= 100 ? `${value.toFixed(0)} ${unit}` : `${value.toFixed(1)} ${unit}`;
}

export const number = (value) => value.toLocaleString("en-US");
export const percent = (part) => `${Math.round(part * 100)} %`;

/** `3 min ago`. */
export function relative(instant, now = Date.now()) {
  let seconds = (now - Date.parse(instant)) / 1000;
  const ahead = seconds < -1;
  seconds = Math.abs(seconds);
  if (seconds < 5) return "just now";
  const [unitSeconds, unit] = seconds < 60 ? [1, "s"] : seconds < 3600 ? [60, "min"] : seconds < 86400 ? [3600, "h"] : [86400, "d"];
  const text = `${Math.floor(seconds / unitSeconds)} ${unit}`;
  return ahead ? `in ${text}` : `${text} ago`;
}

const zone = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

/** The instant in the viewer's zone, and as the API writes it. */
export function exact(instant) {
  const at = new Date(instant);
  return Number.isNaN(at.getTime()) ? instant : `${zone.format(at)}\n${instant}`;
}

/** Make every <time> and every counting duration below root say what is true now. */
export function refreshTimes(root = document) {
  const now = Date.now();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const text = relative(element.dateTime, now);
    if (element.textContent !== text) element.textContent = text;
    if (element.dataset.exact !== element.dateTime) {
      element.dataset.exact = element.dateTime;
      element.title = exact(element.dateTime);
    }
  }
  for (const element of root.querySelectorAll("[data-since]")) {
    const text = duration(Math.max(0, Math.floor((now - Date.parse(element.dataset.since)) / 1000)));
    if (element.textContent !== text) element.textContent = text;
  }
}
