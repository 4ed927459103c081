"use strict";

// Texts of a response go into the page as textContent only.
const unpacked = new Map(); // the blocks opened last, so that j and k do not unpack one again and again
function block(name) {
  if (!unpacked.has(name)) {
    if (unpacked.size > 3) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(name, unpack(document.getElementById("block-" + name).textContent));
  }
  return unpacked.get(name);
}

const unpacks = "DecompressionStream" in window;

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).text()).split("\n");
}

async function details(row) {
  return JSON.parse((await block(row.dataset.block))[Number(row.dataset.line)]);
}

const rows = [...document.querySelectorAll("[data-block]")], byId = new Map(rows.map((row) => [row.dataset.id, row]));
const dialog = document.querySelector("dialog"), search = document.querySelector("input[type=search]");
const chips = [...document.querySelectorAll("button[data-status]")], cells = [...document.querySelectorAll("a.cell")];
const questions = new Map([...document.querySelectorAll("[data-question]")].map((q) => [q.dataset.question, q]));
const told = new Map(rows.map((row) => // what the search looks at
  [row, [...row.querySelectorAll("td:not(.n, .where)")].map((cell) => cell.textContent).join("\n").toLowerCase()]));
const counter = document.getElementById("shown");
let naming = 0; // browsers allow few changes of the address a second, fewer than a held key makes
let shown = rows, current = null, within = null; // what a search of the texts has found, if there was one

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function filter() {
  const wanted = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((c) => c.dataset.status);
  const text = search ? search.value.trim().toLowerCase() : "";
  const holds = (row) => told.get(row).includes(text)
    || (questions.get(row.dataset.problem)?.textContent.toLowerCase().includes(text) ?? false)
    || (within?.has(row) ?? false);
  shown = rows.filter((row) => (!wanted.length || wanted.includes(row.dataset.status)) && (!text || holds(row)));
  const kept = new Set(shown);
  for (const row of rows) row.hidden = !kept.has(row);
  for (const cell of cells) cell.classList.toggle("out", !kept.has(byId.get(cell.dataset.id)));
  if (counter) counter.textContent = `${shown.length} of ${rows.length} tasks`;
}

async function searchTexts() {
  const text = search.value.trim().toLowerCase(), found = within = new Set();
  let done = 0, paused = performance.now();
  for (const row of text ? rows : []) {
    if ((await textsOf(row)).some((body) => body.toLowerCase().includes(text))) found.add(row);
    if (within !== found) return; // something else is searched for by now
    done++;
    if (performance.now() - paused < 100) continue;
    counter.textContent = `${done} of ${rows.length} searched`;
    await new Promise((resolve) => { setTimeout(resolve); });
    paused = performance.now();
  }
  if (within !== found) return;
  filter();
  if (!unpacks) counter.textContent += "; this browser cannot search in responses";
}

async function textsOf(row) {
  try {
    return (await details(row)).flatMap((told) => told.texts).filter((text) => text[3]).map((text) => text[1]);
  } catch { return []; } // the file is damaged, which opening the task says
}

function column(told) {
  const element = make("div");
  if (told.title) element.append(make("h3", told.title));
  const list = make("dl");
  for (const [name, value] of told.facts) {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    list.append(pair);
  }
  element.append(list);
  for (const [title, text, open] of told.texts) {
    const part = make("details");
    part.open = open !== "";
    part.append(make("summary", title), make("pre", text));
    element.append(part);
  }
  return element;
}

async function open(id) {
  const row = byId.get(id);
  if (!row) return;
  current = row;
  const body = dialog.querySelector(".body"), columns = make("div", undefined, "columns");
  dialog.querySelector("h2").textContent = id;
  body.replaceChildren(columns);
  const question = questions.get(row.dataset.problem);
  if (question) {
    const copy = question.cloneNode(true);
    copy.removeAttribute("data-question");
    body.prepend(copy);
  }
  const address = "#" + encodeURI(id);
  clearTimeout(naming);
  if (dialog.open) naming = setTimeout(() => history.replaceState(history.state, "", address), 150);
  else if (location.hash) history.replaceState(history.state, "", address);
  else history.pushState("opened", "", address); // so that the browser's way back closes the task
  if (!dialog.open) dialog.showModal();
  body.focus();
  dialog.scrollTop = 0;
  let shownColumns;
  try {
    shownColumns = (await details(row)).map(column);
  } catch (error) {
    const reason = unpacks ? `the file is damaged (${error.message})` : "this browser has no DecompressionStream";
    shownColumns = [make("p", `This task cannot be shown: ${reason}.`)];
  }
  if (columns.isConnected) columns.append(...shownColumns); // else another task has been opened meanwhile
}

function follow(address) {
  let id = address.slice(1);
  try { id = decodeURIComponent(id); } catch { /* it is not encoded */ }
  if (byId.has(id)) open(id);
  else if (dialog.open) dialog.close();
}

function step(by) {
  const at = shown.indexOf(current);
  const next = shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)];
  if (next) open(next.dataset.id);
}

for (const chip of chips) chip.addEventListener("click", () => {
  chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
  filter();
});
if (search) search.addEventListener("input", () => { within = null; filter(); });
for (const button of dialog.querySelectorAll("button")) {
  button.addEventListener("click", () => button.dataset.step ? step(Number(button.dataset.step)) : dialog.close());
}
dialog.addEventListener("close", () => {
  clearTimeout(naming);
  if (!location.hash) return;
  if (history.state === "opened") history.back();
  else history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
document.addEventListener("click", (event) => { // also when the address names that task already
  const link = event.target.closest("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  follow(link.getAttribute("href"));
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    if (event.key === "Escape") { search.value = ""; search.blur(); within = null; filter(); }
    if (event.key === "Enter") searchTexts();
    return;
  }
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
  if (event.key === "/" && search && !dialog.open) { event.preventDefault(); search.focus(); }
});
window.addEventListener("popstate", () => follow(location.hash));
window.addEventListener("DOMContentLoaded", () => { filter(); follow(location.hash); });

const every = Number(document.body.dataset.watch); // while the run goes on, and nobody is in the middle of something
if (every) setInterval(() => { if (!dialog.open && shown.length === rows.length) location.reload(); }, 1000 * every);
