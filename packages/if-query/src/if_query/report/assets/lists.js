// Lists in pages, and the table of a query's extremes.

const EXTREMES_AT_ONCE = 10;

// Shows items a page at a time. show(items, from) fills the list.
function pager(items, size, show, what) {
  let page = 0;
  const pages = Math.max(1, Math.ceil(items.length / size));
  const where = element("span", { role: "status", class: "small quiet" });
  const back = button("Back", () => turn(-1), { "aria-label": `Previous ${what}` });
  const next = button("Next", () => turn(1), { "aria-label": `Next ${what}` });
  function turn(step) {
    page = Math.max(0, Math.min(pages - 1, page + step));
    const from = page * size;
    show(items.slice(from, from + size), from);
    const to = Math.min(items.length, from + size);
    where.textContent = items.length ? `${from + 1} to ${to} of ${items.length.toLocaleString("en")}` : "none";
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  }
  turn(0);
  return element("div", { class: "bar-of-tools", hidden: pages === 1 }, back, next, where);
}

function columns(names) {
  return element("thead", {}, element("tr", { role: "row" }, names.map(([name, className]) =>
    element("th", { scope: "col", role: "columnheader", class: className }, name))));
}

// Roles are given in full, since a table laid out as a grid loses its own in some browsers.
function extremesTable(query, rows, title, largest) {
  const body = element("tbody", { role: "rowgroup" });
  const table = element("table", { class: "extremes", role: "table", "aria-label": title },
    columns([["Rank"], ["Score"], ["Percentile", "number"], ["Training example", "example"]]), body);
  const show = (part) => body.replaceChildren(...part.map((row) => extremeRow(query, row, largest)));
  return [table, pager(rows, EXTREMES_AT_ONCE, show, `page of ${title.toLowerCase()}`)];
}

function extremeRow(query, row, largest) {
  const { train } = row;
  const long = train.prompt.length + train.completion.length > 420;
  const content = row.tokens && train.tokens
    ? element("div", {}, shadedTokens(train, row.tokens, train.id))
    : saidText(train);
  return element("tr", { role: "row", "data-train": train.id },
    element("td", { role: "cell" }, row.rank.toLocaleString("en")),
    element("td", { role: "cell" }, scoreCell(row.score, largest)),
    element("td", { role: "cell", class: "number" }, percentileText(row.percentile)),
    element("td", { role: "cell", class: "example" },
      link(pairLink(query, train), train.id),
      clamped(content, long)));
}

// Never rounded to 100 or 0 while an example is not the whole of it.
function percentileText(percentile) {
  const digits = DATA.counts.train > 1000 ? 2 : 1;
  return percentile.toFixed(digits);
}
