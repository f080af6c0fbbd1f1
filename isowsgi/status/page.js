// The status page: reads status.json once a second and draws it. What comes from apps becomes text nodes, never markup.
"use strict";

const PERIOD_MS = 1000;
const KEPT = 61; // snapshots, a second each: the sparklines' minute
const WINDOW = 30; // snapshots that rates and latencies are of
const SLOW_WAIT_S = 0.1; // from when on a wait is marked
const SLOW_S = 1; // from when on a request in flight is shown
const MANY = 24; // mounts from which on a table is easier to read than cards
const STALE_S = 5; // from when on a worker that has not reported is called silent

const history = []; // snapshots, oldest first
let lastAnswer = performance.now();

// Building the page.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== "") made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function fact(name, value, level) {
  return element("div", {}, element("dt", {}, name), element("dd", { class: level }, value));
}

function spark(values, kept = KEPT - 1) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${kept - 1} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  if (values.length < 2) return svg;
  const most = Math.max(...values, 1e-9);
  const left = kept - values.length;
  const points = values.map((value, place) => `${left + place} ${(19 - (18 * value) / most).toFixed(2)}`);
  for (const [name, path] of [["area", `M${left} 20L${points.join("L")}L${kept - 1} 20Z`], ["stroke", `M${points.join("L")}`]]) {
    const part = document.createElementNS("http://www.w3.org/2000/svg", "path");
    part.setAttribute("class", name);
    part.setAttribute("d", path);
    svg.append(part);
  }
  return svg;
}

// Saying figures.

function count(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} M`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : String(Math.round(value));
}

function rate(value) {
  return value === null ? "\u2013" : value >= 100 ? count(value) : value >= 0.05 ? value.toFixed(1) : "0";
}

function duration(seconds) {
  if (seconds === null) return "\u2013";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} \u00b5s`;
  if (seconds < 1) return `${(seconds * 1e3).toPrecision(seconds < 0.1 ? 2 : 3)} ms`;
  return `${seconds.toPrecision(3)} s`;
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(Math.round(seconds), 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function memory(octets) {
  if (octets === null || octets === undefined) return "\u2013";
  const mib = octets / 1048576;
  return mib >= 10240 ? `${(mib / 1024).toFixed(1)} GiB` : `${mib.toFixed(mib < 10 ? 1 : 0)} MiB`;
}

function percent(share) {
  return share === null ? "\u2013" : `${(share * 100).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
}

function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

// Figures over time.

function mountIn(snapshot, pattern) {
  return snapshot.mounts.find((mount) => mount.pattern === pattern);
}

function perSecond(of) {
  const values = [];
  for (let place = 1; place < history.length; place++) {
    const before = of(history[place - 1]);
    const after = of(history[place]);
    const seconds = history[place].now - history[place - 1].now;
    if (before !== undefined && after !== undefined && seconds > 0) values.push(Math.max(after - before, 0) / seconds);
  }
  return values;
}

function over(of) {
  const recent = history.slice(-WINDOW - 1);
  const first = recent.findIndex((snapshot) => of(snapshot) !== undefined);
  if (first < 0 || first === recent.length - 1) return null;
  const [start, end] = [recent[first], recent[recent.length - 1]];
  return { seconds: end.now - start.now, before: of(start), after: of(end) };
}

function rateOf(of) {
  const span = over(of);
  return span === null ? null : Math.max(span.after - span.before, 0) / span.seconds;
}

function quantile(buckets, limits, share) {
  const whole = buckets.reduce((sum, value) => sum + value, 0);
  if (whole === 0) return null;
  let below = 0;
  for (const [place, inside] of buckets.entries()) {
    if (below + inside >= share * whole) {
      if (place >= limits.length) return limits[limits.length - 1];
      const low = place === 0 ? 0 : limits[place - 1];
      return low + (limits[place] - low) * ((share * whole - below) / inside);
    }
    below += inside;
  }
  return null;
}

function ofWindow(of, limits, shares) {
  const span = over(of);
  const buckets = span === null ? [] : span.after.map((value, place) => Math.max(value - span.before[place], 0));
  return shares.map((share) => quantile(buckets, limits, share));
}

// What is shown of a mount, each worked out once for a picture.
function figures(mount, snapshot) {
  const { pattern } = mount;
  const [p50, p99] = ofWindow((of) => mountIn(of, pattern)?.buckets, snapshot.bucket_limits_s, [0.5, 0.99]);
  const waits = (name) => ofWindow((of) => mountIn(of, pattern)?.[name], snapshot.wait_limits_s, [0.99])[0];
  const sharesGil = mount.isolation === "shared-gil" || mount.isolation === "main";
  return {
    p50,
    p99,
    waiting: waits("waiting_buckets"),
    sending: waits("sending_buckets"),
    gil: sharesGil ? ofWindow((of) => of.gil_wait_buckets, snapshot.bucket_limits_s, [0.99])[0] : null,
    requests: rateOf((of) => mountIn(of, pattern)?.requests),
    errors: rateOf((of) => mountIn(of, pattern)?.responses["5xx"]),
    cpu: rateOf((of) => mountIn(of, pattern)?.cpu_s),
    memory: mount.memory_bytes ?? null,
  };
}

// What the reader asks for: kept in the address, so that it can be sent to somebody else. The mount that is looked at is its fragment.

const asked = new URLSearchParams(location.search);

function ask(name, value) {
  if (value) asked.set(name, value);
  else asked.delete(name);
  const query = asked.toString();
  window.history.replaceState(null, "", `${location.pathname}${query ? `?${query}` : ""}${location.hash}`);
  redraw();
}

function chosenPattern() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // no fragment of ours
  }
}

function wanted(snapshot, known) {
  const words = (asked.get("filter") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const text = (mount) => `${mount.pattern} ${mount.app} ${mount.isolation} ${mount.state} ${mount.trouble ? "trouble" : ""}`.toLowerCase();
  const found = snapshot.mounts.filter((mount) => words.every((word) => text(mount).includes(word)));
  const sort = asked.get("sort") ?? "";
  if (sort === "name") return found.sort((one, other) => (one.pattern < other.pattern ? -1 : 1));
  if (!["requests", "p99", "errors", "waiting", "cpu", "memory"].includes(sort)) return found;
  return found.sort((one, other) => (known.get(other)[sort] ?? -1) - (known.get(one)[sort] ?? -1));
}

// The parts.

const TROUBLES = { stuck: "is stuck", failed: "could not be loaded", quarantined: "is quarantined", stopped: "is stopped", booting: "is being loaded" };
const LEVELS = { stuck: "bad", failed: "bad", quarantined: "bad", stopped: "warn", booting: "warn", leaving: "warn", reloading: "good", serving: "good", asleep: "" };

function badge(mount) {
  const states = Object.entries(mount.states);
  let text = mount.state;
  if (mount.state !== "stuck" && states.length > 1) text = states.map(([state, number]) => `${number} ${state}`).join(", ");
  return element("span", { class: `badge ${LEVELS[mount.state]}` }, text);
}

function note(level, what, text, stack) {
  return element(
    "div",
    { class: `note ${level}` },
    element("span", { class: "what" }, what),
    text ? " " : null,
    text ? element("code", {}, text) : null,
    stack ? element("pre", { tabindex: "0" }, stack) : null,
  );
}

function notes(mount, now) {
  const made = [];
  for (const instance of mount.instances.filter((one) => one.state === "stuck")) {
    const since = instance.stuck_since ? ` for ${ago(now - instance.stuck_since)}` : "";
    const next = mount.is_ready ? "a new instance serves" : "no instance serves yet";
    const what = instance.is_loaded ? "is stuck" : "hangs while loading its app";
    const lines = mount.requests_in_flight
      .filter((request) => request.worker === instance.worker && request.instance === instance.tag)
      .map((request) => `${request.line}\n`);
    const noStack = "(no stack: C code holds the interpreter's GIL, or the instance did not end in time)";
    const stack = instance.stack || (instance.is_loaded ? lines.join("") + noStack : "");
    made.push(note("bad", `${instance.tag} ${what}${since}; ${next}`, "", stack));
  }
  const slow = mount.requests_in_flight.filter((request) => !request.is_stuck && request.age_s >= SLOW_S);
  for (const request of slow.slice(0, 4)) made.push(note("warn", `in flight for ${duration(request.age_s)}`, request.line));
  if (slow.length > 4) made.push(note("warn", `and ${slow.length - 4} more`, ""));
  for (const group of mount.errors.slice(0, 3)) {
    const what = `${group.count} \u00d7 ${group.error || group.type}, last ${ago(now - group.at)} ago`;
    made.push(note("", what, [group.place, group.request].filter(Boolean).join(" \u00b7 ")));
  }
  if (mount.last_error) {
    const age = now - mount.last_error.at;
    made.push(note(age < 60 || mount.state === "failed" ? "bad" : "", `last error, ${ago(age)} ago`, mount.last_error.text));
  }
  return made;
}

function isBad(mount) {
  return LEVELS[mount.state] === "bad" || mount.trouble?.level === "bad";
}

// Whether all threads are in a request.
function isFull(mount) {
  return mount.threads > 0 && mount.in_flight >= mount.threads;
}

function edgeOf(mount) {
  const level = LEVELS[mount.state];
  return mount.trouble?.level ?? (level === "bad" || level === "warn" ? level : "");
}

function link(pattern) {
  return `#${encodeURI(pattern)}`;
}

function card(mount, snapshot, known) {
  const { pattern } = mount;
  const waiting = mount.queued + mount.parked;
  const made = notes(mount, snapshot.now);
  const hasStack = mount.instances.some((instance) => instance.stack);
  const generation = mount.generation ? ` \u00b7 generation ${mount.generation}` : "";
  const isChosen = pattern === chosenPattern();
  return element(
    "article",
    { class: `card ${edgeOf(mount)} ${hasStack ? "has-stack" : ""} ${isChosen ? "chosen" : ""}`, "data-mount": pattern },
    element(
      "div",
      { class: "card-head" },
      element("div", {}, element("h3", {}, element("a", { href: link(pattern) }, pattern)), element("p", { class: "app" }, mount.app)),
      badge(mount),
    ),
    element(
      "div",
      { class: "rate" },
      element("p", {}, rate(known.requests), element("small", {}, "requests/s")),
      spark(perSecond((of) => mountIn(of, pattern)?.requests)),
    ),
    element(
      "dl",
      { class: "facts" },
      fact("p50", duration(known.p50)),
      fact("p99", duration(known.p99)),
      fact("in flight", `${mount.in_flight} / ${mount.threads}`, isFull(mount) ? "warn" : ""),
      fact("queue", String(waiting), waiting > 0 ? "warn" : ""),
      fact("CPU", percent(known.cpu)),
      fact("5xx", count(mount.responses["5xx"]), known.errors > 0 ? "bad" : ""),
      fact("requests", count(mount.requests)),
      fact("reloads", String(mount.reloads)),
      fact("wait p99", waitText(known.waiting), known.waiting > SLOW_WAIT_S ? "warn" : ""),
      fact("send p99", waitText(known.sending)),
      ...(known.gil === null ? [] : [fact("GIL p99", duration(known.gil), known.gil > SLOW_WAIT_S ? "warn" : "")]),
      fact("memory", memory(known.memory)),
    ),
    ...grown(mount),
    element("p", { class: "why" }, element("b", {}, `${mount.isolation}`), `, ${mount.reason}${generation}`),
    ...made,
  );
}

// The first bucket of waits holds nearly all: within it nothing is known.
function waitText(seconds) {
  return seconds !== null && seconds <= 0.001 ? "< 1 ms" : duration(seconds);
}

// The memory's way, if the worker tells it: how much it has grown, and the line.
function grown(mount) {
  const values = mount.memory_trend?.mib ?? [];
  if (values.length < 3) return [];
  const seconds = mount.memory_trend.step_s * (values.length - 1);
  const change = values[values.length - 1] - values[0];
  const text = `memory ${change >= 0 ? "+" : "\u2212"}${Math.abs(change).toFixed(1)} MiB in ${ago(seconds)}`;
  return [element("div", { class: "growth" }, element("p", {}, text), spark(values, values.length))];
}

function row(mount, known) {
  const { pattern } = mount;
  const cells = [
    ["req/s", rate(known.requests)],
    ["p50", duration(known.p50)],
    ["p99", duration(known.p99)],
    ["5xx", count(mount.responses["5xx"]), known.errors > 0 ? "bad" : ""],
    ["busy", `${mount.in_flight}/${mount.threads}`, isFull(mount) ? "warn" : ""],
    ["wait p99", waitText(known.waiting), known.waiting > SLOW_WAIT_S ? "warn" : ""],
    ["CPU", percent(known.cpu)],
    ["memory", memory(known.memory)],
  ];
  return element(
    "tr",
    { class: `${edgeOf(mount)} ${pattern === chosenPattern() ? "chosen" : ""}`, "data-mount": pattern },
    element("th", { scope: "row" }, element("a", { href: link(pattern) }, pattern)),
    element("td", { class: "state" }, badge(mount)),
    ...cells.map(([name, text, level]) => element("td", { class: `number ${level ?? ""}`, "data-name": name }, text)),
  );
}

function sums(snapshot) {
  const total = (of) => of.mounts.reduce((sum, mount) => sum + mount.requests, 0);
  const busy = snapshot.mounts.reduce((sum, mount) => sum + mount.in_flight, 0);
  const memory = snapshot.workers.reduce((sum, worker) => sum + (worker.rss_bytes || 0), 0);
  return [
    fact("requests/s", rate(rateOf(total))),
    fact("in flight", String(busy)),
    fact("connections", String(snapshot.workers.reduce((sum, worker) => sum + (worker.connections?.open || 0), 0))),
    fact("memory", `${Math.round(memory / 1048576)} MiB`),
  ];
}

function verdict(snapshot) {
  const troubled = snapshot.mounts.filter((mount) => isBad(mount) || mount.state === "booting");
  if (troubled.length === 0) return ["good", ["All mounts are healthy."], "All mounts are healthy."];
  const parts = troubled.flatMap((mount, place) => [
    place ? ", " : "",
    element("a", { href: link(mount.pattern) }, mount.pattern),
    ` ${TROUBLES[mount.state] ?? mount.trouble.text}`,
  ]);
  const short = troubled.map((mount) => `${mount.pattern} ${TROUBLES[mount.state] ?? "has trouble"}`).join(", ");
  return [troubled.some(isBad) ? "bad" : "warn", [...parts, "."], `${short}.`];
}

function workerRow(worker, now) {
  const cpu = rateOf((of) => of.workers.find((one) => one.pid === worker.pid)?.cpu_s);
  const silent = now - worker.updated;
  const state = worker.is_stopping ? "stopping" : silent > STALE_S ? `silent for ${ago(silent)}` : worker.is_accepting ? "accepting" : "booting";
  const cells = worker.pid
    ? [worker.pid, ago(now - worker.started), `${Math.round(worker.rss_bytes / 1048576)} MiB`, cpu === null ? "\u2013" : `${Math.round(cpu * 100)} %`, worker.connections.open, state]
    : ["\u2013", "", "", "", "", "starting"];
  const names = ["process", "up", "memory", "CPU", "connections", "state"];
  return element("tr", {}, ...cells.map((cell, place) => element("td", { "data-name": names[place] }, String(cell))));
}

// Cards, or for many mounts a table and the card of the one that is looked at.
function drawMounts(snapshot) {
  const known = new Map(snapshot.mounts.map((mount) => [mount, figures(mount, snapshot)]));
  const shown = wanted(snapshot, known);
  const isTable = (asked.get("view") ?? (snapshot.mounts.length > MANY ? "table" : "cards")) === "table";
  const chosen = isTable ? snapshot.mounts.filter((mount) => mount.pattern === chosenPattern()) : [];
  const draw = (mount) => card(mount, snapshot, known.get(mount));
  exchange(document.getElementById("chosen"), chosen.map(draw));
  exchange(document.getElementById("mounts"), isTable ? [] : shown.map(draw));
  exchange(document.querySelector("#dense tbody"), isTable ? shown.map((mount) => row(mount, known.get(mount))) : []);
  document.getElementById("dense").hidden = !isTable || shown.length === 0;
  document.getElementById("none").hidden = shown.length > 0;
  for (const head of document.querySelectorAll("#dense [data-sort]")) {
    const isSorted = head.dataset.sort === asked.get("sort");
    if (isSorted) head.setAttribute("aria-sort", head.dataset.sort === "name" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  for (const name of ["filter", "sort"]) {
    const field = document.getElementById(name);
    if (field !== document.activeElement) field.value = asked.get(name) ?? "";
  }
  document.getElementById("view").value = isTable ? "table" : "cards";
}

function redraw() {
  if (history.length > 0) drawMounts(history[history.length - 1]);
}

function about(snapshot) {
  const known = snapshot.workers.filter((worker) => worker.pid);
  const versions = [...new Set(known.map((worker) => `isowsgi ${worker.isowsgi} on Python ${worker.python}`))];
  return [plural(snapshot.mounts.length, "mount"), plural(snapshot.workers.length, "worker"), ...versions].join(" \u00b7 ");
}

// A card that is being read, or whose text is selected, is not exchanged under the reader: what is scrolled and what has the focus is kept.
function exchange(box, parts) {
  const scrolls = new Map();
  for (const pre of box.querySelectorAll("pre")) scrolls.set(pre.closest("[data-mount]").dataset.mount, pre.scrollTop);
  const focused = box.contains(document.activeElement) ? document.activeElement : null;
  const [owner, name] = [focused?.closest("[data-mount]")?.dataset.mount, focused?.localName];
  box.replaceChildren(...parts);
  for (const pre of box.querySelectorAll("pre")) pre.scrollTop = scrolls.get(pre.closest("[data-mount]").dataset.mount) || 0;
  if (owner !== undefined) {
    const again = [...box.querySelectorAll("[data-mount]")].find((part) => part.dataset.mount === owner);
    again?.querySelector(name)?.focus({ preventScroll: true });
  }
}

function isSelecting() {
  const selection = window.getSelection();
  return !selection.isCollapsed && document.querySelector("main").contains(selection.anchorNode);
}

// Have screen readers say it, if it is new. What the eye reads has figures in it that change each second.
function announce(text) {
  const line = document.getElementById("announcement");
  if (line.textContent !== text) line.textContent = text;
}

// What is pressed must be the same element when it is let go, or there is no click.
let isPressed = false;

function draw(snapshot) {
  const [level, text, short] = verdict(snapshot);
  const line = document.getElementById("verdict");
  const words = text.map((part) => part.textContent ?? part).join("");
  announce(short);
  if (!isPressed && (line.textContent !== words || !line.classList.contains(level))) {
    line.className = `verdict ${level}`;
    line.replaceChildren(...text);
  }
  document.getElementById("about").textContent = about(snapshot);
  document.getElementById("sums").replaceChildren(...sums(snapshot));
  document.title = level === "bad" ? "\u25cf isowsgi" : "isowsgi";
  if (isSelecting() || isPressed) return;
  drawMounts(snapshot);
  if (!hasShown) show();
  document.querySelector("#workers tbody").replaceChildren(...snapshot.workers.map((worker) => workerRow(worker, snapshot.now)));
}

function complain(error) {
  const line = document.getElementById("verdict");
  line.className = "verdict bad";
  announce("No answer. The figures are out of date.");
  line.textContent = `No answer for ${ago((performance.now() - lastAnswer) / 1000)}: ${error.message}. The figures below are out of date.`;
  document.body.classList.add("is-stale");
}

async function turn() {
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`${response.status} ${await response.text()}`.trim());
    const snapshot = await response.json();
    lastAnswer = performance.now();
    document.body.classList.remove("is-stale");
    history.push(snapshot);
    if (history.length > KEPT) history.shift();
    draw(snapshot);
  } catch (error) {
    complain(error);
  }
  setTimeout(turn, document.hidden ? PERIOD_MS * 5 : PERIOD_MS);
}

// Bring the mount that the address names into view; when the page is opened, or another one is asked for.
let hasShown = false;

function show() {
  hasShown = true;
  if (!chosenPattern()) return;
  const part = document.querySelector("#chosen [data-mount]") ?? document.querySelector("#mounts .chosen");
  part?.scrollIntoView({ block: "nearest" });
}

window.addEventListener("hashchange", () => {
  redraw();
  show();
});

document.addEventListener("pointerdown", (event) => {
  isPressed = event.target.closest("[data-mount], #verdict") !== null;
});
for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => (isPressed = false));
window.addEventListener("blur", () => (isPressed = false));

document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["filter", "sort", "view"]) {
  document.getElementById(name).addEventListener("input", (event) => ask(name, event.target.value));
}
for (const head of document.querySelectorAll("#dense [data-sort]")) {
  head.querySelector("button").addEventListener("click", () => ask("sort", head.dataset.sort === asked.get("sort") ? "" : head.dataset.sort));
}
document.addEventListener("keydown", (event) => {
  const filter = document.getElementById("filter");
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.matches("input, select")) {
    event.preventDefault();
    filter.focus();
  } else if (event.key === "Escape" && event.target === filter) {
    filter.value = "";
    ask("filter", "");
  }
});

turn();
