// Which page the address names, the theme, and the focus that follows.

let currentPage = null;

function heading(text) {
  return element("h1", { tabindex: "-1" }, element("bdi", {}, ...visible(text)));
}

function missingPage(text) {
  return {
    title: "Not in this report",
    content: [heading("Not in this report"), element("p", { class: "prose" }, ...visible(text)), link("#/queries", "All queries")],
  };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function pageOf(hash) {
  const [name, ...parts] = hash.replace(/^#\/?/, "").split("/");
  if (name === "" || name === "queries") return { page: "queries", ...queriesPage() };
  if (name === "query" && parts.length === 1) return queryPage(decoded(parts[0]));
  if (name === "pair" && parts.length === 2) return pairPage(decoded(parts[0]), decoded(parts[1]));
  if (name === "map") return mapPage();
  if (name === "curvature") return healthPage();
  if (name === "reading") return readingPage();
  return missingPage(`There is no page ${hash}.`);
}

function show(moveFocus) {
  const { hash } = window.location;
  if (hash !== "" && !hash.startsWith("#/")) return; // the link that skips to the content
  hideTip();
  currentPage = pageOf(hash);
  const main = document.getElementById("main");
  main.replaceChildren(...currentPage.content.flat().filter(Boolean));
  document.title = `${visibleText(currentPage.title)} – ${visibleText(DATA.title)}`;
  for (const anchor of document.querySelectorAll("[data-page]")) {
    if (anchor.dataset.page === currentPage.page) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  if (moveFocus) {
    window.scrollTo(0, 0);
    main.querySelector("h1").focus({ preventScroll: true });
  }
}

// The theme: the system's until the button was pressed; remembered where the browser lets a file.

function themeKept() {
  try {
    return window.localStorage.getItem("influence-report-theme");
  } catch {
    return null;
  }
}

function setTheme(dark, keep) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  if (!keep) return;
  try {
    window.localStorage.setItem("influence-report-theme", dark ? "dark" : "light");
  } catch {
    // Private windows may refuse; the choice then lasts as long as the page.
  }
}

function repaint() {
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  if (currentPage && currentPage.redraw) currentPage.redraw();
  else if (currentPage) show(false);
}

function start() {
  const kept = themeKept();
  if (kept) setTheme(kept === "dark", false);
  document.getElementById("theme").addEventListener("click", () => { setTheme(!isDark(), true); repaint(); });
  SYSTEM_DARK.addEventListener("change", repaint);
  window.addEventListener("hashchange", () => show(true));
  window.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  document.getElementById("footer").append(
    ...visible(`Written by influence-report of if-query ${DATA.reading.versions["if-query"]} from ${DATA.folder}. This file holds all it shows and fetches nothing.`));
  show(false);
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
}

start();
