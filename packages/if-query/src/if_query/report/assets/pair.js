// One pair of query and training example: score, tokens, parts of the model.

function pairPage(queryId, trainId) {
  const place = QUERY_PLACES.get(queryId);
  if (place === undefined) return missingPage(`There is no query “${queryId}” in this report.`);
  const query = DATA.queries[place];
  const row = rowsOf(query).find((one) => one.train.id === trainId) || mappedRow(place, trainId);
  if (!row) {
    return missingPage(`The pair of “${queryId}” and “${trainId}” is not among those shown here. Its score is in ${wholeTable("influences")}, or in scores.npy where that keeps only the extremes.`);
  }
  const { train } = row;
  const ownScale = train.self > 0 ? Math.sqrt(train.self) : null;
  return {
    title: `${train.id} → ${query.id}`,
    page: "queries",
    content: [
      element("nav", { "aria-label": "Back", class: "small" }, link("#/queries", "All queries"), link(queryLink(query), `Query ${query.id}`)),
      heading(`${train.id} → ${query.id}`),
      facts([
        ["influence score (nats per unit weight)", element("span", { class: row.score >= 0 ? "plus" : "minus" }, `${signedNumber(row.score, 6)} (${meaningOf(row.score)})`)],
        ["rank, 1 is the most helpful", row.rank ? `${row.rank.toLocaleString("en")} of ${DATA.counts.train.toLocaleString("en")}` : null],
        ["percentile", row.percentile === null ? null : percentileText(row.percentile)],
        ["self-influence of the training example", train.self === undefined ? null : plainNumber(train.self)],
        ["score / √ self-influence", ownScale ? signedNumber(row.score / ownScale) : null],
      ]),
      element("div", { class: "sides" },
        element("section", { class: "card", "aria-label": "Query" }, element("h2", {}, "Query"), saidText(query), facts(Object.entries(query.extras || {}))),
        element("section", { class: "card", "aria-label": "Training example" }, element("h2", {}, "Training example"), saidText(train), facts(Object.entries(train.extras || {})))),
      tokenSection(row, query),
      moduleSection(row, query),
    ],
  };
}

// A pair that only the heat map has: its score alone is known.
function mappedRow(queryPlace, trainId) {
  const rowPlace = DATA.map.queries.indexOf(queryPlace);
  const column = DATA.map.train.findIndex((place) => DATA.train[place].id === trainId);
  if (rowPlace < 0 || column < 0) return null;
  const score = unpackExactly(DATA.map.scores)[rowPlace * DATA.map.train.length + column];
  return { train: DATA.train[DATA.map.train[column]], score, rank: null, percentile: null, tokens: null, modules: null };
}

function tokenSection(row, query) {
  const { train, tokens } = row;
  if (!tokens || !train.tokens) {
    return element("section", {}, element("h2", {}, "By token"), element("p", { class: "quiet" },
      DATA.reading.per_token_scores
        ? "This report holds no scores per token for this pair: it is not among the query's shown extremes, or run-query --top-k left it out."
        : "Not computed: run-query --per-token-scores writes what each token contributes."));
  }
  const order = Array.from(train.tokens.keys()).slice(0, tokens.length)
    .sort((one, other) => Math.abs(tokens[other]) - Math.abs(tokens[one])).slice(0, 10);
  const largest = Math.abs(tokens[order[0]]);
  return element("section", { "aria-label": "By token" }, element("h2", {}, "By token"), tokenLegend([row]),
    element("div", { class: "card" }, shadedTokens(train, tokens, train.id)),
    element("h3", {}, "Largest contributions"),
    partsTable("Largest contributions by token", "Token", order.map((place) => [tokenName(train.tokens[place]), tokens[place], `position ${place + 1}`]), largest),
    downloadButton("Download tokens as CSV", `tokens_${query.id}_${train.id}`, () => [
      ["position", "token", "contribution"],
      ...train.tokens.slice(0, tokens.length).map((token, place) => [place + 1, token, tokens[place]])]));
}

function partsTable(title, first, parts, largest) {
  return element("table", { "aria-label": title },
    columns([[first], ["Contribution (nats per unit weight)"]]),
    element("tbody", {}, parts.map(([name, value, note]) => element("tr", {},
      element("th", { scope: "row", class: "mono" }, element("bdi", {}, name), note ? element("span", { class: "quiet small" }, ` ${note}`) : null),
      element("td", {}, scoreCell(value, largest))))));
}

function layerOf(name) {
  const found = name.match(/(?:^|\.)(\d+)(?:\.|$)/);
  return found ? `layer ${found[1]}` : name;
}

function moduleSection(row, query) {
  const section = element("section", { "aria-label": "By part of the model" }, element("h2", {}, "By part of the model"));
  if (!row.modules) {
    section.append(element("p", { class: "quiet" }, DATA.reading.per_module_scores
      ? "This report holds no scores per linear map for this pair: it is not among the query's shown extremes, or run-query --top-k left it out."
      : "Not computed: run-query --per-module-scores writes the score of every linear map."));
    return section;
  }
  const byModule = DATA.modules.map((name, place) => [name, row.modules[place]]);
  const layers = new Map();
  for (const [name, value] of byModule) layers.set(layerOf(name), (layers.get(layerOf(name)) || 0) + value);
  const holder = element("div");
  const show = (kind) => {
    const parts = kind === "layer" ? Array.from(layers) : byModule;
    const largest = parts.reduce((most, [, value]) => Math.max(most, Math.abs(value)), 0);
    const body = element("div");
    const pages = pager(parts, 40, (part) => body.replaceChildren(partsTable(`Contributions by ${kind}`, kind === "layer" ? "Layer" : "Linear map", part, largest)), "page of parts");
    holder.replaceChildren(body, pages);
  };
  show("layer");
  section.append(
    element("p", { class: "prose quiet small" }, "The parts add up to the score."),
    element("div", { class: "bar-of-tools" },
      labelled("Parts", choice([["layer", "layers"], ["map", "linear maps"]], "layer", show)),
      downloadButton("Download parts as CSV", `modules_${query.id}_${row.train.id}`, () => [["module", "contribution"], ...byModule])),
    holder);
  return section;
}
