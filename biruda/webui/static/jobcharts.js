// What the job's host does while the job runs: two small charts, a second a sample, as long as somebody looks.

import { get, Problem } from "./api.js";
import { setText } from "./dom.js";
import { percent, size } from "./format.js";
import { show, spark } from "./spark.js";

/** Draw into place while isRunning(). */
export function charts(place, job, isRunning) {
  const [cpuText, memoryText] = place.querySelectorAll(".num");
  const [cpuCanvas, memoryCanvas] = place.querySelectorAll("canvas");
  let total = 1;
  const cpu = spark(cpuCanvas, [(it) => it.cpu], () => 1);
  const memory = spark(memoryCanvas, [(it) => it.memory_bytes], () => total);

  async function poll() {
    if (!isRunning()) {
      place.hidden = true;
      return;
    }
    if (!document.hidden) {
      try {
        const samples = (await get(`/jobs/${job}/samples`)).samples.map((it) => ({ ...it, at: it.at_s }));
        const last = samples.at(-1);
        if (last !== undefined) {
          place.hidden = false;
          total = last.memory_total_bytes;
          setText(cpuText, percent(last.cpu));
          setText(memoryText, `${size(last.memory_bytes)} of ${size(total)}`);
          show(cpu, samples);
          show(memory, samples);
        }
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
      }
    }
    setTimeout(poll, 1000);
  }
  poll();
}
