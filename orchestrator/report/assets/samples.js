// The sample browser: a list that is filtered, and one rollout in full.
const MODES = {
  advantage: ["advantage", "Advantage: blue is pushed up, orange pushed down", "adv"],
  logprob: ["sampler's probability", "Logprob under the sampler: the darker, the less likely it was", "prob"],
  mismatch: ["trainer − sampler", "Gap of the trainer's logprob and the sampler's, before the update", "mis"],
};

const keyOf = (row) => `${row.step}/${row.group_id}/${row.index}`;
const firstLine = (row) =>
  asText(asList(row.completions)[0]).trim().split("\n")[0] || (row.error ? asText(row.error) : "(empty)");

function matches(row) {
  const f = state.filters;
  if (f.source && row.source !== f.source) return false;
  if (f.status && row.status !== f.status) return false;
  if (f.from !== undefined && !(row.step >= f.from)) return false;
  if (f.to !== undefined && !(row.step <= f.to)) return false;
  if (f.least !== undefined && !(isNumber(row.reward) && row.reward >= f.least)) return false;
  if (f.most !== undefined && !(isNumber(row.reward) && row.reward <= f.most)) return false;
  if (f.words) {
    const text = [
      row.group_id,
      row.answer,
      ...asList(row.completions),
      ...asList(row.prompt).map((m) => (isRecord(m) ? m.content : "")),
    ]
      .map(asText)
      .join("\n")
      .toLowerCase();
    if (
      !f.words
        .toLowerCase()
        .split(/\s+/)
        .every((w) => text.includes(w))
    )
      return false;
  }
  return true;
}

function samples(run) {
  const rows = [...run.samples.rows].sort((a, b) => b.step - a.step); // newest first, else as recorded
  if (!rows.length) return [empty("No rollouts were recorded.")];
  const list = h("div", { class: "list", role: "listbox", "aria-label": "Rollouts", tabindex: 0 });
  const detail = h("div", { class: "detail", tabindex: 0, "aria-label": "The chosen rollout" });
  const count = h("span", { class: "small soft", role: "status", "data-count": "" });
  let shown = [];
  const update = () => {
    shown = rows.filter(matches);
    count.textContent = `${fmt.int(shown.length)} of ${fmt.int(rows.length)} rollouts`;
    list.replaceChildren(...shown.slice(0, 1500).map((row) => item(run, row)));
    if (!shown.length) {
      list.append(empty("None fits."));
      detail.replaceChildren();
      return;
    }
    if (!shown.some((r) => keyOf(r) === state.sample)) state.sample = keyOf(shown[0]);
    select(state.sample, false);
  };
  const select = (key, scroll = true) => {
    state.sample = key;
    for (const button of list.children) {
      const is = button.dataset.key === key;
      button.setAttribute("aria-selected", String(is));
      if (is && scroll) button.scrollIntoView({ block: "nearest" });
    }
    const row = shown.find((r) => keyOf(r) === key);
    if (row) detail.replaceChildren(...rollout(run, row, () => select(key, false)));
    if (scroll) detail.scrollTop = 0;
  };
  const move = (by) => {
    const now = shown.findIndex((r) => keyOf(r) === state.sample);
    const next = shown[Math.max(0, Math.min(shown.length - 1, now + by))];
    if (next) select(keyOf(next));
  };
  list.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(button.dataset.key);
  });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) {
      event.preventDefault();
      move(by);
    }
  });
  samples.move = move;
  samples.mode = () => {
    cycle(rows);
    select(state.sample, false);
  };
  update();
  return [
    h("div", { class: "panel browser" }, filterBar(run, rows, update, count), list, detail),
    h(
      "p",
      { class: "small soft" },
      `Rollouts of ${fmt.int(run.samples.steps_shown)} of the ${fmt.int(run.samples.steps)} steps that recorded some`,
      run.samples.steps > run.samples.steps_shown
        ? ", first and last and those spread between, so that the page stays small; all are in rollouts/."
        : ".",
      " Keys: ",
      h("kbd", {}, "j"),
      " next, ",
      h("kbd", {}, "k"),
      " back, ",
      h("kbd", {}, "/"),
      " find, ",
      h("kbd", {}, "c"),
      " colours.",
    ),
  ];
}

function filterBar(run, rows, update, count) {
  const f = state.filters;
  const choice = (label, key, values) => {
    const el = h(
      "select",
      {
        "data-filter": key,
        onchange: () => {
          f[key] = el.value || undefined;
          update();
        },
      },
      h("option", { value: "" }, "all"),
      values.map((v) => h("option", { value: v }, v)),
    );
    el.value = f[key] || "";
    return h("label", {}, label, el);
  };
  const number = (label, key) => {
    const el = h("input", {
      type: "number",
      step: "any",
      "data-filter": key,
      value: f[key] ?? "",
      oninput: () => {
        f[key] = el.value === "" ? undefined : Number(el.value);
        update();
      },
    });
    return h("label", {}, label, el);
  };
  const words = h("input", {
    type: "search",
    id: "find-sample",
    placeholder: "words in prompt or answer",
    value: f.words || "",
    oninput: () => {
      f.words = words.value.trim() || undefined;
      update();
    },
  });
  const unique = (key) => [...new Set(rows.map((r) => asText(r[key])))].filter(Boolean);
  return h(
    "div",
    { class: "filters" },
    h("label", {}, "find", words),
    choice("source", "source", unique("source")),
    choice("status", "status", unique("status")),
    number("from step", "from"),
    number("to step", "to"),
    number("reward from", "least"),
    number("reward to", "most"),
    count,
  );
}

function item(run, row) {
  const i = run.sources.indexOf(row.source);
  return h(
    "button",
    { type: "button", role: "option", "aria-selected": "false", "data-key": keyOf(row), tabindex: -1 },
    h("span", {}, swatch(i < 0 ? 8 : i), `${asText(row.source)} · step ${asText(row.step)}`),
    h("span", { class: "num" }, isNumber(row.reward) ? fmt.num(row.reward) : asText(row.status)),
    h("span", { class: "said" }, firstLine(row)),
  );
}

function rollout(run, row, again) {
  const parts = Object.entries(isRecord(row.reward_parts) ? row.reward_parts : {});
  const group = run.samples.rows.filter((r) => r.group_id === row.group_id && r.step === row.step);
  const notes = isRecord(row.reward_notes) && Object.keys(row.reward_notes).length ? row.reward_notes : null;
  const rewards = group.map((r) => r.reward).filter(isNumber);
  return [
    h(
      "div",
      {},
      h("h3", {}, asText(row.group_id), ` · rollout ${asText(row.index)}`),
      h(
        "div",
        { class: "facts" },
        fact("step", asText(row.step)),
        fact("status", asText(row.status)),
        fact("reward", isNumber(row.reward) ? fmt.num(row.reward) : "none"),
        rewards.length > 1
          ? fact(
              "group's mean",
              `${fmt.num(rewards.reduce((a, b) => a + b, 0) / rewards.length)} (${rewards.length}${row.of_group ? ` shown of ${row.of_group}` : ""})`,
            )
          : null,
        fact("sampled tokens", fmt.int(row.completion_tokens)),
        fact("policy version", asList(row.versions).join(", ") || "–"),
        row.gold !== null && row.gold !== undefined ? fact("gold", fmt.num(row.gold)) : null,
        row.tampering ? fact("tampering", asText(row.tampering)) : null,
      ),
    ),
    row.error ? h("p", { class: "pill bad" }, asText(row.error)) : null,
    parts.length
      ? table(
          ["reward part", "value", ""],
          parts.map(([n, v]) => [n, isNumber(v) ? fmt.num(v) : asText(v), meter(v, 0)]),
        )
      : null,
    conversation(row),
    row.tokens
      ? tokens(run, row, again)
      : h("p", { class: "small soft" }, "No tokens were recorded of this rollout."),
    notes
      ? h(
          "details",
          {},
          h("summary", {}, "What graders noted"),
          h("pre", { class: "box" }, JSON.stringify(notes, null, 2)),
        )
      : null,
    asList(row.spans).length
      ? h(
          "details",
          {},
          h("summary", {}, "Scored stretches"),
          table(
            ["part", "turn", "from", "to", "score"],
            row.spans.map((sp) => asList(sp).map(asText)),
          ),
        )
      : null,
  ].filter(Boolean);
}
const fact = (k, v) => h("span", {}, `${k} `, h("b", {}, v));

function conversation(row) {
  const msg = (who, text, policy) =>
    h(
      "div",
      { class: policy ? "msg policy" : "msg" },
      h("div", { class: "who" }, who),
      h("pre", {}, text || "(empty)"),
    );
  const heard = asList(row.heard);
  const turns = asList(row.completions).flatMap((text, i) => [
    i && heard[i - 1] !== undefined ? msg("environment", asText(heard[i - 1])) : null,
    msg(i ? `policy, turn ${i + 1}` : "policy", asText(text), true),
  ]);
  return h(
    "div",
    { class: "talk" },
    asList(row.prompt)
      .filter(isRecord)
      .map((m) => msg(asText(m.role), asText(m.content))),
    turns,
    row.answer !== null && row.answer !== undefined
      ? msg("reference answer, seen by graders alone", asText(row.answer))
      : null,
  );
}

const available = (t) =>
  Object.keys(MODES).filter((m) =>
    m === "advantage"
      ? t.advantage !== undefined
      : m === "logprob"
        ? Array.isArray(t.logprob)
        : Array.isArray(t.trainer_logprob),
  );
function cycle(rows) {
  const row = rows.find((r) => keyOf(r) === state.sample);
  const modes = row && row.tokens ? available(row.tokens) : [];
  if (modes.length) state.mode = modes[(modes.indexOf(state.mode) + 1) % modes.length];
}

// What the darkest colour stands for: 99 of 100 of the page's numbers lie within it.
const scales = new WeakMap();
function scaleOf(run, mode) {
  if (!scales.has(run)) {
    const seen = { advantage: [], mismatch: [] };
    for (const { tokens: t } of run.samples.rows) {
      if (!t) continue;
      seen.advantage.push(
        ...(Array.isArray(t.advantage) ? t.advantage : [t.advantage]).filter(isNumber).map(Math.abs),
      );
      asList(t.trainer_logprob).forEach((v, i) => {
        if (isNumber(v) && isNumber(asList(t.logprob)[i])) seen.mismatch.push(Math.abs(v - t.logprob[i]));
      });
    }
    const high = (values) => values.sort((a, b) => a - b)[Math.floor(0.99 * (values.length - 1))] || 1e-9;
    scales.set(run, { advantage: high(seen.advantage), mismatch: high(seen.mismatch) });
  }
  return scales.get(run)[mode];
}

function tokens(run, row, again) {
  const t = row.tokens,
    modes = available(t);
  const mode = modes.includes(state.mode) ? state.mode : modes[0];
  const at = new Map(); // place of a token -> place among the sampled ones
  let n = 0;
  for (const [from, to] of t.sampled) for (let i = from; i < to; i++) at.set(i, n++);
  const value = (i, key) => {
    const v = t[key];
    return Array.isArray(v) ? v[at.get(i)] : v;
  };
  const gapOf = (i) => {
    const a = value(i, "trainer_logprob"),
      b = value(i, "logprob");
    return isNumber(a) && isNumber(b) ? a - b : null;
  };
  const most = mode === "logprob" ? 5 : scaleOf(run, mode);
  const spans = t.text.map((text, i) => token(asText(text), i, { t, at, mode, most, value, gapOf }));
  const left = asList(t.left_out);
  if (left.length === 2)
    spans.splice(left[0], 0, h("span", { class: "gapmark" }, `… ${fmt.int(left[1])} tokens not recorded …`));
  if (t.after) spans.push(h("span", { class: "gapmark" }, `… ${fmt.int(t.after)} tokens more …`));
  const range =
    mode === "advantage"
      ? [fmt.num(-most), fmt.num(most)]
      : mode === "mismatch"
        ? ["0", `${fmt.num(most)} or more`]
        : ["p = 1", "p < 0.01"];
  const why = Array.isArray(t.trainer_logprob)
    ? null
    : "The trainer's logprobs were not recorded, so mismatch cannot be shown by token: set logging.trainer_logprobs.";
  return h(
    "div",
    { class: "talk" },
    h(
      "div",
      { class: "row" },
      h("h3", {}, "Tokens"),
      modes.map((m) =>
        h(
          "button",
          {
            type: "button",
            class: "btn",
            "data-mode": m,
            "aria-pressed": String(m === mode),
            onclick: () => {
              state.mode = m;
              again();
            },
          },
          MODES[m][0],
        ),
      ),
    ),
    mode
      ? h(
          "div",
          { class: "scale" },
          range[0],
          h("i", { class: MODES[mode][2], "aria-hidden": "true" }),
          range[1],
          h("span", {}, MODES[mode][1]),
        )
      : h("p", { class: "small soft" }, "It was not trained on: no token has an advantage."),
    h("div", { class: "tokens", role: "group", "aria-label": "Tokens; dim ones are not in the loss" }, spans),
    h(
      "p",
      { class: "small soft" },
      "Dim tokens were not sampled by the policy and are not in the loss.",
      mode === "advantage" && !Array.isArray(t.advantage)
        ? ` All sampled tokens share the advantage ${fmt.num(t.advantage)}.`
        : "",
      why ? ` ${why}` : "",
    ),
  );
}

function token(text, i, c) {
  const pieces = text
    .split("\n")
    .flatMap((piece, n) =>
      n ? [h("span", { class: "nl", "aria-hidden": "true" }, "⏎"), "\n", piece] : [piece],
    );
  if (!c.at.has(i)) return h("span", { class: "tok masked", title: "not in the loss" }, pieces);
  const advantage = c.value(i, "advantage"),
    logprob = c.value(i, "logprob"),
    gap = c.gapOf(i);
  const told = [
    ["advantage", advantage],
    ["sampler's logprob", logprob],
    ["trainer's logprob", c.value(i, "trainer_logprob")],
    ["gap", gap],
  ].filter(([, v]) => isNumber(v));
  const el = h(
    "span",
    { class: "tok", title: [JSON.stringify(text), ...told.map(([k, v]) => `${k} ${fmt.num(v)}`)].join("\n") },
    pieces,
  );
  const paint = (name, share) => {
    el.style.backgroundColor = `rgba(var(--${name}), ${(0.06 + 0.5 * Math.min(1, share)).toFixed(3)})`;
  };
  if (c.mode === "advantage" && isNumber(advantage) && advantage !== 0)
    paint(advantage > 0 ? "up" : "down", Math.abs(advantage) / c.most);
  if (c.mode === "logprob" && isNumber(logprob)) paint("down", -logprob / c.most);
  if (c.mode === "mismatch" && isNumber(gap) && gap !== 0) paint("gap", Math.abs(gap) / c.most);
  return el;
}
