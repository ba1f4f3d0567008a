// Two runs side by side: A in solid lines, B in dashed ones.
const COMPARED = [
  ["all/reward/mean", "Reward", "mean of valid rollouts", {}],
  ["all/pass@1", "Pass rate", "of training rollouts", RATE],
  ["all/length/mean", "Length", "completion tokens, mean", {}],
  ["all/zero_variance", "Without contrast", "groups in which no token has an advantage", RATE],
];
const COMPARED_ALL = [
  ["train/entropy", "Entropy"],
  ["train/kl_ref", "KL to the reference"],
  ["train/grad_norm", "Gradient norm"],
  ["train/mismatch/kl", "Sampler mismatch: KL"],
  ["staleness/mean", "Staleness"],
  ["completion_tokens_per_s", "Completion tokens a second"],
  ["time/step", "Seconds of a step"],
];

const runsOf = (data) => [
  ["A", data.a],
  ["B", data.b],
];
const allSources = (data) => [...new Set([...data.a.sources, ...data.b.sources])];

function diffHead(data) {
  return h(
    "header",
    { class: "top" },
    h("h1", {}, `${data.a.name} and ${data.b.name}`),
    runsOf(data).map(([side, run]) =>
      h(
        "div",
        { class: "facts" },
        h("b", {}, side),
        h("span", { class: "pill" }, run.status.text),
        fact("steps", `${fmt.int(run.step)} of ${fmt.int(run.num_steps)}`),
        run.id && fact("run", run.id),
        fact("folder", run.path),
      ),
    ),
    (() => {
      const notes = runsOf(data).flatMap(([side, run]) =>
        run.notes.filter((n) => !n.includes("rollouts")).map((n) => `${side}: ${n}`),
      );
      return notes.length
        ? h(
            "ul",
            { class: "notes", "aria-label": "What is missing" },
            notes.map((n) => h("li", {}, n)),
          )
        : null;
    })(),
  );
}

// The charts of both runs' lines; a chart's stride is the wider one, so that no gap is drawn over.
function both(data, spec, pick) {
  const series = runsOf(data)
    .flatMap(([side, run]) => pick(side, run))
    .filter((l) => l && l.y.some(isNumber));
  if (!series.length) return null;
  return chart({ ...spec, series, stride: Math.max(data.a.metrics.stride, data.b.metrics.stride) });
}

function diffCurves(data) {
  const sources = allSources(data);
  const [key, title, note, more] = COMPARED.find(([k]) => k === state.compared) || COMPARED[0];
  const per = sources.map((name) =>
    both(data, { id: `${key} ${name}`, title: `${title}: ${name}`, note, ...more }, (side, run) => [
      ab(run, `source/${name}/${key}`, side),
    ]),
  );
  const whole = COMPARED_ALL.map(([metric, label]) =>
    both(data, { id: metric, title: label }, (side, run) => [ab(run, metric, side)]),
  );
  const choose = (k) => {
    state.compared = k;
    render(data);
    document.querySelector(`[data-compared="${k}"]`).focus();
  };
  return [
    h(
      "div",
      { class: "row", role: "group", "aria-label": "What is compared by source" },
      COMPARED.map(([k, label]) =>
        h(
          "button",
          {
            class: "btn",
            type: "button",
            "data-compared": k,
            "aria-pressed": String(k === key),
            onclick: () => choose(k),
          },
          label,
        ),
      ),
    ),
    ...chartGrid(per),
    h("h3", {}, "Of the whole run"),
    ...chartGrid(whole),
  ];
}
const ab = (run, metric, side) =>
  line(run, metric, side, side === "A" ? 0 : 1, { dash: side === "B" ? DASHES[1] : "" });

function diffHeldOut(data) {
  const sources = allSources(data),
    rows = data.found.held_out;
  if (!rows.length) return [empty("Neither run has an evaluation.")];
  const rate = (side) =>
    side
      ? h(
          "span",
          {},
          fmt.pct(side.now.rate),
          h("br"),
          h(
            "span",
            { class: "soft small" },
            `from ${fmt.pct(side.start.rate)}, step ${fmt.int(side.now.step)}`,
          ),
        )
      : "–";
  return [
    h(
      "div",
      { class: "grid" },
      both(
        data,
        { id: "held-out", title: "Held-out pass rate", note: "with its 95% interval", ...RATE, height: 260 },
        (side, run) =>
          sources.map((name, i) => {
            const own = run.eval.filter((r) => r.source === name && isNumber(r.step));
            return own.length
              ? {
                  name: `${side} ${name}`,
                  x: own.map((r) => r.step),
                  y: own.map((r) => (isNumber(r.pass_rate) ? r.pass_rate : null)),
                  low: own.map((r) => r.pass_rate_low),
                  high: own.map((r) => r.pass_rate_high),
                  color: i % 8,
                  dash: side === "B" ? DASHES[1] : "",
                  points: true,
                }
              : null;
          }),
      ),
      panel(
        h("h3", {}, "Latest"),
        table(
          ["source", "A", "B", "B − A, points", "standard error"],
          rows.map((r) => [
            h("span", {}, swatch(sources.indexOf(r.source)), r.source),
            rate(r.a),
            rate(r.b),
            isNumber(r.difference)
              ? changeCell(r.difference, r.stderr)
              : r.a && r.b
                ? "measured otherwise"
                : "–",
            isNumber(r.stderr) ? fmt.num(100 * r.stderr) : "–",
          ]),
          {
            caption:
              "A difference is given only where items, samples, temperature, token limit and threshold are the same; coloured beyond two standard errors.",
          },
        ),
      ),
    ),
  ];
}

function changeTable(rows, none) {
  if (!rows.length) return empty(none);
  const show = (v) =>
    v === null || v === undefined ? h("span", { class: "soft" }, "–") : h("code", {}, asText(v));
  return table(
    ["", "A", "B"],
    rows.map((r) => [h("code", {}, r.path), show(r.a), show(r.b)]),
    { text: [1, 2], tall: rows.length > 24 },
  );
}

function diffCost(data) {
  const sources = allSources(data);
  const of = (run, name) =>
    run.cost ? run.cost.roles.reduce((a, r) => a + (r.sources[name] || 0), 0) : null;
  const whole = (run) => (run.cost ? run.cost.roles.reduce((a, r) => a + r.hours, 0) : null);
  const unit = (run) => (run.cost ? `${run.cost.unit}-hours` : "not known");
  return [
    panel(
      table(
        ["source", `A, ${unit(data.a)}`, `B, ${unit(data.b)}`],
        [
          ...sources.map((n, i) => [
            h("span", {}, swatch(i), n),
            fmt.hours(of(data.a, n)),
            fmt.hours(of(data.b, n)),
          ]),
          ["in trained steps", fmt.hours(whole(data.a)), fmt.hours(whole(data.b))],
        ],
      ),
      h("p", { class: "small soft" }, "Shared out as on each run's own page."),
    ),
  ];
}

function diffSections(data) {
  const { found } = data;
  const commits = found.commits.map((c) => (c ? c.slice(0, 9) : "not known"));
  return [
    [
      "held-out",
      "Held out",
      "A in solid lines, B in dashed ones; a source has the same colour in both.",
      diffHeldOut,
    ],
    ["curves", "Curves", "Over each run's own steps: A solid, B dashed.", diffCurves],
    [
      "config",
      "Recipe",
      `${fmt.int(found.config.length)} fields differ; what they share is left out.`,
      () => [panel(changeTable(found.config, "The resolved recipes are the same."))],
    ],
    [
      "hashes",
      "Data, code and model",
      "By the hashes of each run's latest attempt.",
      () => [
        panel(changeTable(found.hashes, "All hashes are the same.")),
        h(
          "p",
          { class: "small soft" },
          commits[0] === commits[1]
            ? `Both at commit ${commits[0]}.`
            : `Commits: A ${commits[0]}, B ${commits[1]}.`,
        ),
      ],
    ],
    ["versions", "Versions", null, () => [panel(changeTable(found.versions, "The same versions."))]],
    ["cost", "Cost", null, diffCost],
  ];
}
