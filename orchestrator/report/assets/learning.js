// What was learnt: training's curves, held-out rates, and how unevenly the sources fare.

function learning(run) {
  const parts = new Map();
  for (const name of Object.keys(run.metrics.series)) {
    const found = /^source\/(.+)\/all\/reward_part\/([^/]+)$/.exec(name);
    if (found) parts.set(found[2], (parts.get(found[2]) || 0) + 1);
  }
  const per = (id, title, note, more = {}) => ({ id, title, note, series: bySource(run, id), ...more });
  const policy = (id, title, note, more = {}) => ({
    id,
    title,
    note,
    series: [line(run, `train/${id}`, title.toLowerCase(), 0)],
    steady: id === "lr",
    ...more,
  });
  return several(run, [
    per("all/reward/mean", "Reward", "mean of valid rollouts"),
    per("all/pass@1", "Pass rate", "of training rollouts", RATE),
    per("all/length/mean", "Length", "completion tokens, mean"),
    per("all/truncated", "Cut off", "rollouts that the token limit ended", { ...RATE, quiet: 0 }),
    per("all/zero_variance", "Without contrast", "groups in which no token has an advantage", {
      ...RATE,
      quiet: 0,
    }),
    per("all/invalid", "Invalid", "rollouts without a reward", { ...RATE, quiet: 0 }),
    ...(parts.size > 1
      ? [...parts.keys()].sort().map((part) =>
          per(`all/reward_part/${part}`, `Reward part: ${part}`, "mean, before gates and weight", {
            optional: true,
          }),
        )
      : []),
    per("all/gold/mean", "Gold score", "a stricter grader, on a slice of rollouts", { optional: true }),
    per("difficulty/live", "Live items", "that the difficulty window lets come", { optional: true }),
    policy("entropy", "Entropy", "of the policy, nats a token"),
    policy("kl_ref", "KL to the reference", "nats a token"),
    policy("loss", "Loss", null),
    policy("grad_norm", "Gradient norm", "before clipping"),
    {
      id: "clip",
      title: "Clipped tokens",
      note: "share of loss tokens",
      quiet: 0,
      format: (v, d) => fmt.pct(v, d === 0 ? 1 : 2),
      series: [
        line(run, "train/clip/low", "below", 0),
        line(run, "train/clip/high", "above", 1, { dash: DASHES[1] }),
      ],
    },
    policy("lr", "Learning rate", null),
    per("all/teacher/kl", "KL to the teacher", "log(sampler / teacher), nats a token", { optional: true }),
    policy("critic/loss", "Critic: loss", "of its values", { optional: true }),
    policy("critic/explained_variance", "Critic: explained variance", "of the returns, by its values", {
      optional: true,
    }),
  ]);
}

function heldOut(run) {
  if (run.lessons && run.eval.length) return heldOutRows(run);
  if (!run.eval.length)
    return [
      empty("No evaluation was recorded. eval.every, eval.at_start and eval.at_end say when there are some."),
    ];
  const rows = run.sources.map((name) => run.eval.filter((r) => r.source === name && isNumber(r.step)));
  const lines = rows
    .map((own, i) => ({
      name: run.sources[i],
      x: own.map((r) => r.step),
      y: own.map((r) => (isNumber(r.pass_rate) ? r.pass_rate : null)),
      low: own.map((r) => r.pass_rate_low),
      high: own.map((r) => r.pass_rate_high),
      color: i % 8,
      dash: dashOf(i),
      points: true,
    }))
    .filter((l) => l.x.length);
  return [
    h(
      "div",
      { class: "grid" },
      chart({
        id: "held-out",
        title: "Held-out pass rate",
        note: "with its 95% interval",
        series: lines,
        ...RATE,
        height: 250,
        marks: marksOf(run),
      }),
      beforeAfter(run),
    ),
    spikinessTable(run),
  ];
}

// Held-out rows of a run that learns from rows: its loss, and of pairs how many are told apart.
function heldOutRows(run) {
  const chartOf = (key, title, note, more = {}) => {
    const rows = run.eval.filter((r) => isNumber(r.step) && isNumber(r[key]));
    if (!rows.length) return null;
    const own = { name: title, x: rows.map((r) => r.step), y: rows.map((r) => r[key]), color: 0, points: true };
    return chart({ id: `held-out-${key}`, title, note, series: [own], marks: marksOf(run), ...more });
  };
  return chartGrid([
    chartOf("loss", "Held-out loss", "mean over answer tokens, or over pairs"),
    chartOf("accuracy", "Pairs told apart", "share in which the preferred answer scores higher", RATE),
    chartOf("margin", "Margin", "score of the preferred answer less the other's"),
  ]);
}

function beforeAfter(run) {
  const rows = [...run.standings].sort(
    (a, b) => run.sources.indexOf(a.source) - run.sources.indexOf(b.source),
  );
  const cell = (m) =>
    h(
      "span",
      {},
      fmt.pct(m.rate),
      h("br"),
      h("span", { class: "soft small" }, `${fmt.pct(m.low, 0)} to ${fmt.pct(m.high, 0)}`),
    );
  const bar = (st) => {
    const x = (v) => 4 + 152 * v;
    const i = run.sources.indexOf(st.source),
      a = st.start.rate,
      b = st.now.rate;
    return s(
      "svg",
      {
        viewBox: "0 0 160 22",
        width: 160,
        height: 22,
        class: `s${i % 8}`,
        role: "img",
        "aria-label": `from ${fmt.pct(a)} to ${fmt.pct(b)}`,
      },
      s("line", { class: "gridline", x1: x(0), x2: x(1), y1: 11, y2: 11 }),
      isNumber(st.now.low) &&
        s("rect", {
          class: "band",
          x: x(st.now.low),
          width: x(st.now.high) - x(st.now.low),
          y: 4,
          height: 14,
          rx: 4,
        }),
      s("line", { class: "ln", x1: x(a), x2: x(b), y1: 11, y2: 11 }),
      s("circle", { class: "pt hollow", cx: x(a), cy: 11, r: 4 }),
      s("circle", { class: "pt", cx: x(b), cy: 11, r: 4.6 }),
    );
  };
  return h(
    "div",
    { class: "panel" },
    h("h3", {}, "Before and after"),
    rows.length
      ? table(
          ["source", "first", "latest", "change", ""],
          rows.map((st) => [
            h("span", {}, swatch(run.sources.indexOf(st.source)), st.source),
            cell(st.start),
            cell(st.now),
            changeCell(st.since_start, st.start.stderr, st.now.stderr),
            bar(st),
          ]),
          {
            caption:
              "Pass rates in percent, change in points; ring first, disc latest, shade its 95% interval; coloured beyond two standard errors.",
          },
        )
      : empty("No evaluation had a valid rollout."),
  );
}

function spikinessTable(run) {
  if (!run.standings.length) return null;
  const report = run.spikiness || {},
    bound = run.max_regression;
  return panel(
    h("h3", {}, "Spikiness: worst regression first"),
    h(
      "p",
      { class: "small soft" },
      `The worst fall of a source below its own best is ${fmt.num(100 * report["eval/spikiness"])} points; the sources' changes since the first evaluation lie ${fmt.num(100 * report["eval/spread"])} points apart. `,
      isNumber(bound)
        ? `A fall of more than ${fmt.num(100 * bound)} points beyond its standard error is a regression.`
        : "No bound is set (eval.max_regression).",
    ),
    table(
      [
        "source",
        "latest",
        "best",
        "at step",
        "below best",
        "standard error",
        "since first",
        "items × samples",
        "training − held-out",
        "",
      ],
      run.standings.map((st) => [
        h("span", {}, swatch(run.sources.indexOf(st.source)), st.source),
        fmt.pct(st.now.rate),
        fmt.pct(st.best.rate),
        fmt.int(st.best.step),
        fmt.signed(st.since_best),
        isNumber(st.stderr) ? fmt.num(100 * st.stderr) : "–",
        fmt.signed(st.since_start),
        `${fmt.int(st.now.items)} × ${fmt.int(st.now.settings[1])}`,
        isNumber(st.now.gap) ? fmt.signed(st.now.gap) : "–",
        st.regressed ? { text: "regressed", class: "bad" } : "holds",
      ]),
    ),
  );
}
