// More sections: what went wrong and was mended, what it cost, what it was made of, and all the rest.

function standingAlarms(run) {
  const open = new Map();
  for (const alarm of run.alarms) {
    const key = `${alarm.source}/${alarm.monitor}`;
    alarm.event === "cleared" ? open.delete(key) : open.set(key, alarm);
  }
  return [...open.values()];
}

function alarms(run) {
  if (!run.alarms.length) return [h("p", {}, h("span", { class: "pill good" }, "none"), " No monitor has raised an alarm.")];
  const standing = new Set(standingAlarms(run));
  const fields = new Set(["step", "source", "monitor", "event", "action", "text"]);
  return [panel(table(["step", "monitor", "source", "", "what was seen", "figures", "action"], [...run.alarms].reverse().map((a) => [
    fmt.int(a.step), asText(a.monitor), asText(a.source) || "all",
    standing.has(a) ? { text: "stands", class: "bad" } : asText(a.event), asText(a.text),
    Object.entries(a).filter(([k]) => !fields.has(k)).map(([k, v]) => `${k} ${isNumber(v) ? fmt.num(v) : asText(v)}`).join(", "), asText(a.action)]), { text: [1, 2, 3, 4, 5], tall: run.alarms.length > 12 }))];
}

function faults(run) {
  const log = run.log || {}, found = [];
  found.push(panel(h("h3", {}, "Attempts"), run.attempts.length ? table(["", "started (UTC)", "host", "commit", "steps", "went on", "trained in vain", "accepted changes"],
    run.attempts.map((a) => [fmt.int(a.attempt), fmt.when(a.started), asText(a.host), h("code", {}, (a.git_commit || "–").slice(0, 9)),
      isNumber(a.from_step) ? (a.to_step > a.from_step ? `${a.from_step + 1} to ${a.to_step}` : "none") : "–", fmt.time(a.seconds), a.undone ? `${fmt.int(a.undone)} steps` : "–",
      asList(a.accepted).map((c) => c.what).join(", ") || "–"]), { text: [1, 2, 3, 7], caption: "A resumed attempt goes on from the newest whole checkpoint; steps after it are trained anew." }) : empty("run.json is not there: nothing is known of attempts.")));
  const repairs = Object.entries(log.repairs || {});
  found.push(h("div", { class: "grid" },
    panel(h("h3", {}, "Repairs"), repairs.length ? table(["what was done", "times"], repairs.map(([what, n]) => [what, fmt.int(n)])) : h("p", { class: "soft small" }, log.there ? "Nothing had to be mended." : "There is no log.txt.")),
    panel(h("h3", {}, "Groups that failed"), run.failed_groups.length
      ? table(["group", "", "why"], [...run.failed_groups].reverse().map((g) => [h("code", {}, asText(g.group)), `${g.reason.replace("_", " ")}${g.undone ? ", undone" : ""}`, asText(g.why)]), { text: [0, 1, 2], tall: true })
      : h("p", { class: "soft small" }, "No group failed."))));
  const end = log.end && log.end.text.startsWith("the run ended with") ? log.end : null;
  if (end) found.push(panel(h("h3", { class: "bad-ink" }, "How it ended"), h("p", {}, end.text), h("pre", { class: "trace" }, end.trace)));
  const loud = asList(log.loud);
  found.push(panel(h("h3", {}, "Warnings and errors"), loud.length
    ? [log.num_loud > loud.length ? h("p", { class: "small soft" }, `The first and the last of ${fmt.int(log.num_loud)}.`) : null,
      table(["when", "", "where", "what"], [...loud].reverse().map((e) => [fmt.when(e.time), e.level === "WARNING" ? "warning" : { text: e.level.toLowerCase(), class: "bad" }, asText(e.logger).replace(/^braid\./, ""),
        h("div", {}, e.text, e.trace && h("pre", { class: "trace" }, e.trace))]), { text: [1, 2, 3], tall: loud.length > 8 })]
    : h("p", { class: "soft small" }, log.there ? "None." : "There is no log.txt."),
  h("details", {}, h("summary", {}, "Last lines of the log"), h("pre", { class: "box" }, asList(log.last).join("\n")))));
  return found;
}

function cost(run) {
  const c = run.cost;
  if (!c) return [empty("The recipe could not be read, so what was reserved is not known.")];
  const unit = `${c.unit}-hours`;
  const sum = (row) => Object.values(row.sources).reduce((a, b) => a + b, 0);
  const rows = c.roles.filter((r) => r.devices > 0);
  const totals = run.sources.map((n) => rows.reduce((a, r) => a + (r.sources[n] || 0), 0));
  const unassigned = rows.reduce((a, r) => a + r.unassigned, 0);
  const whole = rows.reduce((a, r) => a + r.hours, 0) + (c.outside_device_hours || 0);
  const part = (v) => h("span", {}, fmt.hours(v), h("br"), h("span", { class: "soft small" }, whole > 0 ? fmt.pct(v / whole) : "–"));
  const passes = run.standings.length ? new Map(run.standings.map((st) => [st.source, st.since_start])) : new Map();
  return [h("div", { class: "grid" },
    panel(h("h3", {}, `${unit} by source`), table(["source", unit, "", "sampled tokens", "held-out change"],
      [...run.sources.map((n, i) => [h("span", {}, swatch(i), n), part(totals[i]), meter(whole > 0 ? totals[i] / whole : 0, i), fmt.int(c.tokens[n]), passes.has(n) ? `${fmt.signed(passes.get(n))} points` : "–"]),
        unassigned > 1e-9 ? [h("span", {}, swatch(8), "no source's"), part(unassigned), meter(unassigned / whole, 8), "", ""] : null,
        isNumber(c.outside_device_hours) ? [h("span", {}, swatch(8), "outside of steps"), part(c.outside_device_hours), meter(c.outside_device_hours / whole, 8), "", ""] : null,
        [h("b", {}, "in all"), h("b", {}, fmt.hours(whole)), "", "", ""]].filter(Boolean))),
    panel(h("h3", {}, "By role"), table(["role", c.unit === "GPU" ? "GPUs" : "CPU cores", unit, "shared out by"],
      c.roles.map((r) => [r.role, fmt.num(r.devices), fmt.hours(r.hours), r.basis]), { text: [3] }))),
  h("p", { class: "small soft" }, `How it is reckoned: ${c.unit === "GPU" ? "GPUs" : "CPU cores"} that the recipe reserves, held for the whole of each trained step whoever works. A step's engine time goes to sources by the tokens that were sampled for them (rejected groups too), `,
    "trainer and reference time by loss tokens, graders and judges by seconds of grading. Outside of steps are the start, evaluations at the start and the end, steps that were undone, and waits between; they belong to no source. Evaluations during training are inside the step that they follow.",
    c.outside_hours === null ? " How long the attempts went on is not known, so nothing outside of steps is counted." : "")];
}

function recipe(run) {
  const latest = run.attempts[run.attempts.length - 1];
  const cfg = run.config, get = (path) => path.split(".").reduce((v, k) => (isRecord(v) ? v[k] : undefined), cfg);
  const facts = [["model", get("model.path")], ["dtype", get("model.dtype")], ["loss", get("algorithm.loss.use")], ["aggregation", get("algorithm.aggregation")], ["KL", get("algorithm.kl.coef")],
    ["learning rate", get("trainer.optimizer.lr")], ["ZeRO stage", get("trainer.zero_stage")], ["groups a step", get("batch.groups_per_step")], ["max staleness", get("batch.max_staleness")],
    ["seed", run.seed]].filter(([, v]) => v !== undefined && v !== null);
  const sources = asList(cfg.sources).filter(isRecord);
  return [
    h("div", { class: "grid" },
      panel(h("h3", {}, "In short"), table(["", ""], facts.map(([k, v]) => [k, isNumber(v) ? fmt.num(v) : asText(v)]), { text: [1] })),
      panel(h("h3", {}, "Sources"), table(["source", "weight", "group size", "rewards"], sources.map((x, i) => [h("span", {}, swatch(i), asText(x.name)), fmt.num(x.weight), fmt.num(x.group_size),
        asList(x.rewards).map((r) => (isRecord(r) ? asText(r.name) : "")).join(", ")]), { text: [3] }))),
    panel(h("h3", {}, "Hashes"), latest && Object.keys(latest.hashes).length
      ? [table(["of", "hash", "from"], Object.entries(latest.hashes).map(([k, v]) => [h("code", {}, k), h("code", {}, asText(v.hash)), asText(v.of)]), { text: [1, 2], tall: true, caption: `Of data, code and model, at attempt ${latest.attempt}. Commit ${latest.git_commit || "not known"}.` }),
        asList(run.attempts).some((a) => asList(a.accepted).length) ? h("p", { class: "small" }, "Changes accepted by --accept-changes: ", run.attempts.flatMap((a) => asList(a.accepted).map((c) => `${c.what} (attempt ${a.attempt})`)).join(", ")) : null]
      : empty("run.json holds no hashes.")),
    h("div", { class: "grid" },
      panel(h("h3", {}, "Versions"), latest ? table(["package", "version"], Object.entries(latest.versions)) : empty("Not known."),
        latest && latest.sandbox ? h("p", { class: "small soft" }, `Sandbox of tested code: ${latest.sandbox}`) : null),
      panel(h("h3", {}, "Command"), latest ? h("pre", { class: "box" }, asList(latest.command).join(" ")) : empty("Not known."))),
    panel(h("h3", {}, "Resolved recipe"), run.config_text ? h("details", {}, h("summary", {}, `config.yaml, ${fmt.int(run.config_text.split("\n").length)} lines`), h("pre", { class: "box" }, run.config_text)) : empty("config.yaml is not there."))];
}

const SHOWN = 12;

function explorer(run) {
  const shapes = new Map();
  for (const name of Object.keys(run.metrics.series)) {
    const owner = run.sources.find((n) => name.startsWith(`source/${n}/`));
    const shape = owner ? `source/*/${name.slice(owner.length + 8)}` : name;
    shapes.set(shape, [...(shapes.get(shape) || []), [owner ? run.sources.indexOf(owner) : 0, owner || name, name]]);
  }
  const names = [...shapes.keys()].sort();
  const result = h("div", { class: "grid" }), count = h("p", { class: "small soft", role: "status" });
  const update = () => {
    result.querySelectorAll("[data-chart]").forEach((f) => f.release());
    const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
    const hits = words.length ? names.filter((n) => words.every((w) => n.toLowerCase().includes(w))) : [];
    result.replaceChildren(...hits.slice(0, SHOWN).map((shape) => metricChart(run, { id: `all:${shape}`, title: shape, series: shapes.get(shape).map(([i, label, n]) => line(run, n, label, i % 8, { dash: dashOf(i) })) })).filter(Boolean));
    count.textContent = words.length ? `${Math.min(SHOWN, hits.length)} of ${hits.length} that match, of ${names.length}.` : `${names.length} metrics; write words of their names, e.g. length p95, mismatch, judge.`;
  };
  const input = h("input", { class: "find", type: "search", id: "find-metric", placeholder: "words of a metric's name", "aria-label": "Find a metric", value: state.find, oninput: () => { state.find = input.value; update(); } });
  update();
  const odd = asList(run.metrics.not_numbers);
  return [h("div", { class: "row" }, input, count), result,
    h("details", {}, h("summary", {}, "All names"), h("div", { class: "row" }, names.map((n) => h("button", { class: "btn mono", type: "button", onclick: () => { input.value = state.find = n; update(); } }, n)))),
    odd.length ? h("p", { class: "small soft" }, `No numbers, and so not drawn: ${odd.join(", ")}.`) : null];
}

function overview(run) {
  const tiles = [];
  const tile = (k, v, n) => tiles.push(h("div", { class: "tile" }, h("div", { class: "k" }, k), h("div", { class: "v" }, v), n && h("div", { class: "n" }, n)));
  const mean = (pick) => run.standings.reduce((a, st) => a + pick(st), 0) / run.standings.length;
  if (run.standings.length) tile("Held-out pass rate, mean", [h("small", {}, `${fmt.pct(mean((st) => st.start.rate))} → `), fmt.pct(mean((st) => st.now.rate))], `${fmt.signed(mean((st) => st.since_start))} points since the first evaluation`);
  tile("Steps", [fmt.int(run.step), h("small", {}, ` of ${fmt.int(run.num_steps)}`)], run.attempts.length > 1 ? `${run.attempts.length} attempts` : "one attempt");
  const reward = column(run, "reward/mean");
  if (reward) tile("Reward, latest step", fmt.num(last(reward)), `${fmt.num(reward.find(isNumber))} at the first`);
  const seconds = run.attempts.reduce((a, x) => a + (x.seconds || 0), 0);
  if (seconds) tile("Wall time", fmt.time(seconds), "all attempts");
  if (run.cost) {
    const rows = run.cost.roles.reduce((a, r) => a + r.hours, 0) + (run.cost.outside_device_hours || 0);
    tile(`${run.cost.unit}-hours`, fmt.hours(rows), "reserved by the run");
  }
  const standing = standingAlarms(run).length;
  tile("Alarms", standing ? h("span", { class: "bad-ink" }, fmt.int(standing)) : "0", standing ? "standing" : run.alarms.length ? "standing; some were cleared" : "none was raised");
  if (run.ledger) tile("Ledger", run.ledger.balanced ? "balanced" : h("span", { class: "bad-ink" }, "wrong"), `${fmt.int(run.ledger.in_flight)} groups in flight`);
  const gap = column(run, "sync/logprob_gap_max");
  if (gap) tile("Largest logprob gap", fmt.num(gap.filter(isNumber).reduce((a, b) => Math.max(a, b), 0)), "engine − trainer, same weights");
  return [h("div", { class: "tiles" }, tiles), run.notes.length ? h("ul", { class: "notes", "aria-label": "What is missing" }, run.notes.map((n) => h("li", {}, n))) : null];
}
