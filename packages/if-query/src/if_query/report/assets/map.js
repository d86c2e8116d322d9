// The heat map of queries × training examples: controls, readout, download.

const mapState = { clustered: true, divided: false, scale: "row" };

// The shown matrix: its rows and columns in order, and the values.
function mapView() {
  const { map } = DATA;
  const raw = unpackExactly(map.scores);
  const width = map.train.length;
  const order = map.orders[mapState.divided ? "normalised" : "raw"];
  const [rows, cols] = mapState.clustered ? order : [map.queries.map((_, place) => place), map.train.map((_, place) => place)];
  const values = rows.map((row) => cols.map((column) => {
    const score = raw[row * width + column];
    if (!mapState.divided) return score;
    const own = DATA.train[map.train[column]].self;
    return own > 0 ? score / Math.sqrt(own) : NaN;
  }));
  return {
    values,
    queries: rows.map((row) => DATA.queries[map.queries[row]]),
    train: cols.map((column) => DATA.train[map.train[column]]),
  };
}

function shares(values) {
  const sizeOf = (row) => row.reduce((most, value) => (Math.abs(value) > most ? Math.abs(value) : most), 0);
  const overall = values.reduce((most, row) => Math.max(most, sizeOf(row)), 0);
  return values.map((row) => {
    const largest = (mapState.scale === "row" ? sizeOf(row) : overall) || 1;
    return row.map((value) => value / largest);
  });
}

function mapPage() {
  const { map, counts } = DATA;
  const hasOwn = "normalised" in map.orders;
  const frame = element("div", { class: "map-frame" });
  const readout = element("p", { role: "status", id: "readout", class: "small" });
  const draw = () => {
    frame.replaceChildren(mapCanvas(mapView(), (view, row, column) => tellCell(readout, view, row, column)));
    readout.replaceChildren("Point at a cell, or use the arrow keys in the map; Enter opens the pair.");
  };
  const change = (name) => (value) => { mapState[name] = value; draw(); };
  draw();
  return {
    title: "Heat map",
    page: "map",
    redraw: draw,
    content: [
      heading("Heat map"),
      element("p", { class: "prose" }, `${counted(map.queries.length, "query", "queries")} (rows) against the ${counted(map.train.length, "training example")} with the largest scores among them (columns)${map.train.length < counts.train || map.queries.length < counts.queries ? `, of ${counts.queries.toLocaleString("en")} × ${counts.train.toLocaleString("en")} in scores.npy` : ""}. Like rows and like columns stand together: average linkage on the cosine distance.`),
      element("div", { class: "bar-of-tools" },
        checkbox("Cluster rows and columns", mapState.clustered, change("clustered")),
        labelled("Strength of colour", choice([["row", "share of the row's largest"], ["all", "share of the largest of all"]], mapState.scale, change("scale"))),
        checkbox("Divide by √ self-influence", mapState.divided, change("divided"), { disabled: !hasOwn, id: "divide", "aria-describedby": "divide-note" }),
        downloadButton("Download map as CSV", "heat_map", mapRows)),
      element("p", { class: "prose small quiet", id: "divide-note" }, hasOwn
        ? "Divided: score / √(self-influence of the training example), gᵀ(F + λI)⁻¹g of its own gradient g. Examples with large gradients no longer stand out with every query. Up to a factor for each query this is a cosine. A cell without a value has no positive self-influence."
        : "Not computed: run-query --self-influence writes the self-influence of each training example, by whose root the scores can then be divided."),
      mapLegend(),
      readout,
      frame,
    ],
  };
}

function mapLegend() {
  const swatch = (share, text) => {
    const made = element("span", { class: "swatch", "aria-hidden": "true" }, share < 0 ? "╱" : "");
    made.style.backgroundColor = shade(share);
    return element("span", {}, made, ` ${text}`);
  };
  return element("p", { class: "legend" }, swatch(0.9, "helpful (positive)"), swatch(-0.9, "harmful (negative), with a stroke through the cell"), element("span", {}, "paler is nearer to zero"));
}

function tellCell(readout, view, row, column) {
  const query = view.queries[row];
  const train = view.train[column];
  const value = view.values[row][column];
  const name = mapState.divided ? "score / √ self-influence" : "score";
  readout.replaceChildren(link(pairLink(query, train), `${query.id} × ${train.id}`), `: ${name} ${signedNumber(value)} (${meaningOf(value)}). `,
    element("bdi", { class: "quiet" }, ...visible(excerpt(`${train.prompt} ${train.completion}`, 80))));
}

function mapRows() {
  const view = mapView();
  return [["query_id", ...view.train.map((train) => train.id)],
    ...view.queries.map((query, row) => [query.id, ...view.values[row].map((value) => (Number.isNaN(value) ? "" : value))])];
}
