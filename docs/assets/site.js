// Wide tables scroll by the keyboard, too.
addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((wide) => (wide.tabIndex = 0));
});
