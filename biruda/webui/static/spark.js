// Small charts on a canvas: two minutes, a second a sample, drawn at most once a frame and only while they are seen.

const SECONDS = 120;
const waiting = new Set();
const seen = new WeakSet();
let frame = 0;

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.add(entry.target);
      draw(entry.target.spark);
    } else seen.delete(entry.target);
  }
});

/** A chart on this canvas: lines are functions of a sample, in the order of the colours. scale(): the value at the top. */
export function spark(canvas, lines, scale) {
  canvas.spark = { canvas, lines, scale, samples: [] };
  observer.observe(canvas);
  return canvas.spark;
}

/** Let a chart show these samples ({at, …}), newest last. */
export function show(chart, samples) {
  chart.samples = samples;
  draw(chart);
}

function draw(chart) {
  if (!seen.has(chart.canvas) || document.hidden) return;
  waiting.add(chart);
  if (frame === 0) frame = requestAnimationFrame(drawAll);
}

function drawAll() {
  frame = 0;
  for (const chart of waiting) if (chart.canvas.isConnected) paint(chart);
  waiting.clear();
}

const redraw = () => { for (const canvas of document.querySelectorAll("canvas")) if (canvas.spark) draw(canvas.spark); };
document.addEventListener("visibilitychange", redraw);
document.addEventListener("theme", redraw);

function paint({ canvas, lines, scale, samples }) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  if (samples.length === 0) return;
  const top = scale() || 1, last = samples.at(-1).at;
  const x = (at) => width - (last - at) * (width / SECONDS);
  const y = (value) => height - 1 - Math.min(1, value / top) * (height - 2);
  lines.forEach((value, index) => {
    context.strokeStyle = context.fillStyle = style.getPropertyValue(index === 0 ? "--fill-running" : "--fill-infra");
    context.beginPath();
    context.moveTo(x(samples[0].at), height);
    for (const sample of samples) context.lineTo(x(sample.at), y(value(sample)));
    context.lineTo(x(last), height);
    if (index === 0) {
      context.globalAlpha = 0.3;
      context.fill();
      context.globalAlpha = 1;
    }
    context.beginPath();
    for (const sample of samples) context.lineTo(x(sample.at), y(value(sample)));
    context.lineWidth = 1;
    context.stroke();
  });
}
