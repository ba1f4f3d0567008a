// What ran, its every number, and all of it at a glance.

function recipe(run) {
  const latest = run.attempts[run.attempts.length - 1];
  const cfg = run.config,
    get = (path) => path.split(".").reduce((v, k) => (isRecord(v) ? v[k] : undefined), cfg);
  const facts = [
    ["model", get("model.path")],
    ["dtype", get("model.dtype")],
    ["loss", get("algorithm.loss.use")],
    ["aggregation", get("algorithm.aggregation")],
    ["KL", get("algorithm.kl.coef")],
    ["learning rate", get("trainer.optimizer.lr")],
    ["ZeRO stage", get("trainer.zero_stage")],
    ["groups a step", get("batch.groups_per_step")],
    ["max staleness", get("batch.max_staleness")],
    ["seed", run.seed],
  ].filter(([, v]) => v !== undefined && v !== null);
  const sources = asList(cfg.sources).filter(isRecord);
  return [
    h(
      "div",
      { class: "grid" },
      panel(
        h("h3", {}, "In short"),
        table(
          ["", ""],
          facts.map(([k, v]) => [k, isNumber(v) ? fmt.num(v) : asText(v)]),
          { text: [1] },
        ),
      ),
      panel(
        h("h3", {}, "Sources"),
        table(
          ["source", "weight", "group size", "rewards"],
          sources.map((x, i) => [
            h("span", {}, swatch(i), asText(x.name)),
            fmt.num(x.weight),
            fmt.num(x.group_size),
            asList(x.rewards)
              .map((r) => (isRecord(r) ? asText(r.name) : ""))
              .join(", "),
          ]),
          { text: [3] },
        ),
      ),
    ),
    panel(
      h("h3", {}, "Hashes"),
      latest && Object.keys(latest.hashes).length
        ? [
            table(
              ["of", "hash", "from"],
              Object.entries(latest.hashes).map(([k, v]) => [
                h("code", {}, k),
                h("code", {}, asText(v.hash)),
                asText(v.of),
              ]),
              {
                text: [1, 2],
                tall: true,
                caption: `Of data, code and model, at attempt ${latest.attempt}. Commit ${latest.git_commit || "not known"}.`,
              },
            ),
            asList(run.attempts).some((a) => asList(a.accepted).length)
              ? h(
                  "p",
                  { class: "small" },
                  "Changes accepted by --accept-changes: ",
                  run.attempts
                    .flatMap((a) => asList(a.accepted).map((c) => `${c.what} (attempt ${a.attempt})`))
                    .join(", "),
                )
              : null,
          ]
        : empty("run.json holds no hashes."),
    ),
    h(
      "div",
      { class: "grid" },
      panel(
        h("h3", {}, "Versions"),
        latest ? table(["package", "version"], Object.entries(latest.versions)) : empty("Not known."),
        latest && latest.sandbox
          ? h("p", { class: "small soft" }, `Sandbox of tested code: ${latest.sandbox}`)
          : null,
      ),
      panel(
        h("h3", {}, "Command"),
        latest ? h("pre", { class: "box" }, asList(latest.command).join(" ")) : empty("Not known."),
      ),
    ),
    panel(
      h("h3", {}, "Resolved recipe"),
      run.config_text
        ? h(
            "details",
            {},
            h("summary", {}, `config.yaml, ${fmt.int(run.config_text.split("\n").length)} lines`),
            h("pre", { class: "box" }, run.config_text),
          )
        : empty("config.yaml is not there."),
    ),
  ];
}

const SHOWN = 12;

function explorer(run) {
  const shapes = new Map();
  for (const name of Object.keys(run.metrics.series)) {
    const owner = run.sources.find((n) => name.startsWith(`source/${n}/`));
    const shape = owner ? `source/*/${name.slice(owner.length + 8)}` : name;
    shapes.set(shape, [
      ...(shapes.get(shape) || []),
      [owner ? run.sources.indexOf(owner) : 0, owner || name, name],
    ]);
  }
  const names = [...shapes.keys()].sort();
  const result = h("div", { class: "grid" }),
    count = h("p", { class: "small soft", role: "status" });
  const update = () => {
    result.querySelectorAll("[data-chart]").forEach((f) => f.release());
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = words.length ? names.filter((n) => words.every((w) => n.toLowerCase().includes(w))) : [];
    result.replaceChildren(
      ...hits
        .slice(0, SHOWN)
        .map((shape) =>
          metricChart(run, {
            id: `all:${shape}`,
            title: shape,
            series: shapes.get(shape).map(([i, label, n]) => line(run, n, label, i % 8, { dash: dashOf(i) })),
          }),
        )
        .filter(Boolean),
    );
    count.textContent = words.length
      ? `${Math.min(SHOWN, hits.length)} of ${hits.length} that match, of ${names.length}.`
      : `${names.length} metrics; write words of their names, e.g. length p95, mismatch, judge.`;
  };
  const input = h("input", {
    class: "find",
    type: "search",
    id: "find-metric",
    placeholder: "words of a metric's name",
    "aria-label": "Find a metric",
    value: state.find,
    oninput: () => {
      state.find = input.value;
      update();
    },
  });
  update();
  const odd = asList(run.metrics.not_numbers);
  return [
    h("div", { class: "row" }, input, count),
    result,
    h(
      "details",
      {},
      h("summary", {}, "All names"),
      h(
        "div",
        { class: "row" },
        names.map((n) =>
          h(
            "button",
            {
              class: "btn mono",
              type: "button",
              onclick: () => {
                input.value = state.find = n;
                update();
              },
            },
            n,
          ),
        ),
      ),
    ),
    odd.length ? h("p", { class: "small soft" }, `No numbers, and so not drawn: ${odd.join(", ")}.`) : null,
  ];
}

function overview(run) {
  const tiles = [];
  const tile = (k, v, n) =>
    tiles.push(
      h(
        "div",
        { class: "tile" },
        h("div", { class: "k" }, k),
        h("div", { class: "v" }, v),
        n && h("div", { class: "n" }, n),
      ),
    );
  const mean = (pick) => run.standings.reduce((a, st) => a + pick(st), 0) / run.standings.length;
  if (run.standings.length)
    tile(
      "Held-out pass rate, mean",
      [h("small", {}, `${fmt.pct(mean((st) => st.start.rate))} → `), fmt.pct(mean((st) => st.now.rate))],
      `${fmt.signed(mean((st) => st.since_start))} points since the first evaluation`,
    );
  tile(
    "Steps",
    [fmt.int(run.step), h("small", {}, ` of ${fmt.int(run.num_steps)}`)],
    run.attempts.length > 1 ? `${run.attempts.length} attempts` : "one attempt",
  );
  const reward = column(run, "reward/mean");
  if (reward)
    tile("Reward, latest step", fmt.num(last(reward)), `${fmt.num(reward.find(isNumber))} at the first`);
  const seconds = run.attempts.reduce((a, x) => a + (x.seconds || 0), 0);
  if (seconds) tile("Wall time", fmt.time(seconds), "all attempts");
  if (run.cost) {
    const rows = run.cost.roles.reduce((a, r) => a + r.hours, 0) + (run.cost.outside_device_hours || 0);
    tile(`${run.cost.unit}-hours`, fmt.hours(rows), "reserved by the run");
  }
  const standing = standingAlarms(run).length;
  tile(
    "Alarms",
    standing ? h("span", { class: "bad-ink" }, fmt.int(standing)) : "0",
    standing ? "standing" : run.alarms.length ? "standing; some were cleared" : "none was raised",
  );
  if (run.ledger)
    tile(
      "Ledger",
      run.ledger.balanced ? "balanced" : h("span", { class: "bad-ink" }, "wrong"),
      `${fmt.int(run.ledger.in_flight)} groups in flight`,
    );
  const checks = asList((run.log || {}).checks).map((check) => check.largest);
  const gaps = [...(column(run, "sync/logprob_gap_max") || []), ...checks].filter(isNumber);
  if (gaps.length)
    tile(
      "Largest logprob gap",
      fmt.num(gaps.reduce((a, b) => Math.max(a, b))),
      "engine − trainer, same weights",
    );
  return [
    h("div", { class: "tiles" }, tiles),
    run.notes.length
      ? h(
          "ul",
          { class: "notes", "aria-label": "What is missing" },
          run.notes.map((n) => h("li", {}, n)),
        )
      : null,
  ];
}
