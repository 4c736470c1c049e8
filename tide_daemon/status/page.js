// Reads /status once a second and shows it. Every text goes in as text, never as markup.
"use strict";

const POLL_MS = 1000;
const MAX_POINTS = 900;
const FIGURES = [
  ["server", "draft_version", "draft version"],
  ["server", "accept_length", "accept length"],
  ["server", "tokens_per_s", "tokens/s"],
  ["server", "num_running", "running requests"],
  ["server", "rows_dropped", "rows dropped"],
  ["trainer", "num_tokens", "tokens stored"],
  ["trainer", "round", "training round"],
  ["trainer", "loss", "loss"],
  ["controller", "serving_version", "serving version"],
  ["controller", "num_nodes", "server nodes"],
];
const LONG = new Set(["decisions", "problems", "reason"]);
const acceptLengths = [];

// The token stands after # so that it is never sent as part of an address.
const token = decodeURIComponent(location.hash.slice(1));
const byId = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function show(value) {
  if (value === null || value === undefined || value === "") return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    return Number.isInteger(value) ? value.toLocaleString("en") : value.toLocaleString("en", { maximumFractionDigits: 3 });
  }
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

const clockTime = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

function renderProblems(status) {
  const wrong = Object.entries(status.health).filter(([, words]) => words !== "ok");
  const items = wrong.map(([name, words]) => make("li", `${name}: ${words}`));
  for (const [role, view] of Object.entries(status.roles)) {
    for (const problem of view.snapshot.problems || []) items.push(make("li", `${role}: ${problem}`));
  }
  byId("problems").replaceChildren(...items);
  byId("wrong").hidden = items.length === 0;
}

function renderFigures(status) {
  const cells = [];
  for (const [role, key, label] of FIGURES) {
    const view = status.roles[role];
    if (!view || view.snapshot[key] === undefined || view.snapshot[key] === null) continue;
    const cell = make("div");
    cell.append(make("dt", label), make("dd", show(view.snapshot[key])));
    cells.push(cell);
  }
  byId("figures").replaceChildren(...cells);
}

function renderWhy(status) {
  const items = [];
  const controller = status.roles.controller;
  for (const decision of ((controller && controller.snapshot.decisions) || []).slice(-10).reverse()) {
    const item = make("li", decision.reason);
    item.append(" ", make("span", clockTime(decision.at), "quiet"));
    items.push(item);
  }
  const server = status.roles.server;
  if (items.length === 0 && server && server.snapshot.reason) items.push(make("li", server.snapshot.reason));
  byId("decisions").replaceChildren(...items);
  byId("why").hidden = items.length === 0;
}

function renderChart(status) {
  const value = status.roles.server && status.roles.server.snapshot.accept_length;
  if (typeof value === "number") acceptLengths.push(value);
  if (acceptLengths.length > MAX_POINTS) acceptLengths.shift();
  byId("trend").hidden = acceptLengths.length < 2;
  if (acceptLengths.length < 2) return;
  const low = Math.min(1, ...acceptLengths);
  const high = Math.max(low + 0.5, ...acceptLengths);
  const points = acceptLengths.map((each, index) => {
    const x = (600 * index) / (acceptLengths.length - 1);
    return `${x.toFixed(1)},${(114 - (108 * (each - low)) / (high - low)).toFixed(1)}`;
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  byId("chart").replaceChildren(line);
  byId("span").textContent = `${low.toFixed(2)} to ${high.toFixed(2)} tokens a verify step, now ${show(value)}`;
}

function renderRoles(status) {
  const cards = Object.entries(status.roles).map(([name, view]) => {
    const card = make("article", undefined, "role");
    const title = make("h3", `${name} `);
    title.append(make("span", view.state, view.state === "running" ? "good" : "bad"));
    const table = make("table");
    for (const [key, value] of Object.entries(view.snapshot)) {
      if (LONG.has(key)) continue;
      const row = table.insertRow();
      row.append(make("th", key.replaceAll("_", " ")), make("td", show(value)));
      row.firstChild.scope = "row";
    }
    card.append(title, table);
    return card;
  });
  byId("roles").replaceChildren(...cards);
}

function renderLive(text, good) {
  const live = byId("live");
  if (live.textContent !== text) live.textContent = text;
  live.className = good ? "good" : "bad";
}

async function poll() {
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch("status", { headers, cache: "no-store" });
    if (response.status === 401) {
      renderLive("Needs a token: add #TOKEN to this page's address and reload.", false);
    } else if (!response.ok) {
      renderLive(`The daemon answered ${response.status}.`, false);
    } else {
      const status = await response.json();
      byId("node").textContent = `${status.daemon.node}, ${status.daemon.model}`;
      renderProblems(status);
      renderFigures(status);
      renderWhy(status);
      renderChart(status);
      renderRoles(status);
      renderLive(status.ready ? "Ready" : "Not ready", status.ready);
    }
  } catch (error) {
    renderLive(`No answer from the daemon (${error.message}); trying again.`, false);
  }
  setTimeout(poll, POLL_MS);
}

poll();
