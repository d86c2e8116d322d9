// What is shown, as a CSV file made in the browser.

const FORMULA = /^[=+\-@\t\r]/;

function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  // A spreadsheet would run a text that begins like a formula; the apostrophe makes it a text.
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function downloadButton(text, name, makeRows) {
  return button(text, () => {
    const lines = makeRows().map((row) => row.map(csvCell).join(","));
    const blob = new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv;charset=utf-8" });
    const anchor = element("a", { href: URL.createObjectURL(blob), download: `${fileName(name)}.csv` });
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
  }, { title: "Texts that a spreadsheet would take for a formula get an apostrophe before them" });
}

function fileName(name) {
  return name.replace(/[^\p{L}\p{N}_-]+/gu, "_").slice(0, 80) || "influence";
}
