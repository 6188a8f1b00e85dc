"use strict";
// In the head: the theme is known before anything is drawn.
{
  const key = "gaternet-report-theme";
  const remembered = () => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // some browsers give pages from disk no storage
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new CustomEvent("theme"));
  };
  const label = (button) => {
    const dark = document.documentElement.dataset.theme === "dark";
    button.textContent = dark ? "☀ Light" : "☾ Dark";
    button.setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
  };

  apply(remembered() ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => {
    if (!remembered()) apply(system.matches ? "dark" : "light");
  });
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    label(button);
    document.addEventListener("theme", () => label(button));
    button.addEventListener("click", () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      apply(theme);
      try {
        localStorage.setItem(key, theme);
      } catch {
        // not remembered, then
      }
    });
  });
}
