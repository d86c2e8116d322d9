// One query: its text, where all scores lie, its most helpful and most harmful training examples.

function queryPage(id) {
  const place = QUERY_PLACES.get(id);
  if (place === undefined) return missingPage(`There is no query “${id}” in this report.`);
  const query = DATA.queries[place];
  const rows = rowsOf(query);
  const largest = rows.reduce((most, row) => Math.max(most, Math.abs(row.score)), 0);
  const side = (helpful) => rows.filter((row) => row.helpful === helpful);
  return {
    title: query.id,
    page: "queries",
    content: [
      neighbours(place),
      heading(query.id),
      element("div", { class: "sides" },
        element("section", { class: "card", "aria-label": "The query" },
          element("h2", {}, "The query"), saidText(query),
          facts([
            ["loss (nats)", plainNumber(query.loss)],
            ["spread of scores", plainNumber(query.spread)],
            ["helpful examples", `${query.num_positive.toLocaleString("en")} of ${DATA.counts.train.toLocaleString("en")}`],
          ]),
          facts(Object.entries(query.extras || {}))),
        distributionSection(query, rows)),
      element("div", { class: "bar-of-tools middle" }, tokenLegend(rows),
        downloadButton("Download these rows as CSV", `influence_${query.id}`, () => extremesAsRows(query, rows))),
      element("div", { class: "sides" },
        sideSection(query, side(true), "Most helpful", largest),
        sideSection(query, side(false), "Most harmful", largest)),
    ],
  };
}

function neighbours(place) {
  const to = (step, name) => {
    const query = DATA.queries[place + step];
    return query ? link(queryLink(query), name) : element("span", { class: "quiet" }, name);
  };
  return element("nav", { "aria-label": "Queries beside this one", class: "small" },
    link("#/queries", "All queries"), to(-1, "Previous query"), to(1, "Next query"));
}

function distributionSection(query, rows) {
  const names = DATA.quantiles.map((share) => (share === 0 ? "lowest" : share === 1 ? "highest" : `${100 * share} %`));
  return element("section", { class: "card", "aria-labelledby": "spread" },
    element("h2", { id: "spread" }, `Where all ${DATA.counts.train.toLocaleString("en")} scores lie`),
    element("p", { class: "legend" },
      element("span", {}, element("span", { class: "plus", "aria-hidden": "true" }, "▲ "), "shown as most helpful"),
      element("span", {}, element("span", { class: "minus", "aria-hidden": "true" }, "▼ "), "shown as most harmful"),
      element("span", {}, "heights are logarithmic")),
    distribution(query, rows),
    element("details", { class: "small" }, element("summary", {}, "Quantiles as a table"),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Quantiles" },
        element("table", {}, element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col", class: "number" }, name)))),
          element("tbody", {}, element("tr", {}, query.quantiles.map((value) => element("td", { class: "number" }, signedNumber(value)))))))));
}

function tokenLegend(rows) {
  if (rows.some((row) => row.tokens && row.train.tokens)) {
    const sample = (share, text, className) => {
      const made = element("span", { class: `token ${className}` }, text);
      made.style.backgroundColor = shade(share, 0.5);
      return made;
    };
    return element("p", { class: "legend" },
      sample(1, "helps", "strong-plus"), sample(-1, "harms", "strong-minus"),
      "What each token contributes to the score, shaded by the largest of its example; hover, or use the arrow keys, for the number.");
  }
  return element("p", { class: "small quiet", id: "no-tokens" },
    "This run kept no score per token. run-query --per-token-scores writes them, and the tokens here are then shaded by what they contribute.");
}

function sideSection(query, rows, title, largest) {
  const id = title.replace(" ", "-").toLowerCase();
  const odd = rows.filter((row) => (title === "Most helpful" ? row.score < 0 : row.score > 0)).length;
  const note = odd === 0 ? null : title === "Most helpful"
    ? `${odd === rows.length ? "All" : odd} of these scores are negative: the highest there are, yet harmful.`
    : `${odd === rows.length ? "All" : odd} of these scores are positive: the lowest there are, yet helpful.`;
  return element("section", { class: "card", id, "aria-labelledby": `${id}-title` },
    element("h2", { id: `${id}-title` }, title),
    note ? element("p", { class: "small quiet" }, note) : null,
    rows.length ? extremesTable(query, rows, title, largest) : element("p", {}, "There are none."));
}

function extremesAsRows(query, rows) {
  return [["query_id", "train_id", "side", "influence_score", "rank", "percentile", "prompt", "completion"],
    ...rows.map((row) => [query.id, row.train.id, row.helpful ? "helpful" : "harmful", row.score,
      row.rank, row.percentile, row.train.prompt, row.train.completion])];
}
