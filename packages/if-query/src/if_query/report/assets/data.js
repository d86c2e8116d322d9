// The data of the page, and how its numbers, links and rows are read.

const DATA = JSON.parse(document.getElementById("data").textContent);
const QUERY_PLACES = new Map(DATA.queries.map((query, place) => [query.id, place]));
const NO_VALUE = "–";

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer;
}

function unpack(packed) {
  if (!packed) return null;
  const [scale, base64] = packed;
  const view = new DataView(bytesOf(base64));
  const values = new Float64Array(view.byteLength / 2);
  for (let place = 0; place < values.length; place += 1) {
    values[place] = scale * view.getInt16(2 * place, true);
  }
  return values;
}

function unpackExactly(base64) {
  const view = new DataView(bytesOf(base64));
  const values = new Float64Array(view.byteLength / 4);
  for (let place = 0; place < values.length; place += 1) {
    values[place] = view.getFloat32(4 * place, true);
  }
  return values;
}

function rowsOf(query) {
  const { rows } = query;
  return rows.train.map((place, row) => ({
    train: DATA.train[place],
    score: rows.score[row],
    rank: rows.rank[row],
    percentile: rows.percentile[row],
    helpful: row < rows.helpful,
    tokens: rows.tokens ? unpack(rows.tokens[row]) : null,
    modules: rows.modules ? unpack(rows.modules[row]) : null,
  }));
}

// Numbers: a minus sign as long as a plus sign, and the sign always there where it has a meaning.

function plainNumber(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return NO_VALUE;
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6)
    ? size.toExponential(digits - 2).replace("e+", "e")
    : String(Number(size.toPrecision(digits)));
  return (value < 0 ? "−" : "") + text.replace("e-", "e−");
}

function signedNumber(value, digits = 4) {
  return (value > 0 ? "+" : "") + plainNumber(value, digits);
}

function percentText(share, digits = 3) {
  return `${plainNumber(100 * share, digits)} %`;
}

function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

function meaningOf(score) {
  if (score > 0) return "helpful";
  return score < 0 ? "harmful" : "neither";
}

// Links.

function queryLink(query) {
  return `#/query/${encodeURIComponent(query.id)}`;
}

function pairLink(query, train) {
  return `#/pair/${encodeURIComponent(query.id)}/${encodeURIComponent(train.id)}`;
}

function wholeTable(name) {
  return `${name}.${DATA.format} in ${DATA.folder}`;
}
