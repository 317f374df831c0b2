// Wide tables scroll by the keyboard, too, and the search has a name for those who cannot see it.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((wide) => (wide.tabIndex = 0));
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
});
