// A log on the screen: only the lines that are seen, whatever its length; steps that fold, marks, a map of what was found.

import { h, setText } from "./dom.js";
import { duration, number, size } from "./format.js";
import { nodes, shown } from "./text.js";

const ROW = 20; // pixels, as in jobs.css
const MAX_HEIGHT = 8_000_000; // pixels: beyond, the scroll bar stands for parts of the log and not for pixels
const BEYOND = 12; // rows above and below what is seen
const CONTEXT = 8; // rows above a line that is gone to

/** Which row shows what: lines, and a row for each step above its lines. */
class Rows {
  constructor(steps, folded, total) {
    this.pieces = [];
    this.count = 0;
    if (steps.length < 2) {
      this.add({ line: 1, count: total });
      return;
    }
    if (steps[0].line > 1) this.add({ line: 1, count: steps[0].line - 1 });
    steps.forEach((step, index) => {
      const end = index + 1 < steps.length ? steps[index + 1].line : total + 1;
      this.add({ step: index, count: 1 });
      if (!folded.has(index)) this.add({ line: step.line, count: Math.max(0, end - step.line) });
    });
  }

  add(piece) {
    if (piece.count <= 0) return;
    this.pieces.push({ ...piece, row: this.count });
    this.count += piece.count;
  }

  piece(row) {
    let low = 0, high = this.pieces.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.pieces[middle].row <= row) low = middle;
      else high = middle - 1;
    }
    return this.pieces[low];
  }

  /** {line} or {step} of a row. */
  at(row) {
    const piece = this.piece(row);
    return piece.step === undefined ? { line: piece.line + row - piece.row } : { step: piece.step };
  }

  /** The row of a line; undefined where it is folded away. */
  of(line) {
    for (const piece of this.pieces) {
      if (piece.step === undefined && line >= piece.line && line < piece.line + piece.count) return piece.row + line - piece.line;
    }
    return undefined;
  }
}

export class LogView {
  /** root: the scroller. onSelect([first, last]) when lines are chosen by hand, onTop() when somebody scrolls away from the end. */
  constructor(root, { onSelect, onLeaveEnd }) {
    this.root = root;
    this.onSelect = onSelect;
    this.onLeaveEnd = onLeaveEnd;
    this.source = null;
    this.steps = [];
    this.folded = new Set();
    this.errors = new Set();
    this.hits = new Set();
    this.query = null;
    this.hitNow = 0;
    this.chosen = [0, 0];
    this.atEnd = false; // stay at the end as it grows
    this.top = 0; // the first row that is seen, with a fraction
    this.frame = 0;
    this.wrapped = false;
    this.scrolledTo = -1; // by us
    this.goal = 0; // the line that was gone to, until somebody scrolls: it stays where it is when more above it becomes known
    this.cells = null;
    this.rows = new Rows([], this.folded, 0);
    this.box = root.querySelector(".rows");
    this.space = h("div", { class: "space", "aria-hidden": "true" });
    this.map = h("canvas", { id: "minimap", width: 16, height: 480, title: "where something was found; click to go there", role: "img", "aria-label": "Map of what was found" });
  }

  /** Take over what the server has drawn. */
  start(source) {
    this.source = source;
    if (this.root.classList.contains("live")) return;
    const frame = h("div", { class: "logframe" });
    this.root.replaceWith(frame);
    frame.append(this.root, this.map);
    this.root.classList.add("live");
    this.box.replaceChildren();
    this.root.prepend(this.space);
    this.root.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.root.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("click", (event) => this.click(event));
    this.map.addEventListener("click", (event) => {
      this.leaveEnd();
      this.goTo(1 + Math.floor((event.offsetY / this.map.clientHeight) * Math.max(1, this.source.total)));
    });
    new ResizeObserver(() => this.draw()).observe(this.root);
    document.addEventListener("theme", () => this.drawMap());
  }

  draw() {
    if (this.frame || this.source === null) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  get seen() {
    return Math.max(1, this.root.clientHeight / ROW);
  }

  /** Whether rows cannot stand where the scroll bar says: too many of them, or of any height. */
  get isLoose() {
    return this.wrapped || this.rows.count * ROW > MAX_HEIGHT;
  }

  get lastTop() {
    return Math.max(0, this.rows.count - this.seen);
  }

  // Moving.

  scrolled() {
    if (Math.abs(this.root.scrollTop - this.scrolledTo) < 1) return; // our own
    this.scrolledTo = -1;
    this.goal = 0;
    const room = this.root.scrollHeight - this.root.clientHeight;
    this.top = this.isLoose ? (room > 0 ? (this.root.scrollTop / room) * this.lastTop : 0) : this.root.scrollTop / ROW;
    if (this.top < this.lastTop - 1) this.leaveEnd();
    else if (this.source.growing && !this.atEnd && this.top >= this.lastTop - 0.5) this.onLeaveEnd(true);
    this.draw();
  }

  wheel(event) {
    if (!this.isLoose || event.ctrlKey || event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return;
    const rows = event.deltaMode === 0 ? event.deltaY / ROW : event.deltaMode === 1 ? event.deltaY : event.deltaY * this.seen;
    if ((rows < 0 && this.top <= 0) || (rows > 0 && this.top >= this.lastTop)) return; // the page scrolls on
    event.preventDefault();
    this.moveTo(this.top + rows);
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: this.seen - 2, PageUp: 2 - this.seen, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey || event.target !== this.root) return;
    event.preventDefault();
    this.moveTo(this.top + steps[event.key]);
  }

  moveTo(row) {
    this.top = Math.min(this.lastTop, Math.max(0, row));
    this.goal = 0;
    if (this.top < this.lastTop - 1) this.leaveEnd();
    this.placeBar();
    this.draw();
  }

  placeBar() {
    const room = this.root.scrollHeight - this.root.clientHeight;
    const wanted = this.isLoose ? (this.lastTop > 0 ? (this.top / this.lastTop) * room : 0) : this.top * ROW;
    if (Math.abs(this.root.scrollTop - wanted) < 1) return;
    this.root.scrollTop = wanted;
    this.scrolledTo = this.root.scrollTop;
  }

  leaveEnd() {
    if (!this.atEnd) return;
    this.atEnd = false;
    this.onLeaveEnd(false);
  }

  /** Show a line, some rows below the top; unfold its step. */
  goTo(line) {
    this.layOut();
    const total = this.source.total;
    if (total > 0) line = Math.min(line, Math.max(total, this.source.isKnown ? 0 : line));
    if (!this.source.isKnown && line > total) {
      this.source.total = line; // its index is being built: the line is asked for
      this.layOut();
    }
    if (this.rows.of(line) === undefined) {
      const step = this.steps.findLastIndex((item) => item.line <= line);
      if (this.folded.delete(step)) this.layOut();
    }
    this.render(); // the height must be there before it is scrolled
    this.moveTo((this.rows.of(line) ?? 0) - CONTEXT);
    this.goal = line;
    this.render();
  }

  goToEnd() {
    this.atEnd = true;
    this.draw();
  }

  /** The line at the top. */
  get topLine() {
    if (this.rows.count === 0) return 1;
    const found = this.rows.at(Math.min(this.rows.count - 1, Math.floor(this.top)));
    return found.line ?? this.steps[found.step].line;
  }

  choose(first, last = first) {
    this.chosen = [Math.min(first, last), Math.max(first, last)];
    this.draw();
  }

  fold(step, on = !this.folded.has(step)) {
    if (on) this.folded.add(step);
    else this.folded.delete(step);
    this.draw();
  }

  click(event) {
    const fold = event.target.closest("[data-fold]");
    if (fold !== null) return this.fold(Number(fold.dataset.fold));
    const link = event.target.closest("a.no");
    if (link === null || event.ctrlKey || event.metaKey) return undefined;
    event.preventDefault();
    const line = Number(link.parentElement.dataset.line);
    if (event.shiftKey && this.chosen[0]) this.choose(Math.min(line, this.chosen[0]), Math.max(line, this.chosen[0]));
    else this.choose(line);
    return this.onSelect(this.chosen);
  }

  // Drawing.

  layOut() {
    const count = this.rows.count;
    this.rows = new Rows(this.steps, this.folded, this.source.total);
    const row = this.goal > 0 && count !== this.rows.count ? this.rows.of(this.goal) : undefined;
    const height = Math.min(this.rows.count * ROW, MAX_HEIGHT);
    if (this.height !== height) {
      this.height = height;
      this.space.style.height = `${height}px`;
      this.root.style.height = this.wrapped ? "" : `${Math.max(60, this.rows.count * ROW + 18)}px`; // never more than jobs.css lets it
    }
    if (row !== undefined) {
      this.top = Math.min(this.lastTop, Math.max(0, row - CONTEXT));
      this.placeBar();
    }
  }

  render() {
    if (this.source === null) return;
    this.layOut();
    if (this.atEnd) {
      this.top = this.lastTop;
      this.placeBar();
    }
    this.top = Math.min(this.top, this.lastTop);
    const first = this.isLoose ? Math.floor(this.top) : Math.max(0, Math.floor(this.top) - BEYOND);
    const end = Math.min(this.rows.count, Math.ceil(this.top + this.seen) + (this.isLoose ? 1 : BEYOND));
    this.fill(first, end);
    let base = first * ROW;
    if (this.wrapped && this.atEnd) base = this.root.scrollTop + this.root.clientHeight - this.box.offsetHeight;
    else if (this.isLoose) base = this.root.scrollTop - (this.top - first) * ROW;
    this.box.style.transform = `translateY(${base}px)`;
    if (this.query !== null) this.highlight();
    this.drawMap();
  }

  fill(first, end) {
    const old = new Map([...this.box.children].map((row) => [row.dataset.key, row]));
    const rows = [];
    let low = Infinity, high = 0;
    for (let row = first; row < end; row++) {
      const it = this.rows.at(row);
      if (it.step !== undefined) rows.push(this.stepRow(it.step, old.get(`s${it.step}`)));
      else {
        low = Math.min(low, it.line);
        high = Math.max(high, it.line);
        rows.push(this.lineRow(it.line, old.get(String(it.line))));
      }
    }
    if (rows.length !== this.box.children.length || rows.some((row, index) => this.box.children[index] !== row)) this.box.replaceChildren(...rows);
    if (high > 0) this.source.ask(low, high);
  }

  lineRow(line, old) {
    const row = old ?? h("div", { class: "ln", "data-key": line, "data-line": line, id: `L${line}` },
      h("a", { class: "no", href: `?line=${line}#L${line}` }, number(line)), h("span", { class: "at" }), h("span", { class: "tx" }));
    const content = this.source.line(line);
    if (row.shows !== content) {
      row.shows = content;
      this.setLine(row, content);
    }
    const [from, to] = this.chosen;
    row.className = `ln${line >= from && line <= to ? " chosen" : ""}${this.errors.has(line) ? " error" : ""}${this.hits.has(line) ? " hit" : ""}${line === this.hitNow ? " now" : ""}`;
    return row;
  }

  setLine(row, content) {
    const text = row.children[2];
    setText(row.children[1], content?.ms === undefined ? "" : clock(content.ms));
    text.replaceChildren(...(content === undefined ? [] : nodes(content.text)));
    if (content?.bytes !== undefined) {
      const url = `/api/v1/jobs/${this.source.job}/log?attempt=${this.source.attempt}&offset=${content.offset}&limit=${content.bytes}`;
      text.append(" ", h("a", { class: "cut", href: url }, `… a line of ${size(content.bytes)}, cut here`));
    }
  }

  stepRow(index, old) {
    const step = this.steps[index], isFolded = this.folded.has(index);
    const row = old ?? h("div", { class: "fold", "data-key": `s${index}` }, h("button", { type: "button", "data-fold": index }), h("span", { class: "state" }), h("span", { class: "quiet" }));
    const [button, state, took] = row.children;
    setText(button, `${isFolded ? "▸" : "▾"} ${index + 1} ${shown(step.name)}`);
    button.setAttribute("aria-expanded", String(!isFolded));
    state.className = `state s-${step.good ? "passed" : "failed"}`;
    setText(state, step.good ? "●" : `✖ ${shown(step.how ?? "")}`);
    setText(took, step.wall_s === undefined ? "" : duration(step.wall_s));
    return row;
  }

  // What was found.

  /** Mark what a search has found; cells: how much in each part of the log. */
  setFound(hits, cells, query) {
    this.hits = hits;
    this.cells = cells;
    this.query = query;
    globalThis.CSS?.highlights?.delete("found");
    this.draw();
  }

  /** Within the lines that are seen, what was looked for. */
  highlight() {
    if (globalThis.CSS?.highlights === undefined || globalThis.Highlight === undefined) return;
    const ranges = [];
    for (const row of this.box.querySelectorAll(".hit .tx")) ranges.push(...matches(row, this.query));
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  drawMap() {
    const canvas = this.map, total = Math.max(1, this.source.total);
    const height = canvas.clientHeight;
    if (height === 0) return;
    if (canvas.height !== height) canvas.height = height;
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    pen.clearRect(0, 0, canvas.width, height);
    if (this.cells !== null) {
      const most = Math.max(1, ...this.cells), cell = height / this.cells.length;
      pen.fillStyle = style.getPropertyValue("--fill-infra");
      this.cells.forEach((count, index) => {
        if (count > 0) pen.fillRect(0, index * cell, 4 + 12 * (count / most), Math.max(2, cell));
      });
    }
    pen.fillStyle = style.getPropertyValue("--fill-failed");
    for (const line of this.errors) pen.fillRect(0, Math.floor(((line - 1) / total) * height), 6, 2);
    pen.fillStyle = style.color;
    pen.globalAlpha = 0.35;
    const rows = Math.max(1, this.rows.count);
    pen.fillRect(0, (this.top / rows) * height, 16, Math.max(3, Math.min(1, this.seen / rows) * height));
    pen.globalAlpha = 1;
  }
}

/** `01:02.3` after the attempt's start. */
export function clock(ms) {
  const whole = Math.floor(ms / 1000), two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return `${hours > 0 ? `${hours}:` : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}.${Math.floor((ms % 1000) / 100)}`;
}

/** Ranges of a row's text that match. */
function matches(row, query) {
  const texts = [];
  for (let walk = document.createTreeWalker(row, NodeFilter.SHOW_TEXT), node = walk.nextNode(); node !== null; node = walk.nextNode()) texts.push(node);
  const whole = texts.map((node) => node.data).join("");
  const found = [];
  for (const [start, end] of query(whole)) {
    const range = new Range();
    let at = 0;
    for (const node of texts) {
      if (start >= at && start < at + node.length) range.setStart(node, start - at);
      if (end > at && end <= at + node.length) range.setEnd(node, end - at);
      at += node.length;
    }
    found.push(range);
  }
  return found;
}
