// Everything beside the picture: the answers, what was refused, the tables, and the details of what was chosen.

import { $, bytes, h, keyed, parts, peer, rate, setText, stateIcon, when, withCode } from "./dom.js";
import { STATES } from "./graph.js";

// A key that is used after its certificate was revoked is another thing than somebody in the middle.
const STOLEN = "revoked";
const KINDS = { attack: "may be an attack", stranger: "stranger", policy: "not allowed", fault: "fault" };
const NEWEST_FIRST = ([, a], [, b]) => (b.last ?? "").localeCompare(a.last ?? "");

export function verdict(one) {
  $("verdict").dataset.state = one.state;
  if ($("verdict-text").textContent === one.text) return;
  setText($("verdict-text"), one.text);
  $("verdict-icon").replaceChildren(stateIcon(one.state, 40));
}

export function questions(entries) {
  keyed($("questions"), Object.entries(entries), (id, one) =>
    h("li", { class: "card", "data-state": one.state, "data-question": id },
      h("h2", {}, stateIcon(one.state), one.question), h("p", { class: "peer" }, ...parts(one.answer))));
}

// -- refused and alarmed -------------------------------------------------------------------------------------------------

export function refused(view) {
  const severe = Object.entries(view.alarms).filter(([, one]) => one.severe).sort(NEWEST_FIRST);
  const notices = Object.entries(view.alarms).filter(([, one]) => !one.severe).sort(NEWEST_FIRST);
  const others = Object.entries(view.refusals).sort(NEWEST_FIRST);
  const every = [
    ...severe.map(([key, one]) => [`alarm ${key}`, one]), ...others.map(([key, one]) => [`refusal ${key}`, one]),
    ...notices.map(([key, one]) => [`alarm ${key}`, one]),
  ];
  // Of a mesh of which nothing is known, nothing is known to be well.
  $("refused-none").hidden = every.length > 0 || !Object.keys(view.services).length;
  setText($("refused-count"), every.length ? String(every.length) : "");
  keyed($("refused"), every, (key, one) => (key.startsWith("alarm") ? alarm(one) : refusal(one)));
}

function alarm(one) {
  const facts = [
    ["met by", one.from], ["at", one.address], ["expected", one.expected],
    ...Object.entries(one.presented).map(([name, value]) => [`it showed: ${name}`, value]),
    ["also met", one.elsewhere.join("; ")], ["the sidecar says", one.says], ["reported by", one.reported_by], ["connection_id", one.id],
  ];
  const badge = one.severe ? "alarm" : "notice";
  return entry(badge, one.severe ? "ALARM" : "notice", one, one.event, facts);
}

function refusal(one) {
  const facts = [
    ["is it an attack?", one.verdict], ["refused by", one.seen_by], ["last from", one.address], ["connection_id", one.id],
  ];
  const badge = one.reason === STOLEN && one.kind === "attack" ? "may be a stolen key" : KINDS[one.kind];
  return entry(one.recent ? one.kind : "old", badge, one, one.reason, facts);
}

function entry(badge, badgeText, one, word, facts) {
  const target = one.port ? `${one.to}:${one.port}` : one.to;
  const call = one.to ? `${one.from} → ${target}` : one.from;
  return h("details", { class: "entry", "data-kind": badge },
    h("summary", { "data-focus": "summary" },
      h("span", { class: "badge" }, badgeText), h("strong", { class: "peer" }, call), h("code", { class: "peer" }, word),
      h("span", { class: "times" }, one.count > 1 ? `${one.count} times, last ` : "", when(one.last)),
      h("span", { class: "said peer" }, ...withCode(one.message.replace(/^refused: /, "")))),
    h("div", { class: "more" }, ...explained(one), factList(facts)));
}

// The words of `sidecar explain`.
function explained(one) {
  return [
    one.means && h("p", {}, one.means),
    one.causes.length > 0 && h("h3", {}, "Likely causes"),
    one.causes.length > 0 && h("ul", {}, ...one.causes.map((text) => h("li", {}, ...withCode(text)))),
    one.steps.length > 0 && h("h3", {}, "What to do"),
    one.steps.length > 0 && h("ol", {}, ...one.steps.map((text) => h("li", {}, ...withCode(text)))),
  ];
}

function factList(facts) {
  const told = facts.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return h("dl", {}, ...told.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value instanceof Node ? value : peer(String(value)))]));
}

// -- tables --------------------------------------------------------------------------------------------------------------

export function services(view, select) {
  const entries = Object.entries(view.services).filter(([, one]) => !["stranger", "other"].includes(one.state));
  setText($("services-count"), String(entries.length));
  keyed($("services"), entries.sort(([a], [b]) => a.localeCompare(b)), (name, one) =>
    h("tr", { "data-state": one.state },
      h("th", { scope: "row" }, chooser(name, () => select("service", name)), one.replicas > 1 ? ` × ${one.replicas}` : ""),
      h("td", {}, stateCell(one)),
      h("td", { "data-certificate": one.certificate }, when(one.not_after)),
      h("td", {}, one.certificate === "late" ? "late: since " : "", one.replicas ? when(one.renews_at) : "–"),
      h("td", { class: "peer" }, one.policy || "–"),
      h("td", {}, one.bundle ?? "–"),
      h("td", {}, reuse(one))));
}

function stateCell(one) {
  const words = [{ unknown: "no report", other: "no sidecar of this mesh: none is expected to report" }[one.state] ?? one.state, ...one.sentences, ...one.notes, ...one.drift.map((text) => `DRIFT: ${text}`)];
  const state = one.state === "well" ? (one.drift.length || one.notes.length ? "look" : "good") : one.state === "unwell" ? "bad" : "look";
  return h("span", { class: "is" }, stateIcon(state, 16), h("span", { class: "peer" }, words.join("; ")));
}

function reuse(one) {
  if (!one.streams) return "–";
  return `${Math.round((100 * one.reused) / one.streams)} % of ${one.streams}`;
}

export function calls(view, select) {
  const entries = Object.entries(view.pairs);
  const weight = (one) => ["idle", "ok", "plaintext", "refused", "alarm"].indexOf(one.state);
  setText($("calls-count"), String(entries.length));
  entries.sort(([a, one], [b, other]) => weight(other) - weight(one) || a.localeCompare(b));
  keyed($("calls"), entries, (key, one) =>
    h("tr", { "data-state": one.state },
      h("th", { scope: "row" }, chooser(`${one.from} → ${one.to}`, () => select("pair", key))),
      h("td", {}, h("span", { class: "pill" }, STATES[one.state])),
      ...numbers(one).map((text) => h("td", { class: "number" }, text))),
  (row, one, before) => {
    if (one.state !== before.state) return false;
    numbers(one).forEach((text, at) => setText(row.children[at + 2], text)); // the rest of a row is what it was
    return true;
  });
}

const numbers = (one) => [rate(one.rate), String(one.live), flow(one), latency(one), String(one.refused || "–")];

const flow = (one) => (one.rate === null ? "–" : `${bytes(one.up)} / ${bytes(one.down)}`);
const latency = (one) => (one.opening_ms === null ? "–" : `${one.opening_ms < 10 ? one.opening_ms.toFixed(1) : Math.round(one.opening_ms)} ms`);
const chooser = (text, choose) => h("button", { type: "button", class: "choose peer", "data-focus": "choose", onclick: choose }, text);

// -- details ---------------------------------------------------------------------------------------------------------------

// The panel beside the picture. Returns whether there is such a thing still.
export function details(view, kind, key, select, close) {
  const one = (kind === "service" ? view.services : view.pairs)[key];
  if (!one) return false;
  const related = Object.values(view.alarms).concat(Object.values(view.refusals));
  const mine = related.filter((other) => (kind === "pair" ? other.pair === key : other.to === key || other.from === key));
  const made = { one, mine: mine.map((other) => `${other.message}${other.count}`).join() };
  const panel = $("details");
  if (panel.shown?.one === made.one && panel.shown.mine === made.mine && panel.dataset.key === key) return true;
  panel.shown = made;
  panel.dataset.key = key;
  const focus = panel.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  panel.replaceChildren(
    h("div", { class: "heading" },
      h("h2", { id: "details-title", tabindex: "-1", class: "peer", "data-focus": "title" }, kind === "service" ? key : `${one.from} → ${one.to}`),
      h("button", { type: "button", class: "close", "aria-label": "close the details", "data-focus": "close", onclick: close }, "×")),
    ...(kind === "service" ? ofService(view, key, one, select) : ofPair(one)),
    ...(mine.length ? [h("h3", {}, "Refused and alarmed"), ...mine.map((other) => ("severe" in other ? alarm(other) : refusal(other)))] : []));
  if (focus) panel.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
  return true;
}

function ofService(view, name, one, select) {
  const pairs = Object.entries(view.pairs);
  const chosen = (some, of) => some.length > 0 && h("p", { class: "chips" }, ...some.map(([key, pair]) =>
    h("button", { type: "button", class: `chip peer ${pair.state}`, "data-focus": key, onclick: () => select("pair", key) }, of(pair))));
  const called = chosen(pairs.filter(([, pair]) => pair.to === name), (pair) => pair.from);
  const calling = chosen(pairs.filter(([, pair]) => pair.from === name), (pair) => pair.to);
  return [
    h("p", {}, stateCell(one)),
    called && h("h3", {}, "Called by"), called,
    calling && h("h3", {}, "Calls"), calling,
    factList([
      ["identity", one.identity], ["certificate ends", one.not_after && when(one.not_after)],
      ["renews itself", one.renews_at && when(one.renews_at)], ["replicas", one.replicas || ""],
      ["policy", one.policy], ["trust bundle", one.bundle], ["release", one.release],
      ...one.ports.map((port) => [`${port.name} may be called by`, port.may_call.join(", ") || "nobody"]),
      ...one.ports.filter((port) => port.permissive).map((port) => [`${port.name} takes plaintext`, `through ${port.until}`]),
      ["on kept channels", one.streams ? `${reuse(one)} connections, ${one.idle_channels} idle now` : ""],
      ["heard last", one.heard && when(one.heard)],
    ]),
    one.plaintext.length > 0 && h("h3", {}, "Still speaks plaintext"),
    one.plaintext.length > 0 && h("ul", {}, ...one.plaintext.map((caller) =>
      h("li", {}, peer(`${caller.name || caller.address} (${caller.address})`), ` to ${caller.port}: ${caller.count} times, last `,
        when(caller.last), caller.allowed ? "" : ", refused"))),
  ].filter(Boolean);
}

function ofPair(one) {
  const ports = Object.entries(one.ports);
  return [
    h("p", {}, h("span", { class: `chip ${one.state}` }, STATES[one.state])),
    ...ports.flatMap(([name, port]) => [
      h("h3", { class: "peer" }, name ? `port ${name}` : "port unknown"),
      factList([
        ["new connections", port.rate === null ? "not known yet" : `${rate(port.rate)} a second`],
        ["open now", port.live], ["since the start", port.opened],
        ["bytes a second", port.rate === null ? "" : `${bytes(port.up)} there, ${bytes(port.down)} back`],
        ["bytes in all", port.opened ? `${bytes(port.to_callee)} there, ${bytes(port.to_caller)} back` : ""],
        ["to open one", port.opening_ms === null ? "" : latency(port)],
        ["without a handshake", port.streams ? reuse(port) : ""],
        ["refused", port.refused || ""], ["by the rule", port.rules.join(", ")],
      ]),
    ]),
    ports.length === 0 && h("p", {}, "No connection was let in here."),
  ].filter(Boolean);
}
