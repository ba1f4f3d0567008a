// Where the time went, how old the samples were, and whether engines and trainer agree.

const ROLES = [
  ["engines: generate", /^generate$/],
  ["trainer and critic: train", /^train$/],
  ["reference and critic: score", /^(reference|critic)$/],
  ["graders, beyond generation", /^grade$/],
  ["weight sync", /^sync/],
  ["evaluation", /^evaluate$/],
  ["checkpoints", /^checkpoint$/],
  ["driver: dispatch, pack, log", /^(dispatch|pack|log)$/],
  ["idle, and other", /./],
];

function time(run) {
  const phases = Object.keys(run.metrics.series).filter((n) => n.startsWith("time/") && n !== "time/step");
  const layers = ROLES.map(([name], i) => ({
    name,
    x: run.metrics.steps,
    y: run.metrics.steps.map(() => 0),
    color: i,
    area: true,
  }));
  for (const phase of phases) {
    const at = ROLES.findIndex(([, test]) => test.test(phase.slice(5)));
    column(run, phase).forEach((v, i) => {
      layers[at].y[i] += v || 0;
    });
  }
  const there = layers.filter((l) => l.y.some((v) => v > 0));
  const total = (l) => l.y.reduce((a, b) => a + b, 0);
  const whole = there.reduce((sum, l) => sum + total(l), 0);
  if (!there.length) return [empty("No times were recorded.")];
  const scale = run.metrics.every;
  const split = h(
    "span",
    { class: "meter split", "aria-hidden": "true" },
    there.map((l) => {
      const i = h("i", { class: `s${l.color}`, title: l.name });
      i.style.width = `${(100 * total(l)) / whole}%`;
      return i;
    }),
  );
  const ranked = [...there].sort((a, b) => total(b) - total(a));
  return [
    h(
      "div",
      { class: "grid" },
      chart({
        id: "time",
        title: "Time of a step",
        note: scale > 1 ? `mean of ${scale} steps` : "by who the others waited for",
        series: there,
        stacked: true,
        bars: true,
        stride: run.metrics.stride,
        format: (v) => fmt.time(v),
        legend: true,
        height: 250,
      }),
      panel(
        h("h3", {}, "By role"),
        split,
        table(
          ["waited for", "in all", "share", "a step"],
          ranked.map((l) => [
            h("span", {}, swatch(l.color), l.name),
            fmt.time(total(l) * scale),
            fmt.pct(total(l) / whole),
            fmt.time(total(l) / l.y.length),
          ]),
          { caption: "Each moment counts once, for the phase that the others waited for." },
        ),
      ),
    ),
    ...chartGrid([
      metricChart(run, {
        id: "tps",
        title: "Completion tokens a second",
        note: "of trained groups, by wall time",
        series: [line(run, "completion_tokens_per_s", "tokens/s", 0)],
      }),
      metricChart(run, {
        id: "generate_s",
        title: "Seconds to sample a group",
        series: bySource(run, "all/generate_s"),
        format: fmt.time,
      }),
      metricChart(run, {
        id: "grade_s",
        title: "Seconds to grade a group",
        series: bySource(run, "all/grade_s"),
        format: fmt.time,
      }),
    ]),
  ];
}

function policySync(run) {
  const sync = run.config.weight_sync || {};
  const versions = asList((run.log || {}).checks);
  const own = (metric, name, color, more) => line(run, metric, name, color, more);
  const gaps = [
    own("sync/logprob_gap_median", "median", 0, { points: true }),
    own("sync/logprob_gap_max", "largest", 1, { points: true, dash: DASHES[1] }),
  ];
  const syncTimes = ["gather", "send", "load", "control", "verify"]
    .map((n, i) => own(`time/sync_${n}`, n, i, { area: true }))
    .filter(Boolean)
    .map((l) => ({ ...l, y: l.y.map((v) => v || 0) }));
  const bytes = column(run, "sync/bytes");
  const count = bytes ? bytes.filter(isNumber).length * run.metrics.every : 0;
  return [
    ...chartGrid([
      metricChart(run, {
        id: "stale",
        title: "Staleness",
        note: "versions between sampling and training",
        series: [own("staleness/mean", "mean", 0), own("staleness/max", "largest", 1, { dash: DASHES[1] })],
        steady: true,
      }),
      metricChart(run, {
        id: "stale-source",
        title: "Staleness by source",
        note: "mean over trained groups",
        series: bySource(run, "trained/staleness/mean"),
        steady: true,
      }),
      metricChart(run, {
        id: "mismatch-kl",
        title: "Sampler mismatch: KL",
        note: "between the engines' and the trainer's probabilities",
        series: [own("train/mismatch/kl", "KL", 0)],
      }),
      metricChart(run, {
        id: "mismatch-gap",
        title: "Sampler mismatch: largest gap",
        note: "of a token's logprob, or of its probability",
        series: [
          own("train/mismatch/max_gap", "logprob, largest", 1),
          own("train/mismatch/prob_diff", "probability, mean", 0, { dash: DASHES[1] }),
        ],
        log: true,
      }),
      metricChart(run, {
        id: "mismatch-ess",
        title: "Effective share of tokens",
        note: "under importance weights",
        series: [own("train/mismatch/ess", "share", 2)],
        format: fmt.pct,
      }),
      metricChart(run, {
        id: "gap",
        title: "Agreement after a weight sync",
        note: "logprob gap, engine − trainer, same weights; a ring is 0",
        series: gaps,
        log: true,
        refs: [
          { y: sync.max_logprob_gap_median, label: "bound of the median" },
          { y: sync.max_logprob_gap_max, label: "bound of the largest" },
        ],
      }),
      syncTimes.length
        ? chart({
            id: "sync-time",
            title: "Time of a weight sync",
            series: syncTimes,
            stacked: true,
            bars: true,
            stride: run.metrics.stride,
            format: fmt.time,
            legend: true,
          })
        : null,
      panel(
        h("h3", {}, "Weight syncs"),
        h(
          "p",
          { class: "small" },
          `${fmt.int(count)} syncs in the trained steps, of ${fmt.bytes(last(bytes))} each. Checksums of drawn tensors are compared at every one; a sync that does not agree ends the run. `,
          versions.length
            ? `Logprob agreement was checked ${fmt.int(versions.length)} times in the log, all attempts counted; the largest gap was ${fmt.num(Math.max(...versions.map((v) => v.largest)))}.`
            : "No logprob agreement check was found in the log.",
        ),
        asList((run.log || {}).syncs).length
          ? h("p", { class: "small soft mono" }, run.log.syncs[run.log.syncs.length - 1])
          : null,
        versions.length
          ? h(
              "details",
              {},
              h("summary", {}, "Every check"),
              table(
                ["version", "median gap", "largest gap", "tokens"],
                versions.map((v) => [
                  fmt.int(v.version),
                  fmt.num(v.median),
                  fmt.num(v.largest),
                  fmt.int(v.tokens),
                ]),
                { tall: true },
              ),
            )
          : null,
      ),
    ]),
  ];
}
