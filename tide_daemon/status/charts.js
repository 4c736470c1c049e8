// The charts: lines over the last half hour, from points [unix seconds, {name: number}]. Plain SVG, no library.
"use strict";

const CHARTS = [
  { id: "accept", title: "Accept length", unit: "tokens a verify step", floor: 1, lines: [["accept_length", "accept length"]] },
  {
    id: "tokens", title: "Tokens a second of decoding", unit: "tokens/s", floor: 0,
    lines: [["tokens_per_s", "as it is"], ["plain_tokens_per_s", "plain, by the cost model"]],
  },
  { id: "loss", title: "Training loss", unit: "nats", floor: 0, lines: [["loss", "loss"]] },
  { id: "waiting", title: "Waiting for a trainer", unit: "chunks", floor: 0, lines: [["waiting", "waiting"]] },
];
const KEPT_S = 1800;
const GAP_S = 12;
const SVG = "http://www.w3.org/2000/svg";

const Charts = (() => {
  let points = [];

  // The daemon's own history after a (re)connection; what this page saw before a restart is kept.
  function begin(history) {
    const first = history.length ? history[0][0] : Infinity;
    points = points.filter(([at]) => at < first).concat(history);
  }

  function add(at, point) {
    const last = points.length ? points[points.length - 1][0] : 0;
    if (at - last >= 1) points.push([at, point]);
    const oldest = at - KEPT_S;
    while (points.length && points[0][0] < oldest) points.shift();
  }

  const valuesOf = (name) => points.filter(([, p]) => p[name] !== undefined).map(([, p]) => p[name]);
  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 2 : 0 });
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

  function path(name, from, to, low, high) {
    const parts = [];
    let before = null;
    for (const [at, point] of points) {
      const value = point[name];
      if (value === undefined) { before = null; continue; }
      const x = (600 * (at - from)) / Math.max(1, to - from);
      const y = 116 - (112 * (value - low)) / (high - low);
      parts.push(`${before === null || at - before > GAP_S ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`);
      before = at;
    }
    return parts.join("");
  }

  function makeFigure(chart, make) {
    const figure = make("figure");
    figure.id = `chart-${chart.id}`;
    const plot = make("div", undefined, "plot");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 600 120");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-labelledby", `caption-${chart.id}`);
    chart.lines.forEach(([name], index) => {
      const line = document.createElementNS(SVG, "path");
      line.dataset.name = name;
      if (index) line.classList.add("second");
      svg.append(line);
    });
    const times = make("div", undefined, "times");
    times.append(make("span"), make("span"));
    plot.append(make("span", "", "top"), svg, make("span", "", "bottom"), times);
    const caption = make("figcaption");
    caption.id = `caption-${chart.id}`;
    caption.append(make("strong", `${chart.title}, ${chart.unit}`));
    chart.lines.forEach(([, label], index) => {
      const words = make("span", "", "series");
      caption.append(make("span", undefined, index ? "key second" : "key"), words, make("br"));
      words.dataset.label = label;
    });
    figure.append(caption, plot);
    return figure;
  }

  function set(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // Draws into `holder`; returns whether there is anything to see.
  function draw(holder, make) {
    const from = points.length ? points[0][0] : 0;
    const to = points.length ? points[points.length - 1][0] : 1;
    let any = false;
    for (const chart of CHARTS) {
      const all = chart.lines.flatMap(([name]) => valuesOf(name));
      let figure = document.getElementById(`chart-${chart.id}`);
      if (all.length < 2) {
        if (figure) figure.remove();
        continue;
      }
      any = true;
      if (!figure) holder.append((figure = makeFigure(chart, make)));
      const low = Math.min(chart.floor, ...all);
      const high = Math.max(low + 0.1, ...all);
      figure.querySelectorAll("path").forEach((line) => line.setAttribute("d", path(line.dataset.name, from, to, low, high)));
      set(figure.querySelector(".top"), number(high));
      set(figure.querySelector(".bottom"), number(low));
      const [left, right] = figure.querySelectorAll(".times span");
      set(left, clock(from));
      set(right, clock(to));
      figure.querySelectorAll(".series").forEach((words, index) => {
        const values = valuesOf(chart.lines[index][0]);
        const text = values.length
          ? `now ${number(values[values.length - 1])}, from ${number(Math.min(...values))} to ${number(Math.max(...values))}`
          : "nothing yet";
        set(words, `${words.dataset.label}: ${text}`);
      });
    }
    return any;
  }

  // About a row a minute, newest first, for those who cannot see the lines.
  function rows() {
    const found = [];
    for (let index = points.length - 1; index >= 0; index -= 1) {
      if (!found.length || found[found.length - 1].at - points[index][0] >= 60) found.push({ at: points[index][0], ...points[index][1] });
    }
    return found;
  }

  const columns = CHARTS.flatMap((chart) => chart.lines.map(([name, label]) => ({ head: `${chart.title}: ${label}`, name })));
  return { begin, add, draw, rows, columns, number, clock };
})();
