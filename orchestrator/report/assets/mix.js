// What each source was due, what it got, and what that cost.

function mix(run) {
  const found = [];
  const ledger = run.ledger;
  if (ledger) {
    const unit =
      { groups: "groups", samples: "samples", loss_tokens: "tokens", tokens: "tokens" }[ledger.unit] ||
      "groups";
    const share = (amount) =>
      h(
        "span",
        {},
        fmt.pct(amount.share[unit]),
        h("br"),
        h("span", { class: "soft small" }, fmt.int(amount[unit])),
      );
    found.push(
      panel(
        h("h3", {}, `Shares, in ${unit === "tokens" ? "tokens" : unit}`),
        table(
          [
            "source",
            "due",
            "dispatched",
            "accepted",
            "trained",
            "trained − due",
            "in flight",
            "survival",
            "rejected",
          ],
          Object.entries(ledger.sources).map(([name, own]) => {
            const i = run.sources.indexOf(name),
              gap = own.trained.share[unit] - own.target_share;
            return [
              h("span", {}, swatch(i < 0 ? 8 : i), name),
              h("span", {}, fmt.pct(own.target_share), meter(own.target_share, i)),
              share(own.dispatched),
              share(own.accepted),
              h("span", {}, share(own.trained), meter(own.trained.share[unit], i)),
              fmt.signed(gap, 2),
              fmt.int(own.in_flight),
              fmt.pct(own.survival),
              Object.entries(own.rejected)
                .map(([why, n]) => `${fmt.int(n)} ${why.replace("_", " ")}`)
                .join(", ") || "none",
            ];
          }),
          {
            text: [8],
            caption:
              "From the ledger; shares of all sources' amount, with the amount beneath. Tokens are all sampled ones where dispatched, else loss tokens.",
          },
        ),
        h(
          "p",
          { class: "small" },
          ledger.balanced
            ? h("span", { class: "pill good" }, "balanced")
            : h("span", { class: "pill bad" }, "does not add up"),
          ledger.balanced
            ? " dispatched = trained + rejected + in flight, nothing trained twice"
            : ` ${[...ledger.faults, ...ledger.lost].slice(0, 8).join("; ")}`,
        ),
      ),
    );
  } else if (run.lessons) return [empty("It learns from rows: there is no mix.")];
  else
    found.push(
      empty("There is no readable ledger, so what was dispatched, accepted and trained is not known."),
    );
  const unit = ledger ? ledger.unit : "groups";
  const due = run.sources.map((n, i) =>
    line(run, `source/${n}/total/share/target`, `${n}, due`, i % 8, { dash: "2 3" }),
  );
  const had = run.sources.map((n, i) => line(run, `source/${n}/total/share/${unit}`, n, i % 8));
  const reasons = Object.keys(run.metrics.series).filter(
    (n) => n.startsWith("ledger/rejected/") && (column(run, n) || []).some((v) => v > 0),
  );
  found.push(
    ...several(run, [
      {
        id: "shares",
        title: "Share so far",
        note: `of ${unit.replace("_", " ")}; dotted what was due`,
        series: [...had, ...due],
        format: fmt.pct,
        steady: true,
      },
      {
        id: "survival",
        title: "Survival",
        note: "groups trained on, of those graded for the step",
        series: bySource(run, "survival"),
        ...RATE,
        quiet: 1,
      },
      {
        id: "ledger",
        title: "Groups so far",
        series: [
          line(run, "ledger/dispatched", "dispatched", 0),
          line(run, "ledger/trained", "trained", 2, { dash: DASHES[1] }),
          line(run, "ledger/in_flight", "in flight", 1, { dash: DASHES[2] }),
        ],
        steady: true,
      },
      {
        id: "rejected",
        title: "Groups rejected so far",
        series: reasons.map((n, i) => line(run, n, n.split("/").pop().replace("_", " "), i)),
        steady: true,
        optional: true,
      },
    ]),
  );
  if (run.mix_edits.length)
    found.push(
      panel(
        h("h3", {}, "Edits while it ran"),
        h("pre", { class: "box" }, run.mix_edits.map((e) => JSON.stringify(e)).join("\n")),
      ),
    );
  return found;
}

function cost(run) {
  const c = run.cost;
  if (!c)
    return [
      empty(
        run.lessons
          ? "It learns from rows: all that it held was its trainer's."
          : "The recipe could not be read, so what was reserved is not known.",
      ),
    ];
  const unit = `${c.unit}-hours`;
  const sum = (row) => Object.values(row.sources).reduce((a, b) => a + b, 0);
  const rows = c.roles.filter((r) => r.devices > 0);
  const totals = run.sources.map((n) => rows.reduce((a, r) => a + (r.sources[n] || 0), 0));
  const unassigned = rows.reduce((a, r) => a + r.unassigned, 0);
  const whole = rows.reduce((a, r) => a + r.hours, 0) + (c.outside_device_hours || 0);
  const part = (v) =>
    h(
      "span",
      {},
      fmt.hours(v),
      h("br"),
      h("span", { class: "soft small" }, whole > 0 ? fmt.pct(v / whole) : "–"),
    );
  const passes = run.standings.length
    ? new Map(run.standings.map((st) => [st.source, st.since_start]))
    : new Map();
  return [
    h(
      "div",
      { class: "grid" },
      panel(
        h("h3", {}, `${unit} by source`),
        table(
          ["source", unit, "", "sampled tokens", "held-out change"],
          [
            ...run.sources.map((n, i) => [
              h("span", {}, swatch(i), n),
              part(totals[i]),
              meter(whole > 0 ? totals[i] / whole : 0, i),
              fmt.int(c.tokens[n]),
              passes.has(n) ? `${fmt.signed(passes.get(n))} points` : "–",
            ]),
            unassigned > 1e-9
              ? [
                  h("span", {}, swatch(8), "no source's"),
                  part(unassigned),
                  meter(unassigned / whole, 8),
                  "",
                  "",
                ]
              : null,
            isNumber(c.outside_device_hours)
              ? [
                  h("span", {}, swatch(8), "outside of steps"),
                  part(c.outside_device_hours),
                  meter(c.outside_device_hours / whole, 8),
                  "",
                  "",
                ]
              : null,
            [h("b", {}, "in all"), h("b", {}, fmt.hours(whole)), "", "", ""],
          ].filter(Boolean),
        ),
      ),
      panel(
        h("h3", {}, "By role"),
        table(
          ["role", c.unit === "GPU" ? "GPUs" : "CPU cores", unit, "shared out by"],
          c.roles.map((r) => [r.role, fmt.num(r.devices), fmt.hours(r.hours), r.basis]),
          { text: [3] },
        ),
      ),
    ),
    h(
      "p",
      { class: "small soft" },
      `How it is reckoned: ${c.unit === "GPU" ? "GPUs" : "CPU cores"} that the recipe reserves, held for the whole of each trained step whoever works. A step's engine time goes to sources by the tokens that were sampled for them (rejected groups too), `,
      "trainer, reference, critic and teacher time by loss tokens, graders and judges by seconds of grading. Outside of steps are the start, evaluations at the start and the end, steps that were undone, and waits between; they belong to no source. Evaluations during training are inside the step that they follow.",
      c.outside_hours === null
        ? " How long the attempts went on is not known, so nothing outside of steps is counted."
        : "",
    ),
  ];
}
