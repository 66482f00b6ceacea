"use strict";

// Tables: a click on a heading sorts by its column, numbers numerically; empty cells stay last.
const collator = new Intl.Collator(undefined, { numeric: true });

// The rows of jobs; those of the teachers stay above them.
function jobsOf(table) {
  return table.querySelector("tbody.jobs");
}

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent.trim();
}

function sort(table, column) {
  const headings = [...table.tHead.rows[0].cells];
  const up = headings[column].getAttribute("aria-sort") !== "ascending";
  headings.forEach((heading) => heading.removeAttribute("aria-sort"));
  headings[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = jobsOf(table);
  const rows = [...body.rows];
  const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
  const numeric = [...values.values()].every((v) => v === "" || !Number.isNaN(Number(v)));
  rows.sort((first, second) => {
    const [a, b] = [values.get(first), values.get(second)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? a - b : collator.compare(a, b);
    return up ? order : -order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sorts")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) =>
    heading.querySelector("button").addEventListener("click", () => sort(table, column))
  );
}

// The filter keeps the rows that meet each of its words: `alpha=0` and `nll<5` compare the cell of
// that column, by its heading or its key; other words are looked for in the whole row.
const COMPARE = {
  "=": (a, b) => a === b,
  "!=": (a, b) => a !== b,
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
};

function columnNamed(table, name) {
  const headings = [...table.tHead.rows[0].cells];
  const names = headings.map((heading) => {
    const key = (heading.dataset.column ?? "").toLowerCase();
    const text = heading.textContent.trim().toLowerCase();
    return [key, key.split(".").pop(), text, text.replace(/\s+/g, "_"), text.split(",")[0]];
  });
  return names.findIndex((one) => one.includes(name));
}

function conditionOf(table, word) {
  const [, name, sign, value] = /^(.+?)(<=|>=|!=|=|<|>)(.*)$/.exec(word) ?? [];
  const column = name ? columnNamed(table, name) : -1;
  if (column < 0 || value === "") {
    return (row) =>
      [row.dataset.name, ...[...row.cells].map((cell) => cell.textContent)]
        .join(" ")
        .toLowerCase()
        .includes(word);
  }
  return (row) => {
    const cell = valueOf(row, column).toLowerCase();
    if (cell === "") return false;
    // Numbers count as they are shown: in percent or millions, and nll=4.487 to its digits.
    const shown = row.cells[column].textContent.trim().toLowerCase();
    if (sign === "=" && shown === value) return true;
    const { factor = 1 } = table.tHead.rows[0].cells[column].dataset;
    const [a, b] = [factor * Number(cell), Number(value)];
    return Number.isNaN(a) || Number.isNaN(b) ? COMPARE[sign](cell, value) : COMPARE[sign](a, b);
  };
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(input.dataset.filters);
  const rows = [...jobsOf(table).rows];
  const count = input.closest(".filter").querySelector("output");
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const conditions = words.map((word) => conditionOf(table, word));
    rows.forEach((row) => (row.hidden = !conditions.every((holds) => holds(row))));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} jobs`;
  };
  input.addEventListener("input", show);
  show(); // a browser may restore the input after a reload
}

// Columns: those that do not fit are hidden at first, from the right; a phone scrolls instead.
const LEAST_COLUMNS = 3;

function showColumn(table, key, shown) {
  for (const row of table.rows) {
    for (const cell of row.cells) if (cell.dataset.column === key) cell.hidden = !shown;
  }
}

for (const list of document.querySelectorAll("[data-columns]")) {
  const table = document.getElementById(list.dataset.columns);
  const boxes = [...list.querySelectorAll("input")];
  const summary = list.parentElement.querySelector("summary");
  const update = () => {
    boxes.forEach((box) => showColumn(table, box.value, box.checked));
    const hidden = boxes.filter((box) => !box.checked).length;
    summary.textContent = hidden ? `columns (${hidden} hidden)` : "columns";
  };
  boxes.forEach((box) => box.addEventListener("change", update));
  if (innerWidth >= 700) {
    const wide = table.parentElement;
    for (let n = boxes.length - 1; n >= LEAST_COLUMNS && wide.scrollWidth > wide.clientWidth; n--) {
      boxes[n].checked = false;
      showColumn(table, boxes[n].value, false);
    }
  }
  update();
}

// A table as Markdown or LaTeX: the rows and columns that are shown.
function cellsOf(table) {
  return [...table.rows]
    .filter((row) => !row.hidden)
    .map((row) => [...row.cells].filter((c) => !c.hidden).map((c) => c.textContent.trim()));
}

function alignment(table) {
  const cells = [...table.tHead.rows[0].cells].filter((cell) => !cell.hidden);
  return cells.map((cell) => (cell.classList.contains("text") ? "l" : "r"));
}

const AS_TEXT = {
  markdown(table) {
    const line = (cells) => `| ${cells.map((c) => c.replaceAll("|", "\\|")).join(" | ")} |`;
    const rule = alignment(table).map((side) => (side === "l" ? "---" : "---:"));
    const [head, ...rows] = cellsOf(table);
    return [line(head), `| ${rule.join(" | ")} |`, ...rows.map(line)].join("\n") + "\n";
  },
  latex(table) {
    const special = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
    const math = { "‖": "$\\Vert$", "±": "$\\pm$", "−": "$-$", "η": "$\\eta$", "²": "$^2$", "…": "\\dots" };
    const escape = (text) =>
      text.replace(/[\\~^&%$#_{}‖±−η²…]/g, (c) => special[c] ?? math[c] ?? `\\${c}`);
    const line = (cells) => `${cells.map(escape).join(" & ")} \\\\`;
    const [head, ...rows] = cellsOf(table);
    return [
      `\\begin{tabular}{${alignment(table).join("")}}`,
      "\\toprule",
      line(head),
      "\\midrule",
      ...rows.map(line),
      "\\bottomrule",
      "\\end{tabular}",
      "",
    ].join("\n");
  },
};

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "copied";
  setTimeout(() => (button.textContent = label), 1500);
}

for (const button of document.querySelectorAll("[data-copies] button")) {
  const table = document.getElementById(button.parentElement.dataset.copies);
  button.addEventListener("click", () => copy(AS_TEXT[button.dataset.format](table), button));
}

// Two jobs side by side
function fill(row, texts, tag = "td") {
  texts.forEach((text, n) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    cell.className = "text";
    row.append(cell);
  });
}

for (const choice of document.querySelectorAll("[data-pairs]")) {
  const jobs = JSON.parse(document.getElementById(choice.dataset.pairs).textContent);
  const selects = [...choice.querySelectorAll("select")];
  const table = document.getElementById("pairs-table");
  const show = () => {
    const pair = selects.map((select) => jobs[select.value]);
    table.replaceChildren();
    fill(table.createTHead().insertRow(), ["", ...pair.map((job) => job.name)], "th");
    const body = table.createTBody();
    const rows = (kind, differing) => {
      for (const key of Object.keys(pair[0][kind])) {
        const values = pair.map((job) => job[kind][key]);
        if (differing && values[0] === values[1]) continue;
        fill(body.insertRow(), [key, ...values]);
      }
    };
    rows("settings", true);
    rows("scores", false);
  };
  selects.forEach((select) => select.addEventListener("change", show));
  show();
}

// Commands
for (const button of document.querySelectorAll(".command button")) {
  const pre = button.parentElement.querySelector("pre");
  button.addEventListener("click", () => copy(pre.textContent, button));
}

// Figures: plotly, most of the page's size, is parsed when the first figure comes into view.
const dark = matchMedia("(prefers-color-scheme: dark)");

// Replaces each string `var(--name)` by the color of that name in the style.
function resolveColors(node, style) {
  if (Array.isArray(node)) return node.map((item) => resolveColors(item, style));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, resolveColors(v, style)]));
  }
  const name = typeof node === "string" && /^var\((--[\w-]+)\)$/.exec(node);
  return name ? style.getPropertyValue(name[1]).trim() : node;
}

// On a phone, names are placed above their lines, and long legends are hidden.
function fitToPhone(data, layout) {
  Object.assign(layout.margin, { l: 48, r: 8 });
  if (layout.yaxis.automargin) {
    const names = [...new Set(data.flatMap((trace) => trace.y))];
    const place = { xref: "paper", x: 0, xanchor: "left", yanchor: "bottom", yshift: 4 };
    layout.annotations = names.map((name) => ({ ...place, y: name, text: name, showarrow: false }));
    layout.yaxis.showticklabels = false;
    layout.margin.l = 8;
    layout.height = 130 + 44 * names.length;
  }
  layout.showlegend = data.filter((trace) => trace.showlegend !== false && trace.name).length < 6;
  layout.showlegend &&= data.length > 1;
}

// Curves against another axis, or with the colors of one key's values.
function choose(figure) {
  const controls = document.querySelector("[data-curves]");
  const [axis, key] = [...controls.querySelectorAll("select")].map((select) => select.value);
  figure.layout.xaxis.title.text = axis;
  if (axis) figure.data.forEach((trace) => (trace.x = trace.meta.x[axis]));
  if (!key) return;
  const values = [...new Set(figure.data.map((trace) => trace.meta.settings[key]))];
  values.sort(collator.compare);
  const seen = new Set();
  for (const trace of figure.data) {
    const value = trace.meta.settings[key];
    const color = `var(--line-${1 + (values.indexOf(value) % 8)})`;
    Object.assign(trace, {
      name: `${key}=${value}`,
      legendgroup: value,
      showlegend: !seen.has(value),
      line: { ...trace.line, color, dash: "solid" },
    });
    seen.add(value);
  }
}

// On paper, a figure is as wide as the page between its margins.
const PAPER = 680;
let printing = false;

function draw(box) {
  if (!window.Plotly) {
    const code = document.createElement("script");
    code.textContent = document.getElementById("plotly").textContent;
    document.head.append(code);
  }
  const style = getComputedStyle(document.documentElement);
  const figure = JSON.parse(document.getElementById(box.dataset.figure).textContent);
  if (figure.layout.meta?.axes) choose(figure);
  const { data, layout } = resolveColors(figure, style);
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style.getPropertyValue("--muted").trim(), family: "system-ui, sans-serif" },
  });
  Object.assign(layout.hoverlabel, {
    bgcolor: style.getPropertyValue("--soft").trim(),
    bordercolor: style.getPropertyValue("--muted").trim(),
    font: { color: style.getPropertyValue("--ink").trim() },
  });
  if (printing) layout.width = box.closest(".maps") ? PAPER / 2 - 8 : PAPER;
  else if (box.clientWidth < 600) fitToPhone(data, layout);
  box.style.minHeight = "";
  Plotly.react(box, data, layout, { responsive: !printing, displayModeBar: false });
  box.dataset.drawn = "";
}

async function save(button) {
  const id = button.parentElement.dataset.saves;
  const box = document.querySelector(`[data-figure="${id}"]`);
  if (!("drawn" in box.dataset)) draw(box);
  const page = getComputedStyle(document.body).backgroundColor;
  const [width, height] = [box.clientWidth, box.layout.height];
  await Plotly.downloadImage(
    { data: box.data, layout: { ...box.layout, paper_bgcolor: page, width, height } },
    { format: button.textContent.toLowerCase(), filename: id, width, height, scale: 2 }
  );
}

for (const button of document.querySelectorAll("[data-saves] button")) {
  button.addEventListener("click", () => save(button));
}

const boxes = [...document.querySelectorAll("[data-figure]")];
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      draw(target);
    }
  },
  { rootMargin: "300px" }
);
boxes.forEach((box) => watcher.observe(box));
const redraw = () => boxes.filter((box) => "drawn" in box.dataset).forEach(draw);
dark.addEventListener("change", redraw);
for (const select of document.querySelectorAll("[data-curves] select")) {
  select.addEventListener("change", redraw);
}
addEventListener("beforeprint", () => {
  printing = true;
  boxes.forEach(draw);
});
addEventListener("afterprint", () => {
  printing = false;
  boxes.forEach(draw);
});
