// The picture: services as boxes, calls as lines. Where they are is computed by the server; here they are drawn, and kept up to
// date one by one. Boxes take the focus; each line is also a row of the table of calls, for keyboards and screen readers.

import { $, rate, setText, svg, whenText } from "./dom.js";

const WIDTH = 168;
const HEIGHT = 54;
const MOST_LABELS = 40;
const SMALLEST = 0.62; // of its size; if it is larger than the window still, it is scrolled

const LOCK = "M2.6 5.4V3.8a2.9 2.9 0 0 1 5.8 0v1.6M1.4 5.4h8.2v6H1.4z";
const OPEN_LOCK = "M2.6 5.4V3.2a2.9 2.9 0 0 1 5.6-1M1.4 5.4h8.2v6H1.4z";
const CROSS = "M1.5 2l8 8m0-8l-8 8";
const MARK = "M5.5 1v6.6m0 2.6v.6";
const MARKS = { ok: LOCK, plaintext: OPEN_LOCK, refused: CROSS, alarm: MARK };

export const STATES = {
  ok: "encrypted", idle: "allowed, not used yet", plaintext: "plaintext is taken", refused: "refused", alarm: "ALARM",
};

// A canvas measures text without a look at the page, which would be laid out anew for each of many labels.
const ruler = document.createElement("canvas").getContext("2d");
let font = null;

function widthOf(text) {
  font ??= `600 12px ${getComputedStyle(document.body).fontFamily}`;
  ruler.font = font;
  return ruler.measureText(text).width;
}

export class Graph {
  // `select(kind, key)`: is called when somebody asks for details.
  constructor(select) {
    this.select = select;
    this.nodes = new Map();
    this.lines = new Map();
    this.root = $("graph");
    this.under = svg("g", { class: "lines", "aria-hidden": "true" });
    this.over = svg("g", { class: "nodes" });
    this.labels = svg("g", { class: "labels", "aria-hidden": "true" });
    this.root.append(arrows(), this.under, this.labels, this.over);
  }

  // Draws what is another than before. `view`: all sections; entries that are the same are the same objects.
  draw(view) {
    const places = view.layout;
    if (this.laidOut !== places.nodes || this.lined !== places.lines) {
      this.laidOut = places.nodes;
      this.lined = places.lines;
      this.root.setAttribute("viewBox", `0 0 ${places.width} ${places.height}`);
      this.root.style.width = "100%";
      this.root.style.maxWidth = `${places.width * 1.35}px`;
      this.root.style.minWidth = `${places.width * SMALLEST}px`;
      this.ends = ends(places);
      for (const line of this.lines.values()) line.entry = null;
      for (const node of this.nodes.values()) node.entry = null;
    }
    this.root.classList.toggle("dense", Object.keys(view.pairs).length > MOST_LABELS);
    sweep(this.nodes, view.services);
    sweep(this.lines, view.pairs);
    for (const [name, entry] of Object.entries(view.services)) this.node(name, entry, places.nodes[name]);
    for (const [key, entry] of Object.entries(view.pairs)) this.line(key, entry, places.lines[key]);
  }

  node(name, entry, place) {
    let node = this.nodes.get(name);
    if (node?.entry === entry || !place) return;
    if (!node) {
      const parts = {
        box: svg("rect", { width: WIDTH, height: HEIGHT, rx: 12, class: "box" }),
        dot: svg("circle", { cx: 18, cy: 19, r: 5, class: "dot" }),
        name: svg("text", { x: 31, y: 24, class: "name" }),
        note: svg("text", { x: 14, y: 42, class: "note" }),
        title: svg("title"),
      };
      const group = svg("g", {
        class: "node", tabindex: "0", role: "button",
        onclick: () => this.select("service", name),
        onkeydown: (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          this.select("service", name);
        },
        onpointerenter: () => this.highlight(name), onpointerleave: () => this.highlight(null),
        onfocus: () => this.highlight(name), onblur: () => this.highlight(null),
      }, parts.title, parts.box, parts.dot, parts.name, parts.note);
      this.over.append(group);
      node = { group, ...parts };
      this.nodes.set(name, node);
    }
    node.entry = entry;
    node.group.setAttribute("transform", `translate(${place[0] - WIDTH / 2} ${place[1] - HEIGHT / 2})`);
    node.group.setAttribute("data-state", entry.state);
    node.group.setAttribute("data-certificate", entry.certificate);
    node.group.setAttribute("aria-label", `${name}: ${{ stranger: "no identity of this mesh", other: "no sidecar of this mesh" }[entry.state] ?? entry.state}; details`);
    setText(node.name, short(name, 17));
    setText(node.title, name);
    this.note(node);
  }

  note(node) {
    setText(node.note, noteOf(node.entry));
  }

  // What counts by itself.
  count() {
    for (const node of this.nodes.values()) if (node.entry) this.note(node);
  }

  line(key, entry, points) {
    let line = this.lines.get(key);
    if (line?.entry === entry || !points) return;
    if (!line) {
      const parts = {
        path: svg("path", { class: "path" }), hit: svg("path", { class: "hit" }), title: svg("title"),
        plate: svg("rect", { height: 22, rx: 11, y: -11, class: "plate" }),
        mark: svg("path", { class: "mark" }), text: svg("text", { y: 4 }),
      };
      const group = svg("g", { class: "line", onclick: () => this.select("pair", key) }, parts.title, parts.path, parts.hit);
      const label = svg("g", { class: "label", onclick: () => this.select("pair", key) }, parts.plate, parts.mark, parts.text);
      this.under.append(group);
      this.labels.append(label);
      line = { group, label, ...parts };
      this.lines.set(key, line);
    }
    const moved = line.entry === undefined || line.entry === null;
    line.entry = entry;
    for (const one of [line.group, line.label]) one.setAttribute("data-state", entry.state);
    line.group.style.setProperty("--width", String(Math.min(6, 1.6 + Math.log10(1 + (entry.rate ?? 0)) * 1.8)));
    line.path.setAttribute("marker-end", `url(#to-${entry.state})`);
    setText(line.title, `${entry.from} → ${entry.to}: ${STATES[entry.state]}`);
    if (moved) {
      const d = curve(points, this.ends.get(`${key}|out`) ?? 0, this.ends.get(`${key}|in`) ?? 0);
      line.path.setAttribute("d", d);
      line.hit.setAttribute("d", d);
      line.middle = line.path.getPointAtLength(line.path.getTotalLength() / 2);
    }
    this.label(line);
  }

  label(line) {
    const text = labelOf(line.entry);
    setText(line.text, text);
    const width = 33 + widthOf(text);
    line.mark.setAttribute("d", MARKS[line.entry.state] ?? "");
    line.plate.setAttribute("width", width);
    line.plate.setAttribute("x", -width / 2);
    line.mark.setAttribute("transform", `translate(${8.5 - width / 2} -6.4)`);
    line.text.setAttribute("x", 23 - width / 2);
    line.label.setAttribute("transform", `translate(${line.middle.x} ${line.middle.y})`);
    line.label.classList.toggle("empty", text === "");
  }

  // One service and all that it has to do with stand out.
  highlight(name) {
    this.root.classList.toggle("focused", name !== null);
    const near = new Set([name]);
    for (const line of this.lines.values()) {
      const touches = line.entry && (line.entry.from === name || line.entry.to === name);
      if (touches) near.add(line.entry.from).add(line.entry.to);
      for (const one of [line.group, line.label]) one.classList.toggle("near", Boolean(touches));
    }
    for (const [other, node] of this.nodes) node.group.classList.toggle("near", near.has(other));
  }
}

function noteOf(one) {
  if (one.state === "stranger") return "no identity";
  if (one.state === "other") return "no sidecar here";
  if (one.state === "unknown") return "no report";
  if (one.state === "silent") return `silent, heard ${whenText(one.heard)}`;
  if (one.state === "unwell") return "not well";
  const many = one.replicas > 1 ? `${one.replicas} ×, ` : "";
  if (!one.not_after) return `${many}${one.state}`;
  if (one.certificate === "good" && one.renews_at) return `${many}renews ${whenText(one.renews_at)}`;
  const words = { over: "certificate ended", late: "late, ends", ends: "ends", good: "ends" };
  return `${many}${words[one.certificate]} ${whenText(one.not_after)}`;
}

function labelOf(one) {
  if (one.state === "idle") return "";
  // No rate beside these words: it is of the calls that go through, and would read as the number of alarms.
  if (one.state === "alarm" || one.state === "refused") return one.state === "alarm" ? "ALARM" : "refused";
  return one.rate === null ? "" : `${rate(one.rate)}/s`;
}

const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function sweep(kept, entries) {
  for (const [key, one] of kept) {
    if (key in entries) continue;
    one.group.remove();
    one.label?.remove();
    kept.delete(key);
  }
}

// How far from the middle of a box's side each line begins and ends, so that lines do not lie on each other.
function ends(places) {
  const sides = new Map();
  for (const [key, points] of Object.entries(places.lines)) {
    for (const [kind, at, next] of [["out", points[0], points[1]], ["in", points.at(-1), points.at(-2)]]) {
      const side = `${at}|${next[0] >= at[0]}`;
      if (!sides.has(side)) sides.set(side, []);
      sides.get(side).push({ id: `${key}|${kind}`, y: next[1], x: next[0] });
    }
  }
  const found = new Map();
  for (const some of sides.values()) {
    some.sort((a, b) => a.y - b.y || a.id.localeCompare(b.id));
    const step = Math.min(14, (HEIGHT - 20) / Math.max(1, some.length - 1));
    some.forEach((one, at) => found.set(one.id, (at - (some.length - 1) / 2) * step));
  }
  return found;
}

// A smooth line through points, which leaves and enters boxes at their sides.
function curve(points, out, into) {
  const some = points.map(([x, y]) => [x, y]);
  const last = some.length - 1;
  const right = some[1][0] >= some[0][0];
  const fromLeft = some[last - 1][0] <= some[last][0];
  some[0] = [some[0][0] + (right ? WIDTH / 2 : -WIDTH / 2), some[0][1] + out];
  some[last] = [some[last][0] + (fromLeft ? -WIDTH / 2 - 7 : WIDTH / 2 + 7), some[last][1] + into];
  let d = `M${some[0].join(" ")}`;
  for (let at = 1; at <= last; at += 1) {
    const [[x0, y0], [x1, y1]] = [some[at - 1], some[at]];
    const bend = (x1 - x0) / 2;
    d += ` C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
  }
  return d;
}

function arrows() {
  return svg("defs", {}, Object.keys(STATES).map((state) =>
    svg("marker", {
      id: `to-${state}`, viewBox: "0 0 8 8", refX: 1, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto",
      markerUnits: "userSpaceOnUse",
    }, svg("path", { d: "M0 .6L7.4 4L0 7.4z", class: `head ${state}` }))));
}
