// Follows /events and shows what it says. Every text goes in as text, never as markup.
"use strict";

const SILENT_MS = 6000;
const AGAIN_MS = 2000;
const MAX_ROWS = 200;
const FEW_DECISIONS = 12;

const byId = (id) => document.getElementById(id);
let paused = false;
let showAll = false;
let newest = null;
let newsAt = Date.now();
let lost = false;
let source = null;
const drawn = new Map();

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
function clockTime(seconds) {
  const time = new Date(seconds * 1000);
  return time.toDateString() === new Date().toDateString() ? time.toLocaleTimeString() : time.toLocaleString();
}
const fixed = (value, digits) => (isNumber(value) ? value.toFixed(digits) : "-");

function show(value) {
  if (value === null || value === undefined || value === "") return "-";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return value.toLocaleString("en", { maximumFractionDigits: Number.isInteger(value) ? 0 : 3 });
  if (Array.isArray(value)) return value.length ? value.map(show).join(", ") : "-";
  if (typeof value === "object") return Object.entries(value).map(([key, each]) => `${key} ${show(each)}`).join(", ") || "-";
  return String(value);
}

function duration(seconds) {
  if (!isNumber(seconds)) return "-";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function bytes(value) {
  if (!isNumber(value)) return "-";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  for (; value >= 1024 && index < units.length - 1; index += 1) value /= 1024;
  return `${value.toFixed(value < 10 && index ? 1 : 0)} ${units[index]}`;
}

// Whether a part of the page has to be made anew.
function changed(name, value) {
  const text = JSON.stringify(value);
  if (drawn.get(name) === text) return false;
  drawn.set(name, text);
  return true;
}

// Rows and cells that are there are kept and only their text changes: a reader that is in the table stays there.
function fillTable(id, columns, rows) {
  const table = byId(id);
  if (!table.tHead) {
    table.setAttribute("role", "table");
    const head = table.createTHead();
    head.setAttribute("role", "rowgroup");
    const line = head.insertRow();
    line.setAttribute("role", "row");
    for (const column of columns) {
      const cell = make("th", column.head, column.className);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      line.append(cell);
    }
    table.createTBody().setAttribute("role", "rowgroup");
  }
  const body = table.tBodies[0];
  const shown = rows.slice(0, MAX_ROWS);
  while (body.rows.length > shown.length) body.deleteRow(-1);
  shown.forEach((row, index) => {
    let line = body.rows[index];
    if (!line) {
      line = body.insertRow();
      line.setAttribute("role", "row");
      columns.forEach((column, place) => {
        const cell = make(place ? "td" : "th", undefined, column.className);
        if (!place) cell.scope = "row";
        cell.setAttribute("role", place ? "cell" : "rowheader");
        cell.dataset.label = column.head;
        line.append(cell);
      });
    }
    columns.forEach((column, place) => {
      const cell = line.cells[place];
      const text = String(column.text(row));
      if (cell.textContent !== text) cell.textContent = text;
      if (column.tone) cell.className = `${column.className || ""} ${column.tone(row)}`.trim();
    });
  });
  const section = byId(`${id}-section`);
  if (section) section.hidden = rows.length === 0;
}

const SERVERS = [
  { head: "Node", text: (row) => row.node },
  { head: "Engine", text: (row) => row.engine, tone: (row) => (row.engine === "ready" ? "good" : "bad") },
  { head: "Draft", className: "number", text: (row) => (row.version === row.desired_version ? row.version || "none" : `${row.version}, asked for ${row.desired_version}`) },
  { head: "Requests", className: "number", text: (row) => row.num_running },
  { head: "Steps", className: "number", text: (row) => row.num_steps || "plain" },
  { head: "Accept length", className: "number", text: (row) => fixed(row.accept_length, 2) },
  { head: "Tokens/s", className: "number", text: (row) => fixed(row.tokens_per_s, 1) },
  { head: "Decodes at", className: "number", text: (row) => fixed(row.decode_tokens_per_s, 1) },
  { head: "Plain would", className: "number", text: (row) => fixed(row.plain_tokens_per_s, 1) },
  { head: "Of plain", className: "number", text: (row) => fixed(row.of_plain, 2), tone: (row) => (row.of_plain === null ? "" : row.of_plain < 0.95 ? "bad" : row.of_plain > 1.02 ? "good" : "") },
  { head: "Capture", text: (row) => (row.collecting ? "on" : "off") },
  { head: "Dropped rows", className: "number", text: (row) => show(row.rows_dropped) },
  { head: "Heard", className: "number", text: (row) => `${duration(row.heard_s)} ago` },
  { head: "Why", className: "long", text: (row) => (row.reason ? `${row.reason}${row.since ? ` (since ${clockTime(row.since)})` : ""}` : "-") },
];

const TRAINERS = [
  { head: "Trainer", text: (row) => row.trainer },
  { head: "State", text: (row) => row.state, tone: (row) => (row.state === "failed" ? "bad" : "") },
  { head: "Round", className: "number", text: (row) => row.round },
  { head: "Step", className: "number", text: (row) => (row.num_steps_total ? `${row.step} of ${row.num_steps_total}` : "-") },
  { head: "Loss", className: "number", text: (row) => (row.step ? fixed(row.loss, 3) : "-") },
  { head: "To finish", className: "number", text: (row) => duration(row.left_s || null) },
  { head: "Scores of the serving draft", text: (row) => row.scores.map((score) => `${score.workload || "unlabelled"} ${fixed(score.accept_length, 2)}`).join(", ") || "-" },
  { head: "Stored requests", className: "number", text: (row) => show(row.num_requests) },
  { head: "New tokens", className: "number", text: (row) => show(row.new_tokens) },
  { head: "Store", className: "number", text: (row) => bytes(row.store_bytes) },
  { head: "Refused", className: "number", text: (row) => show(row.num_refused) },
  { head: "Heard", className: "number", text: (row) => (isNumber(row.heard_s) ? `${duration(row.heard_s)} ago` : "-") },
];

const DRAFTS = [
  { head: "Version", text: (row) => row.version },
  { head: "Published", text: (row) => (row.published_at ? clockTime(row.published_at) : "-") },
  { head: "By", text: (row) => row.trainer || "-" },
  { head: "Trained on", className: "number", text: (row) => (row.num_train_tokens ? `${show(row.num_train_tokens)} tokens` : "-") },
  { head: "Served then", className: "number", text: (row) => fixed(row.serving_accept_length, 2) },
  { head: "This one", className: "number", text: (row) => fixed(row.candidate_accept_length, 2) },
  { head: "Became", className: "long", text: (row) => row.state },
  { head: "Because", className: "long", text: (row) => row.reason || "-" },
];

const STREAMS = [
  { head: "Stream", text: (row) => row.name },
  { head: "Messages", className: "number", text: (row) => show(row.num_messages) },
  { head: "Size", className: "number", text: (row) => bytes(row.num_bytes) },
  { head: "Limit", className: "number", text: (row) => (row.max_bytes ? bytes(row.max_bytes) : "none") },
  { head: "Full", className: "number", text: (row) => (row.max_bytes ? `${((100 * row.num_bytes) / row.max_bytes).toFixed(1)}%` : "-") },
  { head: "Wait for a trainer", className: "number", text: (row) => (row.num_waiting === null ? "-" : show(row.num_waiting)) },
];

const CHART_COLUMNS = [
  { head: "Time", text: (row) => clockTime(row.at) },
  ...Charts.columns.map(({ head, name }) => ({ head, className: "number", text: (row) => (row[name] === undefined ? "-" : Charts.number(row[name])) })),
];

function renderProblems(state) {
  if (!changed("problems", state.problems)) return;
  const items = state.problems.map((problem) => {
    const item = make("li");
    item.append(make("strong", problem.what), make("div", problem.do));
    if (problem.page) item.append(make("div", `Runbook: ${problem.page}`, "quiet"));
    return item;
  });
  if (!items.length) items.push(make("li", "Nothing that this daemon knows of."));
  byId("problems").replaceChildren(...items);
  byId("wrong").classList.toggle("well", state.problems.length === 0);
}

const sum = (rows, key) => rows.reduce((total, row) => total + (row[key] || 0), 0);

function fleetFigures(fleet) {
  const busy = fleet.servers.filter((row) => isNumber(row.of_plain));
  const now = sum(busy, "decode_tokens_per_s");
  const plain = sum(busy, "plain_tokens_per_s");
  const ready = fleet.servers.filter((row) => row.engine === "ready").length;
  const served = fleet.serving_version ? `version ${fleet.serving_version}` : "no draft";
  const stage = fleet.candidate_version ? `${fleet.stage}: version ${fleet.candidate_version} on ${fleet.canary}` : fleet.stage;
  return [
    ["servers", `${ready} of ${fleet.servers.length}`, "ready"],
    ["served", served, fleet.pinned ? `${stage}, pinned` : stage],
    ["of plain", plain ? fixed(now / plain, 2) : "-", plain ? `${fixed(now, 0)} against ${fixed(plain, 0)} tokens/s` : "nothing is decoded"],
    ["tokens/s", fixed(sum(fleet.servers, "tokens_per_s"), 0), "all servers"],
    ["trainers", String(fleet.trainers.length), fleet.trainers.map((row) => row.state).join(", ")],
    ["leader", fleet.leader || "nobody yet", fleet.fencing_token ? `token ${fleet.fencing_token}` : ""],
  ];
}

function ownFigures(state) {
  const figures = [];
  const { server, trainer } = state;
  if (server) {
    figures.push(["draft version", show(server.draft_version || "none"), `asked for ${show(server.desired_draft_version)}`]);
    figures.push(["accept length", fixed(server.accept_length, 2), server.num_steps ? `${server.num_steps} drafted tokens a step` : "plain now"]);
    figures.push(["tokens/s", fixed(server.tokens_per_s, 1), `${show(server.num_running)} requests`]);
    if (isNumber(server.of_plain)) figures.push(["of plain", fixed(server.of_plain, 2), `${fixed(server.decode_tokens_per_s, 0)} against ${fixed(server.plain_tokens_per_s, 0)} tokens/s`]);
    figures.push(["rows dropped", show(server.rows_dropped), `${show(server.chunks_dropped)} chunks`]);
  }
  if (trainer) {
    figures.push(["round", show(trainer.round), trainer.state]);
    figures.push(["loss", trainer.step ? fixed(trainer.loss, 3) : "-", `step ${show(trainer.step)} of ${show(trainer.num_steps_total)}`]);
    figures.push(["to finish", duration(trainer.left_s || null), "of this round's training"]);
  }
  return figures;
}

function renderFigures(state) {
  const figures = [...(state.fleet ? fleetFigures(state.fleet) : []), ...(state.fleet ? [] : ownFigures(state))];
  if (!changed("figures", figures)) return;
  byId("figures").replaceChildren(
    ...figures.map(([label, value, more]) => {
      const cell = make("div");
      const shown = make("dd", value);
      if (more) shown.append(make("small", more));
      cell.append(make("dt", label), shown);
      return cell;
    }),
  );
}

function renderWorkloads(fleet) {
  const lines = fleet ? fleet.workloads : [];
  if (!changed("workloads", lines)) return;
  byId("workloads").replaceChildren(...lines.map((line) => make("li", line)));
  byId("workloads").hidden = lines.length === 0;
}

function renderDecisions(fleet) {
  const all = fleet ? fleet.decisions : [];
  byId("decisions-section").hidden = all.length === 0;
  const kind = document.querySelector("input[name=kind]:checked").value;
  const found = all.filter((decision) => !kind || decision.kind === kind);
  const shown = showAll ? found : found.slice(0, FEW_DECISIONS);
  byId("more").hidden = found.length <= FEW_DECISIONS;
  byId("more").textContent = showAll ? "Show fewer" : `Show all ${found.length}`;
  if (!changed("decisions", [kind, shown])) return;
  const items = shown.map((decision) => {
    const item = make("li");
    const time = make("time", clockTime(decision.at));
    time.dateTime = new Date(decision.at * 1000).toISOString();
    const head = make("div", undefined, "quiet");
    head.append(time, `, when ${decision.cause}`);
    item.append(head);
    for (const said of decision.said) {
      item.append(make("div", said.words));
      const numbers = Object.entries(said.numbers).map(([key, value]) => `${key.replaceAll("_", " ")} ${Charts.number(value)}`);
      if (numbers.length) item.append(make("div", numbers.join(", "), "quiet"));
    }
    return item;
  });
  if (!items.length) items.push(make("li", "None of this kind in the part of the journal that was read."));
  byId("decisions").replaceChildren(...items);
}

function renderDrops(state) {
  const { fleet } = state;
  if (!fleet) return;
  const dead = fleet.streams.find((row) => row.name === "TIDE_DEAD");
  const text = `Dropped so far: ${show(sum(fleet.servers, "rows_dropped"))} captured rows that found a ring full, `
    + `${show(sum(fleet.trainers, "num_refused"))} chunks that trainers refused, ${show(dead ? dead.num_messages : 0)} given up by the broker.`;
  if (byId("drops").textContent !== text) byId("drops").textContent = text;
}

function renderDaemon(state) {
  const rows = [
    ["node", state.daemon.node], ["model", state.daemon.model], ["version", state.daemon.version],
    ["up since", new Date(state.daemon.started_at * 1000).toLocaleString()],
    ["broker", `${state.connected ? "connected" : "not connected"}, lost ${state.bus_losses} times since then`],
  ];
  if (state.daemon.reload) rows.push(["reload", state.daemon.reload]);
  for (const [name, view] of Object.entries(state.roles)) {
    rows.push([`role ${name}`, `${view.state}${view.num_failures ? `, failed ${view.num_failures} times, last: ${view.last_error}` : ""}`]);
  }
  for (const name of ["controller", "server", "trainer"]) {
    for (const [key, value] of Object.entries(state[name] || {})) {
      if (key !== "shadow") rows.push([`${name}: ${key.replaceAll("_", " ")}`, show(value)]);
    }
  }
  fillTable("daemon", [{ head: "What", text: (row) => row[0] }, { head: "Is", text: (row) => row[1] }], rows);
}

function render(state) {
  byId("node").textContent = `${state.daemon.node}, ${state.daemon.model}`;
  document.title = `${state.problems.length ? `(${state.problems.length}) ` : ""}tide-daemon ${state.daemon.node}`;
  const { fleet } = state;
  renderProblems(state);
  renderFigures(state);
  renderWorkloads(fleet);
  fillTable("servers", SERVERS, fleet ? fleet.servers : []);
  const own = state.trainer ? [{ ...state.trainer, trainer: state.daemon.node, scores: state.trainer.shadow || [], num_refused: sum(Object.values(state.trainer.refused || {}).map((n) => ({ n })), "n") }] : [];
  fillTable("trainers", TRAINERS, fleet ? fleet.trainers : own);
  fillTable("drafts", DRAFTS, fleet ? fleet.drafts : []);
  fillTable("streams", STREAMS, fleet ? fleet.streams : []);
  renderDrops(state);
  renderDecisions(fleet);
  renderDaemon(state);
  byId("charts-section").hidden = !Charts.draw(byId("charts"), make);
  if (byId("chart-details").open) fillTable("chart-table", CHART_COLUMNS, Charts.rows());
}

// The live region is only written to when it says something else: it is read out.
function renderLive() {
  let text, tone;
  if (lost) {
    [text, tone] = [`Connection lost since ${clockTime(newsAt / 1000)}. What is shown is from then; trying again.`, "bad"];
  } else if (paused) {
    [text, tone] = ["Paused", "quiet"];
  } else if (!newest) {
    [text, tone] = ["Loading ...", "quiet"];
  } else if (newest.daemon.stopping) {
    [text, tone] = ["The daemon is stopping", "bad"];
  } else {
    [text, tone] = newest.ready ? ["Live: ready", "good"] : ["Live: not ready", "bad"];
  }
  const live = byId("live");
  if (live.textContent !== text) live.textContent = text;
  live.className = tone;
  document.body.classList.toggle("stale", lost);
}

function onState(message) {
  const state = JSON.parse(message.data);
  newest = state;
  newsAt = Date.now();
  lost = false;
  Charts.add(state.at, state.point);
  if (!paused) render(state);
  renderLive();
}

function onError() {
  lost = true;
  renderLive();
  // After an answer that is no stream the browser gives up; we do not.
  if (source.readyState === EventSource.CLOSED) setTimeout(again, AGAIN_MS);
}

async function again() {
  try {
    const answer = await fetch("readyz", { cache: "no-store" });
    if (answer.status === 401) {
      location.assign("login");
      return;
    }
  } catch {
    // Still away: the new stream will say so.
  }
  connect();
}

function connect() {
  if (source) source.close();
  source = new EventSource("events");
  source.addEventListener("history", (message) => Charts.begin(JSON.parse(message.data)));
  source.addEventListener("state", onState);
  source.addEventListener("error", onError);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Go on" : "Pause";
  if (!paused && newest) render(newest);
  renderLive();
});
byId("more").addEventListener("click", () => {
  showAll = !showAll;
  byId("more").setAttribute("aria-expanded", String(showAll));
  if (newest) renderDecisions(newest.fleet);
});
byId("kinds").addEventListener("change", () => newest && renderDecisions(newest.fleet));
byId("chart-details").addEventListener("toggle", () => {
  if (byId("chart-details").open) fillTable("chart-table", CHART_COLUMNS, Charts.rows());
});
setInterval(() => {
  if (!lost && Date.now() - newsAt > SILENT_MS) {
    lost = true;
    renderLive();
  }
}, 1000);
connect();
