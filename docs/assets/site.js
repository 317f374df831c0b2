// Wide tables scroll by the keyboard, too, and the search has a name for those who cannot see it.
// A browser may break a name or a day after each of its hyphens; one that fits a phone stays whole.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((wide) => (wide.tabIndex = 0));
  document.querySelectorAll(".md-typeset :not(pre) > code").forEach((code) => {
    if (/^\S{1,34}$/.test(code.textContent)) code.style.whiteSpace = "nowrap";
  });
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
});
