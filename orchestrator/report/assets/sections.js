// The sections of a run's page. Each takes the run's data and returns what stands under its heading.

// A metric's values by step: the page holds a number where all are the same.
function column(run, name) {
  const values = run.metrics.series[name];
  if (values === undefined) return null;
  return Array.isArray(values) ? values : run.metrics.steps.map(() => values);
}
function line(run, metric, name, color, more = {}) {
  const y = column(run, metric);
  if (!y) return null;
  const band = (side) => { const found = (run.metrics[side] || {})[metric]; return Array.isArray(found) ? found : null; };
  return { name, x: run.metrics.steps, y, low: band("low"), high: band("high"), color, ...more };
}
// Four colours that anyone can tell apart, four more in dashes, and so on: no pair of the first 16
// sources shares both.
const dashOf = (i) => DASHES[Math.floor(i / 4) % DASHES.length];
const bySource = (run, key) => run.sources.map((name, i) => line(run, `source/${name}/${key}`, name, i % 8, { dash: dashOf(i) })).filter(Boolean);
const last = (ys) => { const i = ys ? ys.findLastIndex(isNumber) : -1; return i < 0 ? null : ys[i]; };
const resumes = (run) => run.attempts.slice(1).filter((a) => isNumber(a.from_step)).map((a) => ({ x: a.from_step + 0.5, label: `attempt ${a.attempt} goes on after step ${a.from_step}`, calm: true }));

// A chart of metrics over the run's steps, or null where none of them was recorded.
function metricChart(run, spec) {
  const series = spec.series.filter((l) => l && l.y.some(isNumber));
  if (!series.length || isQuiet(spec, series)) return null;
  const bucket = run.metrics.every > 1 ? `each point the mean of ${run.metrics.every} steps, band least to greatest` : null;
  return chart({ stride: run.metrics.stride, marks: resumes(run), ...spec, series, note: [spec.note, bucket].filter(Boolean).join("; ") || null });
}

// Whether every value is the one (0 unless told) that needs no chart; it is told in words.
const isQuiet = (spec, series) => spec.quiet !== undefined && series.length > 0 && series.every((l) => l.y.every((v) => !isNumber(v) || v === spec.quiet));

function chartGrid(charts, missing) {
  const there = charts.filter(Boolean);
  return [there.length ? h("div", { class: "grid" }, there) : empty("None of this section's metrics was recorded."),
    missing && missing.length ? h("p", { class: "small soft" }, `Not recorded in this run: ${missing.join(", ")}.`) : null];
}

function several(run, specs) {
  const known = (spec) => spec.series.filter((l) => l && l.y.some(isNumber));
  const quiet = specs.filter((spec) => isQuiet(spec, known(spec)));
  const missing = specs.filter((spec) => !known(spec).length && !spec.optional);
  const told = quiet.map((spec) => `${spec.title} (${spec.note}) ${(spec.format || fmt.num)(spec.quiet, 0)}`);
  return [...chartGrid(specs.map((spec) => metricChart(run, spec)), missing.map((spec) => spec.title)),
    told.length ? h("p", { class: "small soft" }, `The same in every step, so not drawn: ${told.join("; ")}.`) : null];
}

const RATE = { format: fmt.pct, domain: [0, 1] };

function learning(run) {
  const parts = new Map();
  for (const name of Object.keys(run.metrics.series)) {
    const found = /^source\/(.+)\/all\/reward_part\/([^/]+)$/.exec(name);
    if (found) parts.set(found[2], (parts.get(found[2]) || 0) + 1);
  }
  const per = (id, title, note, more = {}) => ({ id, title, note, series: bySource(run, id), ...more });
  const policy = (id, title, note, more = {}) => ({ id, title, note, series: [line(run, `train/${id}`, title.toLowerCase(), 0)], steady: id === "lr", ...more });
  return several(run, [
    per("all/reward/mean", "Reward", "mean of valid rollouts"),
    per("all/pass@1", "Pass rate", "of training rollouts", RATE),
    per("all/length/mean", "Length", "completion tokens, mean"),
    per("all/truncated", "Cut off", "rollouts that the token limit ended", { ...RATE, quiet: 0 }),
    per("all/zero_variance", "Without contrast", "groups in which no token has an advantage", { ...RATE, quiet: 0 }),
    per("all/invalid", "Invalid", "rollouts without a reward", { ...RATE, quiet: 0 }),
    ...(parts.size > 1 ? [...parts.keys()].sort().map((part) => per(`all/reward_part/${part}`, `Reward part: ${part}`, "mean, before gates and weight", { optional: true })) : []),
    per("all/gold/mean", "Gold score", "a stricter grader, on a slice of rollouts", { optional: true }),
    per("difficulty/live", "Live items", "that the difficulty window lets come", { optional: true }),
    policy("entropy", "Entropy", "of the policy, nats a token"),
    policy("kl_ref", "KL to the reference", "nats a token"),
    policy("loss", "Loss", null),
    policy("grad_norm", "Gradient norm", "before clipping"),
    { id: "clip", title: "Clipped tokens", note: "share of loss tokens", quiet: 0, format: (v, d) => fmt.pct(v, d === 0 ? 1 : 2), series: [line(run, "train/clip/low", "below", 0), line(run, "train/clip/high", "above", 1, { dash: DASHES[1] })] },
    policy("lr", "Learning rate", null),
    policy("value_loss", "Value loss", "of the critic", { optional: true }),
  ]);
}

function heldOut(run) {
  if (!run.eval.length) return [empty("No evaluation was recorded. eval.every, eval.at_start and eval.at_end say when there are some.")];
  const rows = run.sources.map((name) => run.eval.filter((r) => r.source === name && isNumber(r.step)));
  const lines = rows.map((own, i) => ({ name: run.sources[i], x: own.map((r) => r.step), y: own.map((r) => (isNumber(r.pass_rate) ? r.pass_rate : null)),
    low: own.map((r) => r.pass_rate_low), high: own.map((r) => r.pass_rate_high), color: i % 8, dash: dashOf(i), points: true })).filter((l) => l.x.length);
  return [
    h("div", { class: "grid" },
      chart({ id: "held-out", title: "Held-out pass rate", note: "with its 95% interval", series: lines, ...RATE, height: 250, marks: resumes(run) }),
      beforeAfter(run)),
    spikinessTable(run)];
}

function beforeAfter(run) {
  const rows = [...run.standings].sort((a, b) => run.sources.indexOf(a.source) - run.sources.indexOf(b.source));
  const cell = (m) => h("span", {}, fmt.pct(m.rate), h("br"), h("span", { class: "soft small" }, `${fmt.pct(m.low, 0)} to ${fmt.pct(m.high, 0)}`));
  const bar = (st) => {
    const x = (v) => 4 + 152 * v;
    const i = run.sources.indexOf(st.source), a = st.start.rate, b = st.now.rate;
    return s("svg", { viewBox: "0 0 160 22", width: 160, height: 22, class: `s${i % 8}`, role: "img", "aria-label": `from ${fmt.pct(a)} to ${fmt.pct(b)}` },
      s("line", { class: "gridline", x1: x(0), x2: x(1), y1: 11, y2: 11 }),
      isNumber(st.now.low) && s("rect", { class: "band", x: x(st.now.low), width: x(st.now.high) - x(st.now.low), y: 4, height: 14, rx: 4 }),
      s("line", { class: "ln", x1: x(a), x2: x(b), y1: 11, y2: 11 }), s("circle", { class: "pt hollow", cx: x(a), cy: 11, r: 4 }), s("circle", { class: "pt", cx: x(b), cy: 11, r: 4.6 }));
  };
  return h("div", { class: "panel" }, h("h3", {}, "Before and after"),
    rows.length ? table(["source", "first", "latest", "change", ""],
      rows.map((st) => [h("span", {}, swatch(run.sources.indexOf(st.source)), st.source), cell(st.start), cell(st.now),
        changeCell(st.since_start, st.start.stderr, st.now.stderr), bar(st)]),
      { caption: "Pass rates in percent, change in points; ring first, disc latest, shade its 95% interval; coloured beyond two standard errors." })
      : empty("No evaluation had a valid rollout."));
}

function spikinessTable(run) {
  if (!run.standings.length) return null;
  const report = run.spikiness || {}, bound = run.max_regression;
  return panel(h("h3", {}, "Spikiness: worst regression first"),
    h("p", { class: "small soft" }, `The worst fall of a source below its own best is ${fmt.num(100 * report["eval/spikiness"])} points; the sources' changes since the first evaluation lie ${fmt.num(100 * report["eval/spread"])} points apart. `,
      isNumber(bound) ? `A fall of more than ${fmt.num(100 * bound)} points beyond its standard error is a regression.` : "No bound is set (eval.max_regression)."),
    table(["source", "latest", "best", "at step", "below best", "standard error", "since first", "items × samples", "training − held-out", ""],
      run.standings.map((st) => [h("span", {}, swatch(run.sources.indexOf(st.source)), st.source), fmt.pct(st.now.rate), fmt.pct(st.best.rate), fmt.int(st.best.step),
        fmt.signed(st.since_best), isNumber(st.stderr) ? fmt.num(100 * st.stderr) : "–", fmt.signed(st.since_start),
        `${fmt.int(st.now.items)} × ${fmt.int(st.now.settings[1])}`, isNumber(st.now.gap) ? fmt.signed(st.now.gap) : "–",
        st.regressed ? { text: "regressed", class: "bad" } : "holds"])));
}

function mix(run) {
  const found = [];
  const ledger = run.ledger;
  if (ledger) {
    const unit = { groups: "groups", samples: "samples", loss_tokens: "tokens", tokens: "tokens" }[ledger.unit] || "groups";
    const share = (amount) => h("span", {}, fmt.pct(amount.share[unit]), h("br"), h("span", { class: "soft small" }, fmt.int(amount[unit])));
    found.push(panel(h("h3", {}, `Shares, in ${unit === "tokens" ? "tokens" : unit}`),
      table(["source", "due", "dispatched", "accepted", "trained", "trained − due", "in flight", "survival", "rejected"],
        Object.entries(ledger.sources).map(([name, own]) => {
          const i = run.sources.indexOf(name), gap = own.trained.share[unit] - own.target_share;
          return [h("span", {}, swatch(i < 0 ? 8 : i), name), h("span", {}, fmt.pct(own.target_share), meter(own.target_share, i)), share(own.dispatched), share(own.accepted),
            h("span", {}, share(own.trained), meter(own.trained.share[unit], i)), fmt.signed(gap, 2), fmt.int(own.in_flight), fmt.pct(own.survival),
            Object.entries(own.rejected).map(([why, n]) => `${fmt.int(n)} ${why.replace("_", " ")}`).join(", ") || "none"];
        }), { text: [8], caption: "From the ledger; shares of all sources' amount, with the amount beneath. Tokens are all sampled ones where dispatched, else loss tokens." }),
      h("p", { class: "small" }, ledger.balanced ? h("span", { class: "pill good" }, "balanced") : h("span", { class: "pill bad" }, "does not add up"),
        ledger.balanced ? " dispatched = trained + rejected + in flight, nothing trained twice" : ` ${[...ledger.faults, ...ledger.lost].slice(0, 8).join("; ")}`)));
  } else found.push(empty("There is no readable ledger, so what was dispatched, accepted and trained is not known."));
  const unit = ledger ? ledger.unit : "groups";
  const due = run.sources.map((n, i) => line(run, `source/${n}/total/share/target`, `${n}, due`, i % 8, { dash: "2 3" }));
  const had = run.sources.map((n, i) => line(run, `source/${n}/total/share/${unit}`, n, i % 8));
  const reasons = Object.keys(run.metrics.series).filter((n) => n.startsWith("ledger/rejected/") && (column(run, n) || []).some((v) => v > 0));
  found.push(...several(run, [
    { id: "shares", title: "Share so far", note: `of ${unit.replace("_", " ")}; dotted what was due`, series: [...had, ...due], format: fmt.pct, steady: true },
    { id: "survival", title: "Survival", note: "groups trained on, of those graded for the step", series: bySource(run, "survival"), ...RATE, quiet: 1 },
    { id: "ledger", title: "Groups so far", series: [line(run, "ledger/dispatched", "dispatched", 0), line(run, "ledger/trained", "trained", 2, { dash: DASHES[1] }), line(run, "ledger/in_flight", "in flight", 1, { dash: DASHES[2] })], steady: true },
    { id: "rejected", title: "Groups rejected so far", series: reasons.map((n, i) => line(run, n, n.split("/").pop().replace("_", " "), i)), steady: true, optional: true },
  ]));
  if (run.mix_edits.length) found.push(panel(h("h3", {}, "Edits while it ran"), h("pre", { class: "box" }, run.mix_edits.map((e) => JSON.stringify(e)).join("\n"))));
  return found;
}

const ROLES = [
  ["engines: generate", /^generate$/], ["trainer: train", /^(train|critic.*|value.*)$/], ["reference: score", /^reference$/], ["graders, beyond generation", /^grade$/],
  ["weight sync", /^sync/], ["evaluation", /^evaluate$/], ["checkpoints", /^checkpoint$/], ["driver: dispatch, pack, log", /^(dispatch|pack|log)$/], ["idle, and other", /./],
];

function time(run) {
  const phases = Object.keys(run.metrics.series).filter((n) => n.startsWith("time/") && n !== "time/step");
  const layers = ROLES.map(([name], i) => ({ name, x: run.metrics.steps, y: run.metrics.steps.map(() => 0), color: i, area: true }));
  for (const phase of phases) {
    const at = ROLES.findIndex(([, test]) => test.test(phase.slice(5)));
    column(run, phase).forEach((v, i) => { layers[at].y[i] += v || 0; });
  }
  const there = layers.filter((l) => l.y.some((v) => v > 0));
  const total = (l) => l.y.reduce((a, b) => a + b, 0);
  const whole = there.reduce((sum, l) => sum + total(l), 0);
  if (!there.length) return [empty("No times were recorded.")];
  const scale = run.metrics.every;
  const split = h("span", { class: "meter split", "aria-hidden": "true" }, there.map((l) => { const i = h("i", { class: `s${l.color}`, title: l.name }); i.style.width = `${(100 * total(l)) / whole}%`; return i; }));
  const ranked = [...there].sort((a, b) => total(b) - total(a));
  return [h("div", { class: "grid" },
    chart({ id: "time", title: "Time of a step", note: scale > 1 ? `mean of ${scale} steps` : "by who the others waited for", series: there, stacked: true, bars: true, stride: run.metrics.stride, format: (v) => fmt.time(v), legend: true, height: 250 }),
    panel(h("h3", {}, "By role"), split, table(["waited for", "in all", "share", "a step"], ranked.map((l) => [h("span", {}, swatch(l.color), l.name), fmt.time(total(l) * scale), fmt.pct(total(l) / whole), fmt.time(total(l) / l.y.length)]),
      { caption: "Each moment counts once, for the phase that the others waited for." }))),
  ...chartGrid([metricChart(run, { id: "tps", title: "Completion tokens a second", note: "of trained groups, by wall time", series: [line(run, "completion_tokens_per_s", "tokens/s", 0)] }),
    metricChart(run, { id: "generate_s", title: "Seconds to sample a group", series: bySource(run, "all/generate_s"), format: fmt.time }),
    metricChart(run, { id: "grade_s", title: "Seconds to grade a group", series: bySource(run, "all/grade_s"), format: fmt.time })])];
}

function policySync(run) {
  const sync = (run.config.weight_sync || {});
  const versions = asList((run.log || {}).checks);
  const own = (metric, name, color, more) => line(run, metric, name, color, more);
  const gaps = [own("sync/logprob_gap_median", "median", 0, { points: true }), own("sync/logprob_gap_max", "largest", 1, { points: true, dash: DASHES[1] })];
  const syncTimes = ["gather", "send", "load", "control", "verify"].map((n, i) => own(`time/sync_${n}`, n, i, { area: true })).filter(Boolean).map((l) => ({ ...l, y: l.y.map((v) => v || 0) }));
  const bytes = column(run, "sync/bytes");
  const count = bytes ? bytes.filter(isNumber).length * run.metrics.every : 0;
  return [
    ...chartGrid([
      metricChart(run, { id: "stale", title: "Staleness", note: "versions between sampling and training", series: [own("staleness/mean", "mean", 0), own("staleness/max", "largest", 1, { dash: DASHES[1] })], steady: true }),
      metricChart(run, { id: "stale-source", title: "Staleness by source", note: "mean over trained groups", series: bySource(run, "trained/staleness/mean"), steady: true }),
      metricChart(run, { id: "mismatch-kl", title: "Sampler mismatch: KL", note: "between the engines' and the trainer's probabilities", series: [own("train/mismatch/kl", "KL", 0)] }),
      metricChart(run, { id: "mismatch-gap", title: "Sampler mismatch: largest gap", note: "of a token's logprob, or of its probability", series: [own("train/mismatch/max_gap", "logprob, largest", 1), own("train/mismatch/prob_diff", "probability, mean", 0, { dash: DASHES[1] })], log: true }),
      metricChart(run, { id: "mismatch-ess", title: "Effective share of tokens", note: "under importance weights", series: [own("train/mismatch/ess", "share", 2)], format: fmt.pct }),
      metricChart(run, { id: "gap", title: "Agreement after a weight sync", note: "logprob gap, engine − trainer, same weights; a ring is 0", series: gaps, log: true,
        refs: [{ y: sync.max_logprob_gap_median, label: "bound of the median" }, { y: sync.max_logprob_gap_max, label: "bound of the largest" }] }),
      syncTimes.length ? chart({ id: "sync-time", title: "Time of a weight sync", series: syncTimes, stacked: true, bars: true, stride: run.metrics.stride, format: fmt.time, legend: true }) : null,
      panel(h("h3", {}, "Weight syncs"),
      h("p", { class: "small" }, `${fmt.int(count)} syncs in the trained steps, of ${fmt.bytes(last(bytes))} each. Checksums of drawn tensors are compared at every one; a sync that does not agree ends the run. `,
        versions.length ? `Logprob agreement was checked ${fmt.int(versions.length)} times in the log, all attempts counted; the largest gap was ${fmt.num(Math.max(...versions.map((v) => v.largest)))}.` : "No logprob agreement check was found in the log."),
      asList((run.log || {}).syncs).length ? h("p", { class: "small soft mono" }, run.log.syncs[run.log.syncs.length - 1]) : null,
      versions.length ? h("details", {}, h("summary", {}, "Every check"), table(["version", "median gap", "largest gap", "tokens"], versions.map((v) => [fmt.int(v.version), fmt.num(v.median), fmt.num(v.largest), fmt.int(v.tokens)]), { tall: true })) : null),
    ])];
}
