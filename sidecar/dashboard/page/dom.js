// Small helpers. Text of the mesh becomes text nodes and nothing else: there is no innerHTML in this page, and its
// Content-Security-Policy (Trusted Types) would refuse one.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
export const $ = (id) => document.getElementById(id);

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// -- numbers and times -----------------------------------------------------------------------------------------------

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(number) {
  let unit = 0;
  while (number >= 1000 && unit < UNITS.length - 1) [number, unit] = [number / 1000, unit + 1];
  return `${number < 10 && unit ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

export function rate(number) {
  if (number === null) return "–";
  return number >= 10 ? String(Math.round(number)) : number > 0 && number < 0.05 ? "<0.1" : number.toFixed(1);
}

// "42 min" of a number of seconds. Coarse on purpose: what changes each second draws the eye for nothing.
export function span(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 100 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function whenText(at, now = Date.now()) {
  const seconds = (Date.parse(at) - now) / 1000;
  return seconds >= 0 ? `in ${span(seconds)}` : `${span(-seconds)} ago`;
}

// A time that counts by itself: see count().
export function when(at) {
  return at ? h("time", { datetime: at, title: at, "data-at": at }, whenText(at)) : "–";
}

export function count() {
  for (const one of document.querySelectorAll("[data-at]")) setText(one, whenText(one.dataset.at));
}

// The parts of an answer: text, or {at: a time}.
export const parts = (some) => some.map((one) => (typeof one === "string" ? one : when(one.at)));

// Text in which `commands` are in backticks.
export const withCode = (text) => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

// What a peer wrote stands apart from the text around it, also if it is written from right to left.
export const peer = (text) => h("span", { class: "peer" }, text);

// -- lists that change ---------------------------------------------------------------------------------------------------

// Makes the children of `parent` those of `entries` ([key, entry], …), in this order. An element is made anew only if its entry
// is another object, and `update(element, entry)` does not do; what was open in it stays open, and the focus stays where it was.
export function keyed(parent, entries, make, update = () => false) {
  const before = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = null;
  for (const [key, entry] of entries) {
    let child = before.get(key);
    before.delete(key);
    if (child && child.entry !== entry && update(child, entry, child.entry)) child.entry = entry;
    if (child?.entry !== entry) {
      const made = make(key, entry);
      made.dataset.key = key;
      made.entry = entry;
      if (child) {
        const focus = child.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
        if (child.open !== undefined) made.open = child.open;
        child.replaceWith(made);
        if (focus) made.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
      }
      child = made;
    }
    const next = place ? place.nextSibling : parent.firstChild;
    if (next !== child) parent.insertBefore(child, next);
    place = child;
  }
  for (const gone of before.values()) gone.remove();
}

// -- icons ---------------------------------------------------------------------------------------------------------------

const SHAPES = {
  good: ["M12 2a10 10 0 1 1 0 20a10 10 0 0 1 0-20z", "M7.5 12.5l3 3l6-6.5"],
  look: ["M12 3l10 18H2z", "M12 9.5v5m0 2.6v.4"],
  bad: ["M8 2h8l6 6v8l-6 6H8l-6-6V8z", "M8.8 8.8l6.4 6.4m0-6.4l-6.4 6.4"],
  unknown: ["M12 2a10 10 0 1 1 0 20a10 10 0 0 1 0-20z", "M9.3 9.6a2.7 2.7 0 1 1 3.9 2.4c-.8.5-1.2 1-1.2 2m0 2.8v.3"],
};

// Each state has a shape besides its colour.
export function stateIcon(state, size = 20) {
  const [outer, inner] = SHAPES[state] ?? SHAPES.unknown;
  return svg("svg", { viewBox: "0 0 24 24", width: size, height: size, class: `icon ${state}`, "aria-hidden": "true" },
    svg("path", { d: outer, class: "outer" }), svg("path", { d: inner, class: "inner" }));
}
