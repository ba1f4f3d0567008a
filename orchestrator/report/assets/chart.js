// Charts in SVG. A step that is not there is a gap; a value that is not there is not drawn; axes of
// rates go from 0 to 1; smoothing draws the raw line too; a bucket of steps shows least and greatest.
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const charts = new Set();

function smooth(ys, weight) {
  // Exponential moving average of the values that are there, without a bias to its start.
  let mean = 0,
    mass = 0;
  return ys.map((y) => {
    if (!isNumber(y)) return null;
    mean = mean * weight + y * (1 - weight);
    mass = mass * weight + (1 - weight);
    return mean / mass;
  });
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) || power * 10;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Runs of neighbouring points, broken where a value or a step is missing.
function pieces(xs, ys, stride) {
  const found = [];
  let run = [];
  xs.forEach((x, i) => {
    const torn = run.length && x - xs[run[run.length - 1]] > stride * 1.5;
    if (!isNumber(ys[i]) || torn) {
      if (run.length) found.push(run);
      run = [];
    }
    if (isNumber(ys[i])) run.push(i);
  });
  if (run.length) found.push(run);
  return found;
}

const keySwatch = (series) =>
  s(
    "svg",
    { viewBox: "0 0 20 10", "aria-hidden": "true", class: `s${series.color % 9}` },
    series.area
      ? s("rect", { class: "bar", x: 3, y: 0, width: 14, height: 10, rx: 3 })
      : s("path", { class: "ln", d: "M1 5H19", "stroke-dasharray": series.dash || null }),
  );

/* spec: {id, title, note, series: [{name, x, y, low, high, color, dash, points, area}], stride, format,
   domain, log, refs: [{y, label}], marks: [{x, label, calm}], stacked, steady} */
function chart(spec) {
  const hidden = state.hidden.get(spec.id) || new Set();
  state.hidden.set(spec.id, hidden);
  const plot = h("div", { class: "plot", tabindex: 0, role: "group", "aria-label": describe(spec) });
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  const me = {
    spec,
    plot,
    tip,
    hidden,
    step: null,
    xs: [...new Set(spec.series.flatMap((l) => l.x))].sort((a, b) => a - b),
  };
  const buttons = spec.series.map((line) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(!hidden.has(line.name)),
        title: "Click: show or hide. Double-click: this one alone.",
        onclick: () => toggle(me, line.name),
        ondblclick: () => alone(me, line.name),
      },
      keySwatch(line),
      line.name,
    ),
  );
  me.buttons = buttons;
  const rows = h("details", {}, h("summary", {}, "Values as a table"));
  rows.addEventListener("toggle", () => {
    if (rows.open && rows.children.length < 2) rows.append(valueTable(spec));
  });
  const figure = h(
    "figure",
    { class: "panel", "data-chart": spec.id },
    h("figcaption", {}, h("h3", {}, spec.title), h("span", { class: "soft" }, spec.note || "")),
    plot,
    spec.series.length > 1 || spec.legend ? h("div", { class: "legend" }, buttons) : null,
    rows,
  );
  plot.addEventListener("pointermove", (event) => point(me, event));
  plot.addEventListener("pointerleave", () => charts.forEach((c) => cross(c, null)));
  plot.addEventListener("blur", () => charts.forEach((c) => cross(c, null)));
  plot.addEventListener("keydown", (event) => walk(me, event));
  me.observer = new ResizeObserver(() => {
    if (plot.clientWidth !== me.width) draw(me);
  });
  me.observer.observe(plot);
  charts.add(me);
  figure.release = () => {
    me.observer.disconnect();
    charts.delete(me);
  };
  return figure;
}

function describe(spec) {
  const last = spec.series.map((l) => {
    const i = l.y.findLastIndex(isNumber);
    return i < 0 ? `${l.name}: nothing` : `${l.name}: ${(spec.format || fmt.num)(l.y[i])} at step ${l.x[i]}`;
  });
  return `Chart: ${spec.title}. Last values: ${last.slice(0, 8).join("; ")}. Left and right arrows read its values.`;
}

function toggle(me, name) {
  me.hidden.has(name) ? me.hidden.delete(name) : me.hidden.add(name);
  press(me);
}
function alone(me, name) {
  const others = me.spec.series.map((l) => l.name).filter((n) => n !== name);
  const is = others.every((n) => me.hidden.has(n)) && !me.hidden.has(name);
  me.hidden.clear();
  if (!is) others.forEach((n) => me.hidden.add(n));
  press(me);
}
function press(me) {
  me.spec.series.forEach((line, i) =>
    me.buttons[i].setAttribute("aria-pressed", String(!me.hidden.has(line.name))),
  );
  draw(me);
}

function layout(me, lines) {
  const { spec } = me;
  const width = Math.max(220, me.plot.clientWidth || 420),
    height = spec.height || 216;
  const box = { left: 46, right: 12, top: 8, bottom: 24 };
  const x0 = me.xs[0] ?? 0,
    x1 = me.xs[me.xs.length - 1] ?? 1;
  const [low, high] = bounds(spec, lines);
  const span = spec.bars ? 0.5 * (spec.stride || 1) : 0;
  const a = x0 - span,
    b = x1 + span > a ? x1 + span : a + 1;
  const sx = (x) => box.left + ((x - a) / (b - a)) * (width - box.left - box.right);
  const f = spec.log ? Math.log10 : (v) => v;
  const sy = (y) =>
    height - box.bottom - ((f(y) - f(low)) / (f(high) - f(low))) * (height - box.top - box.bottom);
  return { width, height, box, sx, sy, low, high, a, b };
}

function bounds(spec, lines) {
  if (spec.domain) return spec.domain;
  let values = lines
    .flatMap((l) => [...l.y, ...(l.low || []), ...(l.high || [])])
    .concat((spec.refs || []).map((r) => r.y))
    .filter(isNumber);
  if (spec.stacked) {
    const sums = sumsOf(lines);
    values = [0, ...sums];
  }
  if (spec.log) values = values.filter((v) => v > 0);
  if (!values.length) return spec.log ? [0.1, 1] : [0, 1];
  let low = values.reduce((a, b) => Math.min(a, b)),
    high = values.reduce((a, b) => Math.max(a, b));
  if (spec.log)
    return [
      10 ** Math.floor(Math.log10(low)),
      10 ** Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(low)) + 1),
    ];
  if (spec.stacked) return [0, high > 0 ? high * 1.05 : 1];
  if (low >= 0 && low < 0.6 * high) low = 0;
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const room = (high - low) * 0.06;
  return [low === 0 ? 0 : low - room, high + room];
}

const sumsOf = (lines) =>
  lines[0] ? lines[0].y.map((_, i) => lines.reduce((sum, l) => sum + (l.y[i] || 0), 0)) : [];

function draw(me) {
  const { spec, plot } = me;
  const lines = spec.series.filter((l) => !me.hidden.has(l.name));
  const at = layout(me, lines);
  me.at = at;
  me.width = plot.clientWidth;
  const svg = s("svg", { viewBox: `0 0 ${at.width} ${at.height}`, height: at.height, "aria-hidden": "true" });
  axes(svg, spec, at);
  for (const mark of spec.marks || []) {
    if (mark.x < at.a || mark.x > at.b) continue;
    svg.append(
      s(
        "line",
        {
          class: mark.calm ? "mark calm" : "mark",
          x1: at.sx(mark.x),
          x2: at.sx(mark.x),
          y1: at.box.top,
          y2: at.height - at.box.bottom,
        },
        s("title", {}, mark.label),
      ),
    );
  }
  for (const ref of spec.refs || []) {
    if (!isNumber(ref.y) || ref.y < at.low || ref.y > at.high) continue;
    svg.append(
      s("line", {
        class: "ref",
        x1: at.box.left,
        x2: at.width - at.box.right,
        y1: at.sy(ref.y),
        y2: at.sy(ref.y),
      }),
      s("text", { x: at.width - at.box.right, y: at.sy(ref.y) - 4, "text-anchor": "end" }, ref.label),
    );
  }
  if (spec.stacked) bars(svg, spec, lines, at);
  else for (const line of lines) trace(svg, spec, line, at);
  if (!lines.some((l) => l.y.some(isNumber))) {
    svg.append(
      s(
        "text",
        { x: at.width / 2, y: at.height / 2, "text-anchor": "middle" },
        lines.length ? "no values" : "all hidden",
      ),
    );
  }
  me.cross = s("line", {
    class: "cross",
    y1: at.box.top,
    y2: at.height - at.box.bottom,
    visibility: "hidden",
  });
  svg.append(me.cross);
  plot.replaceChildren(svg, me.tip);
}

function axes(svg, spec, at) {
  const format = spec.format || fmt.num;
  const ys = spec.log ? logTicks(at.low, at.high) : ticks(at.low, at.high, 4);
  for (const y of ys) {
    svg.append(
      s("line", {
        class: "gridline",
        x1: at.box.left,
        x2: at.width - at.box.right,
        y1: at.sy(y),
        y2: at.sy(y),
      }),
      s(
        "text",
        { x: at.box.left - 7, y: at.sy(y) + 4, "text-anchor": "end" },
        spec.log ? y.toExponential(0).replace("e+", "e") : format(y, 0),
      ),
    );
  }
  const xs = ticks(at.a, at.b, Math.min(8, at.width / 70)).filter(
    (x) => Number.isInteger(x) && x >= at.a && x <= at.b && at.sx(x) > at.box.left + 14,
  );
  for (const x of xs)
    svg.append(s("text", { x: at.sx(x), y: at.height - 6, "text-anchor": "middle" }, fmt.int(x)));
  svg.append(s("text", { x: at.box.left - 7, y: at.height - 6, "text-anchor": "end" }, "step"));
  svg.append(
    s("line", {
      class: "axis",
      x1: at.box.left,
      x2: at.width - at.box.right,
      y1: at.height - at.box.bottom,
      y2: at.height - at.box.bottom,
    }),
  );
}

function logTicks(low, high) {
  const from = Math.round(Math.log10(low)),
    to = Math.round(Math.log10(high));
  const every = Math.max(1, Math.ceil((to - from) / 5));
  return Array.from({ length: Math.floor((to - from) / every) + 1 }, (_, i) => 10 ** (from + i * every));
}

function trace(svg, spec, line, at) {
  const group = s("g", { class: `s${line.color % 9}` });
  const usable = line.y.map((y) => (isNumber(y) && (!spec.log || y > 0) ? y : null));
  const weight = spec.steady || line.points ? 0 : state.smoothing;
  const stride = line.points ? Infinity : spec.stride || 1;
  const path = (ys) =>
    pieces(line.x, ys, stride)
      .map((run) =>
        run
          .map((i, n) => `${n ? "L" : "M"}${at.sx(line.x[i]).toFixed(1)} ${at.sy(ys[i]).toFixed(1)}`)
          .join(""),
      )
      .join("");
  if (line.low && line.high) {
    for (const run of pieces(line.x, usable, stride)) {
      const there = run.filter((i) => isNumber(line.low[i]) && isNumber(line.high[i]));
      if (line.points)
        for (const i of there)
          group.append(
            s("line", {
              class: "ci",
              x1: at.sx(line.x[i]),
              x2: at.sx(line.x[i]),
              y1: at.sy(line.low[i]),
              y2: at.sy(line.high[i]),
            }),
          );
      else if (there.length > 1) {
        const up = there.map((i) => `${at.sx(line.x[i]).toFixed(1)} ${at.sy(line.high[i]).toFixed(1)}`);
        const down = [...there]
          .reverse()
          .map((i) => `${at.sx(line.x[i]).toFixed(1)} ${at.sy(line.low[i]).toFixed(1)}`);
        group.append(s("path", { class: "band", d: `M${up.join("L")}L${down.join("L")}Z` }));
      }
    }
  }
  if (weight > 0) group.append(s("path", { class: "ln raw", d: path(usable) }));
  const shown = weight > 0 ? smooth(usable, weight) : usable;
  group.append(s("path", { class: "ln", d: path(shown), "stroke-dasharray": line.dash || null }));
  for (const run of pieces(line.x, shown, stride)) {
    if (run.length === 1 || line.points)
      for (const i of run)
        group.append(
          s("circle", { class: "pt", cx: at.sx(line.x[i]), cy: at.sy(shown[i]), r: line.points ? 3.2 : 2.4 }),
        );
  }
  if (spec.log)
    line.y.forEach((y, i) => {
      // zero has no place on a logarithmic axis: a ring at its foot
      if (y === 0)
        group.append(
          s("circle", { class: "pt hollow", cx: at.sx(line.x[i]), cy: at.height - at.box.bottom, r: 3 }),
        );
    });
  svg.append(group);
}

function bars(svg, spec, lines, at) {
  const wide = Math.max(1, (at.sx(at.a + (spec.stride || 1)) - at.sx(at.a)) * 0.86);
  (lines[0] ? lines[0].x : []).forEach((x, i) => {
    let base = 0;
    for (const line of lines) {
      const y = line.y[i];
      if (!isNumber(y) || y <= 0) continue;
      svg.append(
        s("rect", {
          class: `bar s${line.color % 9}`,
          x: (at.sx(x) - wide / 2).toFixed(1),
          width: wide.toFixed(1),
          y: at.sy(base + y).toFixed(1),
          height: Math.max(0, at.sy(base) - at.sy(base + y)).toFixed(1),
        }),
      );
      base += y;
    }
  });
}

function point(me, event) {
  if (!me.at || !me.xs.length) return;
  const rect = me.plot.getBoundingClientRect();
  const share =
    ((event.clientX - rect.left) * (me.at.width / rect.width) - me.at.box.left) /
    (me.at.width - me.at.box.left - me.at.box.right);
  show(me, nearest(me.xs, me.at.a + share * (me.at.b - me.at.a)));
}
function walk(me, event) {
  const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
  if (event.key === "Escape") charts.forEach((c) => cross(c, null));
  if (!by || !me.xs.length) return;
  event.preventDefault();
  const now = me.step === null ? me.xs.length - (by < 0 ? 0 : 1) : me.xs.indexOf(me.step);
  show(me, me.xs[Math.max(0, Math.min(me.xs.length - 1, now + by))]);
}
const nearest = (xs, x) =>
  xs.reduce((best, each) => (Math.abs(each - x) < Math.abs(best - x) ? each : best), xs[0]);

function show(me, step) {
  for (const other of charts) cross(other, step);
  const { spec, at, tip } = me;
  const format = spec.format || fmt.num;
  const rows = spec.series
    .filter((l) => !me.hidden.has(l.name))
    .map((line) => {
      const i = line.x.indexOf(step);
      const weight = spec.steady || line.points || spec.stacked ? 0 : state.smoothing;
      const range =
        i >= 0 && line.low && isNumber(line.low[i])
          ? ` (${format(line.low[i])} to ${format(line.high[i])})`
          : "";
      const value = i < 0 || !isNumber(line.y[i]) ? "–" : format(line.y[i]) + range;
      return h(
        "tr",
        {},
        h("td", {}, swatch(line.color), line.name),
        h("td", {}, value),
        weight > 0 && h("td", { class: "soft" }, i < 0 ? "" : format(smooth(line.y, weight)[i])),
      );
    });
  const sum = spec.stacked
    ? h(
        "tr",
        {},
        h("td", {}, "in all"),
        h(
          "td",
          {},
          format(sumsOf(spec.series.filter((l) => !me.hidden.has(l.name)))[spec.series[0].x.indexOf(step)]),
        ),
      )
    : null;
  tip.replaceChildren(h("b", {}, `step ${fmt.int(step)}`), h("table", {}, h("tbody", {}, rows, sum)));
  tip.hidden = false;
  const x = at.sx(step) * (me.plot.clientWidth / at.width),
    own = tip.offsetWidth;
  tip.style.left = `${x + own + 16 > me.plot.clientWidth ? Math.max(0, x - own - 12) : x + 12}px`;
  tip.style.top = "4px";
}

function cross(me, step) {
  me.step = step;
  if (step === null) me.tip.hidden = true;
  if (!me.cross) return;
  const inside = step !== null && step >= me.at.a && step <= me.at.b;
  me.cross.setAttribute("visibility", inside ? "visible" : "hidden");
  if (!inside) return;
  me.cross.setAttribute("x1", me.at.sx(step));
  me.cross.setAttribute("x2", me.at.sx(step));
}

function valueTable(spec) {
  const xs = [...new Set(spec.series.flatMap((l) => l.x))].sort((a, b) => a - b);
  const places = spec.series.map((l) => new Map(l.x.map((x, i) => [x, i])));
  return table(
    ["step", ...spec.series.map((l) => l.name)],
    xs.map((x) => [
      fmt.int(x),
      ...spec.series.map((l, n) =>
        places[n].has(x) ? (spec.format || fmt.num)(l.y[places[n].get(x)]) : "–",
      ),
    ]),
    { tall: true },
  );
}

const redrawAll = () => charts.forEach(draw);
