// What the monitors said, what broke, and what was done.

function standingAlarms(run) {
  const open = new Map();
  for (const alarm of run.alarms) {
    const key = `${alarm.source}/${alarm.monitor}`;
    alarm.event === "cleared" ? open.delete(key) : open.set(key, alarm);
  }
  return [...open.values()];
}

function alarms(run) {
  if (!run.alarms.length)
    return [h("p", {}, h("span", { class: "pill good" }, "none"), " No monitor has raised an alarm.")];
  const standing = new Set(standingAlarms(run));
  const fields = new Set(["step", "source", "monitor", "event", "action", "text"]);
  return [
    panel(
      table(
        ["step", "monitor", "source", "", "what was seen", "figures", "action"],
        [...run.alarms].reverse().map((a) => [
          fmt.int(a.step),
          asText(a.monitor),
          asText(a.source) || "all",
          standing.has(a) ? { text: "stands", class: "bad" } : asText(a.event),
          asText(a.text),
          Object.entries(a)
            .filter(([k]) => !fields.has(k))
            .map(([k, v]) => `${k} ${isNumber(v) ? fmt.num(v) : asText(v)}`)
            .join(", "),
          asText(a.action),
        ]),
        { text: [1, 2, 3, 4, 5], tall: run.alarms.length > 12 },
      ),
    ),
  ];
}

function faults(run) {
  const log = run.log || {},
    found = [];
  found.push(
    panel(
      h("h3", {}, "Attempts"),
      run.attempts.length
        ? table(
            [
              "",
              "started (UTC)",
              "host",
              "commit",
              "steps",
              "went on",
              "trained in vain",
              "accepted changes",
            ],
            run.attempts.map((a) => [
              fmt.int(a.attempt),
              fmt.when(a.started),
              asText(a.host),
              h("code", {}, (a.git_commit || "–").slice(0, 9)),
              isNumber(a.from_step)
                ? a.to_step > a.from_step
                  ? `${a.from_step + 1} to ${a.to_step}`
                  : "none"
                : "–",
              fmt.time(a.seconds),
              a.undone ? `${fmt.int(a.undone)} steps` : "–",
              asList(a.accepted)
                .map((c) => c.what)
                .join(", ") || "–",
            ]),
            {
              text: [1, 2, 3, 7],
              caption:
                "A resumed attempt goes on from the newest whole checkpoint; steps after it are trained anew.",
            },
          )
        : empty("run.json is not there: nothing is known of attempts."),
    ),
  );
  const guards = run.guards;
  if (guards.rollbacks.length || guards.refused || guards.shrunk)
    found.push(
      panel(
        h("h3", {}, "What the guards did"),
        guards.rollbacks.length
          ? table(
              ["rolled back after step", "to the weights of step"],
              guards.rollbacks.map((r) => [fmt.int(r.step), fmt.int(r.to)]),
            )
          : null,
        h(
          "p",
          { class: "small soft" },
          `Steps with refused updates: ${fmt.int(guards.refused)}; followed by a smaller learning rate: ${fmt.int(guards.shrunk)}.`,
        ),
      ),
    );
  const repairs = Object.entries(log.repairs || {});
  found.push(
    h(
      "div",
      { class: "grid" },
      panel(
        h("h3", {}, "Repairs"),
        repairs.length
          ? table(
              ["what was done", "times"],
              repairs.map(([what, n]) => [what, fmt.int(n)]),
            )
          : h("p", { class: "soft small" }, log.there ? "Nothing had to be mended." : "There is no log.txt."),
      ),
      panel(
        h("h3", {}, "Groups that failed"),
        run.failed_groups.length
          ? table(
              ["group", "", "why"],
              [...run.failed_groups]
                .reverse()
                .map((g) => [
                  h("code", {}, asText(g.group)),
                  `${g.reason.replace("_", " ")}${g.undone ? ", undone" : ""}`,
                  asText(g.why),
                ]),
              { text: [0, 1, 2], tall: true },
            )
          : h("p", { class: "soft small" }, "No group failed."),
      ),
    ),
  );
  const end = log.end && log.end.text.startsWith("the run ended with") ? log.end : null;
  if (end)
    found.push(
      panel(
        h("h3", { class: "bad-ink" }, "How it ended"),
        h("p", {}, end.text),
        h("pre", { class: "trace" }, end.trace),
      ),
    );
  const loud = asList(log.loud);
  found.push(
    panel(
      h("h3", {}, "Warnings and errors"),
      loud.length
        ? [
            log.num_loud > loud.length
              ? h("p", { class: "small soft" }, `The first and the last of ${fmt.int(log.num_loud)}.`)
              : null,
            table(
              ["when", "", "where", "what"],
              [...loud]
                .reverse()
                .map((e) => [
                  fmt.when(e.time),
                  e.level === "WARNING" ? "warning" : { text: e.level.toLowerCase(), class: "bad" },
                  asText(e.logger).replace(/^braid\./, ""),
                  h("div", {}, e.text, e.trace && h("pre", { class: "trace" }, e.trace)),
                ]),
              { text: [1, 2, 3], tall: loud.length > 8 },
            ),
          ]
        : h("p", { class: "soft small" }, log.there ? "None." : "There is no log.txt."),
      h(
        "details",
        {},
        h("summary", {}, "Last lines of the log"),
        h("pre", { class: "box" }, asList(log.last).join("\n")),
      ),
    ),
  );
  return found;
}
