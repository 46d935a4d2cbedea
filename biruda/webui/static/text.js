// Text of others, made visible: colours kept as classes, everything else that would steer something shown as a mark.
// Nothing here ever sets HTML. biruda/webui/marks.py does the same without colours.

import { h } from "./dom.js";

const UNSEEN = /[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/u;
const COLOURS = /\u001b\[[0-9;:]{0,64}m/g;
const ESCAPE = /\u001b(?:\[[0-9;:<=>?]{0,64}[ -/]{0,4}([@-~])|\][^\u0007\u001b]{0,2000}(?:\u0007|\u001b\\)|[()][0-9A-Za-z]|[=>78DEHMNOZc])/y;

const WORDS = new Map([[0x202e, "right-to-left override"], [0x202d, "left-to-right override"], [0x200b, "zero width space"],
  [0x200d, "zero width joiner"], [0xfeff, "byte order mark"], [7, "bell"], [8, "backspace"], [13, "carriage return"], [27, "escape"]]);

function mark(character) {
  const code = character.codePointAt(0);
  const name = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  const shown = code < 0x20 || code === 0x7f ? `^${String.fromCharCode(code ^ 0x40)}` : `[${name}]`;
  return h("span", { class: "mark", title: `${name} ${WORDS.get(code) ?? "is not seen"}` }, shown);
}

/** The text with a mark for each character that is not seen; colours are left out. */
export function shown(text) {
  let out = "";
  for (const character of text.replace(COLOURS, "")) out += UNSEEN.test(character) ? mark(character).textContent : character;
  return out;
}

/** What an escape sequence that is no colour looks like: seen, and not obeyed. */
function sequence(text) {
  const seen = text.replaceAll("\u001b", "ESC ").replace(/[\u0000-\u001f]/g, "").slice(0, 200);
  return h("span", { class: "mark", title: seen }, "^[");
}

const plain = () => ({ fg: null, bg: null, bold: false, dim: false, italic: false, line: false, inverse: false, struck: false });

/** The style after the numbers of ESC [ … m. */
function paint(style, numbers) {
  for (let at = 0; at < numbers.length; at++) {
    const n = numbers[at];
    if (n === 0) Object.assign(style, plain());
    else if (n === 1) style.bold = true;
    else if (n === 2) style.dim = true;
    else if (n === 3) style.italic = true;
    else if (n === 4) style.line = true;
    else if (n === 7) style.inverse = true;
    else if (n === 9) style.struck = true;
    else if (n === 22) style.bold = style.dim = false;
    else if (n === 23) style.italic = false;
    else if (n === 24) style.line = false;
    else if (n === 27) style.inverse = false;
    else if (n === 29) style.struck = false;
    else if (n >= 30 && n <= 37) style.fg = n - 30;
    else if (n >= 90 && n <= 97) style.fg = n - 82;
    else if (n >= 40 && n <= 47) style.bg = n - 40;
    else if (n >= 100 && n <= 107) style.bg = n - 92;
    else if (n === 39) style.fg = null;
    else if (n === 49) style.bg = null;
    else if (n === 38 || n === 48) {
      const colour = numbers[at + 1] === 5 ? indexed(numbers[at + 2]) : numbers[at + 1] === 2 ? rgb(numbers.slice(at + 2, at + 5)) : null;
      at += numbers[at + 1] === 5 ? 2 : 4;
      style[n === 38 ? "fg" : "bg"] = colour;
    }
  }
}

const byte = (value) => Math.min(255, Math.max(0, Number(value) || 0));
const rgb = (values) => `rgb(${values.concat(0, 0, 0).slice(0, 3).map(byte).join(" ")})`;

function indexed(n) {
  n = byte(n);
  if (n < 16) return n;
  if (n >= 232) return rgb([8 + (n - 232) * 10, 8 + (n - 232) * 10, 8 + (n - 232) * 10]);
  const level = (value) => (value === 0 ? 0 : 55 + value * 40);
  return rgb([level(Math.floor((n - 16) / 36)), level(Math.floor((n - 16) / 6) % 6), level((n - 16) % 6)]);
}

function span(text, style) {
  const classes = [];
  let [fg, bg] = style.inverse ? [style.bg ?? "ground", style.fg ?? "text"] : [style.fg, style.bg];
  for (const name of ["bold", "dim", "italic", "line", "struck"]) if (style[name]) classes.push(`a-${name}`);
  for (const [value, letter] of [[fg, "f"], [bg, "b"]]) if (value !== null && !String(value).startsWith("rgb")) classes.push(`a-${letter}${value}`);
  if (classes.length === 0 && fg === null && bg === null) return text;
  const element = h("span", { class: classes.join(" ") || null }, text);
  if (String(fg).startsWith("rgb")) element.style.color = fg;
  if (String(bg).startsWith("rgb")) element.style.backgroundColor = bg;
  return element;
}

/** A line of a log as nodes to append: text, spans with colours, marks. Colours begin anew with each line. */
export function nodes(text) {
  if (!UNSEEN.test(text)) return text === "" ? [] : [text];
  const out = [];
  const style = plain();
  let run = "";
  const flush = () => {
    if (run !== "") out.push(span(run, style));
    run = "";
  };
  for (let at = 0; at < text.length;) {
    const character = String.fromCodePoint(text.codePointAt(at));
    if (!UNSEEN.test(character)) {
      run += character;
      at += character.length;
      continue;
    }
    ESCAPE.lastIndex = at;
    const match = character === "\u001b" ? ESCAPE.exec(text) : null;
    flush();
    if (match !== null && match[1] === "m") paint(style, match[0].slice(2, -1).split(/[;:]/).map((part) => (part === "" ? 0 : Number(part))));
    else if (match !== null) out.push(sequence(match[0]));
    else if (!(character === "\r" && at === text.length - 1)) out.push(mark(character));
    at += match !== null ? match[0].length : character.length;
  }
  flush();
  return out;
}
