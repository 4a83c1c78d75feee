// What the theme leaves out for keyboards and screen readers; it adds its elements while a page is shown.
function mend() {
  document.querySelectorAll("nav.md-code__nav").forEach((nav) => nav.setAttribute("role", "none"));
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach((box) => (box.tabIndex = 0));
  document.querySelectorAll("th:empty").forEach((cell) => cell.replaceWith(document.createElement("td")));
}
mend();
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
