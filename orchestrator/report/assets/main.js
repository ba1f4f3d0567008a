// The page itself: sections, navigation, theme, keys, and news of a run that goes on.
const SECTIONS = [
  ["overview", "Overview", null, overview],
  ["held-out", "Held out", "What it can do on items that it is never trained on.", heldOut],
  ["learning", "Learning", "What the steps looked like, by source and for the policy as a whole.", learning],
  ["mix", "Mix", "What each source was due, and what became of its groups.", mix],
  ["time", "Time", "Where a step's wall time went.", time],
  [
    "sync",
    "Policy and engines",
    "How old what was trained on was, and how far the sampler and the trainer lie apart.",
    policySync,
  ],
  ["alarms", "Alarms", "What the monitors of reward hacking and the guards of stability said.", alarms],
  ["faults", "Faults and repairs", "What broke, and what was done.", faults],
  ["cost", "Cost", "What was reserved, and for which source.", cost],
  ["samples", "Samples", "What the policy wrote, what it got for it, and which tokens that moved.", samples],
  ["recipe", "Recipe and hashes", "What ran.", recipe],
  ["metrics", "All metrics", "Every number that was recorded.", explorer],
];
const KEYS = [
  ["j  k", "next, previous rollout"],
  ["/", "find a rollout"],
  ["c", "colour tokens by the next number"],
  ["← →", "read a chart's values, once it has the focus"],
  ["t", "light or dark"],
  ["m", "find a metric"],
  ["?", "this help"],
  ["Esc", "leave a field, close"],
];

const memory = {
  // a file opened from disk may be refused storage
  get(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(key, value);
    } catch {
      /* the choice holds for this visit */
    }
  },
};
const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(choice) {
  if (choice) memory.set("braid-theme", choice);
  const now = choice || memory.get("braid-theme") || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  document.querySelectorAll("[data-theme-button]").forEach((b) => {
    b.textContent = now === "dark" ? "Light" : "Dark";
    b.setAttribute("aria-label", `Switch to ${now === "dark" ? "light" : "dark"} mode`);
  });
}
dark.addEventListener("change", () => theme());
const flip = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

const MARK = () =>
  s(
    "svg",
    { viewBox: "0 0 24 24", "aria-hidden": "true" },
    s("g", { class: "s0" }, s("path", { class: "ln", d: "M5 2C5 9 19 8 19 15 19 19 16 20 16 22" })),
    s("g", { class: "s1" }, s("path", { class: "ln", d: "M12 2C12 8 5 8 5 14 5 18 9 19 9 22" })),
    s("g", { class: "s2" }, s("path", { class: "ln", d: "M19 2C19 8 12 9 12 13" })),
  );

function pageHead(data) {
  const run = data.run,
    status = run.status;
  const kind =
    { running: "live", complete: "good", failed: "bad", stopped: "warn", ended: "warn" }[status.state] || "";
  const first = run.attempts[0],
    latest = run.attempts[run.attempts.length - 1];
  return h(
    "header",
    { class: "top" },
    h(
      "div",
      { class: "row" },
      h("h1", {}, run.name),
      h("span", { class: `pill ${kind}`, "data-status": status.state }, status.text),
    ),
    h(
      "div",
      { class: "facts" },
      run.id && fact("run", run.id),
      first && fact("started", `${fmt.when(first.started)} UTC`),
      latest && fact("host", asText(latest.host)),
      latest && latest.git_commit && fact("commit", latest.git_commit.slice(0, 9)),
      fact("folder", run.path),
    ),
    h(
      "div",
      { class: "facts" },
      fact(data.live ? "last looked" : "written", `${fmt.when(run.made)} UTC`),
      h("span", { "data-live": "" }),
    ),
  );
}

function guarded(name, make, data) {
  try {
    return make(data).filter(Boolean);
  } catch (error) {
    console.error(error);
    return [empty(`This section could not be drawn (${error.message}). The other ones stand.`)];
  }
}

function section(id, title, note, content) {
  return h(
    "section",
    { id, "aria-labelledby": `h-${id}` },
    h("div", { class: "head" }, h("h2", { id: `h-${id}` }, title), note && h("p", {}, note)),
    ...content,
  );
}

function tools(data) {
  const slider = h("input", {
    type: "range",
    min: 0,
    max: 0.95,
    step: 0.05,
    value: state.smoothing,
    id: "smoothing",
    "aria-label": "Smoothing of curves",
    oninput: () => {
      state.smoothing = Number(slider.value);
      out.textContent = state.smoothing ? state.smoothing.toFixed(2) : "off";
      redrawAll();
    },
  });
  const out = h("span", { class: "num" }, state.smoothing ? state.smoothing.toFixed(2) : "off");
  return h(
    "div",
    { class: "tools" },
    h("label", {}, h("span", {}, "Smoothing ", out), slider),
    h(
      "div",
      { class: "row" },
      h("button", { class: "btn", type: "button", "data-theme-button": "", onclick: flip }, "Dark"),
      h("button", { class: "btn", type: "button", "aria-label": "Keys", onclick: help }, "?"),
    ),
  );
}

// Long runs begin smoothed, the raw values drawn behind: rates of few rollouts jump.
function smoothingFor(data) {
  const points = Math.max(
    ...(data.kind === "diff" ? [data.a, data.b] : [data.run]).map((run) => run.metrics.steps.length),
  );
  return points <= 60 ? 0 : points <= 150 ? 0.6 : 0.85;
}

function render(data) {
  state.smoothing ??= smoothingFor(data);
  const app = document.getElementById("app");
  const sections =
    data.kind === "diff"
      ? diffSections(data)
      : SECTIONS.map(([id, title, note, make]) => [id, title, note, (d) => make(d.run)]);
  const nav = h(
    "nav",
    { "aria-label": "Sections" },
    sections.map(([id, title]) =>
      h(
        "a",
        { href: `#${id}` },
        title,
        id === "alarms" && standingAlarms(data.run).length
          ? h("b", {}, String(standingAlarms(data.run).length))
          : null,
      ),
    ),
  );
  const body = sections.map(([id, title, note, make]) => section(id, title, note, guarded(id, make, data)));
  charts.forEach((c) => {
    if (!body.some((el) => el.contains(c.plot))) {
      c.observer.disconnect();
      charts.delete(c);
    }
  });
  const restore = remember(app);
  app.replaceChildren(
    h("a", { class: "skip", href: "#overview" }, "To the content"),
    h(
      "div",
      { class: "shell" },
      h("aside", { class: "side" }, h("div", { class: "brand" }, MARK(), "Braid"), nav, tools(data)),
      h(
        "main",
        {},
        data.kind === "diff" ? diffHead(data) : pageHead(data),
        ...body,
        h(
          "footer",
          {},
          h(
            "span",
            {},
            "Steps that were not recorded are gaps; smoothing draws the raw values too. Vertical dotted lines mark where a resumed attempt went on, red ones where guards rolled back.",
          ),
          h(
            "span",
            {},
            "This page holds all its data and asks nothing of any network",
            data.live ? ", but for its own server on this machine." : ".",
          ),
        ),
      ),
    ),
  );
  theme();
  redrawAll();
  restore();
  follow(nav, body);
}

// Returns what puts scroll, focus and opened details back where they are now.
function remember(app) {
  const top = scrollY,
    inner = [".list", ".detail"].map((q) => [q, document.querySelector(q)?.scrollTop]);
  const nameOf = (d) =>
    `${d.closest("section")?.id}/${d.closest("[data-chart]")?.dataset.chart}/${d.firstElementChild.textContent}`;
  const opened = new Set([...app.querySelectorAll("details[open]")].map(nameOf));
  const path = [];
  for (let el = document.activeElement; el && el !== app && app.contains(el); el = el.parentElement)
    path.unshift([...el.parentElement.children].indexOf(el));
  const tag = document.activeElement?.tagName;
  return () => {
    for (const d of app.querySelectorAll("details")) if (opened.has(nameOf(d))) d.open = true;
    for (const [q, at] of inner) if (at) document.querySelector(q).scrollTop = at;
    scrollTo({ top, behavior: "instant" });
    const el = path.length ? path.reduce((node, i) => node?.children[i], app) : null;
    if (el?.tagName === tag) el.focus({ preventScroll: true });
  };
}

function follow(nav, body) {
  follow.observer?.disconnect();
  const links = new Map([...nav.children].map((a) => [a.getAttribute("href").slice(1), a]));
  follow.observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries)
        if (entry.isIntersecting) {
          for (const a of nav.children) a.removeAttribute("aria-current");
          links.get(entry.target.id)?.setAttribute("aria-current", "true");
        }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  body.forEach((el) => follow.observer.observe(el));
}

function help() {
  const box = h(
    "dialog",
    { "aria-label": "Keys", onclose: () => box.remove() },
    h("h2", {}, "Keys"),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        KEYS.map(([key, what]) =>
          h(
            "tr",
            {},
            h(
              "td",
              {},
              key.split("  ").map((k) => [h("kbd", {}, k), " "]),
            ),
            h("td", {}, what),
          ),
        ),
      ),
    ),
    h("form", { method: "dialog" }, h("button", { class: "btn" }, "Close")),
  );
  document.body.append(box);
  box.showModal();
}

document.addEventListener("keydown", (event) => {
  const target = event.target,
    typing = target instanceof Element && target.matches("input:not([type=range]), select, textarea");
  if (event.key === "Escape" && typing) return target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]"))
    return;
  const focus = (id) => {
    const el = document.getElementById(id);
    if (el) {
      event.preventDefault();
      el.focus();
      el.scrollIntoView({ block: "center" });
    }
  };
  const step = (by) => {
    if (samples.move) {
      samples.move(by);
      const el = document.querySelector(".browser");
      const box = el.getBoundingClientRect();
      if (box.bottom < 120 || box.top > innerHeight - 120) el.scrollIntoView();
    }
  };
  const action = {
    j: () => step(1),
    k: () => step(-1),
    "/": () => focus("find-sample"),
    m: () => focus("find-metric"),
    c: () => samples.mode?.(),
    t: flip,
    "?": help,
  }[event.key];
  if (action) {
    if (event.key === "/") event.preventDefault();
    action();
  }
});

// A live page asks its server whether anything is new. It is not redrawn while a person writes.
async function watch(data) {
  let tag = null,
    failures = 0;
  const tell = (text) => {
    const el = document.querySelector("[data-live]");
    if (el) el.textContent = text;
  };
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(30, data.every_s * 2 ** failures) * 1000));
    try {
      const answer = await fetch("data.json", {
        headers: tag ? { "If-None-Match": tag } : {},
        cache: "no-store",
      });
      if (answer.status !== 200 && answer.status !== 304) throw new Error(`the server said ${answer.status}`);
      failures = 0;
      if (answer.status === 304) {
        tell("nothing new");
        continue;
      }
      const fresh = await answer.json();
      while (
        document.activeElement?.matches("input, select") ||
        document.querySelector("dialog[open]") ||
        document.querySelector(".plot:hover")
      )
        await new Promise((resolve) => setTimeout(resolve, 500));
      tag = answer.headers.get("ETag");
      render({ ...fresh, live: true });
      tell("up to date");
    } catch (error) {
      failures = Math.min(5, failures + 1);
      tell(`no answer from the server (${error.message}); what stands here is the last that was heard`);
    }
  }
}

const DATA = JSON.parse(document.getElementById("data").textContent);
theme();
render(DATA);
if (DATA.live) watch(DATA);
