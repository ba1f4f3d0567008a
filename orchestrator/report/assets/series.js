// From a run's metrics to charts.

// A metric's values by step: the page holds a number where all are the same.
function column(run, name) {
  const values = run.metrics.series[name];
  if (values === undefined) return null;
  return Array.isArray(values) ? values : run.metrics.steps.map(() => values);
}

function line(run, metric, name, color, more = {}) {
  const y = column(run, metric);
  if (!y) return null;
  const band = (side) => {
    const found = (run.metrics[side] || {})[metric];
    return Array.isArray(found) ? found : null;
  };
  return { name, x: run.metrics.steps, y, low: band("low"), high: band("high"), color, ...more };
}

// Four colours that anyone can tell apart, four more in dashes, and so on: no pair of the first 16
// sources shares both.
const dashOf = (i) => DASHES[Math.floor(i / 4) % DASHES.length];

const bySource = (run, key) =>
  run.sources
    .map((name, i) => line(run, `source/${name}/${key}`, name, i % 8, { dash: dashOf(i) }))
    .filter(Boolean);

const last = (ys) => {
  const i = ys ? ys.findLastIndex(isNumber) : -1;
  return i < 0 ? null : ys[i];
};

const resumes = (run) =>
  run.attempts
    .slice(1)
    .filter((a) => isNumber(a.from_step))
    .map((a) => ({
      x: a.from_step + 0.5,
      label: `attempt ${a.attempt} goes on after step ${a.from_step}`,
      calm: true,
    }));

const rollbacks = (run) =>
  run.guards.rollbacks.map((r) => ({
    x: r.step + 0.5,
    label: `guards roll back to the weights of step ${r.to}`,
  }));

const marksOf = (run) => [...resumes(run), ...rollbacks(run)];

// A chart of metrics over the run's steps, or null where none of them was recorded.
function metricChart(run, spec) {
  const series = spec.series.filter((l) => l && l.y.some(isNumber));
  if (!series.length || isQuiet(spec, series)) return null;
  const bucket =
    run.metrics.every > 1
      ? `each point the mean of ${run.metrics.every} steps, band least to greatest`
      : null;
  return chart({
    stride: run.metrics.stride,
    marks: marksOf(run),
    ...spec,
    series,
    note: [spec.note, bucket].filter(Boolean).join("; ") || null,
  });
}

// Whether every value is the one (0 unless told) that needs no chart; it is told in words.
const isQuiet = (spec, series) =>
  spec.quiet !== undefined &&
  series.length > 0 &&
  series.every((l) => l.y.every((v) => !isNumber(v) || v === spec.quiet));

function chartGrid(charts, missing) {
  const there = charts.filter(Boolean);
  return [
    there.length ? h("div", { class: "grid" }, there) : empty("None of this section's metrics was recorded."),
    missing && missing.length
      ? h("p", { class: "small soft" }, `Not recorded in this run: ${missing.join(", ")}.`)
      : null,
  ];
}

function several(run, specs) {
  const known = (spec) => spec.series.filter((l) => l && l.y.some(isNumber));
  const quiet = specs.filter((spec) => isQuiet(spec, known(spec)));
  const missing = specs.filter((spec) => !known(spec).length && !spec.optional);
  const told = quiet.map((spec) => `${spec.title} (${spec.note}) ${(spec.format || fmt.num)(spec.quiet, 0)}`);
  return [
    ...chartGrid(
      specs.map((spec) => metricChart(run, spec)),
      missing.map((spec) => spec.title),
    ),
    told.length
      ? h("p", { class: "small soft" }, `The same in every step, so not drawn: ${told.join("; ")}.`)
      : null,
  ];
}

const RATE = { format: fmt.pct, domain: [0, 1] };
