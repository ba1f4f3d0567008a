// Elements and numbers. Text from a run enters the page as text nodes alone: nothing here, or
// anywhere in this script, parses HTML.
const SVG = "http://www.w3.org/2000/svg";

function fill(el, props, children) {
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "open") el[key] = value;
    else el.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) el.append(child);
  }
  return el;
}
const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

const isNumber = (v) => typeof v === "number" && Number.isFinite(v);
const isRecord = (v) => typeof v === "object" && v !== null && !Array.isArray(v);
const asList = (v) => (Array.isArray(v) ? v : []);
const asText = (v) => (typeof v === "string" ? v : v === null || v === undefined ? "" : JSON.stringify(v));

const fmt = {
  num(v) {
    if (!isNumber(v)) return "–";
    if (v < 0) return `−${fmt.num(-v)}`;
    const size = v;
    if (v === 0) return "0";
    if (Number.isInteger(v) && size < 1e7) return v.toLocaleString("en-US");
    if (size >= 1e5 || size < 1e-3) return Number(v.toPrecision(3)).toExponential().replace("e+", "e");
    return String(Number(v.toPrecision(size >= 100 ? 4 : 3)));
  },
  pct: (v, digits = 1) => (isNumber(v) ? `${(100 * v).toFixed(digits)}%` : "–"),
  signed: (v, digits = 1) =>
    isNumber(v)
      ? `${Math.abs(v) * 100 < 0.5 * 10 ** -digits ? "" : v > 0 ? "+" : "−"}${(100 * Math.abs(v)).toFixed(digits)}`
      : "–",
  int: (v) => (isNumber(v) ? Math.round(v).toLocaleString("en-US") : "–"),
  bytes(v) {
    if (!isNumber(v)) return "–";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let i = 0;
    while (v >= 1000 && i < units.length - 1) [v, i] = [v / 1000, i + 1];
    return `${Number(v.toPrecision(3))} ${units[i]}`;
  },
  time(v) {
    if (!isNumber(v)) return "–";
    if (v < 1) return `${Math.round(v * 1000)} ms`;
    if (v < 100) return `${Number(v.toPrecision(3))} s`;
    const minutes = Math.floor(v / 60);
    return minutes < 60
      ? `${minutes} min ${Math.round(v % 60)} s`
      : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  },
  hours: (v) =>
    isNumber(v) ? (v !== 0 && v < 0.001 ? v.toExponential(1) : v < 1 ? v.toFixed(4) : v.toFixed(2)) : "–",
  when: (v) => asText(v).slice(0, 19).replace("T", " "),
};

// A table whose first column names the row. `rows` hold texts, elements, or {text, class}.
function table(columns, rows, options = {}) {
  const cell = (tag, content, i) => {
    const plain = isRecord(content) && !(content instanceof Node) ? content : { text: content };
    const names = [plain.class, asList(options.text).includes(i) ? "text" : null].filter(Boolean).join(" ");
    return h(tag, { class: names || null, scope: tag === "th" ? "col" : null }, plain.text ?? "–");
  };
  return h(
    "div",
    { class: options.tall ? "scroll tall" : "scroll", tabindex: options.tall ? 0 : null },
    h(
      "table",
      {},
      options.caption && h("caption", {}, options.caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          columns.map((c, i) => cell("th", c, i)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((c, i) => cell("td", c, i)),
          ),
        ),
      ),
    ),
  );
}

// A change is coloured where it is beyond two standard errors; else it may be chance, and is not.
const changeCell = (change, ...errors) => ({
  text: fmt.signed(change),
  class:
    errors.every(isNumber) && Math.abs(change) > 2 * Math.hypot(...errors)
      ? change < 0
        ? "bad"
        : "good"
      : null,
});
const empty = (...text) => h("p", { class: "empty" }, ...text);
const swatch = (i) => h("span", { class: `swatch s${i % 9}`, "aria-hidden": "true" });
const panel = (...children) => h("div", { class: "panel" }, ...children);
const meter = (share, i) => {
  const inner = h("i", {});
  inner.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return h("span", { class: `meter s${i % 9}`, "aria-hidden": "true" }, inner);
};

// What a person chose. It outlives a redraw, and a live page is redrawn often.
const state = {
  smoothing: null,
  hidden: new Map(),
  sample: null,
  mode: "advantage",
  filters: {},
  find: "",
  compared: null,
};
