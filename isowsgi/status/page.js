// The status page: reads status.json once a second and draws it. What comes from apps becomes text nodes, never markup.
"use strict";

const PERIOD_MS = 1000;
const KEPT = 61; // snapshots, a second each: the sparklines' minute
const WINDOW = 30; // snapshots that rates and latencies are of
const SLOW_S = 1; // from when on a request in flight is shown
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

function spark(values) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", `0 0 ${KEPT - 2} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  if (values.length < 2) return svg;
  const most = Math.max(...values, 1e-9);
  const left = KEPT - 1 - values.length;
  const points = values.map((value, place) => `${left + place} ${(19 - (18 * value) / most).toFixed(2)}`);
  for (const [name, path] of [["area", `M${left} 20L${points.join("L")}L${KEPT - 2} 20Z`], ["stroke", `M${points.join("L")}`]]) {
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

function latencies(pattern, limits) {
  const span = over((snapshot) => mountIn(snapshot, pattern)?.buckets);
  const buckets = span === null ? [] : span.after.map((value, place) => Math.max(value - span.before[place], 0));
  return [quantile(buckets, limits, 0.5), quantile(buckets, limits, 0.99)];
}

// The parts.

const TROUBLES = { stuck: "is stuck", failed: "could not be loaded", quarantined: "is quarantined", stopped: "is stopped", booting: "is being loaded" };
const LEVELS = { stuck: "bad", failed: "bad", quarantined: "bad", stopped: "warn", booting: "warn", reloading: "good", serving: "good", asleep: "" };

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

function card(mount, snapshot) {
  const { pattern } = mount;
  const level = LEVELS[mount.state];
  const [p50, p99] = latencies(pattern, snapshot.bucket_limits_s);
  const failures = (of) => mountIn(of, pattern)?.responses["5xx"];
  const failing = rateOf(failures) > 0;
  const cpu = rateOf((of) => mountIn(of, pattern)?.cpu_s);
  const isFull = mount.threads > 0 && mount.in_flight >= mount.threads;
  const waiting = mount.queued + mount.parked;
  const made = notes(mount, snapshot.now);
  const hasStack = mount.instances.some((instance) => instance.stack);
  const generation = mount.generation ? ` \u00b7 generation ${mount.generation}` : "";
  const edge = mount.trouble?.level ?? (level === "bad" || level === "warn" ? level : "");
  return element(
    "article",
    { class: `card ${edge} ${hasStack ? "has-stack" : ""}`, id: `mount-${snapshot.mounts.indexOf(mount)}`, "data-mount": pattern },
    element(
      "div",
      { class: "card-head" },
      element("div", {}, element("h3", {}, pattern), element("p", { class: "app" }, mount.app)),
      badge(mount),
    ),
    element(
      "div",
      { class: "rate" },
      element("p", {}, rate(rateOf((of) => mountIn(of, pattern)?.requests)), element("small", {}, "requests/s")),
      spark(perSecond((of) => mountIn(of, pattern)?.requests)),
    ),
    element(
      "dl",
      { class: "facts" },
      fact("p50", duration(p50)),
      fact("p99", duration(p99)),
      fact("in flight", `${mount.in_flight} / ${mount.threads}`, isFull ? "warn" : ""),
      fact("queue", String(waiting), waiting > 0 ? "warn" : ""),
      fact("CPU", cpu === null ? "\u2013" : `${(cpu * 100).toFixed(cpu < 0.1 ? 1 : 0)} %`),
      fact("5xx", count(mount.responses["5xx"]), failing ? "bad" : ""),
      fact("requests", count(mount.requests)),
      fact("reloads", String(mount.reloads)),
    ),
    element("p", { class: "why" }, element("b", {}, `${mount.isolation}`), `, ${mount.reason}${generation}`),
    ...made,
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
  const isBad = (mount) => LEVELS[mount.state] === "bad" || mount.trouble?.level === "bad";
  const troubled = snapshot.mounts.filter((mount) => isBad(mount) || mount.state === "booting");
  if (troubled.length === 0) return ["good", ["All mounts are healthy."]];
  const parts = troubled.flatMap((mount, place) => [
    place ? ", " : "",
    element("a", { href: `#mount-${snapshot.mounts.indexOf(mount)}` }, mount.pattern),
    ` ${TROUBLES[mount.state] ?? mount.trouble.text}`,
  ]);
  return [troubled.some(isBad) ? "bad" : "warn", [...parts, "."]];
}

function workerRow(worker, now) {
  const cpu = rateOf((of) => of.workers.find((one) => one.pid === worker.pid)?.cpu_s);
  const silent = now - worker.updated;
  const state = worker.is_stopping ? "stopping" : silent > STALE_S ? `silent for ${ago(silent)}` : worker.is_accepting ? "accepting" : "booting";
  const cells = worker.pid
    ? [worker.pid, ago(now - worker.started), `${Math.round(worker.rss_bytes / 1048576)} MiB`, cpu === null ? "\u2013" : `${Math.round(cpu * 100)} %`, worker.connections.open, state]
    : ["\u2013", "", "", "", "", "starting"];
  return element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
}

function about(snapshot) {
  const known = snapshot.workers.filter((worker) => worker.pid);
  const versions = [...new Set(known.map((worker) => `isowsgi ${worker.isowsgi} on Python ${worker.python}`))];
  return [plural(snapshot.mounts.length, "mount"), plural(snapshot.workers.length, "worker"), ...versions].join(" \u00b7 ");
}

// A card that is being read, or whose text is selected, is not exchanged under the reader: its scroll positions are kept.
function exchange(box, cards) {
  const scrolls = new Map();
  for (const pre of box.querySelectorAll("pre")) scrolls.set(pre.closest("[data-mount]").dataset.mount, pre.scrollTop);
  box.replaceChildren(...cards);
  for (const pre of box.querySelectorAll("pre")) pre.scrollTop = scrolls.get(pre.closest("[data-mount]").dataset.mount) || 0;
}

function isSelecting() {
  const selection = window.getSelection();
  return !selection.isCollapsed && document.querySelector("main").contains(selection.anchorNode);
}

function draw(snapshot) {
  const [level, text] = verdict(snapshot);
  const line = document.getElementById("verdict");
  const words = text.map((part) => part.textContent ?? part).join("");
  if (line.textContent !== words || !line.classList.contains(level)) {
    // Only a change is announced to screen readers.
    line.className = `verdict ${level}`;
    line.replaceChildren(...text);
  }
  document.getElementById("about").textContent = about(snapshot);
  document.getElementById("sums").replaceChildren(...sums(snapshot));
  document.title = level === "bad" ? "\u25cf isowsgi" : "isowsgi";
  if (isSelecting()) return;
  exchange(document.getElementById("mounts"), snapshot.mounts.map((mount) => card(mount, snapshot)));
  document.querySelector("#workers tbody").replaceChildren(...snapshot.workers.map((worker) => workerRow(worker, snapshot.now)));
}

function complain(error) {
  const line = document.getElementById("verdict");
  line.className = "verdict bad";
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

turn();
