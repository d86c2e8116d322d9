// The list of queries: search, sorting, pages.

const QUERIES_AT_ONCE = 25;
const ORDERS = [
  ["file", "order of the file"],
  ["loss-down", "loss, highest first"],
  ["loss-up", "loss, lowest first"],
  ["spread-down", "spread, widest first"],
  ["spread-up", "spread, narrowest first"],
  ["high-down", "highest score first"],
  ["low-up", "lowest score first"],
];
const listState = { search: "", order: "file" };

function searchable(query) {
  const extras = Object.values(query.extras || {}).join(" ");
  return `${query.id} ${query.prompt} ${query.completion} ${extras}`.toLocaleLowerCase();
}

function foundQueries() {
  const words = listState.search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  const found = DATA.queries.filter((query) => {
    const text = searchable(query);
    return words.every((word) => text.includes(word));
  });
  const [key, way] = listState.order.split("-");
  if (key !== "file") {
    // What has no number stands last either way.
    const sign = way === "down" ? -1 : 1;
    const value = (query) => (query[key] === null ? Infinity : sign * query[key]);
    found.sort((one, other) => value(one) - value(other));
  }
  return found;
}

function queriesPage() {
  const { counts } = DATA;
  const body = element("tbody", { role: "rowgroup" });
  const status = element("p", { role: "status", class: "small quiet" });
  const pages = element("div");
  const heads = element("thead");
  const orderBox = choice(ORDERS, listState.order, (value) => { listState.order = value; update(); });
  function update() {
    const found = foundQueries();
    status.textContent = found.length === DATA.queries.length
      ? counted(found.length, "query", "queries")
      : `${found.length.toLocaleString("en")} of ${counted(DATA.queries.length, "query", "queries")} found`;
    orderBox.value = listState.order;
    heads.replaceChildren(queryHeads(update));
    pages.replaceChildren(pager(found, QUERIES_AT_ONCE, (part) => body.replaceChildren(...part.map(queryRow)), "page of queries"));
  }
  const search = element("input", { type: "search", id: "search", value: listState.search, autocomplete: "off",
    input: () => { listState.search = search.value; update(); } });
  const made = [
    heading("Queries"),
    element("p", { class: "prose" }, `Scores of ${counted(counts.train, "training example")} for ${counted(counts.queries, "query", "queries")}. A positive score is helpful: training more on that example lowers the query's loss. Open a query to see which examples helped and harmed it most.`),
    capNote(),
    element("div", { class: "bar-of-tools" },
      labelled("Search id and text", search, "wide"),
      labelled("Order", orderBox),
      downloadButton("Download list as CSV", "queries", () => queryListRows(foundQueries()))),
    status,
    element("table", { class: "stacks", role: "table", "aria-label": "Queries" }, heads, body),
    pages,
  ];
  update();
  return { title: "Queries", content: made };
}

function queryHeads(update) {
  const [key, way] = listState.order.split("-");
  const head = (name, column, hint) => {
    const sorted = key === column ? (way === "down" ? "descending" : "ascending") : null;
    const sort = () => {
      listState.order = `${column}-${sorted === "descending" ? "up" : "down"}`;
      update();
      document.querySelector(`[data-sort="${column}"]`).focus();
    };
    const arrow = sorted ? (way === "down" ? " ▾" : " ▴") : "";
    return element("th", { scope: "col", role: "columnheader", class: "number", "aria-sort": sorted },
      button(name + arrow, sort, { class: "plain", "data-sort": column, title: hint }));
  };
  const plain = (name) => element("th", { scope: "col", role: "columnheader" }, name);
  return element("tr", { role: "row" }, plain("Query"), plain("Prompt and completion"),
    head("Loss", "loss", "Summed over the completion, in nats"),
    head("Spread", "spread", "Standard deviation of all its scores"),
    head("Highest", "high", "Score of the most helpful training example"),
    head("Lowest", "low", "Score of the most harmful training example"));
}

function queryRow(query) {
  const cell = (label, text) => element("td", { role: "cell", class: "number", "data-label": label }, text);
  return element("tr", { role: "row" },
    element("th", { scope: "row", role: "rowheader", class: "whole" }, link(queryLink(query), query.id)),
    element("td", { role: "cell", class: "whole" },
      element("bdi", {}, ...visible(excerpt(query.prompt, 160))), " ",
      element("bdi", { class: "completion" }, ...visible(excerpt(query.completion, 80)))),
    cell("Loss", plainNumber(query.loss)), cell("Spread", plainNumber(query.spread)),
    cell("Highest", signedNumber(query.high)), cell("Lowest", signedNumber(query.low)));
}

function queryListRows(queries) {
  return [["query_id", "prompt", "completion", "loss", "spread", "highest_score", "lowest_score"],
    ...queries.map((query) => [query.id, query.prompt, query.completion, query.loss, query.spread, query.high, query.low])];
}

// What this page leaves out, and where it is.
function capNote() {
  const { counts } = DATA;
  const parts = [`Shown are at most ${counts.rows} most helpful and ${counts.rows} most harmful training examples per query`];
  if (counts.shown_queries < counts.queries) {
    parts.push(`the first ${counts.shown_queries.toLocaleString("en")} of ${counts.queries.toLocaleString("en")} queries`);
  }
  parts.push(`and the first ${counts.text_chars.toLocaleString("en")} characters of a text`);
  return element("p", { class: "prose small quiet", id: "cap" },
    `${parts.join(", ")}, so that this file stays under 5 MB. The whole: scores.npy in ${DATA.folder} has every score, and ${wholeTable("influences")} their rows; texts are in ${wholeTable("query")} and ${wholeTable("train")}.`);
}
