// A search through a whole log, done by the server, whose findings come as they are made.

import { api } from "./api.js";

export class LogSearch {
  /** onChange() after each piece of news. */
  constructor(source, text, isRegex, onChange) {
    this.text = text;
    this.isRegex = isRegex;
    this.hits = []; // lines, in their order; the first of them where there are too many
    this.set = new Set();
    this.found = null; // how many in all, when that is known
    this.cells = null;
    this.done = false;
    this.problem = "";
    this.part = 0;
    this.total = Math.max(1, source.total);
    this.bytes = Math.max(1, source.bytes);
    this.onChange = onChange;
    this.abort = new AbortController();
    this.run(source);
  }

  async run(source) {
    const query = { q: this.text, ...(this.isRegex ? { regex: 1 } : {}) };
    try {
      const answer = await api("GET", source.path("/search", query), undefined, { raw: true, signal: this.abort.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) this.hear(JSON.parse(line));
        this.onChange();
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      this.problem = error.message.replace(/^q: /, "");
    }
    this.done = true;
    this.onChange();
  }

  hear(said) {
    if (said.hits !== undefined) {
      for (const line of said.hits) {
        this.hits.push(line);
        this.set.add(line);
      }
    } else if (said.at !== undefined) this.part = said.at / this.bytes;
    else if (said.map !== undefined) {
      this.found = said.found;
      if (said.complete) this.cells = said.map;
      else this.problem = said.reason;
    } else this.bytes = Math.max(1, said.bytes);
  }

  /** The map so far. */
  get map() {
    if (this.cells !== null) return this.cells;
    const cells = new Array(240).fill(0);
    for (const line of this.hits) cells[Math.min(239, Math.floor((line * 240) / this.total))] += 1;
    return cells;
  }

  /** The next line found after (step 1) or before (-1) a line, round the end. */
  next(line, step) {
    if (this.hits.length === 0) return undefined;
    const after = this.hits.findIndex((hit) => hit > line);
    if (step > 0) return this.hits[after < 0 ? 0 : after];
    const before = this.hits.findLastIndex((hit) => hit < line);
    return this.hits[before < 0 ? this.hits.length - 1 : before];
  }

  words(now) {
    if (this.problem) return this.problem;
    const place = this.set.has(now) ? `${this.hits.indexOf(now) + 1} of ` : "";
    const many = this.found ?? this.hits.length;
    if (!this.done) return `${place}${many.toLocaleString("en-US")}, ${Math.min(99, Math.floor(this.part * 100))} %`;
    return many === 0 ? "nothing" : `${place}${many.toLocaleString("en-US")}${many === 1 ? " line" : " lines"}`;
  }

  /** Where in a text it matches, to draw. A pattern that this browser would take too long for is not drawn. */
  ranges() {
    if (this.isRegex) return () => [];
    const exact = /\p{Lu}/u.test(this.text);
    const wanted = exact ? this.text : this.text.toLowerCase();
    return (text) => {
      const within = exact ? text : text.toLowerCase();
      const found = [];
      for (let at = within.indexOf(wanted); at >= 0 && found.length < 100; at = within.indexOf(wanted, at + wanted.length)) found.push([at, at + wanted.length]);
      return found;
    };
  }

  close() {
    this.abort.abort();
  }
}
