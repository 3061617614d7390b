// The page: asks for the mesh, applies what changes, and has it drawn. `sidecar/dashboard/changes.py` says what a change is.

import { $, count, setText } from "./dom.js";
import { Graph } from "./graph.js";
import * as lists from "./lists.js";

const AGAIN_SECONDS = 2;
const SILENT_SECONDS = 15; // the server gives a sign each five seconds

// The token is behind the # of the address, which no browser sends anywhere. It is kept for this tab alone, and taken out of
// the address, so that no picture of the screen has it; a browser may remember what was typed or clicked all the same.
function token() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token") ?? "";
}

let view = null;
let chosen = null; // [kind, key] of the details
let opener = null; // what had the focus before them
let heard = 0;
let lost = false; // whether what is shown is of before
const secret = token();
const graph = new Graph(select);

// -- what the server sends -----------------------------------------------------------------------------------------------

async function listen() {
  const answer = await fetch("/events", {
    headers: { Authorization: `Bearer ${secret}` }, cache: "no-store", referrerPolicy: "no-referrer",
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.message ?? `the dashboard answers with status ${answer.status}`);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the dashboard has ended; start it again, and use the address that it prints");
    heard = Date.now();
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) take(event);
  }
}

function take(event) {
  const name = /^event: (.*)$/m.exec(event)?.[1];
  const data = /^data: (.*)$/m.exec(event)?.[1];
  if (name === "view") view = sections(JSON.parse(data));
  else if (name === "change") apply(JSON.parse(data));
  else if (!lost) return;
  if (view?.mesh) draw();
}

// Keys are names that peers chose: an object without a prototype has no `constructor`, and `__proto__` is a key as any other.
const plain = (entries) => Object.assign(Object.create(null), entries);
const sections = (all) => plain(Object.fromEntries(Object.entries(all).map(([section, entries]) => [section, plain(entries)])));

function apply(change) {
  for (const [section, { set, gone }] of Object.entries(change)) {
    view[section] ??= Object.create(null);
    for (const key of gone) delete view[section][key];
    Object.assign(view[section], set);
  }
}

async function stay() {
  for (;;) {
    try {
      await listen();
    } catch (error) {
      lose("not connected");
      fault(error instanceof TypeError ? "The dashboard does not answer: it was ended, or this machine lost it." : error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_SECONDS * 1000));
  }
}

// -- what is shown -----------------------------------------------------------------------------------------------------------

function draw() {
  const mesh = view.mesh;
  lost = false;
  setText($("mesh"), mesh.trust_domain || "mesh");
  setText($("where"), mesh.where);
  fault(mesh.fault);
  $("left-out").hidden = !mesh.left_out;
  setText($("left-out"), mesh.left_out ?? "");
  live(mesh.fault ? "bad" : "good", mesh.fault ? "the CA does not answer" : "live");
  lists.verdict(view.verdict);
  lists.questions(view.questions);
  graph.draw(view);
  lists.refused(view);
  lists.services(view, select);
  lists.calls(view, select);
  if (chosen && !lists.details(view, ...chosen, select, close)) close();
  const mark = { good: "✓", look: "!", bad: "✕", unknown: "?" }[view.verdict.state];
  setText(document.querySelector("title"), `${mark} ${mesh.trust_domain || "mesh"}`);
}

// Nothing green stays of what is not known any more; the next draw() says again what is.
function lose(why) {
  live("bad", why);
  if (lost || !view?.mesh) return;
  lost = true;
  lists.verdict({ state: "bad", text: "Not connected: what is below is of before." });
  setText(document.querySelector("title"), `✕ ${view.mesh.trust_domain || "mesh"}`);
}

function live(state, text) {
  $("live").dataset.state = state;
  setText($("live"), text);
}

function fault(text) {
  $("fault").hidden = !text;
  setText($("fault"), text ?? "");
}

function select(kind, key) {
  if (!$("details").contains(document.activeElement)) opener = document.activeElement;
  chosen = [kind, key];
  $("details").hidden = false;
  $("stage").classList.add("with-details");
  lists.details(view, kind, key, select, close);
  $("details-title").focus({ preventScroll: matchMedia("(min-width: 1000px)").matches });
}

function close() {
  chosen = null;
  $("details").hidden = true;
  $("stage").classList.remove("with-details");
  opener?.focus();
  opener = null;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen) close();
});
$("show-idle").addEventListener("change", (event) => $("graph").classList.toggle("only-used", !event.target.checked));
setInterval(() => {
  count();
  graph.count();
  if (heard && Date.now() - heard > SILENT_SECONDS * 1000) lose("nothing heard");
}, 1000);
stay();
