// The lines of one log: pages of them from the server, and those that come while it grows from the stream of its bytes.

import { api, get } from "./api.js";

export const PAGE = 200; // lines
const KEPT_PAGES = 100;
const MAX_LINE = 4096; // bytes of a line that are shown, as at the server
const FLOOD = 8 << 20; // bytes a second: nobody reads that, so the end is looked for anew
const RETRY_MS = [100, 250, 500, 1000, 2000];

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export class LogSource {
  /** onChange() is called when lines came or their number changed, onEnd() when a log that grew is whole. */
  constructor(job, attempt, { onChange, onEnd, startedAt = () => NaN }) {
    this.job = job;
    this.attempt = attempt;
    this.onChange = onChange;
    this.onEnd = onEnd;
    this.startedAt = startedAt;
    this.total = 0; // lines that are known
    this.isKnown = false; // that there are no more
    this.bytes = 0;
    this.indexed = 0;
    this.growing = false;
    this.received = 0; // bytes of the stream, for who measures
    this.pages = new Map(); // number -> {lines, asked}; the newest use is last
    this.abort = new AbortController();
    this.stream = null;
  }

  path(what, query = {}) {
    const text = new URLSearchParams({ ...query, attempt: this.attempt });
    return `/jobs/${this.job}/log${what}?${text}`;
  }

  close() {
    this.abort.abort();
    this.stream?.abort();
  }

  /** The line, or undefined while it is not here; ask() brings it. Counted from 1. */
  line(number) {
    return this.pages.get(Math.floor((number - 1) / PAGE))?.lines[(number - 1) % PAGE];
  }

  page(index) {
    let page = this.pages.get(index);
    if (page === undefined) page = { lines: [], asked: false };
    this.pages.delete(index);
    this.pages.set(index, page);
    for (const old of this.pages.keys()) {
      if (this.pages.size <= KEPT_PAGES) break;
      this.pages.delete(old);
    }
    return page;
  }

  /** See to it that these lines come. */
  ask(first, last) {
    last = Math.min(last, this.isKnown ? this.total : Infinity);
    for (let index = Math.floor((first - 1) / PAGE); index <= Math.floor((last - 1) / PAGE); index++) this.load(index, last);
  }

  async load(index, last) {
    const page = this.page(index);
    const wanted = () => Math.min(PAGE, (this.isKnown ? Math.min(this.total, Math.max(last, this.total)) : last) - index * PAGE);
    if (page.asked || page.lines.length >= wanted()) return;
    page.asked = true;
    let failures = 0;
    try {
      while (page.lines.length < wanted() && this.pages.get(index) === page) {
        const have = page.lines.length;
        let answer;
        try {
          answer = await get(this.path("/lines", { first: index * PAGE + have + 1, count: PAGE - have }), { signal: this.abort.signal });
          failures = 0;
        } catch (error) {
          if (error.name === "AbortError" || (error.status >= 400 && error.status < 500)) return;
          await sleep(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
          continue;
        }
        this.know(answer);
        if (page.lines.length === have) page.lines.push(...answer.list);
        this.total = Math.max(this.total, index * PAGE + page.lines.length);
        this.onChange();
        if (answer.list.length === 0) {
          if (answer.lines !== null) return;
          await sleep(100); // its index is being built
        }
      }
    } finally {
      page.asked = false;
    }
  }

  know(answer) {
    if (this.attempt === undefined) this.attempt = answer.attempt;
    this.bytes = Math.max(this.bytes, answer.bytes);
    this.indexed = answer.indexed_bytes;
    if (this.stream === null) this.growing = answer.growing;
    if (answer.lines !== null && this.stream === null) {
      this.total = answer.lines;
      this.isKnown = true;
    }
  }

  /** Look how long it is; again until the server knows. */
  async open() {
    while (!this.abort.signal.aborted) {
      const answer = await get(this.path("/index"), { signal: this.abort.signal });
      this.know(answer);
      this.steps = answer.steps;
      this.onChange();
      if (answer.lines !== null) return;
      await sleep(150);
    }
  }

  /** All pages are asked for anew. */
  forget() {
    this.pages.clear();
    this.onChange();
  }

  /** Take the log's bytes as they come, from its last line on, over breaks of the connection, until its attempt has ended. */
  async follow() {
    if (this.stream !== null) return;
    this.stream = new AbortController();
    let failures = 0;
    let tail = null;
    while (!this.abort.signal.aborted) {
      try {
        if (tail === null) tail = await this.findEnd();
        const ended = await this.read(tail, () => { failures = 0; });
        if (ended) break;
        tail = null; // too much at once: on from its end
      } catch (error) {
        if (this.abort.signal.aborted) return;
        await sleep(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
        if (error.status === 404) tail = null;
      }
    }
    this.stream = null;
    this.growing = false;
    this.onEnd();
  }

  /** Where the last line begins. */
  async findEnd() {
    for (;;) {
      const answer = await get(this.path("/lines", { last: 1 }), { signal: this.abort.signal });
      if (answer.lines === null) {
        await sleep(100);
        continue;
      }
      this.isKnown = true;
      this.growing = true;
      const last = answer.list.at(-1);
      this.total = Math.max(answer.lines, 0);
      return last === undefined ? new Tail(1, 0) : new Tail(answer.first + answer.list.length - 1, last.offset);
    }
  }

  /** Read the stream from where tail stands. True: the attempt has ended; false: it comes too fast. Raises when it breaks. */
  async read(tail, onBytes) {
    this.stream = new AbortController();
    const signal = AbortSignal.any([this.stream.signal, this.abort.signal]);
    const answer = await api("GET", this.path("", { follow: 1, offset: tail.end }), undefined, { raw: true, signal });
    const reader = answer.body.getReader();
    let second = performance.now(), inSecond = 0;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return true;
      onBytes();
      this.received += value.length;
      const now = performance.now();
      if (now - second > 1000) [second, inSecond] = [now, 0];
      inSecond += value.length;
      this.take(tail, value);
      if (inSecond > FLOOD) {
        this.stream.abort();
        return false;
      }
    }
  }

  take(tail, bytes) {
    const ms = Math.max(0, Date.now() - this.startedAt());
    const at = Number.isNaN(ms) ? undefined : Math.round(ms);
    for (const [number, line] of tail.take(bytes)) {
      if (at !== undefined) line.ms = at;
      this.put(number, line);
    }
    this.total = Math.max(tail.total, 0);
    this.bytes = Math.max(this.bytes, tail.end);
    this.onChange();
  }

  /** Keep a line of the stream where its page is here up to it; other pages are asked for when they are looked at. */
  put(number, line) {
    const index = Math.floor((number - 1) / PAGE), place = (number - 1) % PAGE;
    const page = this.pages.get(index) ?? (place === 0 ? this.page(index) : undefined);
    if (page === undefined || page.lines.length < place) return;
    if (page.lines[place] !== undefined && line.ms !== undefined && page.lines[place].ms !== undefined) line.ms = page.lines[place].ms;
    page.lines[place] = line;
  }
}

/** The end of a log that grows: cuts its bytes into lines. */
export class Tail {
  constructor(number, offset) {
    this.number = number; // of the line that has no end yet
    this.offset = offset; // where it begins
    this.end = offset; // of what came
    this.held = new Uint8Array(0); // of that line, as much as is shown
  }

  get total() {
    return this.end > this.offset ? this.number : this.number - 1;
  }

  /** [number, line] of the lines that these bytes complete, or begin. */
  take(bytes) {
    const out = [];
    let start = 0;
    for (let stop = bytes.indexOf(10); stop >= 0; stop = bytes.indexOf(10, start)) {
      out.push([this.number, this.cut(bytes.subarray(start, stop), this.end + stop - start - this.offset)]);
      this.end += stop - start + 1;
      this.number += 1;
      this.offset = this.end;
      this.held = new Uint8Array(0);
      start = stop + 1;
    }
    const rest = bytes.subarray(start);
    if (rest.length > 0) {
      this.end += rest.length;
      out.push([this.number, this.cut(rest, this.end - this.offset)]);
      const more = rest.subarray(0, MAX_LINE - this.held.length);
      const held = new Uint8Array(this.held.length + more.length);
      held.set(this.held);
      held.set(more, this.held.length);
      this.held = held;
    }
    return out;
  }

  /** The line out of what is held of it and more. */
  cut(more, size) {
    let bytes = more.subarray(0, MAX_LINE - this.held.length);
    if (this.held.length > 0) {
      const whole = new Uint8Array(this.held.length + bytes.length);
      whole.set(this.held);
      whole.set(bytes, this.held.length);
      bytes = whole;
    }
    const line = { offset: this.offset, text: decoder.decode(bytes) };
    if (size > MAX_LINE) {
      line.text = line.text.replace(/\ufffd+$/, "");
      line.bytes = size;
    }
    return line;
  }
}
